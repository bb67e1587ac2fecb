"""NIfTI-1 and NIfTI-2 headers: 348 or 540 bytes to a grid and a data layout, and back.

Source: nifti1.h and nifti2.h (NIfTI Data Format Working Group, https://nifti.nimh.nih.gov).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import GeometryError, InputError
from retroln.imaging.geometry import SAME_GRID_TOLERANCE_MM, Affine, Grid, require_usable

HEADER_BYTES = 540
_WRITTEN_OFFSET = 352
_TYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_CODES = {np.dtype(name): code for code, name in _TYPES.items()}
_MM_OR_UNSAID = (0, 2)
_NIFTI1 = {
    "dim": ("8h", 40),
    "datatype": ("h", 70),
    "pixdim": ("8f", 76),
    "vox_offset": ("f", 108),
    "scl": ("2f", 112),
    "units": ("B", 123),
    "codes": ("2h", 252),
    "quatern": ("6f", 256),
    "srow": ("12f", 280),
}
_NIFTI2 = {
    "dim": ("8q", 16),
    "datatype": ("h", 12),
    "pixdim": ("8d", 104),
    "vox_offset": ("q", 168),
    "scl": ("2d", 176),
    "units": ("i", 500),
    "codes": ("2i", 344),
    "quatern": ("6d", 352),
    "srow": ("12d", 400),
}


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
    raw = _fields(head, file)
    shape = _shape(raw["dim"], file)
    slope, intercept = _scaling(raw["scl"], file)
    return Layout(
        grid=Grid(shape, _affine(raw, shape, file)),
        dtype=np.dtype(raw["order"] + _stored_type(raw["datatype"][0], file)),
        offset=max(int(raw["vox_offset"][0]), _WRITTEN_OFFSET),
        slope=slope,
        intercept=intercept,
    )


def encode(dtype: np.dtype[Any], grid: Grid) -> bytes:
    """The 352 bytes in front of the voxels: NIfTI-1, mm, sform and qform, nothing about the patient.

    A sheared affine, which a quaternion cannot express within 0.01 mm, gets the sform alone.

    Raises:
        ValueError: a dtype NIfTI does not know, or a side beyond 32767 voxels.
    """
    if dtype.newbyteorder("=") not in _CODES or max(grid.shape) > 32767:
        raise ValueError(f"NIfTI-1 cannot hold {dtype} of shape {grid.shape}")
    header = bytearray(_WRITTEN_OFFSET)
    qfac, quaternion = _quaternion(grid.affine)
    translation = grid.affine[:3, 3].tolist()
    values: dict[str, tuple[float, ...]] = {
        "dim": (3, *grid.shape, 1, 1, 1, 1),
        "datatype": (_CODES[dtype.newbyteorder("=")],),
        "pixdim": (qfac, *grid.spacing_mm, 0, 0, 0, 0),
        "vox_offset": (_WRITTEN_OFFSET,),
        "scl": (1, 0),
        "units": (2,),
        "codes": (1, 1),
        "quatern": (*quaternion, *translation),
        "srow": tuple(grid.affine[:3].ravel().tolist()),
    }
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<h", header, 72, dtype.itemsize * 8)
    struct.pack_into("4s", header, 344, b"n+1\0")
    for name, (form, offset) in _NIFTI1.items():
        struct.pack_into("<" + form, header, offset, *values[name])
    if _qform_distance_mm(_unpack(bytes(header), _NIFTI1, "<"), grid) > SAME_GRID_TOLERANCE_MM / 10:
        struct.pack_into("<2h", header, 252, 0, 1)
    return bytes(header)


def _fields(head: bytes, file: str | Path) -> dict[str, Any]:
    if len(head) < 348:
        raise InputError(
            "shorter than a NIfTI header",
            reason="truncated",
            file=file,
            expected="348 bytes or more",
            got=f"{len(head)} bytes",
            fix="copy or export the file again",
        )
    for order in "<>":
        size = struct.unpack_from(order + "i", head)[0]
        if size == 348 and head[344:348] == b"n+1\0":
            return _unpack(head, _NIFTI1, order)
        if size == 540 and head[4:8] == b"n+2\0" and len(head) >= 540:
            return _unpack(head, _NIFTI2, order)
    raise InputError(
        "not a single-file NIfTI image",
        reason="not_nifti",
        file=file,
        expected="NIfTI-1 or NIfTI-2, .nii or .nii.gz",
        got=f"first bytes {head[:4].hex()}, magic {head[344:348]!r}",
        fix="convert it, e.g. with dcm2niix",
    )


def _unpack(head: bytes, fields: dict[str, tuple[str, int]], order: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: struct.unpack_from(order + form, head, offset) for name, (form, offset) in fields.items()
    }
    found["order"] = order
    return found


def _shape(dim: tuple[int, ...], file: str | Path) -> tuple[int, int, int]:
    count = dim[0]
    sides = dim[1 : count + 1]
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


def _stored_type(code: int, file: str | Path) -> str:
    if code not in _TYPES:
        raise InputError(
            "voxel type cannot be used",
            reason="not_nifti",
            file=file,
            expected="whole or real numbers",
            got=f"NIfTI datatype {code}",
            fix="convert to int16 (CT) or uint8 (labels)",
        )
    return _TYPES[code]


def _scaling(scl: tuple[float, float], file: str | Path) -> tuple[float, float]:
    slope, intercept = scl
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite(scl).all():
        raise InputError(
            "scaling is not finite",
            reason="not_nifti",
            file=file,
            expected="finite scl_slope and scl_inter",
            got=f"{slope}, {intercept}",
            fix="export the scan again from its source",
        )
    return slope, intercept


def _affine(raw: dict[str, Any], shape: tuple[int, int, int], file: str | Path) -> Affine:
    qform_code, sform_code = raw["codes"]
    if raw["units"][0] & 7 not in _MM_OR_UNSAID or (qform_code <= 0 and sform_code <= 0):
        raise GeometryError(
            "where the voxels lie is not said in millimetres",
            reason="bad_affine",
            file=file,
            expected="qform or sform with a code above 0, unit mm",
            got=f"qform_code {qform_code}, sform_code {sform_code}, unit code {raw['units'][0] & 7}",
            fix="export the scan again from its source",
        )
    affine = _sform(raw) if sform_code > 0 else _qform(raw)
    require_usable(affine, file)
    if sform_code > 0 and qform_code > 0:
        _require_agreement(raw, Grid(shape, affine), file)
    return affine


def _require_agreement(raw: dict[str, Any], grid: Grid, file: str | Path) -> None:
    distance = _qform_distance_mm(raw, grid)
    if not distance <= SAME_GRID_TOLERANCE_MM:
        raise InputError(
            f"qform and sform place the voxels {distance:.2f} mm apart",
            reason="qform_sform_mismatch",
            file=file,
            expected=f"corner voxels within {SAME_GRID_TOLERANCE_MM} mm",
            got=f"qform {_rows(_qform(raw))}, sform {_rows(grid.affine)}",
            fix="find out which is right and write both alike",
        )


def _qform_distance_mm(raw: dict[str, Any], grid: Grid) -> float:
    """Largest corner distance between `grid` and the qform.

    Near a half turn float32 leaves the quaternion's real part open by up to 5e-4 (a quarter of a
    millimetre at the far corner), so there the half turn itself is tried as well.
    """
    distance = grid.distance_mm(Grid(grid.shape, _qform(raw)))
    if np.isfinite(distance) and 1 - np.sum(np.square(raw["quatern"][:3])) < 4e-7:
        distance = min(distance, grid.distance_mm(Grid(grid.shape, _qform(raw, half_turn=True))))
    return distance


def _sform(raw: dict[str, Any]) -> Affine:
    return np.vstack([np.array(raw["srow"], float).reshape(3, 4), [0, 0, 0, 1]])


def _qform(raw: dict[str, Any], *, half_turn: bool = False) -> Affine:
    """Method 2 of nifti1.h: quaternion (b, c, d), voxel sizes, qfac and the offset."""
    b, c, d = np.array(raw["quatern"][:3], float)
    real_squared = 1 - (b * b + c * c + d * d)
    if half_turn or real_squared < 1e-7:
        norm = np.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b / norm, c / norm, d / norm
    else:
        a = np.sqrt(real_squared)
    qfac = -1.0 if raw["pixdim"][0] < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = _rotation(a, b, c, d) * (np.abs(raw["pixdim"][1:4]) * np.array([1, 1, qfac]))
    affine[:3, 3] = raw["quatern"][3:]
    return affine


def _rotation(a: float, b: float, c: float, d: float) -> NDArray[np.float64]:
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )


def _quaternion(affine: Affine) -> tuple[float, tuple[float, float, float]]:
    """qfac and (b, c, d) of the rotation nearest to the affine's directions (real part >= 0).

    The quaternion is the dominant eigenvector of Bar-Itzhack's symmetric matrix (J. Guidance 23(6), 2000).
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    qfac = -1.0 if np.linalg.det(directions) < 0 else 1.0
    r = directions * np.array([1, 1, qfac])
    matrix = np.array(
        [
            [r[0, 0] + r[1, 1] + r[2, 2], 0, 0, 0],
            [r[2, 1] - r[1, 2], r[0, 0] - r[1, 1] - r[2, 2], 0, 0],
            [r[0, 2] - r[2, 0], r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], 0],
            [r[1, 0] - r[0, 1], r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1]],
        ]
    )
    quaternion = np.linalg.eigh(matrix, UPLO="L")[1][:, -1]
    b, c, d = quaternion[1:] * (-1 if quaternion[0] < 0 else 1)
    return qfac, (float(b), float(c), float(d))


def _rows(affine: Affine) -> str:
    return str(affine[:3].round(3).tolist())
