"""Where a node lies: its retroperitoneal station beside the great vessels, and its vertebral level.

Stations are read as a radiologist reads an axial slice: from the great vessel nearest to the node's
centroid, then in front of it, behind it, lateral to it, or between the two. The names are the usual
ones (e.g. McMahon et al., RadioGraphics 2011;31:1251-1273). The limits in mm are this project's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from retroln.errors import InputError
from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume
from retroln.metrics.components import occupied

WorldPoint = tuple[float, float, float]

# Ids of TotalSegmentator v2, task `total` (totalsegmentator.map_to_binary.class_map["total"]).
KIDNEY_RIGHT, KIDNEY_LEFT = 2, 3
AORTA = 52
INFERIOR_VENA_CAVA = 63
ILIACS = (65, 66, 67, 68)
S1 = 26
LEVELS = {33: "T11", 32: "T12", 31: "L1", 30: "L2", 29: "L3", 28: "L4", 27: "L5", 26: "S1"}

CLASSES = 117  # ids of the task go from 1 to this

# Farther from every great vessel than this, a node is mesenteric, renal or pelvic.
REACH_MM = 30.0
# A vessel is looked for this far up and down when the node's own slice misses it (a gap in the map).
GAP_MM = 6.0
# Above or below all vertebrae by more than this, a node has no level.
LEVEL_REACH_MM = 10.0


class Station(StrEnum):
    """Retroperitoneal stations."""

    PARACAVAL = "paracaval"
    PRECAVAL = "precaval"
    RETROCAVAL = "retrocaval"
    INTERAORTOCAVAL = "interaortocaval"
    PREAORTIC = "preaortic"
    RETROAORTIC = "retroaortic"
    PARA_AORTIC = "para-aortic"
    HILAR = "hilar"
    COMMON_ILIAC = "common iliac"


def require_organs(organs: Volume) -> None:
    """Raise `InputError`, reason `not_labels`, for what cannot be a map of the task `total`, as a CT."""
    low, high = float(organs.array.min()), float(organs.array.max())
    if low < 0 or high > CLASSES or organs.array.dtype.kind not in "iub":
        raise InputError(
            "no map of organs",
            reason="not_labels",
            expected=f"TotalSegmentator v2's task `total`: whole numbers from 0 to {CLASSES}",
            got=f"{organs.array.dtype} from {low:g} to {high:g}",
            fix="name the label map that TotalSegmentator wrote with --ml, not the CT",
        )


def assign(centroid_world_mm: WorldPoint, organs: Volume | None) -> Station | None:
    """Station of a node; None without organs, outside their grid, or away from every great vessel.

    In the centroid's axial slice the nearest of aorta, inferior vena cava (IVC) and iliac vessels
    decides. An iliac vessel: common iliac, unless the slice is below S1. Nearer to a kidney than to
    aorta and IVC, and medial to the kidney's centre: hilar. Within the vessel's left-right extent: pre-
    or retro-, by the vessel's centre. Beside it: interaortocaval towards the other vessel (None if that
    is missing), else paracaval (right of the IVC) or para-aortic (left of the aorta).

    Args:
        centroid_world_mm: RAS+ mm.
        organs: label map in TotalSegmentator v2 `total` ids.
    """
    if organs is None:
        return None
    slice_ = _Slice.at(centroid_world_mm, organs)
    if slice_ is None:
        return None
    aorta, cava = slice_.section(AORTA), slice_.section(INFERIOR_VENA_CAVA)
    great = min(_distance_mm(aorta), _distance_mm(cava))
    iliac = min(_distance_mm(slice_.section(id_)) for id_ in ILIACS)
    if min(great, iliac) > REACH_MM:
        return None
    if iliac < great:
        return None if slice_.below(S1) else Station.COMMON_ILIAC
    right, left = slice_.section(KIDNEY_RIGHT), slice_.section(KIDNEY_LEFT)
    if min(_hilum_mm(right, 1), _hilum_mm(left, -1)) < great:
        return Station.HILAR
    if _distance_mm(cava) < _distance_mm(aorta):
        return _around_cava(cava, has_aorta=aorta.size > 0)
    return _around_aorta(aorta, has_cava=cava.size > 0)


@dataclass(frozen=True, eq=False)
class Levels:
    """The slices that each vertebra spans: name, lowest, highest; from `of`."""

    grid: Grid
    extents: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, vertebrae: Volume) -> Levels:
        """From a label map in TotalSegmentator v2 ids; other ids are ignored."""
        extents = []
        box = occupied(vertebrae.array)
        part = vertebrae.array[box] if box else vertebrae.array[:0]
        for id_, name in LEVELS.items():
            slices = np.flatnonzero((part == id_).any(axis=(0, 1)))
            if box and slices.size:
                extents.append((name, int(slices[0]) + box[2].start, int(slices[-1]) + box[2].start))
        return cls(vertebrae.grid, tuple(extents))

    def at(self, centroid_world_mm: WorldPoint) -> str | None:
        """Vertebra at the height of a node: of those whose slices hold it, the one whose middle is nearest.

        Between two vertebrae, or at most 10 mm beyond all, the nearest one; else None.
        """
        height = float(_voxel(self.grid, centroid_world_mm)[2])
        ranked = sorted(
            (max(first - 0.5 - height, height - last - 0.5, 0.0), abs(height - (first + last) / 2), name)
            for name, first, last in self.extents
        )
        near = ranked and ranked[0][0] * self.grid.spacing_mm[2] <= LEVEL_REACH_MM
        return ranked[0][2] if near else None


class _Slice:
    """The axial slice of an organ map at a node, seen from the node: (right, anterior) offsets in mm."""

    def __init__(self, organs: Volume, voxel: NDArray[np.float64]) -> None:
        self._organs, self._voxel, self._height = organs, voxel, round(float(voxel[2]))

    @classmethod
    def at(cls, centroid_world_mm: WorldPoint, organs: Volume) -> _Slice | None:
        voxel = _voxel(organs.grid, centroid_world_mm)
        inside = all(-0.5 <= v <= n - 0.5 for v, n in zip(voxel, organs.grid.shape, strict=True))
        return cls(organs, voxel) if inside else None

    def section(self, id_: int) -> NDArray[np.float64]:
        """Offsets (n, 2) of a structure's voxels from the node; empty when it is not near this slice."""
        spacing = self._organs.grid.spacing_mm
        reach = int(GAP_MM / spacing[2])
        for step in sorted(range(-reach, reach + 1), key=abs):
            height = self._height + step
            if 0 <= height < self._organs.grid.shape[2]:
                cells = np.argwhere(self._organs.array[:, :, height] == id_)
                if cells.size:
                    offsets: NDArray[np.float64] = (cells - self._voxel[:2]) * np.asarray(spacing[:2])
                    return offsets
        return np.empty((0, 2))

    def below(self, id_: int) -> bool:
        """True if the structure is in the map, and all of it above this slice."""
        mask = self._organs.array == id_
        return bool(mask.any()) and not bool(mask[:, :, : self._height + 1].any())


