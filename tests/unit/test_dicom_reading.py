"""DICOM series to a volume: every encoding, slices in any order and direction, values in HU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import (
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from retroln.errors import InputError
from retroln.imaging.dicom.headers import is_doubtful, is_placeholder, read_instance
from retroln.imaging.dicom.planes import Plane
from retroln.imaging.dicom.stack import stack
from retroln.imaging.dicom.study import Series, open_study
from retroln.imaging.geometry import Grid, axis_map
from tests.dicom_series import (
    LOSSLESS,
    LOSSY,
    Made,
    ct_array,
    enhanced,
    lps_grid,
    rotated,
    save,
    series,
    set_patient_id,
    write,
)


def only_series(folder: Path) -> Series:
    """The one series of a folder."""
    (found,) = open_study(folder.iterdir()).series
    return found


def require_same(found: Series, array: np.ndarray, grid: Grid, tolerance: float = 0) -> None:
    """The voxels on their grid, RAS+, and the way back to the delivered order."""
    volume = found.volume()
    assert volume.source.distance_mm(grid) < 1e-3
    assert volume.grid.orientation == "RAS"
    np.testing.assert_allclose(volume.to_source(), array, atol=tolerance)
    index = np.array([3, 4, 5])
    expected = array[tuple(index)]
    back = np.linalg.inv(volume.grid.affine) @ [*grid.world_mm(index), 1.0]
    assert abs(volume.array[tuple(np.rint(back[:3]).astype(int))] - expected) <= tolerance


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("stored", ["<u2", "<i2"])
def test_lossless_encodings_give_the_exact_values(tmp_path: Path, syntax: str, stored: str) -> None:
    array, grid = ct_array(), lps_grid()
    intercept = -1024.0 if stored == "<u2" else 0.0
    write(tmp_path, series(array, grid, Made(transfer_syntax=syntax, stored=stored, intercept=intercept)))
    found = only_series(tmp_path)
    assert found.volume().array.dtype == np.int16
    require_same(found, array, grid)


@pytest.mark.parametrize("syntax", LOSSY, ids=lambda uid: uid.keyword)
def test_lossy_encodings_are_read(tmp_path: Path, syntax: str) -> None:
    array, grid = ct_array(), lps_grid()
    write(tmp_path, series(array, grid, Made(transfer_syntax=syntax)))
    require_same(only_series(tmp_path), array, grid, tolerance=2)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless]
)
def test_twelve_stored_bits_with_a_sign_are_extended(tmp_path: Path, syntax: str) -> None:
    array = np.clip(ct_array(), -2048, 2047)
    array[0, 0, 0], array[1, 0, 0] = -2048, 2047
    made = Made(transfer_syntax=syntax, stored="<i2", bits=12, intercept=0.0)
    datasets = series(array, lps_grid(), made)
    if syntax == ExplicitVRLittleEndian:  # the unused bits hold something else, as overlays once did
        for one in datasets:
            dirty = np.frombuffer(one.PixelData, "<u2") & 0x0FFF | 0x5000
            one.PixelData = dirty.astype("<u2").tobytes()
    write(tmp_path, datasets)
    require_same(only_series(tmp_path), array, lps_grid())


_CODECS = (RLELossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, *_CODECS], ids=lambda uid: uid.keyword)
@pytest.mark.parametrize(
    ("stored", "overlay"), [("<u2", 0x1000), ("<u2", 0x8000), ("<i2", 0), ("<i2", 0x4000)]
)
def test_each_encoding_gives_the_same_values_whatever_lies_above_the_stored_bits(
    tmp_path: Path, syntax: str, stored: str, overlay: int
) -> None:
    """All 16 bits go through the encoder, with graphics or without a sign, and the header says 12."""
    array, grid = ct_array(), lps_grid()
    _write_whole_words(tmp_path, array, syntax, stored, overlay)
    require_same(only_series(tmp_path), array, grid)


@pytest.mark.parametrize("syntax", LOSSY, ids=lambda uid: uid.keyword)
def test_lossy_pixels_beyond_the_stored_bits_are_refused(tmp_path: Path, syntax: str) -> None:
    """What was graphics cannot be told there from errors of the coding."""
    _write_whole_words(tmp_path, ct_array(), syntax, "<u2", 0x1000)
    with pytest.raises(InputError, match="lossy pixels") as caught:
        only_series(tmp_path).volume()
    assert caught.value.reason == "undecodable"


def _write_whole_words(folder: Path, array: np.ndarray, syntax: str, stored: str, overlay: int) -> None:
    intercept = -1024.0 if stored == "<u2" else 0.0
    datasets = series(array, lps_grid(), Made(transfer_syntax=syntax, stored=stored, intercept=intercept))
    for one in datasets:
        words = np.frombuffer(one.PixelData, "<u2").reshape(one.Rows, one.Columns) & 0x0FFF
        words[4:7] |= overlay
        one.PixelData, one.PixelRepresentation = words.astype("<u2").tobytes(), 0
    for path in write(folder, datasets):
        one = dcmread(path)
        assert one.PixelData
        one.BitsStored, one.HighBit, one.PixelRepresentation = 12, 11, int(stored == "<i2")
        one.save_as(path)


@settings(max_examples=15, deadline=None)
@given(
    degrees=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 3.0)] * 3),
    order=st.permutations(range(12)),
)
def test_any_direction_and_any_order_of_slices(
    degrees: tuple[float, float, float], spacing: tuple[float, float, float], order: list[int]
) -> None:
    """Headers alone: sorted slices lie where the grid says, whatever the patient's position."""
    grid = lps_grid(spacing_mm=spacing, rotation=rotated(degrees))
    made = stack([_plane(grid, k) for k in order])
    assert [plane.frame for plane in made.planes] == list(range(12))
    assert made.grid.distance_mm(grid) < 1e-6
    assert axis_map(made.grid).grid_to_ras(made.grid).orientation == "RAS"


