"""The L2-referenced region: box, containment of nodes, paste back, and its JSON record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.anatomy.landmarks import Assessment
from retroln.anatomy.vertebrae import Vertebrae
from retroln.errors import InputError, LandmarkError
from retroln.imaging.geometry import Grid, VoxelBox, axis_map
from retroln.imaging.volume import Volume, occupied_box
from retroln.metrics.components import connected
from retroln.settings import Hu, RoiSpec

SIDES = ("left", "right", "posterior", "anterior", "inferior", "superior")
_FORMAT = 1
_TOUCH_VOXELS = 1e-4  # a spacing stored as float32 must not decide whether a voxel touches the box


@dataclass(frozen=True, eq=False)
class Roi:
    """The region on one scan.

    Attributes:
        box: RAS+ voxels, clamped to the field of view; never empty.
        unclamped: the box before clamping.
        clamped_sides: sides (of `SIDES`) where the field of view ends before the box does.
        grid: RAS+ grid of the whole scan.
        source: grid of the scan as delivered; `paste` returns there.
        spec: the sizes used.
        rung: step of the ladder that gave L2.
    """

    box: VoxelBox
    unclamped: VoxelBox
    clamped_sides: tuple[str, ...]
    grid: Grid
    source: Grid
    spec: RoiSpec
    rung: str

    @property
    def crop_grid(self) -> Grid:
        """RAS+ grid of the crop."""
        return self.box.grid(self.grid)


@dataclass(frozen=True)
class NodeInside:
    """One labelled node: its component number, its voxels and those inside the box."""

    label: int
    voxels: int
    inside: int


@dataclass(frozen=True)
class Containment:
    """How much of the labelled nodes the box holds; `share` is 1.0 when there are none."""

    inside_voxels: int
    total_voxels: int
    nodes: tuple[NodeInside, ...]

    @property
    def share(self) -> float:
        """Node voxels inside the box over all node voxels."""
        return self.inside_voxels / self.total_voxels if self.total_voxels else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON content."""
        nodes = [{"label": n.label, "voxels": n.voxels, "inside": n.inside} for n in self.nodes]
        return {
            "inside_voxels": self.inside_voxels,
            "total_voxels": self.total_voxels,
            "share": self.share,
            "nodes": nodes,
        }


def locate(vertebrae: Vertebrae, assessment: Assessment, spec: RoiSpec, source: Grid | None = None) -> Roi:
    """The region, exactly as docs/reference/region.md defines it.

    Args:
        vertebrae: tells the scan's RAS+ grid.
        assessment: says where L2 is and how high the region reaches.
        spec: sizes, mm along the array axes.
        source: delivered grid of the scan, by default that of the vertebra label map.

    Raises:
        LandmarkError: `l2_unresolved` when the box misses the field of view altogether.
    """
    left_mm = spec.lateral_mm / 2
    spacing = vertebrae.grid.spacing_mm
    lateral = _touched(assessment.l2.centre_index, left_mm, left_mm, spacing[0])
    frontal = _touched(assessment.l2.margin_index, spec.behind_mm, spec.ahead_mm, spacing[1])
    bottom, top = assessment.slices
    unclamped = VoxelBox((lateral[0], frontal[0], bottom), (lateral[1], frontal[1], top))
    box = unclamped.clamp(vertebrae.grid.shape)
    if min(box.shape) < 1:
        raise LandmarkError(
            "the region lies outside the field of view",
            reason="l2_unresolved",
            expected=f"a box within {vertebrae.grid.shape}",
            got=f"{unclamped.start} to {unclamped.stop}",
            fix="correct the vertebra label map",
        )
    return Roi(
        box=box,
        unclamped=unclamped,
        clamped_sides=_clamped_sides(unclamped, box),
        grid=vertebrae.grid,
        source=source or vertebrae.source,
        spec=spec,
        rung=assessment.rung,
    )


def containment(mask: Volume, box: VoxelBox) -> Containment:
    """Node voxels (above 0) inside `box`, in all and for each node.

    Nodes are 26-connected components; different labels are different nodes.

    Args:
        mask: node labels or a binary mask, RAS+.
        box: RAS+ voxels of the same grid.
    """
    outer = occupied_box(mask.array > 0)
    if outer is None:
        return Containment(0, 0, ())
    part = mask.array[outer.slices]
    components = connected(np.where(part > 0, part, 0))
    inner = VoxelBox(
        _minus(box.start, outer.start),
        _minus(box.stop, outer.start),
    ).clamp(outer.shape)
    voxels = np.bincount(components.ravel(order="K"))[1:]
    inside = np.bincount(components[inner.slices].ravel(order="K"), minlength=len(voxels) + 1)[1:]
    nodes = tuple(
        NodeInside(i + 1, int(n), int(k)) for i, (n, k) in enumerate(zip(voxels, inside, strict=True))
    )
    return Containment(int(inside.sum()), int(voxels.sum()), nodes)


