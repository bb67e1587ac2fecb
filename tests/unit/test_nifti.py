"""NIfTI: what nibabel writes is read alike, what we write nibabel reads alike, and bad files are named."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from spine import ORIENTATIONS

from retroln.errors import GeometryError, InputError, NotFoundError
from retroln.imaging import intensity, nifti
from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume
from retroln.settings import Hu

_SHAPE = (5, 6, 7)


def _affine(orientation: str = "RAS", tilt_deg: float = 0.0) -> np.ndarray[Any, Any]:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, letter in enumerate(orientation):
        world = next(i for i, pair in enumerate(("LR", "PA", "IS")) if letter in pair)
        affine[world, axis] = (1 if letter in "RAS" else -1) * (0.8, 0.9, 2.5)[axis]
    affine[:3, :3] = (
        Rotation.from_euler("xz", [tilt_deg, tilt_deg / 2], degrees=True).as_matrix() @ affine[:3, :3]
    )
    affine[:3, 3] = (-120.5, 33.25, -710.0)
    return affine


def _voxels(dtype: str = "int16") -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).integers(0, 120, _SHAPE).astype(dtype)


def _save(path: Path, array: np.ndarray[Any, Any], affine: np.ndarray[Any, Any] | None = None) -> Path:
    nib.save(nib.Nifti1Image(array, _affine() if affine is None else affine), path)
    return path


def _reason(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        nifti.read(path)
    assert str(path) in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("tilt_deg", [0.0, 17.0])
def test_reads_as_nibabel_canonicalises(tmp_path: Path, orientation: str, tilt_deg: float) -> None:
    path = _save(tmp_path / "a.nii.gz", _voxels(), _affine(orientation, tilt_deg))
    canonical = nib.as_closest_canonical(nib.load(path))
    volume = nifti.read(path)
    assert np.array_equal(volume.array, np.asanyarray(canonical.dataobj))
    np.testing.assert_allclose(volume.grid.affine, canonical.affine, atol=1e-4)
    assert volume.source.orientation == orientation
    assert nifti.read_grid(path).shape == volume.source.shape


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("tilt_deg", [0.0, 17.0])
def test_nibabel_reads_what_is_written(tmp_path: Path, orientation: str, tilt_deg: float) -> None:
    grid = Grid(_SHAPE, _affine(orientation, tilt_deg))
    nifti.write(tmp_path / "a.nii.gz", _voxels(), grid)
    image = nib.load(tmp_path / "a.nii.gz")
    assert np.array_equal(np.asanyarray(image.dataobj), _voxels())
    np.testing.assert_allclose(image.header.get_sform(), grid.affine, atol=1e-4)
    assert nifti.read_grid(tmp_path / "a.nii.gz").distance_mm(grid) < 1e-3


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_qform_says_the_same_as_sform(tmp_path: Path, orientation: str) -> None:
    grid = Grid(_SHAPE, _affine(orientation, 17.0))
    nifti.write(tmp_path / "a.nii", _voxels(), grid)
    header = nib.load(tmp_path / "a.nii").header
    if header["qform_code"]:
        assert grid.distance_mm(Grid(_SHAPE, header.get_qform())) < 0.1
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[254:256] = b"\0\0"
    (tmp_path / "q.nii").write_bytes(content)
    assert header["qform_code"] and nifti.read_grid(tmp_path / "q.nii").distance_mm(grid) < 0.02


def test_sheared_grid_is_written_by_sform_alone_and_read_back(tmp_path: Path) -> None:
    affine = _affine()
    affine[1, 2] = 0.6  # gantry tilt
    nifti.write(tmp_path / "a.nii.gz", _voxels(), Grid(_SHAPE, affine))
    header = nib.load(tmp_path / "a.nii.gz").header
    assert (header["qform_code"], header["sform_code"]) == (0, 1)
    np.testing.assert_allclose(nifti.read_grid(tmp_path / "a.nii.gz").affine, affine, atol=1e-4)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "float32"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "A.NII.GZ"])
def test_dtype_and_values_survive(tmp_path: Path, dtype: str, name: str) -> None:
    nifti.write(tmp_path / name, _voxels(dtype), Grid(_SHAPE, _affine()))
    read = nifti.read(tmp_path / name).array
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") is name.lower().endswith(".gz")
    assert read.dtype == dtype
    assert np.array_equal(read, _voxels(dtype))


def test_bool_becomes_uint8_and_views_are_written_right(tmp_path: Path) -> None:
    view = (_voxels() > 60)[::-1].transpose(2, 0, 1)
    affine = _affine()
    nifti.write(tmp_path / "a.nii.gz", view, Grid(view.shape, affine))
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(np.asanyarray(image.dataobj), view)


def test_big_endian_and_nifti2_are_read(tmp_path: Path) -> None:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(_voxels(), _affine(), header), tmp_path / "big.nii.gz")
    nib.save(nib.Nifti2Image(_voxels(), _affine()), tmp_path / "two.nii.gz")
    for name in ("big.nii.gz", "two.nii.gz"):
        volume = nifti.read(tmp_path / name)
        assert volume.array.dtype == np.int16 and volume.array.dtype.isnative
        assert np.array_equal(volume.array, _voxels())
        np.testing.assert_allclose(volume.grid.affine, _affine(), atol=1e-4)


def test_scaled_integers_become_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti, "_CHUNK_VOXELS", 11)
    image = nib.Nifti1Image(_voxels(), _affine())
    image.header.set_slope_inter(2.0, -1024.0)
    nib.save(image, tmp_path / "a.nii.gz")
    read = nifti.read(tmp_path / "a.nii.gz").array
    assert read.dtype == np.float32
    np.testing.assert_allclose(read, nib.load(tmp_path / "a.nii.gz").get_fdata(), atol=1e-3)


def test_a_scaled_volume_of_one_value_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "_CHUNK_VOXELS", 11)
    voxels = np.full_like(_voxels(), 12)
    for name, last in (("same", 12), ("last-differs", 13)):
        voxels[-1, -1, -1] = last
        image = nib.Nifti1Image(voxels, _affine())
        image.header.set_slope_inter(2.0, -1024.0)
        nib.save(image, tmp_path / f"{name}.nii.gz")
        read = nifti.read(tmp_path / f"{name}.nii.gz").array
        assert read.dtype == np.float32 and any(read.strides) == (name != "same")
        np.testing.assert_array_equal(read, 2.0 * voxels.astype(np.float32) - 1024.0)


@pytest.mark.parametrize(
    ("slope", "inter"), [(0.0, 0.0), (0.0, 7.0), (float("nan"), float("nan")), (1.0, 0.0)]
)
def test_identity_scaling_keeps_the_stored_type(tmp_path: Path, slope: float, inter: float) -> None:
    content = _plain(tmp_path)
    struct.pack_into("<2f", content, 112, slope, inter)
    (tmp_path / "b.nii").write_bytes(content)
    assert nifti.read(tmp_path / "b.nii").array.dtype == np.int16


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_float64_becomes_float32_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, order: str
) -> None:
    monkeypatch.setattr(nifti, "_CHUNK_VOXELS", 11)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(f"{order}f8")
    values = _voxels("float64") / 3
    values[2, 3, 4] = 1e300
    nib.save(nib.Nifti1Image(values, _affine(), header), tmp_path / name)
    read = nifti.read(tmp_path / name).array
    assert read.dtype == np.float32 and np.isinf(read[2, 3, 4])
    with np.errstate(over="ignore"):
        assert np.array_equal(read, values.astype(np.float32))


def test_trailing_axis_of_length_one_is_allowed(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.nii.gz", _voxels()[..., None])
    assert np.array_equal(nifti.read(path).array, _voxels())


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    nifti.write(tmp_path / "a.nii", _voxels(), Grid(_SHAPE, _affine()))
    (tmp_path / "a.nii").rename(tmp_path / "b.nii.gz")
    assert np.array_equal(nifti.read(tmp_path / "b.nii.gz").array, _voxels())


def test_gzip_of_several_members_is_read(tmp_path: Path) -> None:
    content = bytes(_plain(tmp_path))
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(content[:100]) + gzip.compress(content[100:]))
    assert np.array_equal(nifti.read(tmp_path / "b.nii.gz").array, _voxels())


def test_header_holds_nothing_about_the_patient_and_bytes_repeat(tmp_path: Path) -> None:
    grid = Grid(_SHAPE, _affine())
    for name in ("a.nii.gz", "b.nii.gz"):
        nifti.write(tmp_path / name, _voxels(), grid)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    header = nib.load(tmp_path / "a.nii.gz").header
    assert (bytes(header["descrip"]).strip(b"\0"), header.extensions) == (b"", [])


def test_label_map_returns_on_its_delivered_grid(tmp_path: Path) -> None:
    path = _save(tmp_path / "a.nii.gz", _voxels("uint8"), _affine("PIR"))
    nifti.write_source(tmp_path / "b.nii.gz", nifti.read_labels(path))
    back = nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(np.asanyarray(back.dataobj), _voxels("uint8"))
    np.testing.assert_allclose(back.affine, _affine("PIR"), atol=1e-4)


def _plain(folder: Path) -> bytearray:
    nifti.write(folder / "plain.nii", _voxels(), Grid(_SHAPE, _affine()))
    return bytearray((folder / "plain.nii").read_bytes())


def _cut(content: bytearray) -> bytes:
    return bytes(content[:-1])


def _cut_gzip(content: bytearray) -> bytes:
    return gzip.compress(content)[:-30]


def _cut_in_gzip_header(content: bytearray) -> bytes:
    return gzip.compress(content)[:60]


def _flipped_byte(content: bytearray) -> bytes:
    packed = bytearray(gzip.compress(content))
    packed[len(packed) // 2] ^= 0xFF
    return bytes(packed)


def _short_in_gzip(content: bytearray) -> bytes:
    return gzip.compress(content[:-1])


def _bomb(content: bytearray) -> bytes:
    return gzip.compress(content + bytes(1 << 22))


def _announces_too_much(content: bytearray) -> bytes:
    struct.pack_into("<3h", content, 42, 30000, 30000, 30000)
    return gzip.compress(content)


def _announces_more_than_it_can_hold(content: bytearray) -> bytes:
    struct.pack_into("<3h", content, 42, 1000, 1000, 1000)
    return gzip.compress(content)


def _text(content: bytearray) -> bytes:
    return b"not an image" * 100


def _zeros(content: bytearray) -> bytes:
    return bytes(len(content))


def _nothing(content: bytearray) -> bytes:
    return b""


def _pair(content: bytearray) -> bytes:
    content[344:348] = b"ni1\0"
    return bytes(content)


def _rgb(content: bytearray) -> bytes:
    struct.pack_into("<h", content, 70, 128)
    return bytes(content)


def _two_axes(content: bytearray) -> bytes:
    struct.pack_into("<h", content, 40, 2)
    return bytes(content)


def _no_slices(content: bytearray) -> bytes:
    struct.pack_into("<h", content, 46, 0)
    return bytes(content)


def _moved_qform(content: bytearray) -> bytes:
    struct.pack_into("<f", content, 268, -119.0)
    return bytes(content)


def _endless_slope(content: bytearray) -> bytes:
    struct.pack_into("<f", content, 112, float("inf"))
    return bytes(content)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_cut, "truncated"),
        (_cut_gzip, "truncated"),
        (_cut_in_gzip_header, "truncated"),
        (_flipped_byte, "truncated"),
        (_short_in_gzip, "truncated"),
        (_nothing, "truncated"),
        (_announces_more_than_it_can_hold, "truncated"),
        (_announces_too_much, "too_large"),
        (_bomb, "size_mismatch"),
        (_text, "not_nifti"),
        (_zeros, "not_nifti"),
        (_pair, "not_nifti"),
        (_rgb, "not_nifti"),
        (_endless_slope, "not_nifti"),
        (_two_axes, "not_3d"),
        (_no_slices, "not_3d"),
        (_moved_qform, "qform_sform_mismatch"),
    ],
)
def test_spoilt_files_are_named(tmp_path: Path, spoil: Callable[[bytearray], bytes], reason: str) -> None:
    path = tmp_path / "spoilt.nii.gz"
    path.write_bytes(spoil(_plain(tmp_path)))
    assert _reason(path) == reason


def test_a_real_fourth_axis_is_refused(tmp_path: Path) -> None:
    assert _reason(_save(tmp_path / "a.nii.gz", np.stack([_voxels()] * 2, -1))) == "not_3d"


def test_mismatch_shows_both_forms(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(_moved_qform(_plain(tmp_path)))
    with pytest.raises(InputError, match=r"1\.50 mm apart.*qform \[\[.*-119\.0.*sform \[\[.*-120\.5"):
        nifti.read_grid(tmp_path / "a.nii")


def test_half_turn_within_float32_is_no_mismatch(tmp_path: Path) -> None:
    """A tilted LPS scan's quaternion has no real part; float32 alone may open it by 5e-4."""
    affine = np.diag([-0.8, -0.8, 2.0, 1.0])
    for tilt_deg in np.linspace(1, 25, 40):
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("x", tilt_deg, degrees=True).as_matrix()
        image = nib.Nifti1Image(np.zeros((512, 512, 3), np.uint8), turn @ affine)
        image.set_qform(turn @ affine, 1)
        nib.save(image, tmp_path / "a.nii.gz")
        assert nifti.read_grid(tmp_path / "a.nii.gz").shape == (512, 512, 3)


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_bad_affine_is_a_geometry_error(tmp_path: Path, value: float) -> None:
    content = _plain(tmp_path)
    struct.pack_into("<4f", content, 280, value, value, value, value)
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(GeometryError) as caught:
        nifti.read(tmp_path / "a.nii")
    assert caught.value.reason == "bad_affine"