def _plane(grid: Grid, k: int) -> Plane:
    flip = np.array([-1.0, -1.0, 1.0])
    across, down = (grid.affine[:3, axis] * flip for axis in (0, 1))
    spacing = grid.spacing_mm
    return Plane(
        path=Path("x"),
        transfer_syntax="",
        frame=k,
        position_mm=tuple(grid.world_mm(np.array([0, 0, k])) * flip),
        directions=(*across / spacing[0], *down / spacing[1]),
        spacing_mm=(spacing[1], spacing[0]),
        shape=(grid.shape[1], grid.shape[0]),
        slope=1.0,
        intercept=0.0,
        padding=None,
    )


def test_an_oblique_series_keeps_its_values_and_place(tmp_path: Path) -> None:
    array, grid = ct_array(), lps_grid(rotation=rotated((20.0, -12.0, 7.0)))
    write(tmp_path, series(array, grid))
    require_same(only_series(tmp_path), array, grid)


def test_each_slice_has_a_slope_of_its_own(tmp_path: Path) -> None:
    array, grid = ct_array(), lps_grid()
    even = array - array % 2
    datasets = series(even, grid)
    for k in range(0, 12, 2):
        datasets[k] = series(even, grid, Made(slope=2.0, intercept=-2048.0))[k]
    write(tmp_path, datasets)
    found = only_series(tmp_path)
    assert found.volume().array.dtype == np.int16
    require_same(found, even, grid)


def test_fractions_become_float32(tmp_path: Path) -> None:
    array = ct_array().astype(np.float32) + 0.5
    write(tmp_path, series(array, lps_grid(), Made(slope=0.5, intercept=-1024.0)))
    found = only_series(tmp_path)
    assert found.volume().array.dtype == np.float32
    require_same(found, array, lps_grid())


def test_values_beyond_int16_become_float32_and_stay_exact(tmp_path: Path) -> None:
    array = ct_array().astype(np.int32)
    array[5, 5, 7] = 40_000
    write(tmp_path, series(array, lps_grid(), Made(intercept=-2000.0)))
    found = only_series(tmp_path)
    assert found.volume().array.dtype == np.float32
    require_same(found, array, lps_grid())


@pytest.mark.parametrize(
    ("stored", "written", "vr", "limit"),
    [
        ("<i2", -2000, "SS", None),
        ("<i2", 63536, "US", None),  # the same, written without its sign
        ("<u2", 65535, "US", None),
        ("<i2", -2010, "SS", -2000),  # a range
    ],
)
def test_padding_becomes_air(tmp_path: Path, stored: str, written: int, vr: str, limit: int | None) -> None:
    array = ct_array()
    intercept = -24.0 if stored == "<i2" else -1100.0
    datasets = series(array, lps_grid(), Made(stored=stored, intercept=intercept))
    for one in datasets:
        values = np.frombuffer(one.PixelData, stored).copy()
        values[:5] = written - 65536 if written > 32767 and stored == "<i2" else written
        values[0] = values[0] if limit is None else limit
        one.PixelData = values.tobytes()
        one.add_new("PixelPaddingValue", vr, written)
        if limit is not None:
            one.add_new("PixelPaddingRangeLimit", vr, limit)
    write(tmp_path, datasets)
    array[:5, 0, :] = -1024
    require_same(only_series(tmp_path), array, lps_grid())


@pytest.mark.parametrize("as_one_object", [False, True])
def test_a_padding_value_that_tissue_has_is_padding_around_the_image_alone(
    tmp_path: Path, as_one_object: bool
) -> None:
    """Pixels that are HU already with 0 as padding: water stays, the corners that are 0 become air."""
    array, expected = ct_array(), ct_array()
    array[8:12, 6:9, 3:6] = 0  # water in the body
    array[:2, :3, :], array[-2:, -1:, :] = 0, 0
    expected[8:12, 6:9, 3:6] = 0
    expected[:2, :3, :], expected[-2:, -1:, :] = -1024, -1024
    made = Made(stored="<i2", intercept=0.0)
    datasets = [enhanced(array, lps_grid(), made)] if as_one_object else series(array, lps_grid(), made)
    for one in datasets:
        one.add_new("PixelPaddingValue", "SS", 0)
    write(tmp_path, datasets)
    require_same(only_series(tmp_path), expected, lps_grid())


