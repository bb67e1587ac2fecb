"""The vertebral levels that matter here, their ids in each scheme, and one level's voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from retroln.imaging.geometry import VoxelBox
from retroln.imaging.volume import occupied_box
from retroln.settings import LabelScheme


class Level(StrEnum):
    """The vertebrae that matter here; T11 and S1 confirm the numbering and never widen the region."""

    T11 = "T11"
    T12 = "T12"
    L1 = "L1"
    L2 = "L2"
    L3 = "L3"
    L4 = "L4"
    L5 = "L5"
    S1 = "S1"


LEVEL_ORDER = tuple(Level)
LUMBAR = LEVEL_ORDER[2:7]
REGION_LEVELS = LEVEL_ORDER[1:7]

# TotalSegmentator map_to_binary.py (v1, v2 `total`); Sekuboyina et al., VerSe, Med Image Anal 2021.
LEVEL_IDS: dict[LabelScheme, dict[Level, int]] = {
    "totalseg-v2": {level: 33 - i for i, level in enumerate(LEVEL_ORDER)},
    "totalseg-v1": {level: 24 - i for i, level in enumerate(LEVEL_ORDER[:7])},
    "verse": {level: 18 + i for i, level in enumerate(LEVEL_ORDER[:7])} | {Level.S1: 26},
}


def scheme_ids(scheme: LabelScheme) -> dict[int, Level]:
    """Label value to level. The scheme is stated by the user: v1's T9..T3 read like v2's S1..T12."""
    return {value: level for level, value in LEVEL_IDS[scheme].items()}


@dataclass(frozen=True, eq=False)
class Vertebra:
    """One level: the RAS+ box of its voxels and the boolean mask inside the box."""

    level: Level
    box: VoxelBox
    mask: NDArray[np.bool_]

    @property
    def voxels(self) -> int:
        """How many voxels the level has, at least 1."""
        return int(np.count_nonzero(self.mask))

    def centroid_index(self) -> NDArray[np.float64]:
        """Mean voxel index, RAS+, shape (3,)."""
        counts = [self.mask.sum(axis=other, dtype=np.int64) for other in ((1, 2), (0, 2), (0, 1))]
        inner = [count @ np.arange(len(count)) / count.sum() for count in counts]
        return np.asarray(np.array(self.box.start) + np.array(inner), np.float64)


def cut_out(mask: NDArray[np.bool_], level: Level, origin: Sequence[int]) -> Vertebra | None:
    """The level of a mask whose first voxel has the index `origin`, or None if it is empty."""
    inner = occupied_box(mask)
    if inner is None:
        return None
    start = tuple(a + b for a, b in zip(origin, inner.start, strict=True))
    stop = tuple(a + b for a, b in zip(origin, inner.stop, strict=True))
    return Vertebra(level, VoxelBox(start, stop), mask[inner.slices].copy())  # type: ignore[arg-type]


STATED_BY = "--label-ids, RETROLN_LABEL_IDS or the column label_ids"
"""Where a user says which scheme the ids of a label map are of: file tools, pipeline, one case."""
