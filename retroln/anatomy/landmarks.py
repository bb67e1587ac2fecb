"""Are the vertebrae plausible, and where is L2? The gate between a label map and a region.

Every decision is recorded as a finding `code: text`; what a person must look at is a `LandmarkError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from retroln.anatomy.vertebrae import LEVEL_ORDER, LUMBAR, REGION_LEVELS, Level, Vertebra, Vertebrae
from retroln.errors import LandmarkError

Rung = Literal["l2", "interpolated_l1_l3", "extrapolated"]

# Whole vertebrae (body and arch). Measured on adults here: 38-86 ml, 42-58 mm high, centroids 24-38 mm
# apart (TotalSegmentator s0328 and example_ct, VerSe 004). Limits leave room for children, body-only
# labels and giants, and exclude a missed level (twice the distance) or two levels fused in one label.
VOLUME_MM3 = (3_000.0, 125_000.0)
HEIGHT_MM = (10.0, 85.0)
SPACING_MM = (12.0, 55.0)
# Against the median of the spine's other whole levels; there: volume 0.68-1.37, height 0.90-1.12 times.
VOLUME_RATIO = (0.4, 1.75)
HEIGHT_RATIO = (0.6, 1.45)
OVERLAP_SHARE_MAX = 0.05
_SIDES = ("left", "right", "posterior", "anterior", "inferior", "superior")
_SIDES_THAT_SPOIL_L2 = frozenset(_SIDES) - {"posterior"}


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


@dataclass(frozen=True)
class Assessment:
    """Vertebrae that may be used, and on what terms.

    Attributes:
        usable: always True; what is not usable raises.
        findings: `code: text`, in the order found; empty for a faultless spine.
        truncated: T12-L5 levels absent at either end, or cut by the border.
        anchored: S1 below L5 or a rib at T12 confirms the numbering.
        rung: step of the ladder that gave L2.
        l2: the reference for the region.
        levels: T12-L5 levels that span the region, top to bottom.
        per_level: for the catalog: voxels, volume_mm3, centroid_world_mm, box, touches (border sides).
    """

    usable: bool
    findings: tuple[str, ...]
    truncated: tuple[Level, ...]
    anchored: bool
    rung: Rung
    l2: L2Reference
    levels: tuple[Level, ...]
    per_level: dict[str, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class _Facts:
    """What is measured once per level; `human` tells whether its size is that of one vertebra."""

    vertebra: Vertebra
    volume_mm3: float
    height_mm: float
    centroid_mm: np.ndarray[Any, np.dtype[np.float64]]
    touches: tuple[str, ...]
    human: bool = True

    @property
    def whole(self) -> bool:
        return not {"inferior", "superior"} & set(self.touches)

    @property
    def is_reference(self) -> bool:
        """Good enough to measure L2's margin and centre on."""
        return self.human and not _SIDES_THAT_SPOIL_L2 & set(self.touches)


def assess(vertebrae: Vertebrae, *, unanchored: Literal["accept", "review"]) -> Assessment:
    """Judge the spine and find L2, on the highest rung of the ladder that holds.

    Ladder: L2 itself; interpolated from L1 and L3; the line through the two nearest lumbar levels.

    Args:
        vertebrae: T11-S1 as labelled.
        unanchored: whether numbering that neither S1 nor ribs confirm is accepted (and recorded).

    Raises:
        LandmarkError: `no_lumbar_level`, `landmarks_implausible` (order, spacing, volume, overlap),
            `l2_unresolved` (no rung holds) or `unanchored`.
    """
    measured = {level: _measure(vertebra, vertebrae) for level, vertebra in vertebrae.levels.items()}
    facts = {level: replace(found, human=_is_human(level, measured)) for level, found in measured.items()}
    if not any(level in facts for level in LUMBAR):
        raise _refused(
            "no lumbar vertebra is labelled",
            "no_lumbar_level",
            "L1 to L5",
            ", ".join(facts) or "no level",
            "check --label-ids and the label map",
        )
    _require_human(facts)
    _require_order_and_spacing(facts)
    _require_little_overlap(vertebrae)
    rung, l2, used = _ladder(facts)
    anchored = vertebrae.ribs_at_t12 or _s1_follows_l5(facts)
    if not anchored and unanchored == "review":
        raise _refused(
            "nothing confirms the numbering of the vertebrae",
            "unanchored",
            "S1 next to L5, or ribs at T12",
            "neither",
            "count the levels by eye; RETROLN_UNANCHORED=accept lets such cases pass",
        )
    levels = tuple(level for level in REGION_LEVELS if level in facts and facts[level].human)
    truncated = _truncated(facts, levels)
    return Assessment(
        usable=True,
        findings=tuple(_findings(facts, rung, used, anchored)),
        truncated=truncated,
        anchored=anchored,
        rung=rung,
        l2=l2,
        levels=levels,
        per_level={level.value: _record(level_facts, vertebrae) for level, level_facts in facts.items()},
    )