def test_a_range_of_padding_that_holds_tissue_is_padding_where_it_is_air(tmp_path: Path) -> None:
    array = ct_array()
    datasets = series(array, lps_grid(), Made(stored="<i2", intercept=0.0))
    for one in datasets:
        one.add_new("PixelPaddingValue", "SS", -2000)
        one.add_new("PixelPaddingRangeLimit", "SS", 100)
    write(tmp_path, datasets)
    require_same(only_series(tmp_path), np.where(array <= -900, -1024, array), lps_grid())


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSNearLossless])
def test_an_enhanced_object_is_the_same_series(tmp_path: Path, syntax: str) -> None:
    array, grid = ct_array(), lps_grid(rotation=rotated((5.0, 0.0, 0.0)))
    save(tmp_path / "one.dcm", enhanced(array, grid, Made(transfer_syntax=syntax)))
    found = only_series(tmp_path)
    assert found.instances[0].sop_class == EnhancedCTImageStorage
    require_same(found, array, grid, tolerance=1 if syntax == JPEGLSNearLossless else 0)


def test_a_study_of_several_series_and_other_files(tmp_path: Path) -> None:
    array, grid = ct_array(), lps_grid()
    write(tmp_path, series(array, grid, Made(number=2)), names="a{}")
    write(tmp_path, series(array[:, :, ::-1], grid, Made(number=7)), names="b{}")
    (tmp_path / "README.TXT").write_text("a viewer lies beside the study")
    first, second = open_study(tmp_path.iterdir()).series
    assert (first.number, second.number) == (2, 7)
    require_same(second, array[:, :, ::-1], grid)


def test_nothing_of_a_header_shows_in_a_representation(tmp_path: Path) -> None:
    write(tmp_path, series(ct_array(), lps_grid(), Made(patient_id="SMITH 4711")))
    study = open_study(tmp_path.iterdir())
    shown = repr(study.series[0].instances[0])
    assert "SMITH" not in shown and "1.2.826.0.1.3680043.8.498.3" not in shown


def _patient_id(folder: Path, raw: bytes, charset: str | None) -> str:
    """PatientID as it is read of an object whose bytes of it are these."""
    (one, *_) = series(ct_array(), lps_grid(), Made(patient_id="PLACE"))
    one.SpecificCharacterSet = charset
    path = folder / "one.dcm"
    save(path, one)
    set_patient_id(path, raw)
    return read_instance(path).patient_id


@pytest.mark.parametrize(
    ("raw", "charset", "expected"),
    [
        (b"4711", None, "4711"),
        (b" 4711 \0\0", None, "4711"),
        (b"", None, ""),
        ("M\u00fcller".encode(), "ISO_IR 192", "M\u00fcller"),
        ("Mu\u0308ller".encode(), "ISO_IR 192", "M\u00fcller"),
        ("M\u00fcller".encode("latin-1"), "ISO_IR 100", "M\u00fcller"),
        ("M\u00fcller".encode("latin-1"), None, "M\u00fcller"),
        ("\u5f20\u4f1f".encode("gb18030"), "GB18030", "\u5f20\u4f1f"),
        ("\u8a31".encode("gbk"), "GBK", "\u8a31"),  # its second byte is a backslash
    ],
)
def test_a_patient_id_has_one_spelling(
    tmp_path: Path, raw: bytes, charset: str | None, expected: str
) -> None:
    found = _patient_id(tmp_path, raw, charset)
    assert found == expected
    assert not is_doubtful(found)


@pytest.mark.parametrize(
    ("one", "other", "charset"),
    [
        ("M\u00fcller".encode("latin-1"), "M\u00f6ller".encode("latin-1"), "ISO_IR 192"),
        ("M\ufffdller 1".encode(), "M\ufffdller 2".encode(), "ISO_IR 192"),  # replaced before
        (b"WARD\\17", b"WARD\\18", None),
    ],
)
def test_patient_ids_that_cannot_be_told_stay_apart_and_are_doubtful(
    tmp_path: Path, one: bytes, other: bytes, charset: str | None
) -> None:
    found = [_patient_id(tmp_path, raw, charset) for raw in (one, other)]
    assert found[0] != found[1]
    assert all(is_doubtful(each) and not is_placeholder(each) for each in found)


@pytest.mark.parametrize("text", ["", "0", "000000", "XXXX", "0000-00-00", "ANONYMOUS", "Unknown", "?"])
def test_a_patient_id_of_nobody_is_a_placeholder(text: str) -> None:
    assert is_placeholder(text)
    assert not is_placeholder(f"{text}7")
