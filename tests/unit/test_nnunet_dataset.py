"""What nnU-Net is given: scaled crops, binary labels, grids that SimpleITK can read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("SimpleITK")

from retroln.errors import GeometryError, InputError, UserError
from retroln.imaging import nifti
from retroln.imaging.geometry import Grid
from retroln.nnunet.dataset import DATASET_NAME, RawCase, write_raw
from retroln.nnunet.environment import Folders

GRID = Grid((6, 5, 4), np.diag([-2.0, 2.0, 3.0, 1.0]))
CT = np.linspace(0, 1, 120, dtype=np.float32).reshape(GRID.shape)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "raw", tmp_path / "preprocessed", tmp_path / "results")


def case(
    folder: Path, mask: np.ndarray, ct: np.ndarray = CT, grid: Grid = GRID, mask_grid: Grid | None = None
) -> RawCase:
    nifti.write(folder / "ct.nii.gz", ct, grid)
    nifti.write(folder / "mask.nii.gz", mask, mask_grid or grid)
    return RawCase("case.1", folder / "ct.nii.gz", folder / "mask.nii.gz", "p1")


def mask(value: int = 1, dtype: type = np.uint8) -> np.ndarray:
    array = np.zeros(GRID.shape, dtype)
    array[1:3, 2, 1] = value
    return array


def test_layout_is_the_one_nnunet_expects(folders: Folders, tmp_path: Path) -> None:
    target = write_raw(folders, [case(tmp_path, mask())])
    assert target == folders.raw / DATASET_NAME
    described = json.loads((target / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "lymph_node": 1}
    assert described["channel_names"] == {"0": "CT"}
    assert described["numTraining"] == 1
    image = target / "imagesTr" / "case.1_0000.nii.gz"
    assert image.read_bytes() == (tmp_path / "ct.nii.gz").read_bytes()
    assert image.stat().st_ino == (tmp_path / "ct.nii.gz").stat().st_ino


def test_node_numbers_become_one_label_on_the_same_grid(folders: Folders, tmp_path: Path) -> None:
    instances = mask(7, np.uint16)
    instances[5, 4, 3] = 300
    target = write_raw(folders, [case(tmp_path, instances)])
    written = nifti.read_labels(target / "labelsTr" / "case.1.nii.gz")
    np.testing.assert_array_equal(written.to_source(), instances > 0)
    assert written.source.distance_mm(GRID) < 1e-4


def test_earlier_cases_are_gone(folders: Folders, tmp_path: Path) -> None:
    first = case(tmp_path, mask())
    write_raw(folders, [first])
    write_raw(folders, [RawCase("other", first.ct_path, first.label_path, "p1")])
    assert [p.name for p in (folders.raw / DATASET_NAME / "imagesTr").iterdir()] == ["other_0000.nii.gz"]


def test_sheared_grid_can_be_read_by_simpleitk(folders: Folders, tmp_path: Path) -> None:
    import SimpleITK

    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[1, 2] = 0.8
    target = write_raw(folders, [case(tmp_path, mask(), grid=Grid(GRID.shape, affine))])
    image = SimpleITK.ReadImage(str(target / "imagesTr" / "case.1_0000.nii.gz"))
    assert image.GetSpacing() == pytest.approx((2.0, 2.0, float(np.hypot(3, 0.8))), abs=1e-5)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(image), CT.transpose(2, 1, 0))
    label = SimpleITK.ReadImage(str(target / "labelsTr" / "case.1.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(label), mask().transpose(2, 1, 0))


@pytest.mark.parametrize("ct", [CT * 1400 - 1000, (CT > 0.5).astype(np.int16), CT * np.float32(1.01)])
def test_unscaled_crop_is_refused(folders: Folders, tmp_path: Path, ct: np.ndarray) -> None:
    with pytest.raises(InputError) as caught:
        write_raw(folders, [case(tmp_path, mask(), ct=ct)])
    assert caught.value.reason == "not_scaled"


def test_mask_elsewhere_is_refused(folders: Folders, tmp_path: Path) -> None:
    moved = Grid(GRID.shape, GRID.affine + np.array([[0, 0, 0, 0.2]] + [[0] * 4] * 3))
    with pytest.raises(GeometryError):
        write_raw(folders, [case(tmp_path, mask(), mask_grid=moved)])


def test_cases_without_any_node_are_refused(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no case holds a node"):
        write_raw(folders, [case(tmp_path, mask(0))])
    with pytest.raises(UserError, match="no training case"):
        write_raw(folders, [])


def test_same_id_twice_is_refused(folders: Folders, tmp_path: Path) -> None:
    one = case(tmp_path, mask())
    with pytest.raises(InputError) as caught:
        write_raw(folders, [one, one])
    assert caught.value.reason == "case_id_twice"
