"""NIfTI files in and out: decoded once, in the stored type, checked against their own header.

A file is told by its content, not its name. Gzip is read by libdeflate and written by ISA-L. Arrays come in
Fortran order, as the file holds them; float64 is never made.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from retroln.endings import GZIP, NIFTI, has_ending
from retroln.errors import InputError, NotFoundError
from retroln.files import atomic_path
from retroln.imaging import hounsfield
from retroln.imaging.geometry import Grid
from retroln.imaging.nifti_header import HEADER_BYTES, Layout, encode, parse
from retroln.imaging.turns import require_no_turns
from retroln.imaging.volume import Volume, require_possible_size

_GZIP = b"\x1f\x8b"
_GZIP_LEVEL, _GZIP_THREADS = 1, 2
_FIRST_BYTES = 16  # packed apart: what ISA-L makes of a longer first block depends on its place in memory
_DEFLATE_MAX_RATIO = 1032  # zlib manual: no deflate stream expands more
_PACKING_BYTES = 16 << 20  # what gzip may add to voxels that do not pack: 5 bytes in 64 KiB, and headers
_MOST_MEMBERS = 1 << 16  # of a gzip stream; BGZF, which makes the most, has one for each 64 KiB
_REAL_BYTES = 4  # a float32, which scaled values become, or an int32, which labels do
_LABEL_TOLERANCE = 1e-3
_CHUNK_VOXELS = 1 << 22
_CHUNK_BYTES = 1 << 16


def read(path: Path) -> Volume:
    """The volume of a .nii or .nii.gz file, RAS+ view over the decoded bytes.

    Whole numbers keep their stored type unless the header scales them; then the result is float32, as
    for float64 files. NaN is passed on (see `check_ct`).

    Raises:
        NotFoundError: no such file, or a folder.
        InputError: `truncated`, `size_mismatch`, `too_large`, `not_nifti`, `not_3d`,
            `qform_sform_mismatch`.
        GeometryError: `bad_affine`.
    """
    layout, stored = _load(path)
    return Volume.from_source(_real_values(layout, stored), layout.grid)


def read_ct(path: Path) -> Volume:
    """As `read`, for a CT in Hounsfield units. Raises as `read` and `check_ct` do."""
    volume = read(path)
    check_ct(volume, path)
    return volume


def read_grid(path: Path) -> Grid:
    """Shape and affine as delivered, from the header alone. Raises as `read` does, but for the voxels."""
    return parse(_head(path), path).grid


def read_labels(path: Path) -> Volume:
    """As `read`, for a label map: the values come back as whole numbers, stored as such or not.

    Floats within 0.001 of a whole number are converted (uint8, uint16 or int32, the first that fits).

    Raises:
        InputError: `labels_not_integer`; `not_labels` for values below 0, which a CT has and no label map;
            and all that `read` raises.
    """
    layout, stored = _load(path)
    if layout.scaled or layout.dtype.kind == "f":
        values = _whole_numbers(stored, layout, path)
    else:
        values = _native(stored)
    if values.dtype.kind == "i" and (lowest := int(values.min())) < 0:
        raise InputError(
            "not a label map",
            reason="not_labels",
            file=path,
            expected="0 outside, whole numbers above",
            got=f"values from {lowest} to {int(values.max())}",
            fix="name the label map, not the CT",
        )
    return Volume.from_source(values, layout.grid)


def write(path: Path, array: NDArray[Any], grid: Grid) -> None:
    """Write `array`, which lies on `grid` (any orientation), whole or not at all; the dtype is kept.

    The header holds the grid and nothing else: no description, no extension. Bool becomes uint8.

    Raises:
        ValueError: shape, dtype or name (.nii, .nii.gz) that cannot be written.
    """
    if array.shape != grid.shape:
        raise ValueError(f"array must be {grid.shape}, got {array.shape}")
    if not has_ending(path.name, *NIFTI):
        raise ValueError(f"name must end in .nii or .nii.gz, got {path.name}")
    voxels = _native(array.view(np.uint8) if array.dtype == bool else array)
    header = encode(voxels.dtype, grid)
    with atomic_path(path) as partial, _opened_for_writing(partial) as stream:
        stream.write(header[:_FIRST_BYTES])
        stream.flush()
        stream.write(header[_FIRST_BYTES:])
        for slab in _slabs(voxels):
            stream.write(slab)


def write_source(path: Path, volume: Volume) -> None:
    """Write a volume in its delivered order and on its delivered grid."""
    write(path, volume.to_source(), volume.source)


def check_ct(volume: Volume, file: str | Path) -> None:
    """Refuse what is surely no CT in Hounsfield units, as `retroln.imaging.hounsfield` tells it.

    Raises:
        InputError: `empty` (one value throughout), `not_finite`, `not_ct`, or `mixed_series`, of slices that
            take turns between two acquisitions.
    """
    array = volume.array
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise _not_usable(file, "voxels hold NaN or infinity", "not_finite", "finite HU", f"{low} to {high}")
    if low == high:
        raise _not_usable(file, "every voxel holds the same value", "empty", "a scan", str(low))
    for doubt in hounsfield.doubts(array):
        raise _not_usable(file, doubt.what, "not_ct", doubt.expected, doubt.got)
    require_no_turns(volume, file)


def _not_usable(file: str | Path, what: str, reason: str, expected: str, got: str) -> InputError:
    return InputError(what, reason=reason, file=file, expected=expected, got=got, fix=hounsfield.FIX)


def _load(path: Path) -> tuple[Layout, NDArray[Any]]:
    """The layout and the stored values, delivered order, before any scaling."""
    layout = parse(_head(path), path)
    _require_possible_size(path, layout)
    content = _content(path, layout)
    voxels = np.frombuffer(content, layout.dtype, count=-1, offset=layout.offset)
    return layout, voxels.reshape(layout.grid.shape, order="F")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            start = stream.read(2 * HEADER_BYTES)
            if start[:2] != _GZIP:
                return start[:HEADER_BYTES]
            start += stream.read(1 << 16)
        return bytes(_inflate(start, HEADER_BYTES)[0])
    except FileNotFoundError as error:
        raise NotFoundError("no such file", file=path, fix="check the path") from error
    except IsADirectoryError as error:
        fix = "name one file; DICOM is taken in by `retroln ingest`"
        raise NotFoundError(
            "no such file", file=path, expected=".nii or .nii.gz", got="a folder", fix=fix
        ) from error
    except zlib.error as error:
        raise _damaged(path, str(error)) from error


def _content(path: Path, layout: Layout) -> bytes | bytearray:
    """All bytes of the image, exactly as many as the header announces."""
    expected = layout.offset + layout.data_bytes
    with path.open("rb") as stream:
        packed = stream.read(len(_GZIP)) == _GZIP
        size = path.stat().st_size
        if size > expected + (_PACKING_BYTES if packed else 0):
            raise _wrong_size(path, expected, size)
        stream.seek(0)
        data = stream.read()
    content = _decompressed(data, expected, path) if packed else data
    if len(content) != expected:
        raise _wrong_size(path, expected, len(content))
    return content


def _decompressed(data: bytes, expected: int, path: Path) -> bytes | bytearray:
    """One libdeflate call when the gzip trailer confirms the size, else zlib up to one byte too many."""
    import deflate

    if int.from_bytes(data[-4:], "little") == expected:
        try:
            whole: bytearray = deflate.gzip_decompress(data)
        except deflate.DeflateError as error:
            raise _damaged(path, str(error)) from error
        if len(whole) == expected:
            return whole
    return _decompress_members(data, expected, path)


def _decompress_members(data: bytes, expected: int, path: Path) -> bytearray:
    try:
        content, ended = _inflate(data, expected + 1)
    except (zlib.error, _TooManyMembers) as error:
        raise _damaged(path, str(error)) from error
    if not ended and len(content) <= expected:
        raise _damaged(path, f"the stream ends after {len(content)} of {expected} bytes")
    return content


class _TooManyMembers(Exception):
    """A gzip stream in so many pieces that taking them apart is all that it is for."""


def _inflate(data: bytes, limit: int) -> tuple[bytearray, bool]:
    """At most `limit` bytes of one or more gzip members, and whether the last one read is complete.

    Fed in chunks, because a member hands back what lies behind its end: with the whole stream each time, the
    work would grow with the square of the members.
    """
    content, ended, at = bytearray(), True, 0
    for _ in range(_MOST_MEMBERS):
        if data[at : at + 2] != _GZIP or len(content) >= limit:
            return content, ended
        member = zlib.decompressobj(wbits=31)
        while not member.eof and at < len(data) and len(content) < limit:
            chunk = data[at : at + _CHUNK_BYTES]
            content += member.decompress(chunk, limit - len(content))
            at += len(chunk) - len(member.unused_data) - len(member.unconsumed_tail)
        ended = member.eof
    raise _TooManyMembers(f"more than {_MOST_MEMBERS} gzip members")


def _require_possible_size(path: Path, layout: Layout) -> None:
    """Before memory is taken: the size the header announces can be in this file and is sensible."""
    require_possible_size(layout.grid.shape, _voxel_bytes(layout), path)
    largest = path.stat().st_size * _DEFLATE_MAX_RATIO
    if layout.data_bytes > largest:
        raise _wrong_size(path, layout.data_bytes, largest)


def _voxel_bytes(layout: Layout) -> int:
    """What a voxel counts as: its own size, or two thirds of what it takes beside its real value.

    So reading never takes more than one and a half times the largest volume.
    """
    stored = layout.dtype.itemsize
    both = -(-2 * (stored + _REAL_BYTES) // 3)
    return max(stored, both) if layout.scaled or layout.dtype.str[1:] == "f8" else stored


def _wrong_size(path: Path, expected: int, got: int) -> InputError:
    short = got < expected
    return InputError(
        "voxels are missing at the end" if short else "holds more bytes than its header announces",
        reason="truncated" if short else "size_mismatch",
        file=path,
        expected=f"{expected} bytes",
        got=f"{'at most ' if short else 'at least '}{got}",
        fix="copy or export the file again",
    )


def _damaged(path: Path, detail: str) -> InputError:
    return InputError(
        "gzip stream is cut or damaged",
        reason="truncated",
        file=path,
        expected="a whole .nii.gz",
        got=detail,
        fix="copy or export the file again",
    )


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _real_values(layout: Layout, stored: NDArray[Any]) -> NDArray[Any]:
    if layout.scaled:
        return _scaled(stored, layout)
    with np.errstate(over="ignore"):
        return _narrowed(stored) if layout.dtype.str[1:] == "f8" else _native(stored)


def _scaled(stored: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """Stored values x slope + intercept in float32, chunk by chunk: the memory is gone through once.

    A volume of one value, which a small file can hold at any size, takes no memory and may not be written to.
    """
    slope, intercept = np.float32(layout.slope), np.float32(layout.intercept)
    flat = stored.reshape(-1, order="F")
    parts = [slice(start, start + _CHUNK_VOXELS) for start in range(0, flat.size, _CHUNK_VOXELS)]
    with np.errstate(over="ignore", invalid="ignore"):  # `check_ct` refuses what is not finite
        if all(bool((flat[part] == flat[0]).all()) for part in parts):
            return np.broadcast_to(np.float32(flat[0]) * slope + intercept, stored.shape)
        values = np.empty(stored.size, np.float32)
        for part in parts:
            values[part] = flat[part]
            values[part] *= slope
            values[part] += intercept
    return values.reshape(stored.shape, order="F")


def _narrowed(stored: NDArray[Any]) -> NDArray[Any]:
    """float64 as float32, in the front half of the memory it lies in, where that may be written.

    Touching so much memory anew takes longer than the conversion. A chunk is read before it is overwritten.
    """
    if not stored.flags.writeable:
        return stored.astype(np.float32)
    flat = stored.reshape(-1, order="F")
    narrow = flat.view(np.float32)[: flat.size]
    for start in range(0, flat.size, _CHUNK_VOXELS):
        part = slice(start, start + _CHUNK_VOXELS)
        narrow[part] = flat[part].astype(np.float32)
    return narrow.reshape(stored.shape, order="F")


def _whole_numbers(stored: NDArray[Any], layout: Layout, path: Path) -> NDArray[Any]:
    """Rounded values of a scaled or floating label map, chunk by chunk to stay small."""
    flat = stored.ravel(order="F")
    rounded: NDArray[Any] = np.empty(flat.size, np.uint8)
    for start in range(0, flat.size, _CHUNK_VOXELS):
        part = slice(start, start + _CHUNK_VOXELS)
        real = flat[part] * layout.slope + layout.intercept if layout.scaled else flat[part]
        nearest = np.rint(real)
        with np.errstate(invalid="ignore"):  # infinity minus infinity is NaN, and NaN is wrong
            wrong = ~(np.abs(real - nearest) <= _LABEL_TOLERANCE) | (np.abs(nearest) >= 2**31)
        if wrong.any():
            raise _not_integer(path, float(real[wrong][0]))
        if not _fits(nearest, rounded.dtype):
            wider = (
                np.uint16 if rounded.dtype == np.uint8 and _fits(nearest, np.dtype(np.uint16)) else np.int32
            )
            rounded = rounded.astype(wider)
        rounded[part] = nearest
    return rounded.reshape(stored.shape, order="F")


def _fits(values: NDArray[Any], kind: np.dtype[Any]) -> bool:
    return bool(values.min() >= np.iinfo(kind).min and values.max() <= np.iinfo(kind).max)


def _not_integer(path: Path, value: float) -> InputError:
    return InputError(
        "labels are not whole numbers",
        reason="labels_not_integer",
        file=path,
        expected="0, 1, 2, ...",
        got=f"{value:.6g}",
        fix="write the label map as uint8, without intensity scaling",
    )


def _opened_for_writing(path: Path) -> BinaryIO:
    """The file, compressed if its name says so; blocks of 1 MiB are packed by two threads."""
    if not has_ending(path.name, GZIP):
        return path.open("wb")
    from isal import igzip_threaded

    stream: BinaryIO = igzip_threaded.open(path, "wb", compresslevel=_GZIP_LEVEL, threads=_GZIP_THREADS)
    return stream


def _slabs(voxels: NDArray[Any]) -> Iterator[memoryview]:
    """The voxels' bytes, first axis fastest; only slabs that do not lie so in memory are copied."""
    depth = max(_CHUNK_VOXELS // (voxels.shape[0] * voxels.shape[1]), 1)
    for start in range(0, voxels.shape[2], depth):
        yield voxels[..., start : start + depth].ravel(order="F").view(np.uint8).data
