"""What lies in a study without harm is left out, or taken, with a remark; what is unsafe is still refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

from retroln.errors import InputError
from retroln.imaging.dicom.study import Series, Study, open_study
from tests.dicom_series import Made, ct_array, lps_grid, series, write


def _written(folder: Path, more: list[Dataset] | None = None) -> Study:
    write(folder, [*series(ct_array(), lps_grid()), *(more or [])])
    return open_study(folder.iterdir())


def _sound(study: Study) -> Series:
    """The one series, which must hold the voxels that were written."""
    (found,) = study.series
    assert np.array_equal(found.volume().to_source(), ct_array())
    return found


def _another(number: int) -> Dataset:
    """An object of the same series, somewhere else."""
    one = series(ct_array(), lps_grid())[0]
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    return one


@pytest.mark.parametrize("copies", [1, 3])
def test_a_copy_of_a_slice_is_left_out(tmp_path: Path, copies: int) -> None:
    path = write(tmp_path, series(ct_array(), lps_grid()))[4]
    for number in range(copies):
        shutil.copyfile(path, path.with_name(f"{path.stem} ({number}).dcm"))
    found = _sound(open_study(tmp_path.iterdir()))
    assert found.remarks == (f"left out: copies of objects, byte for byte: {copies}",)


def test_two_slices_at_one_position_stay_refused(tmp_path: Path) -> None:
    """The same SOPInstanceUID, another voxel."""
    slices = series(ct_array(), lps_grid())
    slices[5].PixelData = slices[5].PixelData[:-2] + b"\x07\x00"
    (found,) = _written(tmp_path, [slices[5]]).series
    assert found.problem is not None and found.problem.reason == "duplicate_positions"
    assert found.remarks == ()


@pytest.mark.parametrize("name", ["Thumbs.db", "desktop.ini", "DICOMDIR", "report.txt"])
@pytest.mark.parametrize("content", [b"", b"something else"])
def test_a_file_that_is_no_slice_is_left_out(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, series(ct_array(), lps_grid()))
    (tmp_path / name).write_bytes(content)
    study = open_study(tmp_path.iterdir())
    _sound(study)
    assert study.remarks == ("left out: files that are no DICOM: 1",)


@pytest.mark.parametrize("name", ["IM0012", "IM0012.dcm", "1.2.840.113619.2"])
def test_an_empty_file_that_may_be_a_slice_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, series(ct_array(), lps_grid()))
    (tmp_path / name).touch()
    with pytest.raises(InputError) as caught:
        open_study(tmp_path.iterdir())
    assert caught.value.reason == "truncated"


def test_a_scout_in_the_series_is_left_out(tmp_path: Path) -> None:
    scout = _another(1)
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImageOrientationPatient, scout.Columns = [1, 0, 0, 0, 0, -1], 10
    scout.PixelData = scout.PixelData[: 10 * scout.Rows * 2]
    found = _sound(_written(tmp_path, [scout]))
    assert found.remarks == ("left out: localizers (scouts) in the series: 1",)
    assert len(found.instances) == 12


def test_a_picture_in_the_series_is_left_out(tmp_path: Path) -> None:
    picture = _another(1)
    picture.SOPClassUID = picture.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    found = _sound(_written(tmp_path, [picture]))
    assert found.remarks == ("left out: objects in the series that are no CT images: 1",)


def test_a_frame_of_reference_per_slice_is_taken_on_an_even_grid(tmp_path: Path) -> None:
    slices = series(ct_array(), lps_grid())
    for number, one in enumerate(slices):
        one.FrameOfReferenceUID = f"1.2.3.{number}"
    write(tmp_path, slices)
    found = _sound(open_study(tmp_path.iterdir()))
    (remark,) = found.remarks
    assert remark.startswith("a FrameOfReferenceUID per object")


@pytest.mark.parametrize("kinds", [2, 11])
def test_several_frames_of_reference_stay_refused(tmp_path: Path, kinds: int) -> None:
    slices = series(ct_array(), lps_grid())
    for number, one in enumerate(slices):
        one.FrameOfReferenceUID = f"1.2.3.{number % kinds}"
    write(tmp_path, slices)
    (found,) = open_study(tmp_path.iterdir()).series
    assert found.problem is not None and found.problem.reason == "mixed_series"


def test_padding_that_tissue_has_is_remarked(tmp_path: Path) -> None:
    slices = series(ct_array(), lps_grid(), Made(stored="<i2", intercept=0.0))
    for one in slices:
        one.add_new("PixelPaddingValue", "SS", 0)
    write(tmp_path, slices)
    (found,) = open_study(tmp_path.iterdir()).series
    assert found.remarks == ("PixelPaddingValue is one that tissue has; it counts only around the image",)


@pytest.mark.parametrize(
    ("keyword", "reason", "got"),
    [
        ("Modality", "wrong_modality", "no Modality in the header"),
        ("Rows", "pixel_layout", "no Rows"),
        ("Columns", "pixel_layout", "no Columns"),
        ("BitsStored", "pixel_layout", "no BitsStored"),
        ("SamplesPerPixel", "pixel_layout", "no SamplesPerPixel"),
    ],
)
@pytest.mark.parametrize("slices", [slice(None), slice(5, 6)])
def test_an_attribute_that_is_missing_is_named(
    tmp_path: Path, keyword: str, reason: str, got: str, slices: slice
) -> None:
    datasets = series(ct_array(), lps_grid())
    for one in datasets[slices]:
        delattr(one, keyword)
    write(tmp_path, datasets)
    (found,) = open_study(tmp_path.iterdir()).series
    assert found.problem is not None
    assert (found.problem.reason, found.problem.got) == (reason, got)
