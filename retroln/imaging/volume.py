"""A volume: a RAS+ array, its grid, and the grid it was delivered on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from retroln.imaging.geometry import AxisMap, Grid, VoxelBox, axis_map


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