@pytest.mark.parametrize(("offset", "layout", "values"), [(252, "<2h", (0, 0)), (123, "B", (1,))])
def test_place_not_said_in_mm_is_refused(
    tmp_path: Path, offset: int, layout: str, values: tuple[int, ...]
) -> None:
    content = _plain(tmp_path)
    struct.pack_into(layout, content, offset, *values)
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(GeometryError, match="not said in millimetres"):
        nifti.read(tmp_path / "a.nii")


@pytest.mark.parametrize("name", ["missing.nii.gz", "."])
def test_missing_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError):
        nifti.read(tmp_path / name)


def test_writing_refuses_what_nifti_cannot_hold(tmp_path: Path) -> None:
    grid = Grid(_SHAPE, _affine())
    with pytest.raises(ValueError, match="float16"):
        nifti.write(tmp_path / "a.nii.gz", _voxels("float16"), grid)
    with pytest.raises(ValueError, match="array must be"):
        nifti.write(tmp_path / "a.nii.gz", _voxels()[1:], grid)
    with pytest.raises(ValueError, match="name must end"):
        nifti.write(tmp_path / "a.img", _voxels(), grid)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("top", "dtype"), [(200, np.uint8), (300, np.uint16), (70000, np.int32)], ids=["u1", "u2", "i4"]
)
def test_floating_labels_become_whole(tmp_path: Path, top: int, dtype: type) -> None:
    labels = _voxels("float64")
    labels[0, 0, 0] = top
    read = nifti.read_labels(_save(tmp_path / "a.nii.gz", labels)).array
    assert read.dtype == dtype
    assert np.array_equal(read, labels)


