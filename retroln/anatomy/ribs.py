"""Where the 12th rib starts: what a label map with ribs says about the numbering of its vertebrae."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from retroln.anatomy.levels import LEVEL_ORDER, Level, Vertebra
from retroln.imaging.volume import Volume
from retroln.settings import LabelScheme

# In the whole-spine example (TotalSegmentator s0328) the 12th rib's head lies 34 to 38 mm from the centroid
# of T12, and 44 mm or more from those of T11 and L1.
_RIB_REACH_MM = 41.0
RIB_12_IDS: dict[LabelScheme, tuple[int, ...]] = {
    "totalseg-v2": (103, 115),
    "totalseg-v1": (69, 81),
    "verse": (),
}


def rib_12_level(volume: Volume, levels: Mapping[Level, Vertebra], rib_ids: tuple[int, ...]) -> Level | None:
    """Of T11, T12, L1 and L2 the level whose centroid comes nearest to a 12th rib, if within 41 mm.

    It takes a T12 that neither the top nor the bottom border cuts: without it the nearest level may only be
    the next best, and a rib slopes down past the levels below its own.
    """
    whole = {
        level: v for level, v in levels.items() if v.box.start[2] > 0 and v.box.stop[2] < volume.grid.shape[2]
    }
    if Level.T12 not in whole or not rib_ids:
        return None
    spacing_mm = np.array(volume.grid.spacing_mm)
    distance_mm = {
        level: _nearest_mm(volume, whole[level].centroid_index(), rib_ids, spacing_mm)
        for level in LEVEL_ORDER[:4]
        if level in whole
    }
    nearest = min(distance_mm, key=distance_mm.__getitem__)
    return nearest if distance_mm[nearest] <= _RIB_REACH_MM else None


def _nearest_mm(
    volume: Volume, centre: NDArray[np.float64], ids: tuple[int, ...], spacing_mm: NDArray[np.float64]
) -> float:
    """Distance from a voxel index to the nearest voxel of `ids`; infinity beyond `_RIB_REACH_MM`."""
    reach = np.ceil(_RIB_REACH_MM / spacing_mm)
    low, high = np.maximum(centre - reach, 0).astype(int), (centre + reach + 1).astype(int)
    near = volume.array[tuple(slice(lo, hi) for lo, hi in zip(low, high, strict=True))]
    found_mm = (np.argwhere(np.isin(near, ids)) + low - centre) * spacing_mm
    return float(np.linalg.norm(found_mm, axis=1).min()) if len(found_mm) else float("inf")
