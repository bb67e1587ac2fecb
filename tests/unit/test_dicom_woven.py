"""Acquisitions woven into one series are refused, whatever tells them apart; ranges in a row go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from retroln.errors import InputError
from retroln.imaging import nifti
from retroln.imaging.dicom.study import open_study
from retroln.imaging.geometry import Grid
from retroln.imaging.turns import require_no_turns
from retroln.imaging.volume import Volume
from tests.dicom_series import ct_array, enhanced, lps_grid, save, series, write

Change = Callable[[Dataset, int], None]
_SHAPE = (6, 5, 24)


def problem(folder: Path, change: Change) -> InputError | None:
    """Why a series of 24 slices is refused after a change that knows each slice's number."""
    slices = series(ct_array(_SHAPE), lps_grid(_SHAPE))
    for k, one in enumerate(slices):
        change(one, k)
    write(folder, slices)
    (found,) = open_study(folder.iterdir()).series
    return found.problem


def _each(keyword: str, value: Callable[[int], object]) -> Change:
    return lambda one, k: setattr(one, keyword, value(k))


def _turns(keyword: str, *values: object) -> Change:
    """The values in turns, slice by slice; None for no such attribute."""

    def change(one: Dataset, k: int) -> None:
        value = values[k % len(values)]
        if value is not None:
            setattr(one, keyword, value)
        elif keyword in one:
            delattr(one, keyword)

    return change


def _aside(one: Dataset, k: int) -> None:
    x, y, z = map(float, one.ImagePositionPatient)
    one.ImagePositionPatient = [x + 0.03 * (k % 2), y, z]