def reference_of(vertebra: Vertebra) -> L2Reference:
    """Slices, anterior margin and lateral centre of one level, as docs/reference/region.md defines them.

    Slices lo+int(0.25(hi-lo)) to lo+int(0.75(hi-lo)), both included; slices without voxels are passed over.
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
        raise _refused(
            f"{vertebra.level} is empty at half height",
            "landmarks_implausible",
            "one solid vertebra",
            "two separate parts",
            "correct the label map",
        )
    return L2Reference(lo, hi, float(np.median(margins)), float(np.median(centres)))


def _measure(vertebra: Vertebra, vertebrae: Vertebrae) -> _Facts:
    spacing = np.array(vertebrae.grid.spacing_mm)
    last = vertebrae.grid.shape
    touched = [
        side
        for axis in range(3)
        for side, at_border in (
            (_SIDES[2 * axis], vertebra.box.start[axis] == 0),
            (_SIDES[2 * axis + 1], vertebra.box.stop[axis] == last[axis]),
        )
        if at_border
    ]
    return _Facts(
        vertebra,
        vertebra.voxels * float(spacing.prod()),
        vertebra.box.shape[2] * float(spacing[2]),
        vertebra.centroid_index() * spacing,
        tuple(touched),
    )


def _is_human(level: Level, measured: Mapping[Level, _Facts]) -> bool:
    """Size of one vertebra, by itself and beside the spine's others; what a border cuts may be smaller.

    The others catch two levels fused in one label, which in a small patient is no bigger than one in a
    large patient. It takes two whole others to compare with.
    """
    facts = measured[level]
    size = (facts.volume_mm3, facts.height_mm)
    others = [
        (other.volume_mm3, other.height_mm)
        for name, other in measured.items()
        if name in REGION_LEVELS and name is not level and not other.touches
    ]
    limits = [VOLUME_MM3, HEIGHT_MM]
    if len(others) > 1 and level in REGION_LEVELS:
        volume, height = np.median(others, axis=0)
        limits += [
            (volume * VOLUME_RATIO[0], volume * VOLUME_RATIO[1]),
            (height * HEIGHT_RATIO[0], height * HEIGHT_RATIO[1]),
        ]
    return all(
        (low <= value or bool(facts.touches)) and value <= high
        for value, (low, high) in zip(size * 2, limits, strict=False)
    )


def _require_human(facts: Mapping[Level, _Facts]) -> None:
    """Any level of the region but L2, for which the ladder stands in, must have a human size."""
    for level in REGION_LEVELS:
        if level is Level.L2 or level not in facts or facts[level].human:
            continue
        raise _refused(
            f"{level} does not have the size of a vertebra",
            "landmarks_implausible",
            f"{VOLUME_MM3[0] / 1000:g}-{VOLUME_MM3[1] / 1000:g} ml and {HEIGHT_MM[0]:g}-{HEIGHT_MM[1]:g} mm "
            "high, and like the other levels",
            f"{facts[level].volume_mm3 / 1000:.1f} ml, {facts[level].height_mm:.0f} mm high",
            "correct the label map",
        )


def _require_order_and_spacing(facts: Mapping[Level, _Facts]) -> None:
    """Centroids descend in the order of the levels, one level's distance apart for each step.

    T11 and S1 only count where they are whole; a cut level's centroid can lie too near, never too far.
    """
    judged = [level for level in facts if facts[level].human and _speaks(level, facts[level])]
    for upper, lower in pairwise(judged):
        drop_mm = facts[upper].centroid_mm[2] - facts[lower].centroid_mm[2]
        if drop_mm <= 0:
            raise _refused(
                f"{upper} does not lie above {lower}",
                "landmarks_implausible",
                "levels in descending order",
                f"{upper} {-drop_mm:.0f} mm below {lower}",
                "correct the label map, or its orientation",
            )
    for upper, lower in pairwise(judged):
        _require_spacing(facts[upper], facts[lower])


def _require_spacing(upper: _Facts, lower: _Facts) -> None:
    names = upper.vertebra.level, lower.vertebra.level
    steps = LEVEL_ORDER.index(names[1]) - LEVEL_ORDER.index(names[0])
    distance_mm = float(np.linalg.norm(upper.centroid_mm - lower.centroid_mm)) / steps
    too_near = upper.whole and lower.whole and distance_mm < SPACING_MM[0]
    if too_near or distance_mm > SPACING_MM[1]:
        raise _refused(
            f"{names[0]} and {names[1]} do not lie a vertebra apart",
            "landmarks_implausible",
            f"{SPACING_MM[0]:g}-{SPACING_MM[1]:g} mm for each level",
            f"{distance_mm:.0f} mm",
            "look for a missed or doubled vertebra, and check the voxel spacing",
        )


def _speaks(level: Level, facts: _Facts) -> bool:
    return level in REGION_LEVELS or facts.whole


def _require_little_overlap(vertebrae: Vertebrae) -> None:
    smallest = min(vertebra.voxels for vertebra in vertebrae.levels.values())
    allowed = max(OVERLAP_SHARE_MAX * smallest, 1)
    if vertebrae.overlap_voxels > allowed:
        raise _refused(
            "levels overlap",
            "landmarks_implausible",
            f"at most {OVERLAP_SHARE_MAX:.0%} of the smallest level",
            f"{vertebrae.overlap_voxels} voxels shared",
            "check that no per-level file holds another level",
        )


def _ladder(facts: Mapping[Level, _Facts]) -> tuple[Rung, L2Reference, tuple[Level, ...]]:
    """The rung, L2's reference and the levels it was taken from."""
    whole = [level for level in LUMBAR if level in facts and facts[level].is_reference]
    if Level.L2 in whole:
        return "l2", reference_of(facts[Level.L2].vertebra), (Level.L2,)
    nearest = sorted(whole, key=lambda level: (abs(_steps_below_l2(level)), level))[:2]
    if len(nearest) < 2:
        raise _refused(
            "L2 cannot be used and fewer than two other lumbar levels can stand in",
            "l2_unresolved",
            "L2 whole, or two whole lumbar levels",
            f"whole: {', '.join(whole) or 'none'}",
            "correct the label map, or deliver a scan that shows more of the lumbar spine",
        )
    first, second = sorted(nearest)
    a, b = (np.array(reference_of(facts[level].vertebra)) for level in (first, second))
    share = -_steps_below_l2(first) / (_steps_below_l2(second) - _steps_below_l2(first))
    line = L2Reference(*(a + share * (b - a)).tolist())
    rung: Rung = "interpolated_l1_l3" if (first, second) == (Level.L1, Level.L3) else "extrapolated"
    return rung, line, (first, second)


