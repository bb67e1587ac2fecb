"""Where a crop lies and how far it reaches: what two scripts that this project replaces got wrong.

The numbers of these tests are listed in docs/howto/from-the-scripts.md.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from case_folders import (
    BOX,
    BOX_SLICES,
    Folders,
    ct_hu,
    moved_spine,
    nodes,
    retroln,
    write,
    write_levels,
)
from spine import ORIENTATIONS, V2, grid_ras

from retroln.anatomy.vertebrae import LEVEL_ORDER
from retroln.imaging import nifti
from retroln.imaging.geometry import Grid

_FINE = (200, 240, 96)


def _fine_case(folder: Path) -> Grid:
    """A CT of 0.8 x 0.8 x 2.5 mm with T12-L5 as blocks of 51 ml, 35 mm apart, and one node."""
    affine = np.diag([0.8, 0.8, 2.5, 1.0])
    affine[:3, 3] = (-80.0, -140.0, -900.0)
    grid = Grid(_FINE, affine)
    ct = np.random.default_rng(1).integers(-900, 900, _FINE).astype(np.int16)
    labels, node = np.zeros(_FINE, np.uint8), np.zeros(_FINE, np.uint8)
    for i, level in enumerate(LEVEL_ORDER[1:7]):
        bottom = 78 - 14 * i
        labels[70:130, 70:114, bottom : bottom + 12] = V2[level]
    node[110:116, 150:157, 40:44] = 1
    for name, array in (("ct", ct), ("vertebrae", labels), ("mask", node)):
        nifti.write(folder / f"{name}.nii.gz", np.asfortranarray(array), grid)
    return grid


def _centroid_mm(path: Path) -> np.ndarray:
    image = nib.load(path)
    index = np.argwhere(np.asanyarray(image.dataobj)).mean(0)
    return np.asarray(image.affine[:3, :3] @ index + image.affine[:3, 3])


def test_defect_01_the_crop_lies_where_the_scan_shows_it(tmp_path: Path) -> None:
    """The spacing was applied twice: 113 mm beside the scan at 0.8 x 0.8 x 2.5 mm."""
    grid = _fine_case(tmp_path)
    parts = [
        item for name in ("ct", "vertebrae", "mask") for item in (f"--{name}", tmp_path / f"{name}.nii.gz")
    ]
    assert retroln("crop", *parts, "--output-dir", tmp_path, "--no-normalize", "--case-id", "a").code == 0
    whole, crop = nib.load(tmp_path / "ct.nii.gz"), nib.load(tmp_path / "a_ct.nii.gz")
    start = np.linalg.inv(grid.affine) @ crop.affine[:, 3]
    np.testing.assert_allclose(start, np.round(start), atol=1e-4)
    x, y, z = start[:3].round().astype(int)
    assert min(x, y, z) > 0
    inside = np.asanyarray(whole.dataobj)[x : x + crop.shape[0], y : y + crop.shape[1], z : z + crop.shape[2]]
    assert np.array_equal(np.asanyarray(crop.dataobj), inside)
    np.testing.assert_allclose(crop.affine[:3, :3], grid.affine[:3, :3], atol=1e-6)
    distance = np.linalg.norm(
        _centroid_mm(tmp_path / "a_mask.nii.gz") - _centroid_mm(tmp_path / "mask.nii.gz")
    )
    assert distance < 0.01


def test_defect_02_separate_level_files_give_the_whole_height(tmp_path: Path) -> None:
    """The height was that of L2 alone, a slab of 35 mm."""
    folders = Folders.below(tmp_path)
    folders.add("a")
    (folders.vertebrae / "a.nii.gz").unlink()
    write_levels(folders.vertebrae / "a", moved_spine())
    assert folders.crop().code == 0
    box = folders.record("a")["box_voxel"]
    assert (box["start"][2], box["stop"][2]) == (12, 75)  # lowest slice of L5, highest of T12
    labels = moved_spine()[BOX_SLICES]
    assert {V2[level] for level in LEVEL_ORDER[1:7]} <= set(np.unique(labels))


def test_defect_03_a_combined_map_is_not_taken_for_l2(tmp_path: Path) -> None:
    """The same case gave 35 or 175 mm, by the form of its labels."""
    one, other = Folders.below(tmp_path / "one"), Folders.below(tmp_path / "other")
    for folders in (one, other):
        folders.add("a")
    (other.vertebrae / "a.nii.gz").unlink()
    write_levels(other.vertebrae / "a", moved_spine())
    assert one.crop().code == other.crop().code == 0
    assert one.record("a")["box_voxel"] == other.record("a")["box_voxel"] == BOX
    assert (one.out / "a_ct.nii.gz").read_bytes() == (other.out / "a_ct.nii.gz").read_bytes()


def test_defect_04_every_axis_order_gives_the_same_region(tmp_path: Path) -> None:
    """Of 48 axis orders 16 crashed and 8 were wrong without a word."""
    folders = Folders.below(tmp_path)
    for code in ORIENTATIONS:
        write(folders.ct / f"{code}.nii.gz", ct_hu(), code)
        write(folders.vertebrae / f"{code}.nii.gz", moved_spine(), code)
        write(folders.masks / f"{code}.nii.gz", nodes(), code)
    assert folders.crop("--no-normalize").code == 0
    assert folders.summary()["done"] == len(ORIENTATIONS) == 48
    for code in ORIENTATIONS:
        assert folders.record(code)["box_voxel"] == BOX
        assert np.array_equal(nifti.read(folders.out / f"{code}_ct.nii.gz").array, ct_hu()[BOX_SLICES])
        assert np.array_equal(nifti.read(folders.out / f"{code}_mask.nii.gz").array, nodes()[BOX_SLICES])


@pytest.mark.parametrize("part", ["vertebrae", "masks"])
def test_defect_09_labels_of_another_grid_are_refused(tmp_path: Path, part: str) -> None:
    """Label maps of half the resolution, or mirrored, were accepted."""
    folders = Folders.below(tmp_path)
    for case_id in ("half", "mirrored", "right"):
        folders.add(case_id)
    array = moved_spine() if part == "vertebrae" else nodes()
    place: Path = getattr(folders, part)
    nifti.write(place / "half.nii.gz", array[::2], grid_ras((30, 60, 90), (8.0, 4.0, 3.0)))
    mirrored = Grid(array.shape, grid_ras().affine @ np.diag([-1.0, 1, 1, 1]))  # type: ignore[arg-type]
    nifti.write(place / "mirrored.nii.gz", array, mirrored)
    assert folders.crop().code == 3
    assert folders.outcomes() == {
        "half": ("quarantined", "grid_mismatch"),
        "mirrored": ("quarantined", "grid_mismatch"),
        "right": ("done", None),
    }
    assert {path.name.split("_")[0] for path in folders.out.glob("*_*")} == {"right"}
