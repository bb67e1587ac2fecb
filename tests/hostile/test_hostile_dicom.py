"""Hundreds of broken and malicious DICOM series and zips: each is taken in right, or held with a reason."""

from __future__ import annotations

import warnings
from collections import defaultdict
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from retroln.imaging import nifti
from retroln.imaging.volume import Volume
from retroln.steps.workspace import Workspace, open_workspace
from tests.dicom_series import ct_array, lps_grid
from tests.hostile import archive_mutations, dicom_mutations, object_mutations
from tests.hostile.deliveries import SHAPE, Delivery, write
from tests.hostile.harness import Pass, require_nothing_beside, take_in
from tests.way import embedded


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile-dicom")


@pytest.fixture(scope="module")
def delivered(folder: Path) -> dict[str, Delivery]:
    """Every series by its name, and as a case of its own in the source."""
    kinds = (dicom_mutations, archive_mutations, object_mutations)
    return write(folder, chain.from_iterable(kind.deliveries() for kind in kinds))


@pytest.fixture(scope="module")
def taken(folder: Path, delivered: dict[str, Delivery]) -> Pass:
    """What ingest made of them."""
    return take_in(folder)


def test_each_ends_taken_in_or_held_and_quickly(delivered: dict[str, Delivery], taken: Pass) -> None:
    assert len(delivered) > 1400
    taken.require_ends(delivered)
    assert len(taken.verdicts) - len(taken.done) > 800


def test_harmless_oddities_are_taken_in(delivered: dict[str, Delivery], taken: Pass) -> None:
    wanted = {delivery.name for delivery in delivered.values() if delivery.accepted}
    held = {name: taken.verdicts[name] for name in wanted - taken.done}
    assert not held


def test_what_is_taken_in_is_the_sound_volume_or_what_it_says(
    delivered: dict[str, Delivery], folder: Path, taken: Pass, tmp_path: Path
) -> None:
    workspace = open_workspace(embedded(folder))
    wrong = []
    for name in sorted(taken.done):
        delivery = delivered[name]
        expected = _reread(delivery) if delivery.asked else _sound()
        if difference := _difference(_stored(workspace, name, tmp_path), *expected):
            wrong.append((name, difference))
    assert not wrong


def test_what_announces_more_than_the_largest_volume_is_held_before_it_is_read(taken: Pass) -> None:
    for name in dicom_mutations.TOO_LARGE:
        verdict = taken.verdicts[name]
        assert verdict.reason == "too_large" and "at most 2 GiB of voxels" in str(verdict.detail)
    for name in ("largest", "largest-in-fractions"):  # of missing pixels, seen on reading them
        assert taken.verdicts[name].reason == "truncated"


def test_nothing_is_written_where_it_does_not_belong(
    delivered: dict[str, Delivery], folder: Path, taken: Pass
) -> None:
    require_nothing_beside(folder)
    assert not archive_mutations.OUTSIDE.exists()
    kept = [path for path in (folder / "source").rglob("*") if path.is_symlink() or path.is_file()]
    assert len(kept) == sum(len(one.files) + len(one.links) for one in delivered.values())


def _stored(workspace: Workspace, name: str, scratch: Path) -> Volume:
    scan = workspace.catalog.current_scan(name)
    assert scan is not None and scan.ct_key is not None
    workspace.store.get_file(scan.ct_key, scratch / "stored.nii.gz")
    return nifti.read(scratch / "stored.nii.gz")


def _sound() -> tuple[NDArray[Any], NDArray[Any]]:
    return _canonical(ct_array(SHAPE), lps_grid(SHAPE).affine)


def _difference(stored: Volume, values: NDArray[Any], affine: NDArray[Any]) -> str:
    if stored.grid.shape != values.shape:
        return f"shape {stored.grid.shape}, not {values.shape}"
    corners = np.array([[0, 0, 0, 1], [*(side - 1 for side in values.shape), 1]])
    off = np.abs(corners @ (stored.grid.affine - affine).T).max()
    if off > 0.1:
        return f"{off:.2f} mm beside"
    wrong = ~np.isclose(stored.array, values, rtol=1e-5, atol=0.01)
    return f"{wrong.sum()} voxels differ" if wrong.any() else ""


def _reread(delivery: Delivery) -> tuple[NDArray[Any], NDArray[Any]]:
    """The largest series of a delivery, by pydicom and numpy alone."""
    import pydicom

    groups = defaultdict(list)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in delivery.files.values():
            if data[128:132] == b"DICM":
                one = pydicom.dcmread(BytesIO(data))
                groups[str(one.SeriesInstanceUID)].append(one)
        slices = max(groups.values(), key=len)
        directions = np.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
        normal = np.cross(*directions)
        slices.sort(key=lambda one: float(np.dot(normal, np.array(one.ImagePositionPatient, float))))
        values = np.stack([_values(one) for one in slices], -1)
        places = np.array([slices[0].ImagePositionPatient, slices[-1].ImagePositionPatient], float)
        rows_mm, columns_mm = (float(value) for value in slices[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = directions[0] * columns_mm, directions[1] * rows_mm
    affine[:3, 2] = (places[1] - places[0]) / (len(slices) - 1)
    affine[:3, 3] = places[0]
    return _canonical(values, np.diag([-1, -1, 1, 1]) @ affine)


def _values(one: Any) -> NDArray[Any]:
    """HU with axes column, row."""
    stored = one.pixel_array.astype(np.float64)
    return (stored * float(one.RescaleSlope) + float(one.RescaleIntercept)).T


def _canonical(values: NDArray[Any], affine: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    image = nib.as_closest_canonical(nib.Nifti1Image(values.astype(np.float64), affine))
    return np.asarray(image.dataobj), np.asarray(image.affine)
