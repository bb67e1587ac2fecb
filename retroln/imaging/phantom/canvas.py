"""Painting shapes on a grid: CT with soft edges, label maps by voxel centre."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retroln.imaging.geometry import Grid
from retroln.imaging.phantom.shapes import Shape, bounds_mm, unit
from retroln.imaging.phantom.spec import PhantomSpec

Target = Literal["", "vertebrae", "ribs", "vessels", "nodes"]
Box = tuple[slice, ...]  # along the array's axes
MAPS: tuple[Target, ...] = ("vertebrae", "ribs", "vessels", "nodes")
AIR_HU = -1000.0
BLUR_MM = 0.65
REFERENCE_VOXEL_MM3 = 1.6


@dataclass(frozen=True, eq=False)
class Part:
    """A shape with its attenuation, and the label it leaves in one of the maps.

    Attributes:
        shape: where.
        hu: attenuation inside.
        shell_hu: attenuation of the outer `shell_mm` (cortical bone, kidney cortex), if any.
        target: the label map it is written to, "" for none.
        label: the value written there; 0 writes nothing.
        solid: nodes may not lie inside it.
    """

    shape: Shape
    hu: float
    shell_hu: float | None = None
    shell_mm: float = 0.0
    target: Target = ""
    label: int = 0
    solid: bool = False


def ras_grid(spec: PhantomSpec, centre_world_mm: NDArray[np.float64]) -> Grid:
    """The RAS+ sampling grid: `extent_mm` about the centre, tilted, then cut to the field of view."""
    spacing = np.asarray(spec.spacing_mm)
    shape = np.maximum(np.round(np.asarray(spec.extent_mm) / spacing).astype(int), 1)
    tilt = np.radians(spec.tilt_deg)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine[:3, :3] *= spacing
    affine[:3, 3] = centre_world_mm - affine[:3, :3] @ ((shape - 1) / 2)
    low, high = (round(float(share * shape[2])) for share in spec.field_of_view)
    affine[:3, 3] += affine[:3, 2] * low
    return Grid((int(shape[0]), int(shape[1]), max(high - low, 1)), affine)


class Canvas:
    """A CT (float32 HU) and its label maps (uint8) on one RAS+ grid turned about its first axis."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.ct = np.full(grid.shape, AIR_HU, np.float32)
        self.maps = {name: np.zeros(grid.shape, np.uint8) for name in MAPS}
        self._to_index = np.linalg.inv(grid.affine)
        self._edge_mm = float(np.prod(grid.spacing_mm) ** (1 / 3))
        self._coordinates = _world(grid)

    def paint(self, parts: Iterable[Part]) -> None:
        """Paint in order; later parts cover earlier ones."""
        listed = [*parts]
        for part, box in zip(listed, self._boxes(listed), strict=True):
            self._paint_one(part, box)

    def _paint_one(self, part: Part, box: Box) -> None:
        if any(s.stop <= s.start for s in box):
            return
        depth = part.shape.distance(*self._axes(box))
        edge = np.float32(1 / self._edge_mm)
        region = self.ct[box]
        value: Any = np.float32(part.hu)
        if part.shell_hu is not None:
            core = unit(0.5 - (depth + np.float32(part.shell_mm)) * edge)
            value = np.float32(part.shell_hu) + core * np.float32(part.hu - part.shell_hu)
        region += unit(0.5 - depth * edge) * (value - region)
        if part.label:
            self.maps[part.target][box][np.broadcast_to(depth <= 0, region.shape)] = part.label

    def _boxes(self, parts: list[Part]) -> list[Box]:
        """The index box of each part, with a voxel to spare for the soft edge."""
        low, high = bounds_mm([part.shape for part in parts])
        axes, shift = self._to_index[:3, :3], self._to_index[:3, 3]
        middle = (low + high) / 2 @ axes.T + shift
        reach = (high - low) / 2 @ np.abs(axes).T + 1.5
        start = np.clip(np.ceil(middle - reach), 0, self.grid.shape).astype(int).tolist()
        stop = np.clip(np.floor(middle + reach) + 1, 0, self.grid.shape).astype(int).tolist()
        return [tuple(map(slice, *ends)) for ends in zip(start, stop, strict=True)]

    def _axes(self, box: Box) -> list[NDArray[np.float32]]:
        """World x, y, z of the voxel centres in `box`, broadcastable; small where untilted."""
        return [
            values[
                tuple(part if side > 1 else slice(None) for part, side in zip(box, values.shape, strict=True))
            ]
            for values in self._coordinates
        ]

    def finish(self, rng: np.random.Generator, noise_hu: float) -> NDArray[np.int16]:
        """Add noise, blur both together (so the noise is correlated), round to int16 HU.

        `noise_hu` holds for voxels of 1.6 mm3; the noise falls with the fourth root of the volume.
        """
        from scipy.ndimage import correlate1d

        kernels = [
            _kernel(BLUR_MM / step if axis < 2 else 0.35) for axis, step in enumerate(self.grid.spacing_mm)
        ]
        gain = float(np.prod([np.sqrt(np.square(kernel).sum()) for kernel in kernels]))
        volume = float(np.prod(self.grid.spacing_mm))
        sigma = noise_hu * (REFERENCE_VOXEL_MM3 / volume) ** 0.25 / gain
        noise = rng.standard_normal(self.ct.shape, np.float32)
        noise *= np.float32(sigma)
        self.ct += noise
        for axis, kernel in enumerate(kernels):
            self.ct = correlate1d(
                self.ct, kernel, axis, output=noise if axis % 2 == 0 else None, mode="nearest"
            )
        np.rint(self.ct, out=self.ct)
        return np.clip(self.ct, -1024, 3071, out=self.ct).astype(np.int16)


def _world(grid: Grid) -> list[NDArray[np.float32]]:
    """World x, y and z of every voxel centre, each of one voxel along the axes that it does not follow."""
    i, j, k = np.ogrid[tuple(slice(side) for side in grid.shape)]
    coordinates = []
    for row in grid.affine[:3]:
        value = np.full((1, 1, 1), row[3])
        for step, index in zip(row[:3], (i, j, k), strict=True):
            value = value + step * index if step else value
        coordinates.append(value.astype(np.float32))
    return coordinates


def _kernel(sigma_voxel: float) -> NDArray[np.float64]:
    """Normalised Gaussian weights out to 2.5 sigma, at least one neighbour."""
    reach = max(1, int(np.ceil(2.5 * sigma_voxel)))
    weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / max(sigma_voxel, 1e-3)))
    normalised: NDArray[np.float64] = weights / weights.sum()
    return normalised
