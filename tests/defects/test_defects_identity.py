"""Whose spine and whose mask: what two scripts that this project replaces got wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from case_folders import BOX_SLICES, Folders, coded_ct, moved_spine, nodes, open_stand_in, write

from retroln.imaging import nifti
from retroln.steps.folders import run_folder
from retroln.steps.landmarks_folder import LandmarksTool

_ALIKE = {"5": 0, "15": 3, "53": 6}


def _require_own(folders: Folders, shifts: dict[str, int]) -> None:
    """Each case was cut by its own spine and holds its own nodes."""
    for case_id, shift in shifts.items():
        assert folders.record(case_id)["box_voxel"]["start"] == [11 + shift, 10, 12]
        mask = nifti.read(folders.out / f"{case_id}_mask.nii.gz").array
        assert np.array_equal(mask, nodes()[BOX_SLICES])
        assert mask.any()


def _similar_ids(root: Path) -> Folders:
    folders = Folders.below(root)
    for seed, (case_id, shift) in enumerate(_ALIKE.items()):
        folders.add(case_id, shift, seed)
    return folders


def test_defect_05_similar_ids_keep_their_own_masks(tmp_path: Path) -> None:
    """Ids were found as part of a name: case 5 took the box and the mask of 15 or 53, exit code 0."""
    folders = _similar_ids(tmp_path)
    assert folders.crop().code == 0
    _require_own(folders, _ALIKE)


def test_defect_06_and_so_in_several_processes(tmp_path: Path) -> None:
    """The parallel path had its own copy of the same defect."""
    folders = _similar_ids(tmp_path)
    assert folders.crop("--processes", "2").code == 0
    _require_own(folders, _ALIKE)


def test_defect_05_a_case_without_a_mask_takes_nobody_elses(tmp_path: Path) -> None:
    """With the mask of 5 gone, those of 15 and 53 stay theirs."""
    folders = _similar_ids(tmp_path)
    (folders.masks / "5.nii.gz").unlink()
    assert folders.crop().code == 3
    assert folders.outcomes()["5"] == ("quarantined", "mask_missing")
    _require_own(folders, {"15": 3, "53": 6})


@pytest.mark.parametrize("channel", ["", "_0000"])
def test_defect_07_the_whole_name_is_the_id(tmp_path: Path, channel: str) -> None:
    """The id was the text before the first "_": LN_001 and LN_002 shared one spine."""
    folders, shifts = Folders.below(tmp_path), {"LN_001": 0, "LN_002": 7, "LN_0021": 4}
    for case_id, shift in shifts.items():
        folders.add(case_id, shift, channel=channel)
    assert folders.crop().code == 0
    _require_own(folders, shifts)


def test_defect_08_landmarks_and_crop_mean_the_same_case(tmp_path: Path) -> None:
    """Two series of one patient collided, and the two scripts made different ids of one name."""
    folders, shifts = Folders.below(tmp_path), {"P1_2024_a": 0, "P1_2024_b": 5, "P1_2025": 2}
    for case_id, shift in shifts.items():
        write(folders.ct / f"{case_id}_0000.nii.gz", coded_ct(moved_spine(shift)), "LPS")
        write(folders.masks / f"{case_id}.nii.gz", nodes(shift), "LPS")
    tool = LandmarksTool(folders.vertebrae, open_stand_in)
    assert run_folder(tool, tool.list_cases(folders.ct)).accounting.done == 3
    assert folders.crop().code == 0
    _require_own(folders, shifts)