@pytest.mark.parametrize("value", [0.996, float("nan"), float("inf"), 1e12])
def test_labels_that_are_not_whole_are_refused(tmp_path: Path, value: float) -> None:
    labels = _voxels("float32")
    labels[1, 2, 3] = value
    path = _save(tmp_path / "a.nii.gz", labels)
    with pytest.raises(InputError) as caught:
        nifti.read_labels(path)
    assert caught.value.reason == "labels_not_integer"


def test_labels_scaled_by_the_header_are_whole_again(tmp_path: Path) -> None:
    mask = (_voxels() > 60).astype(np.float32)
    image = nib.Nifti1Image(mask, _affine())
    image.set_data_dtype(np.uint8)  # nibabel stores 0 and 255, slope 1/255
    nib.save(image, tmp_path / "a.nii.gz")
    assert nib.load(tmp_path / "a.nii.gz").dataobj.slope != 1
    read = nifti.read_labels(tmp_path / "a.nii.gz").array
    assert read.dtype == np.uint8
    assert np.array_equal(read, mask)


def _checked(array: np.ndarray[Any, Any]) -> str | None:
    grid = Grid(array.shape, np.eye(4))  # type: ignore[arg-type]
    try:
        nifti.check_ct(Volume(array, grid, grid), "scan.nii.gz")
    except InputError as error:
        return error.reason
    return None


_RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (_RNG.integers(-1024, 1500, _SHAPE).astype(np.int16), None),
        (_RNG.choice([0, 210, 800, 1500], _SHAPE), "not_ct"),  # bone alone, the rest 0
        (_RNG.integers(0, 2000, _SHAPE).astype(np.int16), "not_ct"),  # MR
        (_RNG.integers(0, 256, _SHAPE).astype(np.uint8), "not_ct"),
        (_RNG.random(_SHAPE, np.float32), "not_ct"),  # scaled to 0..1
        (_RNG.integers(0, 2, _SHAPE).astype(np.uint8), "not_ct"),  # a mask
        (_RNG.normal(0, 1, _SHAPE), "not_ct"),  # z-scores
        (np.full(_SHAPE, -1000, np.int16), "empty"),
        (np.where(_RNG.random(_SHAPE) < 0.1, np.nan, _RNG.normal(0, 500, _SHAPE)), "not_finite"),
        (np.where(_RNG.random(_SHAPE) < 0.1, -np.inf, _RNG.normal(0, 500, _SHAPE)), "not_finite"),
    ],
)
def test_only_ct_in_hu_passes(array: np.ndarray[Any, Any], reason: str | None) -> None:
    assert _checked(array) == reason


def test_hu_scaling_is_the_predecessors() -> None:
    scaled = intensity.scale(np.array([-2000, -1000, -300, 400, 3000], np.int16), Hu())
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(intensity.scale(np.array([0.0, 25, 50]), Hu(low=0, high=100)), [0, 0.25, 0.5])
