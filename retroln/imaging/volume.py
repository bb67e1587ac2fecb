"""A volume: a RAS+ array, its grid, and the grid it was delivered on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import InputError
from retroln.imaging.geometry import AxisMap, Grid, VoxelBox, axis_map

LARGEST_BYTES = 2 << 30
"""Most that the voxels of one volume may take, in the file and in memory; what announces more is refused.

In int16 these are 512 x 512 x 4096 voxels: at 0.5 mm from slice to slice a whole body. In float32, where a
header scales the values by fractions, half as many slices.
"""


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels in RAS+ order with the grid they came on.

    Attributes:
        array: 3D array, axes (right, anterior, superior); often a view, never written to.
        grid: its grid (RAS+ up to obliqueness).
        source: the grid as delivered; results return there.
    """

    array: NDArray[Any]
    grid: Grid
    source: Grid

    @classmethod
    def from_source(cls, array: NDArray[Any], source: Grid) -> Volume:
        """Canonicalise an array on its delivered grid by flips and transposes alone."""
        axes = axis_map(source)
        return cls(axes.to_ras(array), axes.grid_to_ras(source), source)

    @property
    def axes(self) -> AxisMap:
        """The map between `source` and RAS+."""
        return axis_map(self.source)

    def to_source(self) -> NDArray[Any]:
        """The voxels in the delivered order."""
        return self.axes.from_ras(self.array)

    def with_array(self, array: NDArray[Any]) -> Volume:
        """The same grids with other RAS+ voxels of the same shape (a label map, say)."""
        if array.shape != self.grid.shape:
            raise ValueError(f"array must be {self.grid.shape}, got {array.shape}")
        return Volume(array, self.grid, self.source)

    def crop(self, box: VoxelBox) -> Volume:
        """The voxels in `box` (RAS+ indices); the crop's own source grid is RAS+."""
        grid = box.grid(self.grid)
        return Volume(self.array[box.slices], grid, grid)


def require_possible_size(shape: tuple[int, ...], voxel_bytes: int, file: str | Path | None = None) -> None:
    """Raise `InputError` (`too_large`) for a volume of more than `LARGEST_BYTES`, before memory is taken."""
    if math.prod(shape) * voxel_bytes > LARGEST_BYTES:
        raise InputError(
            "announces more voxels than any CT has",
            reason="too_large",
            file=file,
            expected=f"at most {LARGEST_BYTES >> 30} GiB of voxels",
            got=f"shape {shape} of {voxel_bytes} bytes each",
            fix="check the file's origin; store whole numbers as int16",
        )


def occupied_box(array: NDArray[Any]) -> VoxelBox | None:
    """Smallest box that holds every non-zero voxel of a 3D array, or None if there is none.

    The axis that varies slowest in memory is narrowed first, so a large label map is read once.
    """
    bounds: list[tuple[int, int]] = [(0, side) for side in array.shape]
    for axis in sorted(range(3), key=lambda axis: -abs(array.strides[axis])):
        inside = array[tuple(slice(lo, hi) for lo, hi in bounds)]
        hit = np.flatnonzero(np.any(inside, axis=tuple(other for other in range(3) if other != axis)))
        if not hit.size:
            return None
        bounds[axis] = int(hit[0]), int(hit[-1]) + 1
    (a, b), (c, d), (e, f) = bounds
    return VoxelBox((a, c, e), (b, d, f))
