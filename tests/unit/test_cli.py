"""The command line as a person meets it: a process of its own, its exit code, and what it says."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from retroln.catalog.database import Database
from retroln.cli import cli
from retroln.cli.doctor import _answers, _misspelt
from retroln.cli.state import _model_caution
from retroln.report.terminal import case_story
from retroln.settings import Settings
from retroln.steps import promote
from retroln.steps.workspace import open_workspace
from tests.stand_in import register
from tests.way import ingest_and_prepare

COMMANDS = list(cli.list_commands(None))  # type: ignore[arg-type]
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def retroln(tmp_path: Path) -> Command:
    """Run `retroln ARGUMENTS` on the embedded workspace of the `settings` fixture."""

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        own = {
            "RETROLN_SOURCE_URI": f"file://{tmp_path}/source",
            "RETROLN_STORE_URI": f"file://{tmp_path}/store",
            "RETROLN_CATALOG_URL": f"sqlite:///{tmp_path}/catalog.db",
            "RETROLN_MLFLOW_URI": f"sqlite:///{tmp_path}/mlflow.db",
            "RETROLN_MLFLOW_ARTIFACTS": f"{tmp_path}/mlartifacts",
            "RETROLN_WORK_DIR": f"{tmp_path}/work",
            "RETROLN_PROCESSES": "1",
            "COLUMNS": "200",
        }
        command = [sys.executable, "-m", "retroln.cli", *arguments]
        environment = {**os.environ, **own, **extra}
        root = Path(__file__).parents[2]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, check=False)

    return run


def _require_one_line(found: subprocess.CompletedProcess[str], exit_code: int, *mentions: str) -> None:
    assert found.returncode == exit_code, found.stderr
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    for text in mentions:
        assert text in found.stderr


def _truncate(folder: Path) -> None:
    path = folder / "ct.nii.gz"
    path.write_bytes(path.read_bytes()[:5000])


def test_help_lists_every_command(retroln: Command) -> None:
    found = retroln("--help")
    assert found.returncode == 0
    listed = [line.split()[0] for line in found.stdout.split("Commands:")[1].splitlines() if line.strip()]
    assert [name for name in listed if name in COMMANDS] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    from click.testing import CliRunner

    found = CliRunner().invoke(cli, [command, "--help"])
    assert found.exit_code == 0
    assert f"{command} [OPTIONS]" in found.output
    explained = found.output.split("\n\n")[1].strip()
    assert explained.endswith(".") or explained.endswith("`")


def test_crop_does_not_load_the_heavy_libraries() -> None:
    check = (
        "import sys, retroln.cli.files, retroln.steps.files;"
        "print(sorted({'torch', 'mlflow', 'nnunetv2', 'prefect', 'sqlalchemy', 'pandas'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ("crop", "--ct", "x.nii.gz"),
        ("prepare", "--limit", "0"),
        ("train", "--profile", "large"),
        ("train", "--folds", "first"),
        ("train", "--folds", "7"),
        ("promote", "one"),
        ("melt",),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_without_a_traceback(retroln: Command, arguments: tuple[str, ...]) -> None:
    found = retroln(*arguments)
    assert found.returncode == 2
    assert "Error: " in found.stderr
    assert "Traceback" not in found.stderr


def test_missing_file_is_one_line(retroln: Command, tmp_path: Path) -> None:
    missing = tmp_path / "none.nii.gz"
    arguments = ("--ct", str(missing), "--vertebrae", str(missing), "--output-dir", str(tmp_path / "out"))
    _require_one_line(retroln("crop", *arguments), 7, "none.nii.gz")


def test_a_full_disk_is_one_line_with_the_fix(
    retroln: Command, deliver: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = deliver("CASE", "P1"), tmp_path / "out"
    little = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (20_000, 20_000))
    monkeypatch.setattr(subprocess, "run", partial(subprocess.run, preexec_fn=little))
    arguments = ("--ct", f"{folder}/ct.nii.gz", "--vertebrae", f"{folder}/vertebrae.nii.gz")
    found = retroln("crop", *arguments, "--output-dir", str(output))
    _require_one_line(found, 13, "the disk has no room left", "fix: free space")
    assert not list(output.glob("*"))


def test_unusable_image_is_one_line_with_the_fix(
    retroln: Command, deliver: Callable[..., Path], tmp_path: Path
) -> None:
    folder = deliver("BAD", "P1")
    _truncate(folder)
    arguments = ("--ct", f"{folder}/ct.nii.gz", "--vertebrae", f"{folder}/vertebrae.nii.gz")
    _require_one_line(
        retroln("crop", *arguments, "--output-dir", str(tmp_path / "out")), 3, "ct.nii.gz", "fix: "
    )


@pytest.mark.parametrize("identity", ["given", "pseudonym"])
def test_a_folder_whose_name_is_no_text_can_be_shown(retroln: Command, tmp_path: Path, identity: str) -> None:
    folder = tmp_path / "source" / "P1" / os.fsdecode(b"caf\xe9")
    folder.mkdir(parents=True)
    (folder / "ct.nii.gz").write_bytes(b"x")
    settings = {
        "RETROLN_IDENTITY": identity,
        "RETROLN_PSEUDONYM_KEY": "of these tests, thirty-two characters",
    }
    ingested = retroln("ingest", **settings)
    assert ingested.returncode == 0, ingested.stderr
    assert "1 in = 0 done + 0 skipped + 1 quarantined + 0 failed" in ingested.stdout
    shown = retroln("status", **settings)
    assert shown.returncode == 0, shown.stderr
    assert ("caf\\udce9" in shown.stdout) is (identity == "given")
    (case_id,) = re.findall(r"caf\\udce9(?=\tquar)|C-[A-Z2-7]{16}", shown.stdout)
    assert retroln("status", case_id, **settings).returncode == 0
    if identity == "pseudonym":
        assert retroln("source", "find", case_id, **settings).stdout == "P1/caf\\udce9/ct.nii.gz\n"


def test_wrong_setting_is_one_line_naming_the_variable(retroln: Command) -> None:
    _require_one_line(retroln("status", RETROLN_PROCESSES="many"), 4, "RETROLN_PROCESSES", "'many'", "fix: ")


def test_wrong_nested_setting_names_its_variable(retroln: Command) -> None:
    _require_one_line(retroln("status", RETROLN_ROI__AHEAD_MM="-1"), 4, "RETROLN_ROI__AHEAD_MM", "'-1'")


def test_unknown_catalog_scheme_is_one_line(retroln: Command) -> None:
    _require_one_line(retroln("status", RETROLN_CATALOG_URL="nonsense"), 4, "fix: ")


def test_training_without_cases_is_refused(retroln: Command) -> None:
    _require_one_line(retroln("train", "--profile", "demo"), 6, "too few labelled patients", "fix: ")


@pytest.mark.parametrize("arguments", [("status", "NOBODY"), ("requeue", "NOBODY"), ("infer",)], ids=" ".join)
def test_unknown_case_or_model_exits_7(retroln: Command, arguments: tuple[str, ...]) -> None:
    _require_one_line(retroln(*arguments), 7, *arguments[1:], "fix: ")


def test_case_that_needs_nothing_is_not_requeued(
    retroln: Command, deliver: Callable[..., Path], settings: Settings
) -> None:
    deliver("CASE", "P1")
    assert retroln("ingest").returncode == 0
    _require_one_line(retroln("requeue", "CASE"), 8, "CASE")


def test_failed_case_is_named_and_exits_10_while_the_rest_goes_on(
    retroln: Command, deliver: Callable[..., Path], settings: Settings
) -> None:
    deliver("CASE", "P1")
    deliver("OTHER", "P2")
    retroln("ingest")
    stored = open_workspace(settings).catalog.current_scan("CASE")
    assert stored is not None
    open_workspace(settings).store.delete(str(stored.ct_key))
    found = retroln("prepare")
    assert found.returncode == 10
    assert "2 in = 1 done + 0 skipped + 0 quarantined + 1 failed" in found.stdout
    assert "CASE failed (NotFoundError): " in found.stdout
    assert "failed" in retroln("status", "CASE").stdout


def test_quarantine_is_listed_and_no_failure(retroln: Command, deliver: Callable[..., Path]) -> None:
    deliver("GOOD", "P1")
    _truncate(deliver("BAD", "P2"))
    found = retroln("ingest")
    assert found.returncode == 0, found.stderr
    assert "2 in = 1 done + 0 skipped + 1 quarantined + 0 failed" in found.stdout
    assert "BAD quarantined (truncated): P2/BAD/ct.nii.gz: " in found.stdout
    assert "fix: " in found.stdout
    found = retroln("prepare")
    assert (found.returncode, found.stdout) == (0, "1 in = 1 done + 0 skipped + 0 quarantined + 0 failed\n")
    found = retroln("prepare")
    assert (found.returncode, found.stdout) == (0, "1 in = 0 done + 1 skipped + 0 quarantined + 0 failed\n")
    status = retroln("status").stdout
    assert "prepared" in status
    assert "truncated" in status
    story = retroln("status", "BAD").stdout
    assert "truncated" in story
    assert retroln("requeue", "BAD").stdout.startswith("BAD is ")
    assert retroln("ingest").returncode == 0


def _record_results(settings: Settings, version: int, **place: str) -> None:
    """One node in CASE, found by a version."""
    catalog = open_workspace(settings).catalog
    scan = catalog.current_scan("CASE")
    assert scan is not None
    sizes = {"volume_mm3": 700.0, "short_axis_mm": 11.0, "long_axis_mm": 14.0}
    node = {"label": 1, **sizes, "centroid_world_mm": [0, 0, 0], "recist": "non_target", **place}
    results = {"label_key": "l", "page_key": None, "run_id": None, "nodes": [node]}
    catalog.record_prediction(scan.scan_id, model_name="retroln", version=version, **results)


def test_the_story_of_a_case_says_where_nodes_lie_and_that_a_stand_in_found_them(
    retroln: Command, deliver: Callable[..., Path], settings: Settings, tmp_path: Path
) -> None:
    deliver("CASE", "P1")
    ingest_and_prepare(settings)
    version = register(settings, tmp_path / "model", stand_in="trained on phantoms")
    _record_results(settings, version, level="L3")
    story = retroln("status", "CASE").stdout
    assert "level" in story and "L3" in story and "station" not in story
    assert "The model is a stand-in, trained on phantoms." in story


def test_the_story_shows_stations_where_there_are_some_and_what_is_not_known_of_the_model(
    deliver: Callable[..., Path], settings: Settings
) -> None:
    deliver("CASE", "P1")
    ingest_and_prepare(settings)
    _record_results(settings, 1, level="L3", station="paracaval")
    workspace = open_workspace(settings)
    *_, nodes = tables = case_story(workspace.catalog, "CASE", lambda _: None)
    cells = {column.header: list(column.cells) for column in nodes.columns}
    assert (cells["level"], cells["station"]) == (["L3"], ["paracaval"])
    assert "Cautions" not in [table.title for table in tables]
    cautions = case_story(workspace.catalog, "CASE", partial(_model_caution, workspace))[1]
    assert next(cautions.columns[0].cells).startswith("Whether the model is a stand-in is not known: ")


def test_infer_says_that_its_model_is_a_stand_in(
    retroln: Command, settings: Settings, tmp_path: Path
) -> None:
    version = register(settings, tmp_path / "model", stand_in="trained on phantoms")
    promote.promote(settings, version, reviewer="Dr A", comment="to test the command")
    assert "The model is a stand-in, trained on phantoms.\n" in retroln("infer").stdout


def test_an_address_is_shown_without_its_password() -> None:
    for url in ("postgresql+psycopg://me:hidden@host/db", "postgresql+psycopg://me@host/db?password=hidden"):
        address = Database(create_engine(url)).address
        assert address.replace(":***@", "@") == "postgresql+psycopg://me@host/db"


def test_an_empty_catalog_is_named(retroln: Command, tmp_path: Path) -> None:
    assert f"sqlite:///{tmp_path}/catalog.db holds no scan yet" in retroln("status").stdout
    _require_one_line(retroln("status", "NOBODY"), 7, f"sqlite:///{tmp_path}/catalog.db: no case 'NOBODY'")


def test_limit_leaves_the_rest_and_says_so(retroln: Command, deliver: Callable[..., Path]) -> None:
    deliver("A", "P1")
    deliver("B", "P2")
    retroln("ingest")
    found = retroln("prepare", "--limit", "1")
    assert "1 in = 1 done" in found.stdout
    assert "--limit 1: 1 scan left waiting" in found.stderr
    assert "1 done + 1 skipped" in retroln("prepare").stdout


def test_doctor_is_well_on_an_embedded_workspace(retroln: Command, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    found = retroln("doctor")
    assert found.returncode == 0, found.stdout
    for name in ("python", "source", "store", "catalog", "mlflow"):
        assert any(line.startswith("ok") and f" {name}" in line for line in found.stdout.splitlines())


@pytest.mark.parametrize("address", ["file:///no/such/folder", "/nosuch"])
def test_doctor_names_a_source_that_is_none_and_blames_nothing_else(settings: Settings, address: str) -> None:
    findings = _answers(settings.model_copy(update={"source_uri": address}))
    source, store, catalog = islice(findings, 3)
    assert (source.name, store.name, catalog.name) == ("source", "store", "catalog")
    assert (source.well, store.well, catalog.well) == (False, True, True)
    assert source.seen.startswith(f"{address}: ")
    assert "RETROLN_SOURCE_URI" in source.fix


def test_doctor_names_a_variable_that_looks_like_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETROLN_PROCESES", "8")
    (finding,) = _misspelt()
    assert (finding.name, finding.well) == ("RETROLN_PROCESES", False)
    assert finding.fix == "call it RETROLN_PROCESSES, or unset it"


def test_doctor_names_what_is_broken_and_its_fix(retroln: Command, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "file").write_text("not a folder")
    found = retroln("doctor", RETROLN_CATALOG_URL=f"sqlite:///{tmp_path}/file/catalog.db")
    assert found.returncode == 11
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("FIX")]
    assert " catalog: " in line
    assert "choose a place that can be written in RETROLN_CATALOG_URL" in line
