"""Where L2 is: measured on L2 itself, or on the nearest levels that stand in for it."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from retroln.anatomy.levels import LUMBAR, Level, Vertebra
from retroln.anatomy.plausibility import IMPLAUSIBLE, Facts, Problem, sound_levels

Rung = Literal["l2", "interpolated_l1_l3", "extrapolated", "reviewer"]

_SIDES_THAT_SPOIL_L2 = {"left", "right", "anterior", "inferior", "superior"}


class L2Reference(NamedTuple):
    """L2 in RAS+ voxel indices; fractions where it is interpolated.

    Attributes:
        lo, hi: lowest and highest slice.
        margin_index: anterior margin along axis 1 (docs/reference/region.md).
        centre_index: lateral centre along axis 0.
    """

    lo: float
    hi: float
    margin_index: float
    centre_index: float


class Step(NamedTuple):
    """A rung of the ladder, what it gave, and the levels it was taken from."""

    rung: Rung
    l2: L2Reference
    used: tuple[Level, ...]


def climb(facts: Facts) -> Step:
    """The highest rung that holds: L2 itself; L1 and L3; the line through the two nearest lumbar levels.

    Raises:
        LandmarkError: `l2_unresolved`, no rung holds.
    """
    sound = sound_levels(facts)
    whole = [
        level for level in LUMBAR if level in sound and not _SIDES_THAT_SPOIL_L2 & set(facts[level].touches)
    ]
    if Level.L2 in whole:
        return Step("l2", reference_of(facts[Level.L2].vertebra), (Level.L2,))
    nearest = sorted(whole, key=lambda level: (abs(_steps_below_l2(level)), level))[:2]
    if len(nearest) < 2:
        raise Problem(
            "l2_unresolved",
            "L2 cannot be used and fewer than two other lumbar levels can stand in",
            "L2 whole, or two whole lumbar levels",
            f"whole: {', '.join(whole) or 'none'}",
            "correct the label map, or deliver a scan that shows more of the lumbar spine",
        ).error()
    first, second = sorted(nearest)
    a, b = (np.array(reference_of(facts[level].vertebra)) for level in (first, second))
    share = -_steps_below_l2(first) / (_steps_below_l2(second) - _steps_below_l2(first))
    line = L2Reference(*(a + share * (b - a)).tolist())
    rung: Rung = "interpolated_l1_l3" if (first, second) == (Level.L1, Level.L3) else "extrapolated"
    return Step(rung, line, (first, second))


def reference_of(vertebra: Vertebra) -> L2Reference:
    """Slices, anterior margin and lateral centre of one level, as docs/reference/region.md defines them.

    Slices lo+int(0.25(hi-lo)) to lo+int(0.75(hi-lo)), both included; slices without voxels are passed over.

    Raises:
        LandmarkError: `landmarks_implausible`, all of these are without voxels.
    """
    x0, y0, lo = vertebra.box.start
    hi = vertebra.box.stop[2] - 1
    middle = vertebra.mask[:, :, int(0.25 * (hi - lo)) : int(0.75 * (hi - lo)) + 1]
    margins, centres = [], []
    for k in range(middle.shape[2]):
        right, front = np.nonzero(middle[:, :, k])
        if right.size:
            margins.append(y0 + int(front.max()))
            centres.append(x0 + float(right.mean()))
    if not margins:
        raise Problem(
            IMPLAUSIBLE,
            f"{vertebra.level} is empty at half height",
            "one solid vertebra",
            "two separate parts",
            "correct the label map",
        ).error()
    return L2Reference(lo, hi, float(np.median(margins)), float(np.median(centres)))


def _steps_below_l2(level: Level) -> int:
    return LUMBAR.index(level) - LUMBAR.index(Level.L2)
