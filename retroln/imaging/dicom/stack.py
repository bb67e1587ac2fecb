"""Slices to one grid: sorted along their normal, evenly spaced, not sheared; anything else is refused.

Slices must lie within 0.1 mm of the regular grid that is made of them, the tolerance for "the same grid"
everywhere in RetroLN. A volume that only nearly stacks would put findings in a wrong place, unseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retroln.errors import GeometryError, InputError
from retroln.imaging.dicom.planes import Plane
from retroln.imaging.geometry import SAME_GRID_TOLERANCE_MM, Grid, require_usable

MIN_SLICES = 10
"""A threshold of RetroLN's own: ten slices of 5 mm span 50 mm, not even two lumbar levels."""
_DIRECTION_TOLERANCE = 1e-3  # of a unit vector's component; headers round to 4 to 6 digits
_SPACING_TOLERANCE_MM = 1e-3
_MM = SAME_GRID_TOLERANCE_MM
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in order.

    Attributes:
        planes: sorted along the normal (row x column), so that slice k of the array is planes[k].
        grid: array axes column, row, slice; world RAS+ mm.
    """

    planes: tuple[Plane, ...]
    grid: Grid


def stack(planes: Sequence[Plane]) -> Stack:
    """Sort slices and find their grid.

    Raises:
        InputError: `too_few_slices`, `mixed_series`, `duplicate_positions`, `missing_slices`.
        GeometryError: `bad_affine`, `gantry_tilt`, `varying_spacing`.
    """
    if len(planes) < MIN_SLICES:
        raise _refusal(
            "too few slices for a volume",
            "too_few_slices",
            f"{MIN_SLICES} or more",
            f"{len(planes)}",
            "deliver the whole series",
        )
    _require_alike(planes)
    right, down, normal = _axes(planes[0])
    places = np.array([plane.position_mm for plane in planes], float)
    order = np.argsort(places @ normal, kind="stable")
    places = places[order]
    step = _even_step(places @ normal)
    _require_upright(places, normal, step)
    affine = np.eye(4)
    rows_mm, columns_mm = planes[0].spacing_mm
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = right * columns_mm, down * rows_mm, normal * step
    affine[:3, 3] = places[0]
    affine = _LPS_TO_RAS @ affine
    require_usable(affine)
    height, width = planes[0].shape
    return Stack(tuple(planes[i] for i in order), Grid((width, height, len(planes)), affine))


def _require_alike(planes: Sequence[Plane]) -> None:
    first = planes[0]
    for what, tolerance, values in (
        ("sizes", 0.0, [plane.shape for plane in planes]),
        ("pixel spacings", _SPACING_TOLERANCE_MM, [plane.spacing_mm for plane in planes]),
        ("orientations", _DIRECTION_TOLERANCE, [plane.directions for plane in planes]),
    ):
        differences = np.abs(np.array(values, float) - np.array(values[0], float)).max(axis=1)
        count = int((differences > tolerance).sum())
        if count:
            raise _refusal(
                f"the series mixes slices of different {what}",
                "mixed_series",
                f"all alike, as the first of {first.shape[1]} x {first.shape[0]}",
                f"{count} of {len(planes)} differ",
                "deliver each kind as a series of its own",
            )


def _axes(plane: Plane) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors along a row, along a column, and their normal."""
    right, down = np.array(plane.directions[:3]), np.array(plane.directions[3:])
    lengths = np.linalg.norm([right, down], axis=1)
    if np.abs(lengths - 1).max() > _DIRECTION_TOLERANCE or abs(right @ down) > _DIRECTION_TOLERANCE:
        raise GeometryError(
            "the slices' directions are not two perpendicular unit vectors",
            reason="bad_affine",
            expected="ImageOrientationPatient with lengths 1 and a product of 0",
            got=f"lengths {lengths.round(4).tolist()}, product {right @ down:.4f}",
            fix="export the series again from its source",
        )
    right = right / lengths[0]
    down = down - (down @ right) * right
    down /= np.linalg.norm(down)
    return right, down, np.cross(right, down)


def _even_step(heights: NDArray[np.float64]) -> float:
    """Distance of neighbouring slices, mm, from their sorted heights along the normal."""
    gaps = np.diff(heights)
    typical = float(np.median(gaps))
    doubled = int((gaps <= max(_MM, typical * 0.01)).sum())
    if doubled:
        raise _refusal(
            "several slices lie at the same position",
            "duplicate_positions",
            "one slice per position",
            f"{doubled} too many of {len(heights)}",
            "deliver one phase or reconstruction per series, each slice once",
        )
    _require_no_gap(gaps, typical)
    step = float((heights[-1] - heights[0]) / (len(heights) - 1))
    off = float(np.abs(heights - heights[0] - step * np.arange(len(heights))).max())
    if off > _MM:
        raise GeometryError(
            "the distance between slices varies",
            reason="varying_spacing",
            expected=f"every slice within {_MM} mm of an even spacing",
            got=f"{gaps.min():.2f} to {gaps.max():.2f} mm, {off:.2f} mm off",
            fix="deliver the series as it was reconstructed, evenly spaced",
        )
    return step


def _require_no_gap(gaps: NDArray[np.float64], typical: float) -> None:
    """A gap of twice the distance or more, with the rest even, is a slice that was lost."""
    wide = gaps > 1.5 * typical
    off = np.abs(gaps - typical * np.rint(gaps / typical))
    if wide.any() and float(off.max()) <= max(_MM, 0.05 * typical):
        lost = int((np.rint(gaps[wide] / typical) - 1).sum())
        raise _refusal(
            "slices are missing in the middle of the series",
            "missing_slices",
            f"a slice every {typical:.2f} mm",
            f"{lost} missing in {int(wide.sum())} gaps of up to {gaps.max():.2f} mm",
            "export the series again and deliver all of it",
        )


def _require_upright(places: NDArray[np.float64], normal: NDArray[np.float64], step: float) -> None:
    """Each slice must lie straight above the first; a tilted gantry shears the volume."""
    number = np.arange(len(places))[:, None]
    sideways = places - places[0] - number * step * normal
    sideways -= (sideways @ normal)[:, None] * normal
    drift = float(np.linalg.norm(sideways, axis=1).max())
    if drift <= _MM:
        return
    per_slice = sideways[-1] / (len(places) - 1)
    if float(np.linalg.norm(sideways - number * per_slice, axis=1).max()) <= max(_MM, 0.02 * drift):
        tilt = np.degrees(np.arctan2(np.linalg.norm(per_slice), step))
        raise GeometryError(
            "the gantry was tilted: the slices do not lie straight above each other",
            reason="gantry_tilt",
            expected=f"at most {_MM} mm sideways from first to last slice",
            got=f"{drift:.1f} mm, a tilt of {tilt:.1f} degrees",
            fix="deliver a reconstruction without tilt; correcting it here would resample the CT",
        )
    raise GeometryError(
        "slices are shifted sideways against each other",
        reason="varying_spacing",
        expected=f"every slice within {_MM} mm of a straight line",
        got=f"up to {drift:.2f} mm",
        fix="deliver slices of one reconstruction",
    )


def _refusal(what: str, reason: str, expected: str, got: str, fix: str) -> InputError:
    return InputError(what, reason=reason, expected=expected, got=got, fix=fix)
