"""Grids, boxes and orientations. All world coordinates are millimetres in RAS+ (NIfTI's frame).

A grid is a shape and a 4x4 voxel-to-world affine for voxel CENTRES, as NIfTI defines it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import GeometryError

Affine = NDArray[np.float64]
SAME_GRID_TOLERANCE_MM = 0.1
# 1.1 - 1.0 is more than 0.1 in floating point; exactly the tolerance is still the same grid.
_ROUNDING_MM = 1e-6


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape (3 axes) and affine (4x4 float64, voxel index to world mm) of a volume."""

    shape: tuple[int, int, int]
    affine: Affine

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxel centres along each array axis."""
        sides = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(sides[0]), float(sides[1]), float(sides[2])

    @property
    def orientation(self) -> str:
        """Three letters such as "RAS": the direction each array axis mostly points to."""
        letters = []
        for column, sign in zip(*_closest_axes(self.affine), strict=True):
            letters.append(("RAS" if sign > 0 else "LPI")[column])
        return "".join(letters)

    def world_mm(self, index: NDArray[Any]) -> NDArray[np.float64]:
        """World coordinates (..., 3) of voxel indices (..., 3), fractions allowed."""
        return np.asarray(index, float) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def corners_world_mm(self) -> NDArray[np.float64]:
        """Centres of the eight corner voxels, shape (8, 3), in index order 000, 001, ... 111."""
        last = np.asarray(self.shape) - 1
        return self.world_mm(np.array(list(product(*[(0, n) for n in last]))))

    def distance_mm(self, other: Grid) -> float:
        """Largest distance between corresponding corner voxels; shapes must agree."""
        return float(np.linalg.norm(self.corners_world_mm() - other.corners_world_mm(), axis=1).max())


@dataclass(frozen=True)
class VoxelBox:
    """Half-open box of voxel indices: `start` inclusive, `stop` exclusive, per array axis."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels per axis."""
        a, b, c = (hi - lo for lo, hi in zip(self.start, self.stop, strict=True))
        return a, b, c

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index expression that cuts the box out of an array."""
        a, b, c = (slice(lo, hi) for lo, hi in zip(self.start, self.stop, strict=True))
        return a, b, c

    def affine(self, parent: Affine) -> Affine:
        """Affine of the crop: A @ translate(start); the spacing is never applied a second time."""
        shift = np.eye(4)
        shift[:3, 3] = self.start
        return parent @ shift

    def grid(self, parent: Grid) -> Grid:
        """Grid of the crop."""
        return Grid(self.shape, self.affine(parent.affine))

    def corners_world_mm(self, parent: Grid) -> NDArray[np.float64]:
        """The eight outer corners (voxel faces, not centres) in world mm, shape (8, 3)."""
        sides = [(lo - 0.5, hi - 0.5) for lo, hi in zip(self.start, self.stop, strict=True)]
        return parent.world_mm(np.array(list(product(*sides))))

    def clamp(self, shape: tuple[int, int, int]) -> VoxelBox:
        """The part of the box that lies inside an array of `shape` (may be empty)."""
        start = tuple(min(max(lo, 0), n) for lo, n in zip(self.start, shape, strict=True))
        stop = tuple(min(max(hi, 0), n) for hi, n in zip(self.stop, shape, strict=True))
        return VoxelBox(start, stop)  # type: ignore[arg-type]


@dataclass(frozen=True)
class AxisMap:
    """How a source array becomes RAS+: transpose by `order`, then flip where `flip` is True.

    `order[i]` is the source axis that becomes RAS axis i; `flip[i]` flips that RAS axis afterwards.
    Flips and transposes alone: no voxel value is ever changed.
    """

    order: tuple[int, int, int]
    flip: tuple[bool, bool, bool]

    def to_ras(self, array: NDArray[Any]) -> NDArray[Any]:
        """View of a source array in RAS+ order."""
        return array.transpose(self.order)[self._flips()]

    def from_ras(self, array: NDArray[Any]) -> NDArray[Any]:
        """View of a RAS+ array in source order: the inverse of `to_ras`."""
        return array[self._flips()].transpose(np.argsort(self.order))

    def grid_to_ras(self, grid: Grid) -> Grid:
        """The same voxels' grid in RAS+ order."""
        shape = tuple(grid.shape[axis] for axis in self.order)
        change = np.zeros((4, 4))
        change[3, 3] = 1
        for ras_axis, (source_axis, flipped) in enumerate(zip(self.order, self.flip, strict=True)):
            change[source_axis, ras_axis] = -1 if flipped else 1
            change[source_axis, 3] += grid.shape[source_axis] - 1 if flipped else 0
        return Grid(shape, grid.affine @ change)  # type: ignore[arg-type]

    def _flips(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flipped else 1) for flipped in self.flip)


