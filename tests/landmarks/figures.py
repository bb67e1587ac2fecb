"""How well vertebrae were found: Dice and right level of T12-L5 against the phantom's truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retroln.anatomy import landmarks
from retroln.anatomy.vertebrae import REGION_LEVELS, Level, Vertebrae
from retroln.errors import LandmarkError
from retroln.imaging.volume import Volume
from tests.spine import V2

_LEAST_VOXELS = 50  # a level of which the scan shows less says nothing


@dataclass(frozen=True)
class Figures:
    """Of one case.

    Attributes:
        dice: per level of T12-L5 that the scan shows.
        called: what most of the level's labelled voxels are called, 0 for nothing, per level.
        invented: levels of T12-L5 that are labelled although they are not in the scan.
    """

    dice: dict[Level, float]
    called: dict[Level, int]
    invented: tuple[Level, ...]

    @property
    def right(self) -> int:
        """How many levels are called by their name."""
        return sum(value == V2[level] for level, value in self.called.items())

    @property
    def is_wrong(self) -> bool:
        """Whether a level carries another's name: what must not move the region unnoticed."""
        other = any(value not in (0, V2[level]) for level, value in self.called.items())
        return other or bool(self.invented)


def figures_of(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> Figures:
    """Figures of a label map (v2 ids) on the truth's grid."""
    seen = [level for level in REGION_LEVELS if (truth == V2[level]).sum() >= _LEAST_VOXELS]
    dice, called = {}, {}
    for level in seen:
        here, there = truth == V2[level], found == V2[level]
        dice[level] = float(2 * (here & there).sum() / (here.sum() + there.sum()))
        counts = np.bincount(found[here], minlength=256)
        counts[[0, *range(34, 256)]] = 0
        called[level] = int(counts.argmax()) if counts.any() else 0
    invented = [
        level
        for level in REGION_LEVELS
        if level not in seen and (found == V2[level]).sum() >= _LEAST_VOXELS and not _is_stump(level, truth)
    ]
    return Figures(dice, called, tuple(invented))


def _is_stump(level: Level, truth: NDArray[np.uint8]) -> bool:
    return bool((truth == V2[level]).any())


def refused_as(labels: Volume, unanchored: str) -> str:
    """The gate's reason against a label map, "" if it passes."""
    try:
        landmarks.assess(Vertebrae.from_label_map(labels, "totalseg-v2"), unanchored=unanchored)  # type: ignore[arg-type]
    except LandmarkError as error:
        return error.reason
    return ""


def shifted(labels: Volume, step: int) -> Volume:
    """Every vertebra T11-S1 called `step` levels higher (or lower); ribs stay what they are."""
    new = labels.array.copy()
    spine = (new >= 26) & (new <= 33)
    moved = labels.array.astype(int) + step
    new[spine] = np.where((moved >= 26) & (moved <= 33), moved, 0)[spine]
    return labels.with_array(new)
