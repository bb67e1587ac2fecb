"""What a run says about itself and leaves behind: what two scripts that this project replaces got wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from case_folders import Folders

from retroln.imaging import nifti
from retroln.steps.files import crop_files


def _cohort(root: Path, cases: int = 3) -> Folders:
    folders = Folders.below(root)
    for number in range(cases):
        folders.add(f"LN_{number}", shift=number % 5, seed=number)
    return folders


def test_defect_17_no_case_leaves_the_totals(tmp_path: Path) -> None:
    """Dropped cases were not counted, and a run without any exited 0."""
    folders = _cohort(tmp_path)
    (folders.vertebrae / "LN_1.nii.gz").unlink()
    ran = folders.crop()
    assert ran.code == 3
    assert "3 in = 2 done + 0 skipped + 1 quarantined + 0 failed" in ran.output
    assert "LN_1 quarantined (landmarks_missing)" in ran.output
    for number in (0, 2):
        (folders.vertebrae / f"LN_{number}.nii.gz").unlink()
    assert folders.crop().code == 3
    assert folders.summary()["quarantined"] == 3


def test_defect_17_nothing_found_is_an_error(tmp_path: Path) -> None:
    """A wrong folder must not look like a finished night."""
    folders = _cohort(tmp_path)
    for path in folders.ct.iterdir():
        path.unlink()
    assert folders.crop().code == 7
    assert not folders.out.exists()


def test_defect_17_a_case_that_broke_is_counted_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the exit code is not 0."""

    def full(path: Path) -> NoReturn:
        raise OSError(28, "No space left on device")

    folders = _cohort(tmp_path)
    monkeypatch.setattr(nifti, "_opened_for_writing", full)
    ran = folders.crop()
    assert ran.code == 10
    assert folders.summary()["failed"] == 3
    assert "LN_0 failed (RefusedError)" in ran.output
    assert "LN_0_mask.nii.gz: the disk has no room left" in ran.output


@pytest.mark.parametrize("name", ["LN_1_ct.nii.gz", "LN_1_mask.nii.gz", "LN_1_roi.json"])
def test_defect_19_a_truncated_result_is_made_again(tmp_path: Path, name: str) -> None:
    """A file that exists was skipped, whole or not."""
    folders = _cohort(tmp_path)
    folders.crop()
    whole = (folders.out / name).read_bytes()
    (folders.out / name).write_bytes(whole[: len(whole) // 2])
    assert folders.crop().code == 0
    assert (folders.out / name).read_bytes() == whole
    assert folders.outcomes() == {
        "LN_0": ("skipped", None),
        "LN_1": ("done", None),
        "LN_2": ("skipped", None),
    }


def test_defect_19_what_lies_there_from_elsewhere_is_not_believed(tmp_path: Path) -> None:
    """Half a crop that this command knows nothing of."""
    folders = _cohort(tmp_path)
    folders.out.mkdir()
    for name in ("ct.nii.gz", "mask.nii.gz", "roi.json"):
        (folders.out / f"LN_0_{name}").write_bytes(b"\x1f\x8bhalf")
    assert folders.crop().code == 0
    assert folders.summary()["done"] == 3
    nifti.read(folders.out / "LN_0_ct.nii.gz")


def test_defect_19_a_write_that_breaks_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a half file, and not a temporary one."""

    def interrupted(voxels: np.ndarray) -> Iterator[bytes]:
        yield bytes(10)
        raise OSError(5, "Input/output error")

    folders = _cohort(tmp_path)
    monkeypatch.setattr(nifti, "_slabs", interrupted)
    with pytest.raises(OSError, match="Input/output error"):
        crop_files(folders.ct / "LN_0.nii.gz", folders.vertebrae / "LN_0.nii.gz", folders.out)
    assert not list(folders.out.iterdir())


def test_defect_22_a_limit_is_loud_and_nothing_else_leaves_cases_out(tmp_path: Path) -> None:
    """`--batch_size` truncated the cohort without a word."""
    folders = _cohort(tmp_path, 12)
    assert folders.crop("--batch-size", "4").code == 2
    ran = folders.crop("--limit", "4")
    assert ran.code == 0
    assert "--limit 4: 8 of 12 cases are LEFT OUT of this run" in ran.output
    assert (folders.summary()["in"], folders.summary()["left_out"]) == (4, 8)
    assert folders.crop("--processes", "2").code == 0
    summary = folders.summary()
    assert (summary["in"], summary["done"], summary["skipped"], summary["left_out"]) == (12, 8, 4, 0)