def _voxel(grid: Grid, world_mm: WorldPoint) -> NDArray[np.float64]:
    offset = np.asarray(world_mm, float) - grid.affine[:3, 3]
    return np.linalg.solve(grid.affine[:3, :3], offset).astype(np.float64)


def _distance_mm(section: NDArray[np.float64]) -> float:
    return float(np.hypot(section[:, 0], section[:, 1]).min()) if section.size else float("inf")


def _hilum_mm(kidney: NDArray[np.float64], side: int) -> float:
    """Distance to a kidney whose centre lies farther to its side (1 right, -1 left); else infinity."""
    medial = kidney.size > 0 and side * float(kidney[:, 0].mean()) > 0
    return _distance_mm(kidney) if medial else float("inf")


def _around_cava(cava: NDArray[np.float64], *, has_aorta: bool) -> Station | None:
    if cava[:, 0].max() < 0:
        return Station.PARACAVAL
    if cava[:, 0].min() > 0:
        return Station.INTERAORTOCAVAL if has_aorta else None
    return Station.PRECAVAL if cava[:, 1].mean() < 0 else Station.RETROCAVAL


def _around_aorta(aorta: NDArray[np.float64], *, has_cava: bool) -> Station | None:
    if aorta[:, 0].min() > 0:
        return Station.PARA_AORTIC
    if aorta[:, 0].max() < 0:
        return Station.INTERAORTOCAVAL if has_cava else None
    return Station.PREAORTIC if aorta[:, 1].mean() < 0 else Station.RETROAORTIC
