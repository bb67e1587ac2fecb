"""`retroln crop` on folders: what is done, skipped, done again and held, and what the command says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from case_folders import BOX, BOX_SLICES, Folders, ct_hu, moved_spine, nodes, retroln, write, write_levels
from spine import V2, grid_ras

from retroln.anatomy.vertebrae import LEVEL_ORDER, Level
from retroln.imaging import nifti
from retroln.report.cautions import UNANCHORED
from retroln.steps import crop_folder
from retroln.steps.crop_folder import CropTool
from retroln.steps.files import crop_files
from retroln.steps.folder_ledger import SUMMARY, FolderLedger
from retroln.steps.folders import run_folder

OUTPUTS = ("{}_ct.nii.gz", "{}_mask.nii.gz", "{}_roi.json")


@pytest.fixture
def two(tmp_path: Path) -> Folders:
    """Two whole cases."""
    folders = Folders.below(tmp_path)
    folders.add("LN_1", seed=1, channel="_0000")
    folders.add("LN_2", shift=6, seed=2)
    return folders


def _marks(folders: Folders) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folders.out.glob("*_*.*")}


def test_a_folder_gives_what_single_crops_give(two: Folders, tmp_path: Path) -> None:
    ran = two.crop()
    assert ran.code == 0, ran.output
    assert set(two.outcomes().values()) == {("done", None)}
    for case_id, ct in (("LN_1", "LN_1_0000"), ("LN_2", "LN_2")):
        crop_files(
            two.ct / f"{ct}.nii.gz",
            two.vertebrae / f"{case_id}.nii.gz",
            tmp_path / "single",
            mask=two.masks / f"{case_id}.nii.gz",
        )
    names = sorted(path.name for path in (tmp_path / "single").iterdir())
    assert names == sorted(name.format(case) for name in OUTPUTS for case in ("LN_1", "LN_2"))
    assert sorted(path.name for path in two.out.iterdir()) == [*names, SUMMARY]
    for name in names:
        assert (two.out / name).read_bytes() == (tmp_path / "single" / name).read_bytes()


def test_second_run_skips_and_touches_nothing(two: Folders) -> None:
    two.crop()
    before, facts = _marks(two), [one["facts"] for one in two.summary()["cases"]]
    assert two.crop().code == 0
    assert set(two.outcomes().values()) == {("skipped", None)}
    assert _marks(two) == before
    assert [one["facts"] for one in two.summary()["cases"]] == facts
    two.crop()
    assert set(two.outcomes().values()) == {("skipped", None)}


def test_new_times_alone_change_nothing(two: Folders) -> None:
    two.crop()
    for path in (*two.ct.iterdir(), *two.masks.iterdir(), *two.out.glob("*.nii.gz")):
        path.touch()
    two.crop()
    assert set(two.outcomes().values()) == {("skipped", None)}


def _truncate(folders: Folders) -> None:
    path = folders.out / "LN_1_mask.nii.gz"
    path.write_bytes(path.read_bytes()[:-20])


def _remove_record(folders: Folders) -> None:
    (folders.out / "LN_1_roi.json").unlink()


def _replace_ct(folders: Folders) -> None:
    write(folders.ct / "LN_1_0000.nii.gz", ct_hu(9))


def _replace_vertebrae(folders: Folders) -> None:
    write(folders.vertebrae / "LN_1.nii.gz", moved_spine(3))


def _replace_mask(folders: Folders) -> None:
    write(folders.masks / "LN_1.nii.gz", nodes(1))


def _split_vertebrae(folders: Folders) -> None:
    (folders.vertebrae / "LN_1.nii.gz").unlink()
    write_levels(folders.vertebrae / "LN_1", moved_spine())


@pytest.mark.parametrize(
    "harm",
    [_truncate, _remove_record, _replace_ct, _replace_vertebrae, _replace_mask, _split_vertebrae],
    ids=lambda harm: harm.__name__,
)
def test_a_case_that_changed_is_done_again_and_no_other(
    two: Folders, harm: Callable[[Folders], None], tmp_path: Path
) -> None:
    two.crop()
    harm(two)
    assert two.crop().code == 0
    assert two.outcomes() == {"LN_1": ("done", None), "LN_2": ("skipped", None)}
    fresh = two._replace(out=tmp_path / "fresh")
    fresh.crop()
    for name in OUTPUTS:
        path = name.format("LN_1")
        assert (two.out / path).read_bytes() == (fresh.out / path).read_bytes()


@pytest.mark.parametrize("options", [("--no-normalize",), ("--hu-window", "-200", "300")], ids=" ".join)
def test_other_options_make_every_case_anew(two: Folders, options: tuple[str, ...]) -> None:
    two.crop()
    assert two.crop(*options).code == 0
    assert set(two.outcomes().values()) == {("done", None)}


def test_without_masks_the_old_ones_go(two: Folders) -> None:
    two.crop()
    places = ("--input-dir", two.ct, "--vertebrae-dir", two.vertebrae, "--output-dir", two.out)
    assert retroln("crop", *places).code == 0
    assert set(two.outcomes().values()) == {("done", None)}
    assert not list(two.out.glob("*_mask*"))


def test_held_case_keeps_no_crop_and_is_held_again_until_it_is_mended(two: Folders) -> None:
    two.crop()
    whole = (two.vertebrae / "LN_2.nii.gz").read_bytes()
    write(two.vertebrae / "LN_2.nii.gz", moved_spine(levels=(Level.T12,)))
    for _ in range(2):
        ran = two.crop()
        assert ran.code == 3
        assert two.outcomes() == {"LN_1": ("skipped", None), "LN_2": ("quarantined", "no_lumbar_level")}
        assert not list(two.out.glob("LN_2*"))
        (line,) = [line for line in ran.output.splitlines() if line.startswith("LN_2 ")]
        assert line.startswith(f"LN_2 quarantined (no_lumbar_level): {two.vertebrae}/LN_2.nii.gz: ")
        for part in ("expected: L1 to L5; ", "got: T12; ", "fix: "):
            assert part in line
    held = two.summary()["cases"][1]["error"]
    assert held["expected"] == "L1 to L5"
    (two.vertebrae / "LN_2.nii.gz").write_bytes(whole)
    assert two.crop().code == 0
    assert two.outcomes() == {"LN_1": ("skipped", None), "LN_2": ("done", None)}


def test_double_ids_missing_parts_and_dead_links_are_held_and_the_rest_is_done(two: Folders) -> None:
    write(two.ct / "LN_1.nii", ct_hu(3))
    for case_id in ("LN_3", "LN_4"):
        two.add(case_id)
    (two.vertebrae / "LN_3.nii.gz").unlink()
    (two.masks / "LN_4.nii.gz").unlink()
    (two.ct / "LN_5.nii.gz").symlink_to("gone.nii.gz")
    write(two.vertebrae / "LN_5.nii.gz", moved_spine())
    write(two.masks / "LN_5.nii.gz", nodes())
    ran = two.crop("--processes", "2")
    assert ran.code == 3
    assert two.outcomes() == {
        "LN_1": ("quarantined", "duplicate_case_id"),
        "LN_2": ("done", None),
        "LN_3": ("quarantined", "landmarks_missing"),
        "LN_4": ("quarantined", "mask_missing"),
        "LN_5": ("quarantined", "missing_object"),
    }
    assert "5 in = 1 done + 0 skipped + 4 quarantined + 0 failed" in ran.output
    assert "LN_5.nii.gz: the file is not there" in ran.output


def test_limit_is_loud_and_forgets_nothing(two: Folders) -> None:
    two.crop()
    ran = two.crop("--limit", "1")
    assert ran.code == 0
    assert ran.output.count("--limit 1: 1 of 2 cases are LEFT OUT of this run") == 2
    summary = two.summary()
    assert (summary["in"], summary["left_out"]) == (1, 1)
    assert [one["case_id"] for one in summary["other_cases"]] == ["LN_2"]
    assert "LEFT OUT" not in two.crop().output
    assert set(two.outcomes().values()) == {("skipped", None)}


def test_strangers_are_named(two: Folders) -> None:
    (two.ct / "notes.txt").touch()
    write(two.masks / "LN_21.nii.gz", nodes())
    output = two.crop().output
    assert "ignored, no .nii or .nii.gz: notes.txt" in output
    assert "mask without a CT of that id: LN_21.nii.gz" in output
    assert two.summary()["unmatched"] == {"vertebrae": [], "mask": ["LN_21.nii.gz"]}


def test_what_was_noticed_is_counted_and_nodes_outside_are_named(two: Folders) -> None:
    write(two.vertebrae / "LN_1.nii.gz", moved_spine(levels=tuple(set(LEVEL_ORDER) - {Level.L2})))
    output = two.crop().output
    assert "Not labelled: L2. 1 case: LN_1" in output
    assert "The region does not rest on L2 itself: L2 taken from L1 and L3. 1 case: LN_1" in output
    assert f"{UNANCHORED} 2 cases: LN_1, LN_2" in output
    assert "LN_1: only 20 of 22 node voxels lie inside the region" in output
    first = two.summary()["cases"][0]["facts"]
    assert (first["rung"], first["box_voxel"]) == ("interpolated_l1_l3", BOX)
    assert first["node_voxels"] == {"inside_voxels": 20, "total_voxels": 22}


WORDS = "case_id,reviewer,comment\n"


def test_a_person_overrules_for_the_cases_that_a_file_names(two: Folders, tmp_path: Path) -> None:
    """LN_2 is held until it is named, and again when it is named no more; LN_1 is not done anew for it."""
    without = tuple(set(LEVEL_ORDER) - {Level.L3})
    write(two.vertebrae / "LN_2.nii.gz", _with_l4_swollen(moved_spine(6, without)))
    assert two.crop().code == 3
    assert two.outcomes()["LN_2"] == ("quarantined", "landmarks_implausible")
    words = tmp_path / "accepted.csv"
    words.write_text(f"{WORDS}LN_2,Dr A,a block vertebra\nLN_9,Dr A,not here\n")
    ran = two.crop("--accepted", words)
    assert ran.code == 0, ran.output
    assert two.outcomes() == {"LN_1": ("skipped", None), "LN_2": ("done", None)}
    assert two.record("LN_2")["accepted"] == {"reviewer": "Dr A", "comment": "a block vertebra"}
    assert "By a person's word, the landmarks were accepted by Dr A. 1 case: LN_2" in ran.output
    assert "words without a CT of that id: LN_9" in ran.output
    assert two.crop("--accepted", words).code == 0
    assert two.outcomes() == {"LN_1": ("skipped", None), "LN_2": ("skipped", None)}
    assert two.crop().code == 3
    assert two.outcomes() == {"LN_1": ("skipped", None), "LN_2": ("quarantined", "landmarks_implausible")}
    assert not list(two.out.glob("LN_2*"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_words_may_come_from_a_spreadsheet(two: Folders, tmp_path: Path, encoding: str) -> None:
    text = "Case_ID;Reviewer;Comment\nLN_1;Dr Ä;counted from C2, L5 is sacral\n"
    (tmp_path / "accepted.csv").write_text(text, encoding)
    two.crop("--accepted", tmp_path / "accepted.csv")
    said = {"reviewer": "Dr Ä", "comment": "counted from C2, L5 is sacral"}
    assert two.record("LN_1")["accepted"] == said


def _with_l4_swollen(labels: np.ndarray) -> np.ndarray:
    labels[4:56, 8:58, 23:31] = V2[Level.L4]
    return labels


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "case,reviewer\n",
            "columns are missing; expected: case_id,reviewer,comment; got: 'case', 'reviewer'",
        ),
        ("", "got: an empty file"),
        (f"{WORDS}LN_1,Dr A,why\nLN_1,Dr B,too\n", "two lines for case LN_1"),
        (f"{WORDS}LN_1,Dr A,counted from C2, L5 is sacral\n", "line 2 has more cells than there are columns"),
        (f'{WORDS}LN_1,Dr A,"counted\nLN_2,Dr A,ok\n', "not a table"),
        (f"{WORDS}LN_1,Dr A,{'x' * 140_000}\n", "not a table"),
        (f"{WORDS}LN_1,Dr A, \n", "a word on landmarks says who and why"),
    ],
)
def test_a_file_of_words_that_cannot_be_used_ends_the_run(
    two: Folders, tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "accepted.csv").write_text(content)
    ran = two.crop("--accepted", tmp_path / "accepted.csv")
    assert (ran.code, said in ran.output) == (2, True), ran.output
    assert two.crop("--accepted", tmp_path / "none.csv").code == 7


def _boom(*_: object, **__: object) -> None:
    raise RuntimeError("boom")


def test_failed_case_exits_10_and_is_tried_again(two: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(crop_folder, "crop_files", _boom)
        ran = two.crop()
    assert ran.code == 10
    assert set(two.outcomes().values()) == {("failed", "RuntimeError")}
    assert "LN_1 failed (RuntimeError): boom" in ran.output
    assert two.crop().code == 0
    assert set(two.outcomes().values()) == {("done", None)}


def test_killed_run_goes_on_where_it_was(two: Folders) -> None:
    for number in range(3, 40):
        two.add(f"LN_{number}")
    places = ("--input-dir", two.ct, "--vertebrae-dir", two.vertebrae, "--output-dir", two.out)
    command = [sys.executable, "-m", "retroln.cli", "crop", *map(str, places)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(two.out.glob("*_roi.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with FolderLedger(two.out, "crop") as ledger:
        known = len(ledger.entries)
    assert 2 <= known < 39
    assert retroln("crop", *places).code == 0
    outcomes = [outcome for outcome, _ in two.outcomes().values()]
    assert outcomes.count("skipped") == known
    assert outcomes.count("done") == 39 - known
    for path in two.out.glob("*_ct.nii.gz"):
        nifti.read(path)
    assert not list(two.out.glob(".*"))


def _hears_an_interrupt() -> None:
    """A shell that starts the tests in the background leaves them deaf to it, and what they start as well."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_stopped_by_hand_it_says_so_and_goes_on_the_next_time(two: Folders, processes: str) -> None:
    for number in range(3, 60):
        two.add(f"LN_{number}")
    places = ("--input-dir", two.ct, "--vertebrae-dir", two.vertebrae, "--output-dir", two.out)
    command = [sys.executable, "-m", "retroln.cli", "crop", *map(str, places), "--processes", processes]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_hears_an_interrupt,
    )
    deadline = time.monotonic() + 300
    while len(list(two.out.glob("*_roi.json"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert said.rstrip().endswith("stopped")
    assert "Traceback" not in said
    assert retroln("crop", *places).code == 0
    assert two.summary()["skipped"] >= 1


def test_processes_give_the_same_files(two: Folders, tmp_path: Path) -> None:
    two.crop()
    other = two._replace(out=tmp_path / "other")
    assert other.crop("--processes", "2").code == 0
    files = [path for path in two.out.iterdir() if path.name != SUMMARY]
    assert files
    for path in files:
        assert path.read_bytes() == (other.out / path.name).read_bytes()


def test_levels_in_folders_give_the_same_crop(two: Folders, tmp_path: Path) -> None:
    two.crop()
    levels = two._replace(vertebrae=tmp_path / "levels", out=tmp_path / "other")
    for case_id, shift in (("LN_1", 0), ("LN_2", 6)):
        write_levels(levels.vertebrae / case_id, moved_spine(shift), "LPS")
    assert levels.crop().code == 0
    for name in ("LN_1_ct.nii.gz", "LN_2_ct.nii.gz"):
        assert (levels.out / name).read_bytes() == (two.out / name).read_bytes()


def test_hu_and_labels_are_kept(two: Folders) -> None:
    two.crop("--no-normalize")
    ct, mask = (nib.load(two.out / f"LN_1_{part}.nii.gz") for part in ("ct", "mask"))
    assert np.array_equal(np.asanyarray(ct.dataobj), ct_hu(1)[BOX_SLICES])
    assert np.array_equal(np.asanyarray(mask.dataobj), nodes()[BOX_SLICES])
    assert (ct.get_data_dtype(), mask.get_data_dtype()) == (np.int16, np.uint8)


def test_another_grid_is_held_with_the_difference(two: Folders) -> None:
    moved = grid_ras(origin_mm=(-99.0, -50.0, 20.0))
    nifti.write(two.masks / "LN_2.nii.gz", nodes(), moved)
    ran = two.crop()
    assert ran.code == 3
    assert two.outcomes()["LN_2"] == ("quarantined", "grid_mismatch")
    assert "1.00 mm apart" in ran.output


def test_the_library_takes_the_region_too(two: Folders) -> None:
    tool = CropTool(two.out)
    listing = tool.list_cases(two.ct, two.vertebrae)
    report = run_folder(tool, listing)
    assert report.accounting.to_dict() == {"in": 2, "done": 2, "skipped": 0, "quarantined": 0, "failed": 0}
    wider = CropTool(two.out, spec=tool.spec.model_copy(update={"lateral_mm": 160.0}))
    assert run_folder(wider, listing).accounting.done == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--ct", "a.nii.gz"), 2, "missing --vertebrae"),
        ((), 2, "missing --ct and --vertebrae; for a folder --input-dir and --vertebrae-dir"),
        (("--input-dir", "ct"), 2, "missing --vertebrae-dir"),
        (("--ct", "a.nii.gz", "--vertebrae", "b", "--limit", "3"), 2, "--ct, --vertebrae are of one case"),
        (("--input-dir", "none", "--vertebrae-dir", "none"), 7, "none: no such folder"),
        (("--input-dir", "none", "--vertebrae-dir", "none", "--pattern", "../*"), 2, "below the folder"),
        (("--input-dir", "out", "--vertebrae-dir", "none"), 2, "cannot go where the input comes from"),
    ],
)
def test_wrong_use_is_told(arguments: tuple[str, ...], code: int, said: str) -> None:
    ran = retroln("crop", *arguments, "--output-dir", "out")
    assert ran.code == code
    assert said in ran.output
    assert not Path("out").exists()


def test_folder_in_use_is_refused(two: Folders) -> None:
    with FolderLedger(two.out, "crop"):
        ran = two.crop()
    assert ran.code == 8
    assert "another run writes to this folder" in ran.output


def test_the_command_is_light_and_its_summary_plain(two: Folders) -> None:
    """As typed; it must not load the libraries of servers, training or slow readers."""
    arguments = ["crop", "--input-dir", two.ct, "--vertebrae-dir", two.vertebrae, "--output-dir", two.out]
    code = (
        "import sys\n"
        "from retroln.cli import main\n"
        f"sys.argv = ['retroln', *{[str(argument) for argument in arguments]!r}]\n"
        "main()\n"
        "heavy = {'torch', 'sqlalchemy', 'mlflow', 'prefect', 'boto3', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "2 in = 2 done + 0 skipped + 0 quarantined + 0 failed" in done.stdout
    assert "crop" in done.stderr
    summary = json.loads((two.out / SUMMARY).read_text())
    assert (summary["format"], summary["command"], summary["left_out"]) == (1, "crop", 0)
    assert summary["options"]["hu_window"] == [-1000.0, 400.0]
