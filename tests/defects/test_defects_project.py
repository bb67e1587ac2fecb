"""What a repository promises: paste back, split, requirements, README; and that no defect goes untested."""

from __future__ import annotations

import ast
import re
import shlex
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import click
import numpy as np
import pytest
from case_folders import (
    BOX_SLICES,
    Folders,
    coded_ct,
    ct_hu,
    moved_spine,
    nodes,
    open_stand_in,
    retroln,
    write,
)
from spine import ORIENTATIONS

from retroln.cli import cli
from retroln.errors import UserError
from retroln.imaging import nifti
from retroln.nnunet import splits
from retroln.steps import landmarks_folder

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "howto").glob("*.md")), ROOT / "docs" / "tutorial.md"]
# what comes with a declared distribution and belongs to it
_COMES_WITH = {
    "acvl_utils": "nnunetv2",
    "batchgenerators": "nnunetv2",
    "batchgeneratorsv2": "nnunetv2",
    "botocore": "boto3",
    "dynamic_network_architectures": "nnunetv2",
    "mypy_boto3_s3": "boto3",  # for the type checker alone
    "pandas": "mlflow",
    "pydantic": "pydantic-settings",
    "pyyaml": "prefect",
    "simpleitk": "nnunetv2",
}


@pytest.mark.parametrize("orientation", ORIENTATIONS[::7])
def test_defect_23_a_crop_goes_back_bit_by_bit(tmp_path: Path, orientation: str) -> None:
    """There was no way back to the scan."""
    folders = Folders.below(tmp_path)
    write(folders.ct / "a.nii.gz", ct_hu(), orientation)
    write(folders.vertebrae / "a.nii.gz", moved_spine(), orientation)
    write(folders.masks / "a.nii.gz", nodes(), orientation)
    assert folders.crop("--no-normalize").code == 0
    for part, array in (("ct", ct_hu()), ("mask", nodes())):
        files = ("--crop", folders.out / f"a_{part}.nii.gz", "--roi", folders.out / "a_roi.json")
        assert retroln("paste", *files, "--output", tmp_path / f"{part}.nii.gz").code == 0
        back, delivered = nifti.read(tmp_path / f"{part}.nii.gz"), nifti.read_grid(folders.ct / "a.nii.gz")
        expected = np.zeros_like(array)
        expected[BOX_SLICES] = array[BOX_SLICES]
        assert np.array_equal(back.array, expected)
        assert back.array.dtype == array.dtype
        assert back.source.distance_mm(delivered) < 1e-3


def test_defect_23_a_patient_is_in_one_fold(tmp_path: Path) -> None:
    """Scans were split without regard to whose they are."""
    patients = {f"P{number // 3}_{number % 3}": f"P{number // 3}" for number in range(30)}
    fold_of = splits.folds(patients, 5, seed=600)
    assert len({(patients[case], fold) for case, fold in fold_of.items()}) == 10
    torn = {**fold_of, "P0_0": (fold_of["P0_1"] + 1) % 5}
    with pytest.raises(splits.PatientLeakError):
        splits.write_splits(tmp_path, torn, patients)
    tested = splits.assign_test(set(patients.values()), 0.2, 600, frozenset(), frozenset())
    with pytest.raises(UserError, match="have been trained on"):
        splits.assign_test(set(patients.values()), 0.2, 600, tested, tested)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", name)[0]).lower()


def _declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        one for name, listed in project["optional-dependencies"].items() if name != "dev" for one in listed
    ]
    return {_plain(one) for one in (*project["dependencies"], *extras)} - {"retroln"}


def _imported() -> set[str]:
    """Names of the packages that the shipped code and the flows import."""
    found = set()
    for path in [file for name in ("retroln", "flows", "tasks") for file in (ROOT / name).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"retroln", "flows", "tasks", "infra"}


def test_defect_23_every_requirement_is_declared_and_pinned() -> None:
    """There was no list of requirements."""
    declared, owners = _declared(), packages_distributions()
    pinned = {_plain(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert declared - pinned == set()
    imported = _imported()
    assert {"nibabel", "numpy", "prefect"} <= imported
    for module in imported:
        names = {_plain(name) for name in owners.get(module, (module,))}
        names |= {_COMES_WITH[name] for name in (module.lower(), *names) if name in _COMES_WITH}
        assert names & declared, f"{module} is imported and not declared"


def test_defect_23_the_readme_promises_nothing_that_is_not_there() -> None:
    """Weights and a "landmark-aware augmentation" were promised, and missing."""
    assert "landmark-aware" not in README
    assert "**A model for patients.** None is shipped." in README
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    promised = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert promised and promised <= set(targets)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", README) if "://" not in link]
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def _commands(text: str) -> list[list[str]]:
    """The `retroln ...` lines of a text's code blocks, as a shell would split them, without the program."""
    blocks = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if re.match(r" *(\S*/)?retroln ", line)]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _commands(page.read_text())], ids=lambda page: page.name
)
def test_defect_24_every_documented_command_is_one(page: Path) -> None:
    """The command line of the README could not be parsed."""
    for name, *arguments in _commands(page.read_text()):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None, f"no command {name}"
        command.make_context(name, list(arguments), parent=click.Context(cli))


def _run_section(heading: str) -> set[str]:
    """Run the commands of one of the README's sections, one after the other; their names."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    commands = [words for words in _commands(section) if words[0] != "predict"]  # that one wants a model
    for words in commands:
        ran = retroln(*words)
        assert ran.code == 0, f"{shlex.join(words)}: {ran.output}"
    return {words[0] for words in commands}


def test_defect_24_the_commands_on_single_files_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with the files that they name."""
    monkeypatch.chdir(tmp_path)
    for name, array in (("ct", ct_hu()), ("vertebrae", moved_spine()), ("mask", nodes())):
        write(Path(f"{name}.nii.gz"), array, "LPS")
    assert _run_section("Single files, no set-up") == {"crop", "paste", "measure"}
    assert np.count_nonzero(nifti.read(Path("labels.nii.gz")).array) == 20
    assert len(Path("nodes.csv").read_text().splitlines()) == 1 + 2


def test_defect_24_the_commands_on_folders_run_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The segmenter is a stand-in; file names and options are those of the README."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(landmarks_folder, "open_totalseg", open_stand_in)
    landmarks_folder._opened.cache_clear()
    for number in range(3):
        write(Path("ct", f"LN_{number}_0000.nii.gz"), coded_ct(moved_spine(number)), "LPS")
        write(Path("masks", f"LN_{number}.nii.gz"), nodes(number), "LPS")
    assert _run_section("Folders") == {"landmarks", "crop"}
    assert len(list(Path("crops").glob("LN_*_roi.json"))) == 3


def test_every_defect_has_its_test() -> None:
    """1 to 24, by the names of the functions in this folder."""
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    tested = {int(number) for number in re.findall(r"^def test_defect_(\d\d)_", text, re.MULTILINE)}
    assert tested == set(range(1, 25))
