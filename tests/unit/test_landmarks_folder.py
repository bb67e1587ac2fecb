"""`retroln landmarks` with a stand-in for the segmenter: accounting, files, gate, processes.

What TotalSegmentator itself does is tested with its adapter; the stand-in reads levels that the test wrote
into the CT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from case_folders import (
    OPENED,
    Folders,
    Ran,
    StandInResult,
    StandInSegmenter,
    coded_ct,
    ct_hu,
    moved_spine,
    open_stand_in,
    retroln,
    write,
)
from spine import spine

from retroln.anatomy.segmenter import Device, Quality
from retroln.anatomy.vertebrae import LEVEL_ORDER, Level
from retroln.errors import MissingExtraError
from retroln.imaging.volume import Volume
from retroln.steps import landmarks_folder
from retroln.steps.folder_ledger import SUMMARY
from retroln.steps.folders import run_folder
from retroln.steps.landmarks_folder import LandmarksTool


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Three CTs for the stand-in; the second shows no spine at all."""
    monkeypatch.setattr(landmarks_folder, "open_totalseg", open_stand_in)
    monkeypatch.setenv(OPENED, str(tmp_path / "opened.txt"))
    landmarks_folder._opened.cache_clear()
    folders = Folders.below(tmp_path)
    write(folders.ct / "LN_1_0000.nii.gz", coded_ct(moved_spine(), 1), "LPS")
    write(folders.ct / "LN_2.nii.gz", ct_hu(2))
    write(folders.ct / "LN_3.nii.gz", coded_ct(moved_spine(4), 3))
    return folders


def _run(folders: Folders, *options: str) -> Ran:
    return retroln("landmarks", "--input-dir", folders.ct, "--output-dir", folders.out, *options)


def _opened(folders: Folders) -> list[list[str]]:
    return [line.split() for line in (folders.ct.parent / "opened.txt").read_text().splitlines()]


def test_a_label_map_per_case_on_the_grid_of_the_ct(cohort: Folders) -> None:
    _run(cohort)
    made, ct = nib.load(cohort.out / "LN_1.nii.gz"), nib.load(cohort.ct / "LN_1_0000.nii.gz")
    assert made.get_data_dtype() == np.uint8
    np.testing.assert_allclose(made.affine, ct.affine, atol=1e-4)
    coded = np.asanyarray(ct.dataobj).astype(int)
    assert np.array_equal(np.asanyarray(made.dataobj), np.where(coded > 1000, coded - 1000, 0))


def test_implausible_result_is_kept_held_and_told(cohort: Folders) -> None:
    ran = _run(cohort)
    assert ran.code == 3
    assert cohort.outcomes() == {
        "LN_1": ("done", None),
        "LN_2": ("quarantined", "no_lumbar_level"),
        "LN_3": ("done", None),
    }
    assert f"LN_2 quarantined (no_lumbar_level): {cohort.out}/LN_2.nii.gz: " in ran.output
    assert (cohort.out / "LN_2.nii.gz").exists()
    facts = cohort.summary()["cases"][0]["facts"]
    assert facts["rung"] == "l2"
    assert facts["levels"]["L2"] == 12 * 10 * 8
    assert facts["anchored"] is False  # blocks have no shape that could confirm the numbering
    assert [finding.split(":")[0] for finding in facts["findings"]] == ["stand_in", "unanchored"]
    said = "The vertebrae were labelled by stand-in weights: levels read from codes in the CT."
    assert f"{said} 2 cases: LN_1, LN_3" in ran.output


def test_second_run_opens_no_segmenter_and_holds_the_same_case(cohort: Folders) -> None:
    _run(cohort)
    assert _run(cohort).code == 3
    assert [outcome for outcome, _ in cohort.outcomes().values()] == ["skipped", "quarantined", "skipped"]
    assert len(_opened(cohort)) == 1


def test_held_case_is_tried_again_when_its_ct_changes(cohort: Folders) -> None:
    _run(cohort)
    write(cohort.ct / "LN_2.nii.gz", coded_ct(moved_spine(2), 2))
    assert _run(cohort).code == 0
    assert cohort.outcomes()["LN_2"] == ("done", None)


def test_truncated_label_map_is_made_again(cohort: Folders) -> None:
    _run(cohort)
    path = cohort.out / "LN_3.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    _run(cohort)
    assert cohort.outcomes()["LN_3"] == ("done", None)
    assert path.read_bytes() == whole


def test_what_is_no_ct_is_held_before_the_segmenter_sees_it(cohort: Folders) -> None:
    write(cohort.ct / "LN_2.nii.gz", np.full((60, 60, 90), 0.5, np.float32))
    _run(cohort)
    assert cohort.outcomes()["LN_2"] == ("quarantined", "empty")
    assert not (cohort.out / "LN_2.nii.gz").exists()


def test_a_ct_clipped_around_the_spine_is_held_with_its_label_map_written(cohort: Folders) -> None:
    ct = coded_ct(moved_spine(4), 3)
    ct[5:] = np.maximum(ct[5:], -700)
    ct[:5] = -1000
    write(cohort.ct / "LN_3.nii.gz", ct)
    ran = _run(cohort)
    assert cohort.outcomes()["LN_3"] == ("quarantined", "not_hu")
    assert f"{cohort.ct / 'LN_3.nii.gz'}: the CT is not in Hounsfield units" in ran.output
    assert (cohort.out / "LN_3.nii.gz").exists()


