"""NIfTI-1 and NIfTI-2 headers, by nibabel: the first bytes to a grid and a data layout, and back.

nibabel interprets the fields; what this module adds is what a header must say before it is trusted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retroln.errors import GeometryError, InputError
from retroln.imaging.geometry import SAME_GRID_TOLERANCE_MM, Affine, Grid, require_usable

HEADER_BYTES = 540
_MAGIC = {348: b"n+1\0", 540: b"n+2\0"}  # by the size that a header states
_BYTE_ORDERS: tuple[Literal["little"], Literal["big"]] = ("little", "big")
_WRITTEN_OFFSET = 352
_LARGEST_OFFSET = 1 << 24  # header extensions may be long, but not that long
_LONGEST_SIDE = 32767
_MM_OR_UNSAID = (0, 2)
_WRITABLE = frozenset(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])


@dataclass(frozen=True, eq=False)
class Layout:
    """What a header says: the grid as delivered and how the voxels lie in the file.

    Attributes:
        grid: shape and voxel-to-world affine, mm.
        dtype: stored type, with byte order.
        offset: first voxel's byte.
        slope, intercept: stored value x slope + intercept is the real value; 1 and 0 change nothing.
    """

    grid: Grid
    dtype: np.dtype[Any]
    offset: int
    slope: float = 1.0
    intercept: float = 0.0

    @property
    def data_bytes(self) -> int:
        """Bytes that the voxels take, without the header."""
        a, b, c = self.grid.shape
        return a * b * c * self.dtype.itemsize

    @property
    def scaled(self) -> bool:
        """True when stored values are not yet the real ones."""
        return (self.slope, self.intercept) != (1.0, 0.0)


def parse(head: bytes, file: str | Path) -> Layout:
    """Layout from the first bytes of a file (540 are enough).

    Raises:
        InputError: `truncated`, `not_nifti`, `not_3d` or `qform_sform_mismatch`.
        GeometryError: `bad_affine`.
    """
    header = _header(head, file)
    shape = _shape(header["dim"], file)
    slope, intercept = _scaling(header, file)
    return Layout(
        grid=Grid(shape, _affine(header, shape, file)),
        dtype=_stored_type(header, file),
        offset=_offset(header, file),
        slope=slope,
        intercept=intercept,
    )


def encode(dtype: np.dtype[Any], grid: Grid) -> bytes:
    """The 352 bytes in front of the voxels: NIfTI-1, mm, sform and qform, nothing about the patient.

    A sheared affine, which a quaternion cannot express within 0.01 mm, gets the sform alone.

    Raises:
        ValueError: a dtype NIfTI does not know, or a side beyond 32767 voxels.
    """
    from nibabel.nifti1 import Nifti1Header

    if dtype.str[1:] not in _WRITABLE or max(grid.shape) > _LONGEST_SIDE:
        raise ValueError(f"NIfTI-1 cannot hold {dtype} of shape {grid.shape}")
    header = Nifti1Header(endianness="<")
    header.set_data_dtype(dtype.newbyteorder("<"))
    header.set_data_shape(grid.shape)
    header.set_xyzt_units("mm")
    header.set_slope_inter(1, 0)
    header.set_sform(grid.affine, code=1)
    header.set_qform(grid.affine, code=1)
    header["vox_offset"] = _WRITTEN_OFFSET
    if _qform_distance_mm(header, grid) > SAME_GRID_TOLERANCE_MM / 10:
        header["qform_code"] = 0
    return bytes(header.binaryblock).ljust(_WRITTEN_OFFSET, b"\0")


def _header(head: bytes, file: str | Path) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    if len(head) < min(_MAGIC):
        raise InputError(
            "shorter than a NIfTI header",
            reason="truncated",
            file=file,
            expected="348 bytes or more",
            got=f"{len(head)} bytes",
            fix="copy or export the file again",
        )
    for order in _BYTE_ORDERS:
        size = int.from_bytes(head[:4], order)
        if size not in _MAGIC or len(head) < size:
            continue
        kind = Nifti1Header if size == 348 else Nifti2Header
        header = kind(head[:size], order, check=False)
        if _magic(head, size) == _MAGIC[size]:
            return header
    raise InputError(
        "not a single-file NIfTI image",
        reason="not_nifti",
        file=file,
        expected="NIfTI-1 or NIfTI-2, .nii or .nii.gz",
        got=f"first bytes {head[:4].hex()}, magic {head[344:348]!r}",
        fix="convert it, e.g. with dcm2niix",
    )


def _magic(head: bytes, size: int) -> bytes:
    """Four bytes at the place where either version keeps them; numpy would strip the closing zero."""
    start = 344 if size == 348 else 4
    return head[start : start + 4]


def _shape(dim: Any, file: str | Path) -> tuple[int, int, int]:
    count = int(dim[0])
    sides = [int(side) for side in dim[1 : count + 1]]
    if not 3 <= count <= 7 or min(sides) < 1 or max(sides[3:], default=1) > 1:
        raise InputError(
            "not a three-dimensional volume",
            reason="not_3d",
            file=file,
            expected="3 axes (a fourth of length 1 is allowed)",
            got=f"{count} axes, shape {tuple(sides)}",
            fix="deliver one volume per file",
        )
    return sides[0], sides[1], sides[2]


def _stored_type(header: Any, file: str | Path) -> np.dtype[Any]:
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype: np.dtype[Any] = header.get_data_dtype()
    except (HeaderDataError, KeyError):  # nibabel's answer to a code that the standard does not know
        dtype = np.dtype(np.void)
    if dtype.str[1:] not in _WRITABLE:
        raise InputError(
            "voxel type cannot be used",
            reason="not_nifti",
            file=file,
            expected="whole or real numbers",
            got=f"NIfTI datatype {int(header['datatype'])}",
            fix="convert to int16 (CT) or uint8 (labels)",
        )
    return dtype


def _offset(header: Any, file: str | Path) -> int:
    """Where the voxels begin; many writers leave 0, which means right behind the header."""
    offset = float(header["vox_offset"]) or _WRITTEN_OFFSET
    if not _WRITTEN_OFFSET <= offset <= _LARGEST_OFFSET:  # true of NaN as well
        raise InputError(
            "the voxels begin at no possible place",
            reason="not_nifti",
            file=file,
            expected=f"vox_offset 0, or {_WRITTEN_OFFSET} to {_LARGEST_OFFSET}",
            got=str(offset),
            fix="export the scan again from its source",
        )
    return int(offset)


def _scaling(header: Any, file: str | Path) -> tuple[float, float]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite([slope, intercept]).all():
        raise InputError(
            "scaling is not finite",
            reason="not_nifti",
            file=file,
            expected="finite scl_slope and scl_inter",
            got=f"{slope}, {intercept}",
            fix="export the scan again from its source",
        )
    return slope, intercept


def _affine(header: Any, shape: tuple[int, int, int], file: str | Path) -> Affine:
    qform_code, sform_code = int(header["qform_code"]), int(header["sform_code"])
    unit = int(header["xyzt_units"]) & 7
    if unit not in _MM_OR_UNSAID or (qform_code <= 0 and sform_code <= 0):
        raise GeometryError(
            "where the voxels lie is not said in millimetres",
            reason="bad_affine",
            file=file,
            expected="qform or sform with a code above 0, unit mm",
            got=f"qform_code {qform_code}, sform_code {sform_code}, unit code {unit}",
            fix="export the scan again from its source",
        )
    with np.errstate(all="ignore"):  # what is not finite is refused below
        affine = _sform(header) if sform_code > 0 else _qform(header)
    require_usable(affine, file)
    if sform_code > 0 and qform_code > 0:
        _require_agreement(header, Grid(shape, affine), file)
    return affine


def _require_agreement(header: Any, grid: Grid, file: str | Path) -> None:
    distance = _qform_distance_mm(header, grid)
    if not distance <= SAME_GRID_TOLERANCE_MM:
        raise InputError(
            f"qform and sform place the voxels {distance:.2f} mm apart",
            reason="qform_sform_mismatch",
            file=file,
            expected=f"corner voxels within {SAME_GRID_TOLERANCE_MM} mm",
            got=f"qform {_qform_rows(header)}, sform {_rows(grid.affine)}",
            fix="find out which is right and write both alike",
        )


def _qform_distance_mm(header: Any, grid: Grid) -> float:
    """Largest corner distance between `grid` and the qform.

    Near a half turn float32 leaves the quaternion's real part open by up to 5e-4 (a quarter of a
    millimetre at the far corner), so there the half turn itself is tried as well.
    """
    with np.errstate(all="ignore"):  # what is not finite is no agreement
        distance = grid.distance_mm(Grid(grid.shape, _qform(header)))
        if np.isfinite(distance) and _real_squared(header) < 4e-7:
            distance = min(distance, grid.distance_mm(Grid(grid.shape, _qform(header, half_turn=True))))
    return distance


def _sform(header: Any) -> Affine:
    return np.asarray(header.get_sform(), np.float64)


def _qform(header: Any, *, half_turn: bool = False) -> Affine:
    """nibabel's, but for quaternions that rounding has made longer than 1: it refuses those."""
    from nibabel.quaternions import quat2mat

    vector = _quaternion_vector(header)
    real_squared = _real_squared(header)
    if half_turn or real_squared < 1e-7:
        quaternion = np.array([0.0, *vector / np.linalg.norm(vector)])
    else:
        quaternion = np.array([np.sqrt(real_squared), *vector])
    sides = np.abs(np.asarray(header["pixdim"], float))[1:4]
    sides[2] *= -1 if header["pixdim"][0] < 0 else 1  # qfac
    affine = np.eye(4)
    affine[:3, :3] = quat2mat(quaternion) * sides
    affine[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine


def _quaternion_vector(header: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([float(header[f"quatern_{part}"]) for part in "bcd"])


def _real_squared(header: Any) -> float:
    return 1 - float(np.sum(np.square(_quaternion_vector(header))))


def _qform_rows(header: Any) -> str:
    with np.errstate(all="ignore"):
        return _rows(_qform(header))


def _rows(affine: Affine) -> str:
    return str(affine[:3].round(3).tolist())