def axis_map(grid: Grid) -> AxisMap:
    """The flips and transposes that bring `grid` to RAS+ (closest axes for oblique grids)."""
    columns, signs = _closest_axes(grid.affine)
    order = tuple(int(np.flatnonzero(columns == ras)[0]) for ras in range(3))
    return AxisMap(order, tuple(bool(signs[axis] < 0) for axis in order))  # type: ignore[arg-type]


def upright(grid: Grid) -> Grid:
    """`grid` itself if its axes are at right angles, as SimpleITK demands, else an upright one.

    The upright grid has the same spacing, its axes along the world's, and its first voxel at the origin.
    """
    directions = grid.affine[:3, :3] / np.asarray(grid.spacing_mm)
    if np.abs(directions.T @ directions - np.eye(3)).max() < 1e-5:
        return grid
    return Grid(grid.shape, np.diag([*grid.spacing_mm, 1.0]))


def require_usable(affine: Affine, file: str | Path | None = None) -> None:
    """Raise `GeometryError` unless the affine is 4x4, finite and spans three dimensions."""
    if affine.shape != (4, 4):
        raise GeometryError(
            "affine has a wrong shape",
            reason="bad_affine",
            file=file,
            expected="4x4",
            got=str(affine.shape),
            fix="write the file anew with a valid header",
        )
    if not np.isfinite(affine).all():
        raise GeometryError(
            "affine holds NaN or infinity",
            reason="bad_affine",
            file=file,
            expected="finite numbers",
            got=np.array2string(affine[:3]).replace("\n", ""),
            fix="export the scan again from its source",
        )
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if spacing.min() < 1e-3 or abs(np.linalg.det(affine[:3, :3] / np.maximum(spacing, 1e-9))) < 1e-3:
        raise GeometryError(
            "affine is singular or a spacing is zero",
            reason="bad_affine",
            file=file,
            expected="three independent axes with spacing above 0.001 mm",
            got=f"spacing {spacing.round(5).tolist()} mm",
            fix="export the scan again from its source",
        )


def require_same_grid(
    reference: Grid, other: Grid, *, what: str, file: str | Path | None = None, reference_name: str = "the CT"
) -> None:
    """Raise `GeometryError` unless shapes agree and no corner voxel lies over 0.1 mm apart."""
    if reference.shape != other.shape:
        raise GeometryError(
            f"{what} has another shape than {reference_name}",
            reason="grid_mismatch",
            file=file,
            expected=str(reference.shape),
            got=str(other.shape),
            fix=f"resample it onto the grid of {reference_name}, or deliver the one made on it",
        )
    distance = reference.distance_mm(other)
    if not distance <= SAME_GRID_TOLERANCE_MM + _ROUNDING_MM:
        raise GeometryError(
            f"{what} does not lie on {reference_name}",
            reason="grid_mismatch",
            file=file,
            expected=f"corner voxels within {SAME_GRID_TOLERANCE_MM} mm",
            got=f"{distance:.2f} mm apart",
            fix=f"deliver the one made on the grid of {reference_name}",
        )


def _closest_axes(affine: Affine) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """For each array axis the world axis it mostly follows (a permutation) and the sign.

    Of the six permutations the one whose direction cosines have the greatest product: never zero for
    a usable affine, so every axis has a sign, sheared ones too.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = {worlds: directions[list(worlds), [0, 1, 2]] for worlds in permutations(range(3))}
    worlds = max(cosines, key=lambda candidate: float(np.abs(cosines[candidate].prod())))
    return np.array(worlds, np.intp), np.sign(cosines[worlds])