def paste(crop: NDArray[Any], roi: Roi) -> NDArray[Any]:
    """A RAS+ crop put back on the delivered grid: delivered order, its dtype, 0 outside the box.

    Raises:
        ValueError: the crop has not the shape of the box.
    """
    if crop.shape != roi.box.shape:
        raise ValueError(f"crop must be {roi.box.shape}, got {crop.shape}")
    whole = np.zeros(roi.source.shape, crop.dtype, order="F")
    axis_map(roi.source).to_ras(whole)[roi.box.slices] = crop
    return whole


def to_json(roi: Roi, *, containment: Containment | None = None, hu: Hu | None = None) -> dict[str, Any]:
    """The record of a crop (`<id>_roi.json`), complete enough to paste back.

    Args:
        roi: the region.
        containment: None when no node mask was delivered.
        hu: window that was scaled to 0..1, None when the crop holds HU.
    """
    return {
        "format": _FORMAT,
        "box_voxel": _box_content(roi.box),
        "unclamped_voxel": _box_content(roi.unclamped),
        "corners_world_mm": roi.box.corners_world_mm(roi.grid).round(4).tolist(),
        "clamped_sides": list(roi.clamped_sides),
        "rung": roi.rung,
        "grid": _grid_content(roi.grid),
        "source": _grid_content(roi.source),
        "spec": roi.spec.recorded(),
        "containment": containment.to_dict() if containment else None,
        "hu_window": [hu.low, hu.high] if hu else None,
    }


def from_json(content: Mapping[str, Any]) -> Roi:
    """The region of a record that `to_json` made.

    Raises:
        InputError: `bad_roi` for anything else, or for a box that does not fit its grid.
    """
    try:
        roi = Roi(
            box=_box(content["box_voxel"]),
            unclamped=_box(content["unclamped_voxel"]),
            clamped_sides=tuple(content["clamped_sides"]),
            grid=_grid(content["grid"]),
            source=_grid(content["source"]),
            spec=RoiSpec.of_record(content["spec"]),
            rung=str(content["rung"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _bad_record(repr(error)) from error
    ras = axis_map(roi.source).grid_to_ras(roi.source)
    if content.get("format") != _FORMAT or ras.shape != roi.grid.shape:
        raise _bad_record(f"format {content.get('format')}, grids {roi.grid.shape} and {ras.shape}")
    if roi.box.clamp(roi.grid.shape) != roi.box or min(roi.box.shape) < 1:
        raise _bad_record(f"box {roi.box.start} to {roi.box.stop} in {roi.grid.shape}")
    return roi


def _touched(centre_index: float, below_mm: float, above_mm: float, spacing_mm: float) -> tuple[int, int]:
    """Half-open range of the voxels whose extent (index -+ 0.5) meets the closed interval."""
    low = centre_index - below_mm / spacing_mm
    high = centre_index + above_mm / spacing_mm
    return ceil(low - 0.5 - _TOUCH_VOXELS), floor(high + 0.5 + _TOUCH_VOXELS) + 1


def _clamped_sides(unclamped: VoxelBox, box: VoxelBox) -> tuple[str, ...]:
    moved = [
        changed
        for axis in range(3)
        for changed in (unclamped.start[axis] != box.start[axis], unclamped.stop[axis] != box.stop[axis])
    ]
    return tuple(side for side, changed in zip(SIDES, moved, strict=True) if changed)


def _minus(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def _box_content(box: VoxelBox) -> dict[str, list[int]]:
    return {"start": list(box.start), "stop": list(box.stop)}


def _box(content: Mapping[str, Any]) -> VoxelBox:
    a, b, c = (int(i) for i in content["start"])
    d, e, f = (int(i) for i in content["stop"])
    return VoxelBox((a, b, c), (d, e, f))


def _grid_content(grid: Grid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "affine": grid.affine.tolist(), "orientation": grid.orientation}


def _grid(content: Mapping[str, Any]) -> Grid:
    a, b, c = (int(side) for side in content["shape"])
    affine = np.array(content["affine"], float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValueError("affine must be 4x4 finite numbers")
    return Grid((a, b, c), affine)


def _bad_record(got: str) -> InputError:
    return InputError(
        "not a region record of this version",
        reason="bad_roi",
        expected="the JSON that `retroln crop` wrote",
        got=got,
        fix="crop the case again",
    )