def test_per_level_writes_only_what_was_found(cohort: Folders) -> None:
    levels = tuple(set(LEVEL_ORDER) - {Level.T11})
    write(cohort.ct / "LN_3.nii.gz", coded_ct(moved_spine(levels=levels), 3))
    _run(cohort, "--per-level")
    assert sorted(path.name for path in (cohort.out / "LN_3").iterdir()) == sorted(
        f"vertebrae_{level}.nii.gz" for level in levels
    )
    assert not (cohort.out / "LN_2").exists()
    l2 = nib.load(cohort.out / "LN_3" / "vertebrae_L2.nii.gz")
    assert np.asanyarray(l2.dataobj).sum() == 12 * 10 * 8


def test_the_other_form_replaces_the_first(cohort: Folders) -> None:
    _run(cohort)
    _run(cohort, "--per-level")
    assert sorted(path.name for path in cohort.out.iterdir()) == ["LN_1", "LN_3", SUMMARY]
    _run(cohort)
    names = [f"LN_{number}.nii.gz" for number in (1, 2, 3)]
    assert sorted(path.name for path in cohort.out.iterdir()) == [*names, SUMMARY]


def test_levels_that_are_gone_leave_no_file(cohort: Folders) -> None:
    _run(cohort, "--per-level")
    shorter = tuple(level for level in LEVEL_ORDER if level is not Level.L5)
    write(cohort.ct / "LN_3.nii.gz", coded_ct(moved_spine(levels=shorter), 3))
    _run(cohort, "--per-level")
    assert not (cohort.out / "LN_3" / "vertebrae_L5.nii.gz").exists()
    assert (cohort.out / "LN_3" / "vertebrae_L4.nii.gz").exists()


def test_files_of_somebody_else_are_not_removed(cohort: Folders) -> None:
    own = cohort.out / "LN_3" / "report.pdf"
    own.parent.mkdir(parents=True)
    own.touch()
    ran = _run(cohort, "--per-level")
    assert ran.code == 10
    assert cohort.outcomes()["LN_3"] == ("failed", "ConflictError")
    assert own.exists()


@pytest.mark.parametrize("per_level", [(), ("--per-level",)])
def test_crop_takes_what_landmarks_leaves(
    cohort: Folders, tmp_path: Path, per_level: tuple[str, ...]
) -> None:
    _run(cohort, *per_level)
    places = ("--input-dir", cohort.ct, "--vertebrae-dir", cohort.out, "--output-dir", tmp_path / "crops")
    ran = retroln("crop", *places)
    assert ran.code == 3
    made = cohort._replace(out=tmp_path / "crops")
    reason = "landmarks_missing" if per_level else "no_lumbar_level"
    assert made.outcomes() == {
        "LN_1": ("done", None),
        "LN_2": ("quarantined", reason),
        "LN_3": ("done", None),
    }
    assert made.record("LN_3")["box_voxel"]["start"] == [15, 10, 12]


def test_each_process_opens_one_segmenter(cohort: Folders) -> None:
    for number in range(4, 12):
        write(cohort.ct / f"LN_{number}.nii.gz", coded_ct(moved_spine(number % 3), number))
    tool = LandmarksTool(cohort.out, open_stand_in, quality="fast", device="cpu")
    report = run_folder(tool, tool.list_cases(cohort.ct), processes=2)
    assert (report.accounting.done, report.accounting.quarantined) == (10, 1)
    opened = _opened(cohort)
    assert len({pid for pid, _, _ in opened}) == len(opened) <= 2
    assert {tuple(how) for _, *how in opened} == {("fast", "cpu")}


def test_other_networks_do_every_case_anew(cohort: Folders) -> None:
    for networks, done in (("one", 2), ("one", 0), ("other", 2)):
        tool = LandmarksTool(cohort.out, open_stand_in, networks=networks)
        assert run_folder(tool, tool.list_cases(cohort.ct)).accounting.done == done


def _open_nothing(quality: Quality, device: Device) -> StandInSegmenter:
    raise MissingExtraError("TotalSegmentator is not installed", fix="pip install 'retroln[landmarks]'")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_segmenter_that_cannot_open_ends_the_run_at_once(
    cohort: Folders, monkeypatch: pytest.MonkeyPatch, processes: str
) -> None:
    monkeypatch.setattr(landmarks_folder, "open_totalseg", _open_nothing)
    ran = _run(cohort, "--processes", processes)
    assert ran.code == 5
    assert "error: TotalSegmentator is not installed; fix: pip install" in ran.output
    assert not (cohort.out / SUMMARY).exists()


class _Elsewhere(StandInSegmenter):
    def segment(self, ct: Volume) -> StandInResult:
        return StandInResult(spine(np.zeros((4, 4, 4), np.uint8)))


def _open_elsewhere(quality: Quality, device: Device) -> Any:
    return _Elsewhere()


def test_result_on_another_grid_is_never_written(cohort: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmarks_folder, "open_totalseg", _open_elsewhere)
    assert _run(cohort).code == 3
    assert {reason for _, reason in cohort.outcomes().values()} == {"grid_mismatch"}
    assert not list(cohort.out.glob("*.nii.gz"))


def test_results_cannot_overwrite_the_cts(cohort: Folders) -> None:
    before = (cohort.ct / "LN_3.nii.gz").read_bytes()
    ran = retroln("landmarks", "--input-dir", cohort.ct, "--output-dir", cohort.ct)
    assert ran.code == 2
    assert "cannot go where the input comes from" in ran.output
    assert (cohort.ct / "LN_3.nii.gz").read_bytes() == before


def test_limit_and_pattern(cohort: Folders) -> None:
    ran = _run(cohort, "--limit", "1")
    assert ran.code == 0
    assert "--limit 1: 2 of 3 cases are LEFT OUT of this run" in ran.output
    assert set(cohort.outcomes()) == {"LN_1"}
    assert _run(cohort, "--pattern", "*_3.nii.gz").code == 0
    assert set(cohort.outcomes()) == {"LN_3"}
    assert [one["case_id"] for one in cohort.summary()["other_cases"]] == ["LN_1"]
