"""Geometry, landmarks and crop on real label maps and CT (`RETROLN_REAL_DATA`)."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from retroln.anatomy import roi
from retroln.anatomy.landmarks import Assessment, assess
from retroln.anatomy.vertebrae import LEVEL_ORDER, Level, Vertebrae
from retroln.errors import GeometryError, InputError, LandmarkError
from retroln.imaging import nifti
from retroln.imaging.geometry import VoxelBox
from retroln.imaging.volume import Volume
from retroln.settings import LabelScheme, RoiSpec
from retroln.steps.files import crop_files, paste_file
from tests.real.fleshed import BONE_ALONE, write_fleshed

pytestmark = pytest.mark.skipif(
    not os.environ.get("RETROLN_REAL_DATA"), reason="RETROLN_REAL_DATA is not set"
)


def _path(name: str) -> Path:
    return Path(os.environ["RETROLN_REAL_DATA"]) / f"{name}.nii.gz"


def _assessed(name: str, scheme: LabelScheme) -> tuple[Vertebrae, Assessment]:
    found = Vertebrae.read(_path(name), scheme)
    return found, assess(found, unanchored="accept")


@pytest.mark.parametrize(
    "name",
    [
        "totalseg_example_ct",
        "totalsegdata_s0328_labels",
        "totalsegdata_s0328_bone_ct",
        "verse004_vertebrae",
        "tptbox_l3_ct",
        "dicom_series_labels",
    ],
)
def test_read_and_written_as_nibabel_sees_it(tmp_path: Path, name: str) -> None:
    image = nib.load(_path(name))
    canonical = nib.as_closest_canonical(image)
    volume = nifti.read(_path(name))
    assert np.array_equal(volume.array, np.asanyarray(canonical.dataobj))
    np.testing.assert_allclose(volume.grid.affine, canonical.affine, atol=1e-4)
    nifti.write_source(tmp_path / "back.nii.gz", volume)
    back = nib.load(tmp_path / "back.nii.gz")
    assert np.array_equal(np.asanyarray(back.dataobj), np.asanyarray(image.dataobj))
    np.testing.assert_allclose(back.affine, image.affine, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "scheme", "truncated", "anchored"),
    [
        ("totalsegdata_s0328_labels", "totalseg-v2", (), True),
        ("totalseg_example_vertebrae", "totalseg-v2", (Level.T12,), True),
        ("totalseg_example_organs", "totalseg-v2", (Level.T12,), True),
        ("verse004_vertebrae", "verse", (), False),
    ],
)
def test_real_spines_pass_on_l2_itself(
    name: str, scheme: LabelScheme, truncated: tuple[Level, ...], anchored: bool
) -> None:
    _, found = _assessed(name, scheme)
    assert (found.rung, found.truncated, found.anchored) == ("l2", truncated, anchored)


@pytest.mark.parametrize(
    ("name", "scheme", "reason"),
    [
        ("tptbox_l3_vertebrae", "verse", "l2_unresolved"),
        ("dicom_series_labels", "totalseg-v2", "no_lumbar_level"),
        ("totalseg_example_vertebrae_body", "totalseg-v2", "no_lumbar_level"),
        ("totalseg_example_seg_sm", "totalseg-v2", "l2_unresolved"),
        ("totalsegdata_s0328_labels", "totalseg-v1", "landmarks_implausible"),
        ("totalsegdata_s0328_labels", "verse", "landmarks_implausible"),
        ("verse004_vertebrae", "totalseg-v1", "landmarks_implausible"),
    ],
)
def test_what_a_person_must_look_at_is_refused(name: str, scheme: LabelScheme, reason: str) -> None:
    with pytest.raises(LandmarkError) as caught:
        _assessed(name, scheme)
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["totalsegdata_s0328_labels", "totalseg_example_organs"])
@pytest.mark.parametrize("missing", [(Level.L2,), (Level.L2, Level.L3), (Level.L1, Level.L2)])
def test_the_ladder_stays_near_the_real_l2(name: str, missing: tuple[Level, ...]) -> None:
    whole, direct = _assessed(name, "totalseg-v2")
    kept = {level: v for level, v in whole.levels.items() if level not in missing}
    found = assess(Vertebrae(whole.grid, kept, 0, whole.source), unanchored="accept")
    assert found.rung == ("interpolated_l1_l3" if missing == (Level.L2,) else "extrapolated")
    moved = np.abs(np.array(found.l2[2:]) - np.array(direct.l2[2:]))
    assert (moved * np.array(whole.grid.spacing_mm)[[1, 0]]).max() < 15


def test_rib_confirms_s0328_and_refutes_a_shift_by_one() -> None:
    volume = nifti.read_labels(_path("totalsegdata_s0328_labels"))
    assert Vertebrae.from_label_map(volume, "totalseg-v2").ribs_at_t12
    for step in (-1, 1):
        moved = volume.array.copy()
        for value in range(26, 34):
            moved[volume.array == value] = value + step
        assert not Vertebrae.from_label_map(volume.with_array(moved), "totalseg-v2").ribs_at_t12


def _defined_box(name: str, ids: dict[str, int]) -> VoxelBox:
    """docs/reference/region.md in plain numpy over the whole array."""
    image = nib.as_closest_canonical(nib.load(_path(name)))
    labels, spacing = np.asanyarray(image.dataobj), np.linalg.norm(image.affine[:3, :3], axis=0)
    x, y, z = np.where(labels == ids["L2"])
    slices = range(z.min() + int(0.25 * np.ptp(z)), z.min() + int(0.75 * np.ptp(z)) + 1)
    margin = np.median([y[z == k].max() for k in slices])
    centre = np.median([x[z == k].mean() for k in slices])
    index = np.arange(-1000, 1000)
    lateral = index[np.abs(index - centre) - 0.5 <= 75 / spacing[0] + 1e-4]
    front = margin + np.array([-30, 150]) / spacing[1]
    frontal = index[(index + 0.5 >= front[0] - 1e-4) & (index - 0.5 <= front[1] + 1e-4)]
    vertical = np.where(np.isin(labels, list(ids.values())))[2]
    low = np.maximum([lateral[0], frontal[0], vertical.min()], 0)
    high = np.minimum([lateral[-1] + 1, frontal[-1] + 1, vertical.max() + 1], labels.shape)
    return VoxelBox(tuple(map(int, low)), tuple(map(int, high)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "scheme", "first", "step"),
    [
        ("totalsegdata_s0328_labels", "totalseg-v2", 32, -1),
        ("totalseg_example_vertebrae", "totalseg-v2", 32, -1),
        ("verse004_vertebrae", "verse", 19, 1),
    ],
)
def test_box_is_the_defined_one(name: str, scheme: LabelScheme, first: int, step: int) -> None:
    ids = {level.value: first + step * i for i, level in enumerate(LEVEL_ORDER[1:7])}
    vertebrae, assessment = _assessed(name, scheme)
    assert roi.locate(vertebrae, assessment, RoiSpec()).box == _defined_box(name, ids)


@pytest.mark.parametrize(
    ("ct", "labels"),
    [
        ("totalseg_example_ct", "totalseg_example_vertebrae"),
        (BONE_ALONE, "totalsegdata_s0328_labels"),
    ],
)
def test_crop_lies_on_the_ct_and_returns_bit_by_bit(tmp_path: Path, ct: str, labels: str) -> None:
    scan = write_fleshed(_path(ct), tmp_path / "ct.nii.gz") if ct == BONE_ALONE else _path(ct)
    report = crop_files(scan, _path(labels), tmp_path, mask=_path(labels), normalize=False, case_id="case")
    whole, crop = nib.load(scan), nib.load(report.ct)
    start = np.linalg.inv(whole.affine) @ crop.affine[:, 3]
    assert start[:3] == pytest.approx(report.record["box_voxel"]["start"], abs=1e-4)
    box = VoxelBox(*(tuple(report.record["box_voxel"][end]) for end in ("start", "stop")))
    voxels = np.asanyarray(whole.dataobj)
    assert np.array_equal(np.asanyarray(crop.dataobj), voxels[box.slices])
    paste_file(report.ct, report.roi, tmp_path / "back.nii.gz")
    back = np.asanyarray(nib.load(tmp_path / "back.nii.gz").dataobj)
    assert np.array_equal(back[box.slices], voxels[box.slices])
    assert np.count_nonzero(back) == np.count_nonzero(voxels[box.slices])


def test_the_same_anatomy_off_by_246_mm_is_refused(tmp_path: Path) -> None:
    """totalseg_example_ct_sm is example_ct[:, :, 82:112] under the affine of the whole scan."""
    labels = nifti.read_labels(_path("totalseg_example_vertebrae"))
    part = labels.crop(VoxelBox((0, 0, 82), (122, 101, 112)))
    nifti.write(tmp_path / "part.nii.gz", part.array, part.grid)
    with pytest.raises(GeometryError, match=r"246\.00 mm apart") as caught:
        crop_files(_path("totalseg_example_ct_sm"), tmp_path / "part.nii.gz", tmp_path / "out")
    assert caught.value.reason == "grid_mismatch"


def test_real_ct_passes_the_ct_check_and_label_maps_do_not() -> None:
    for name in ("totalseg_example_ct", "totalseg_example_ct_sm", "tptbox_l3_ct"):
        nifti.check_ct(nifti.read(_path(name)), name)
    for name in ("totalsegdata_s0328_labels", "verse004_vertebrae", BONE_ALONE):
        volume: Volume = nifti.read(_path(name))
        with pytest.raises(InputError, match="not CT"):
            nifti.check_ct(volume, name)