def _steps_below_l2(level: Level) -> int:
    return LUMBAR.index(level) - LUMBAR.index(Level.L2)


def _s1_follows_l5(facts: Mapping[Level, _Facts]) -> bool:
    if Level.S1 not in facts or Level.L5 not in facts:
        return False
    upper, lower = facts[Level.L5].centroid_mm, facts[Level.S1].centroid_mm
    return bool(upper[2] > lower[2] and np.linalg.norm(upper - lower) <= SPACING_MM[1])


def _truncated(facts: Mapping[Level, _Facts], levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """Levels missing above the first or below the last, and levels that the top or bottom border cuts."""
    first, last = REGION_LEVELS.index(levels[0]), REGION_LEVELS.index(levels[-1])
    beyond = set(REGION_LEVELS[:first]) | set(REGION_LEVELS[last + 1 :])
    return tuple(
        level for level in REGION_LEVELS if level in beyond or (level in facts and not facts[level].whole)
    )


def _findings(
    facts: Mapping[Level, _Facts], rung: Rung, used: tuple[Level, ...], anchored: bool
) -> list[str]:
    absent = [f"absent: {level} is not labelled" for level in REGION_LEVELS if level not in facts]
    cut = [
        f"cut: {level} touches the {' and '.join(facts[level].touches)} border"
        for level in REGION_LEVELS
        if level in facts and facts[level].touches
    ]
    size = [
        f"implausible: {level} does not have the size of a vertebra"
        for level in facts
        if not facts[level].human
    ]
    ladder = [] if rung == "l2" else [f"{rung}: L2 taken from {used[0]} and {used[1]}"]
    anchor = [] if anchored else ["unanchored: neither S1 nor ribs confirm the numbering"]
    return absent + cut + size + ladder + anchor


def _record(facts: _Facts, vertebrae: Vertebrae) -> dict[str, Any]:
    box = facts.vertebra.box
    centroid = vertebrae.grid.world_mm(facts.vertebra.centroid_index())
    return {
        "voxels": facts.vertebra.voxels,
        "volume_mm3": round(facts.volume_mm3, 3),
        "centroid_world_mm": [round(float(x), 3) for x in centroid],
        "box": {"start": list(box.start), "stop": list(box.stop)},
        "touches": list(facts.touches),
    }


def _refused(what: str, reason: str, expected: str, got: str, fix: str) -> LandmarkError:
    return LandmarkError(what, reason=reason, expected=expected, got=got, fix=fix)
