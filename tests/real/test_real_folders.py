"""`retroln crop` over a folder of real CT (`RETROLN_REAL_DATA`)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from case_folders import Folders, retroln

from retroln.steps.files import crop_files
from tests.real.fleshed import BONE_ALONE, write_fleshed

pytestmark = pytest.mark.skipif(
    not os.environ.get("RETROLN_REAL_DATA"), reason="RETROLN_REAL_DATA is not set"
)

_CASES = {
    "EXAMPLE": ("totalseg_example_ct", "totalseg_example_vertebrae"),
    "S0328": (BONE_ALONE, "totalsegdata_s0328_labels"),
    "BONE": (BONE_ALONE, "totalsegdata_s0328_labels"),
    "SWAPPED": ("totalseg_example_ct", "totalsegdata_s0328_labels"),
}


def test_real_folder_gives_what_single_crops_give(tmp_path: Path) -> None:
    """Two CTs with their own labels; one with the other's and one that holds bone alone, which are held."""
    data, folders = Path(os.environ["RETROLN_REAL_DATA"]), Folders.below(tmp_path)
    for folder in (folders.ct, folders.vertebrae):
        folder.mkdir()
    for case_id, (ct, labels) in _CASES.items():
        delivered = folders.ct / f"{case_id}_0000.nii.gz"
        if case_id == "S0328":
            write_fleshed(data / f"{ct}.nii.gz", delivered)
        else:
            delivered.symlink_to(data / f"{ct}.nii.gz")
        (folders.vertebrae / f"{case_id}.nii.gz").symlink_to(data / f"{labels}.nii.gz")
    places = ("--input-dir", folders.ct, "--vertebrae-dir", folders.vertebrae, "--output-dir", folders.out)
    assert retroln("crop", *places, "--processes", "2").code == 3
    assert folders.outcomes() == {
        "BONE": ("quarantined", "not_ct"),
        "EXAMPLE": ("done", None),
        "S0328": ("done", None),
        "SWAPPED": ("quarantined", "grid_mismatch"),
    }
    for case_id in ("EXAMPLE", "S0328"):
        ct, labels = folders.ct / f"{case_id}_0000.nii.gz", folders.vertebrae / f"{case_id}.nii.gz"
        single = crop_files(ct, labels, tmp_path / "single", case_id=case_id)
        assert (folders.out / single.ct.name).read_bytes() == single.ct.read_bytes()
    assert retroln("crop", *places).code == 3
    again = [outcome for outcome, _ in folders.outcomes().values()]
    assert again == ["quarantined", "skipped", "skipped", "quarantined"]