WOVEN: dict[str, Change] = {
    "acquisition": _turns("AcquisitionNumber", 1, 2),
    "three acquisitions": _turns("AcquisitionNumber", 1, 2, 3),
    "one slice of three": _turns("AcquisitionNumber", 1, 1, 2),
    "blocks, as of a shuttle": _each("AcquisitionNumber", lambda k: 1 + k // 4 % 2),
    "a foreign slice": _each("AcquisitionNumber", lambda k: 1 + (k == 9)),
    "kernel": _turns("ConvolutionKernel", ["Br36f", "3"], ["Bl57f", "3"]),
    "voltage": _turns("KVP", "80", "140"),
    "derived": _turns("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "AXIAL"]),
    "thickness": _turns("SliceThickness", "1", "3"),
    "contrast": _turns("ContrastBolusAgent", "agent", None),
    "description": _turns("SeriesDescription", "arterial", "venous"),
    "field of view": _turns("DataCollectionDiameter", "500", "650"),
    "event": _turns("IrradiationEventUID", "1.2.3", "1.2.4"),
    "time of acquisition": _each("AcquisitionTime", lambda k: f"{101500 + 100 * (k % 2)}.{k:03d}"),
    "time of content": _each("ContentTime", lambda k: f"{101500 + 100 * (k % 2)}.{k:03d}"),
    "order of instances": _each("InstanceNumber", lambda k: k // 2 + 12 * (k % 2)),
    "orientation's last digit": _turns("ImageOrientationPatient", [1, 0, 0, 0, 1, 0], [1, 1e-5, 0, 0, 1, 0]),
    "centre": _aside,
}


@pytest.mark.parametrize("name", WOVEN)
def test_slices_that_take_turns_are_refused(tmp_path: Path, name: str) -> None:
    error = problem(tmp_path, WOVEN[name])
    assert error is not None and error.reason == "mixed_series"
    assert "take turns by" in str(error) and "arterial" not in str(error)


def _stations(one: Dataset, k: int) -> None:
    """Chest, then abdomen: two scans that follow each other."""
    one.AcquisitionNumber, one.KVP = (1, "100") if k < 11 else (2, "120")
    one.AcquisitionTime = f"{101500 + 100 * (k >= 11) + k}"
    one.SliceThickness = "2.0" if k < 11 else "2.5"


_SHUFFLED = np.random.default_rng(3).permutation(24).tolist()
ONE_ACQUISITION: dict[str, Change] = {
    "ranges that follow each other": _stations,
    "a number and a time per slice": lambda one, k: (
        setattr(one, "AcquisitionNumber", k),
        setattr(one, "AcquisitionTime", f"101500.{k:03d}"),
    ),
    "four slices per turn of an axial scan": _each("AcquisitionTime", lambda k: f"{101500 + k // 4}"),
    "numbers in no order": _each("InstanceNumber", lambda k: _SHUFFLED[k]),
    "numbers alike": _each("InstanceNumber", lambda k: 1),
    "no numbers": _turns("InstanceNumber", None),
    "an adapted tube current": _each("XRayTubeCurrent", lambda k: 600 + _SHUFFLED[k] % 5),
    "a current and a window that alternate": lambda one, k: (
        setattr(one, "Exposure", 253 + k % 2),
        setattr(one, "WindowCenter", 40 + k % 2),
    ),
    "1.25 mm, rounded": _turns("SliceThickness", "1.2", "1.3"),
    "the same in other words": _turns("KVP", "120", "120.0"),
}


@pytest.mark.parametrize("name", ONE_ACQUISITION)
def test_one_acquisition_goes_on(tmp_path: Path, name: str) -> None:
    assert problem(tmp_path, ONE_ACQUISITION[name]) is None


def _frame(keyword: str, sequence: str, *values: object) -> Change:
    def change(group: Dataset, k: int) -> None:
        item = Dataset()
        setattr(item, keyword, values[k % 2])
        setattr(group, sequence, [item])

    return change


@pytest.mark.parametrize(
    "change",
    [
        _frame("StackID", "FrameContentSequence", "A", "B"),
        _frame("TemporalPositionIndex", "FrameContentSequence", 1, 2),
        _frame("KVP", "CTXRayDetailsSequence", 80, 140),
        _frame("FrameType", "CTImageFrameTypeSequence", ["ORIGINAL"], ["DERIVED"]),
    ],
)
def test_frames_that_take_turns_are_refused(tmp_path: Path, change: Change) -> None:
    one = enhanced(ct_array(_SHAPE), lps_grid(_SHAPE))
    for k, group in enumerate(one.PerFrameFunctionalGroupsSequence):
        change(group, k)
    assert "take turns by" in str(_only_problem(tmp_path, one))


def test_frames_of_two_sweeps_are_refused_and_of_one_are_not(tmp_path: Path) -> None:
    one = enhanced(ct_array(_SHAPE), lps_grid(_SHAPE))
    assert _only_problem(tmp_path, one) is None
    groups = list(one.PerFrameFunctionalGroupsSequence)
    one.PerFrameFunctionalGroupsSequence = groups[::2] + groups[1::2]
    assert "the order of frames" in str(_only_problem(tmp_path, one))


def _only_problem(folder: Path, one: Dataset) -> InputError | None:
    save(folder / "one.dcm", one)
    (found,) = open_study([folder / "one.dcm"]).series
    return found.problem


def _body(shape: tuple[int, int, int], shift: int = 0) -> np.ndarray:
    """A cylinder of muscle around a bone, whose radius changes from slice to slice, with noise."""
    x, y, z = np.indices(shape)
    radius = 22 + 4 * np.sin(z / 4)
    distance = np.hypot(x - shape[0] / 2 - shift, y - shape[1] / 2)
    noise = np.random.default_rng(2).normal(0, 15, shape)
    tissue = np.where(distance < 3, 600, np.where(distance < radius, 60, -1000))
    return (tissue + noise).astype(np.int16)


def _volume(array: np.ndarray) -> Volume:
    grid = Grid(array.shape, np.eye(4))
    return Volume(array, grid, grid)


def _two_breaths(slices: int) -> Volume:
    """Every second slice 6 voxels to the side."""
    array = _body((64, 64, slices))
    array[:, :, 1::2] = _body((64, 64, slices), shift=6)[:, :, 1::2]
    return _volume(array)


def test_voxels_that_take_turns_are_refused_without_any_header() -> None:
    require_no_turns(_volume(_body((64, 64, 30))), "ct.nii.gz")
    with pytest.raises(InputError) as caught:
        nifti.check_ct(_two_breaths(30), "ct.nii.gz")
    assert caught.value.reason == "mixed_series" and str(caught.value.file) == "ct.nii.gz"


def test_of_too_few_slices_nothing_is_told() -> None:
    require_no_turns(_two_breaths(9), "ct.nii.gz")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_noise_alone_takes_no_turns(dtype: type) -> None:
    noise = np.random.default_rng(4).uniform(0, 200, (64, 64, 12))
    require_no_turns(_volume(noise.astype(dtype)), "ct.nii.gz")
