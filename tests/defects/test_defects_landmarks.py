"""Vertebrae that are not there, and how they are made: what the scripts this project replaces got wrong.

Where a defect is about TotalSegmentator (18, 20, 21) these tests show what happens at the adapter's
interface, with a stand-in for it. That one task runs with its own subset, on weights, is for the adapter's
own tests.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from case_folders import (
    BOX,
    OPENED,
    SHAPE,
    Folders,
    coded_ct,
    moved_spine,
    open_stand_in,
    retroln,
    write,
    write_levels,
)

from retroln.anatomy.segmenter import OpenSegmenter
from retroln.anatomy.vertebrae import LEVEL_ORDER, Level
from retroln.imaging import nifti
from retroln.steps import landmarks_folder
from retroln.steps.folders import run_folder
from retroln.steps.landmarks_folder import LandmarksTool


def _without(*levels: Level) -> np.ndarray:
    return moved_spine(levels=tuple(level for level in LEVEL_ORDER if level not in levels))


def test_defect_10_without_l2_the_region_comes_from_its_neighbours_and_says_so(tmp_path: Path) -> None:
    """The first vertebra found, T12, was taken for L2."""
    folders = Folders.below(tmp_path)
    for case_id in ("neighbours", "only_t12"):
        folders.add(case_id)
    write(folders.vertebrae / "neighbours.nii.gz", _without(Level.L2))
    write(folders.vertebrae / "only_t12.nii.gz", moved_spine(levels=(Level.T12,)))
    ran = folders.crop()
    assert ran.code == 3
    assert folders.outcomes() == {
        "neighbours": ("done", None),
        "only_t12": ("quarantined", "no_lumbar_level"),
    }
    assert folders.record("neighbours")["box_voxel"] == BOX
    assert folders.record("neighbours")["rung"] == "interpolated_l1_l3"
    assert "The region does not rest on L2 itself: L2 taken from L1 and L3." in ran.output


def test_defect_11_an_empty_file_is_no_vertebra(tmp_path: Path) -> None:
    """A file that exists counted as found: empty masks passed, and the fallback never began."""
    folders = Folders.below(tmp_path)
    for case_id in ("no_l2", "nothing"):
        folders.add(case_id)
        (folders.vertebrae / f"{case_id}.nii.gz").unlink()
    write_levels(folders.vertebrae / "no_l2", _without(Level.L2))
    write_levels(folders.vertebrae / "nothing", np.zeros(SHAPE, np.uint8, order="F"))
    for _ in range(2):
        assert folders.crop().code == 3
        assert folders.outcomes()["nothing"] == ("quarantined", "no_lumbar_level")
        assert folders.record("no_l2")["rung"] == "interpolated_l1_l3"
    assert not list(folders.out.glob("nothing*"))


def test_defect_11_levels_that_were_not_found_leave_no_file_and_are_not_found_next_time(
    tmp_path: Path,
) -> None:
    """What finds nothing stays held, run after run, until its CT changes."""
    folders = Folders.below(tmp_path)
    write(folders.ct / "short.nii.gz", coded_ct(_without(Level.L5, Level.S1)))
    write(folders.ct / "nothing.nii.gz", coded_ct(np.zeros(SHAPE, np.uint8)))
    tool = LandmarksTool(folders.out, open_stand_in, per_level=True)
    for _ in range(2):
        accounting = run_folder(tool, tool.list_cases(folders.ct)).accounting
        assert accounting.quarantined == 1
    assert not (folders.out / "short" / "vertebrae_L5.nii.gz").exists()
    assert (folders.out / "short" / "vertebrae_L4.nii.gz").exists()
    assert folders.outcomes()["nothing"] == ("quarantined", "no_lumbar_level")


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Six CTs for the stand-in."""
    monkeypatch.setattr(landmarks_folder, "open_totalseg", open_stand_in)
    monkeypatch.setenv(OPENED, str(tmp_path / "opened.txt"))
    landmarks_folder._opened.cache_clear()
    folders = Folders.below(tmp_path)
    for number in range(6):
        write(folders.ct / f"LN_{number}.nii.gz", coded_ct(moved_spine(number), number))
    return folders


def _opened(folders: Folders) -> list[tuple[str, ...]]:
    return [tuple(line.split()) for line in (folders.ct.parent / "opened.txt").read_text().splitlines()]


def test_defect_18_one_label_map_per_case_goes_into_a_folder(cohort: Folders) -> None:
    """A combined label map was asked for with a folder as its name: every case failed."""
    assert retroln("landmarks", "--input-dir", cohort.ct, "--output-dir", cohort.out).code == 0
    assert cohort.summary()["done"] == 6
    for number in range(6):
        made = nifti.read_labels(cohort.out / f"LN_{number}.nii.gz")
        assert np.array_equal(made.array, moved_spine(number))


def test_defect_20_the_networks_are_loaded_once_per_process(cohort: Folders) -> None:
    """Every case had a process and a load of its own, all on one GPU."""
    tool = LandmarksTool(cohort.out, open_stand_in)
    assert run_folder(tool, tool.list_cases(cohort.ct)).accounting.done == 6
    assert len(_opened(cohort)) == 1
    other = LandmarksTool(cohort.vertebrae, open_stand_in)
    assert run_folder(other, other.list_cases(cohort.ct), processes=2).accounting.done == 6
    in_pool = _opened(cohort)[1:]
    assert len({pid for pid, *_ in in_pool}) == len(in_pool) <= 2


@pytest.mark.parametrize("quality", ["full", "fast"])
def test_defect_21_a_task_cannot_be_chosen_against_its_subset(cohort: Folders, quality: str) -> None:
    """`--task` replaced the task and left the subset of another: refused for every case."""
    run = ("landmarks", "--input-dir", cohort.ct, "--output-dir", cohort.out)
    assert retroln(*run, "--quality", quality, "--device", "cpu").code == 0
    assert [line[1:] for line in _opened(cohort)] == [(quality, "cpu")]
    assert set(inspect.signature(OpenSegmenter.__call__).parameters) == {"self", "quality", "device"}
    assert retroln(*run, "--task", "body").code == 2
