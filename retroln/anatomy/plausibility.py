"""Can these levels be the vertebrae of one person? Limits with their sources, and what breaks them.

The limits are documented in docs/reference/landmarks.md. "Measured here" means on whole vertebrae (body
and arch) of three adults: TotalSegmentator s0328 and example_ct, VerSe 004.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from retroln.anatomy.level_facts import LevelFacts, drifts_mm
from retroln.anatomy.levels import LEVEL_ORDER, LUMBAR, REGION_LEVELS, STATED_BY, Level
from retroln.anatomy.vertebrae import Vertebrae
from retroln.errors import LandmarkError

IMPLAUSIBLE = "landmarks_implausible"

# Measured here: 38-86 ml, 42-59 mm high, centroids 26-37 mm apart. The limits leave room for children,
# body-only labels and giants, and exclude a missed level (twice the distance) or two levels in one label.
VOLUME_MM3 = (3_000.0, 125_000.0)
HEIGHT_MM = (10.0, 85.0)
SPACING_MM = (12.0, 55.0)
# Against the median of the spine's other whole levels; measured here: volume 0.65-1.19, height 0.82-1.13,
# spacing 0.77-1.13 times. A skipped name halves the spacing, an unlabelled vertebra doubles it.
VOLUME_RATIO = (0.4, 1.75)
HEIGHT_RATIO = (0.6, 1.45)
SPACING_RATIO = (0.6, 1.6)
# Beside the line through the neighbours; measured here at most 7 mm, at the spine's ends 2 mm. A scoliosis
# of 60 degrees over five levels bends by 4 mm at its apex, a vertebra slipped by its half by about 9 mm.
DRIFT_MM = 20.0
DRIFT_AT_END_MM = 30.0
OVERLAP_SHARE_MAX = 0.05
# Pieces of a whole level; measured here none. An arch that is severed from its body is about a third.
FRAGMENT_SHARE_NOTED = 0.01
FRAGMENT_SHARE_MAX = 0.2

Facts = Mapping[Level, LevelFacts]


@dataclass(frozen=True)
class Problem:
    """Why landmarks cannot be used without a person; fields as in `InputError`."""

    reason: str
    what: str
    expected: str
    got: str
    fix: str

    def error(self) -> LandmarkError:
        """The problem as what quarantines the case."""
        return LandmarkError(self.what, **{k: v for k, v in vars(self).items() if k != "what"})


def sound_levels(facts: Facts) -> frozenset[Level]:
    """Levels that have the size of one vertebra and hold together."""
    return frozenset(level for level in facts if _is_human(level, facts) and _holds_together(facts[level]))


def problems(facts: Facts, vertebrae: Vertebrae) -> Iterator[Problem]:
    """Everything that breaks a limit, the most telling first; L2 alone may be unsound (see the ladder)."""
    if not any(level in facts for level in LUMBAR):
        yield Problem(
            "no_lumbar_level",
            "no lumbar vertebra is labelled",
            "L1 to L5",
            ", ".join(facts) or "no level",
            f"check the label map, and that {STATED_BY} says which ids it holds",
        )
        return
    sound = sound_levels(facts)
    yield from _unsound(facts, sound)
    judged = [level for level in facts if level in sound and (level in REGION_LEVELS or facts[level].whole)]
    disorder = list(_out_of_order(facts, judged))
    yield from disorder
    if not disorder:
        yield from _odd_spacing(facts, judged)
        yield from _off_the_line({level: facts[level] for level in judged})
    yield from _overlap(vertebrae)


def _is_human(level: Level, facts: Facts) -> bool:
    """Size of one vertebra, by itself and beside the spine's others; what a border cuts may be smaller.

    The others catch two levels fused in one label, which in a small patient is no bigger than one in a
    large patient. It takes two whole others to compare with.
    """
    own = facts[level]
    others = [
        (other.volume_mm3, other.height_mm)
        for name, other in facts.items()
        if name in REGION_LEVELS and name is not level and not other.touches
    ]
    limits = [VOLUME_MM3, HEIGHT_MM]
    if len(others) > 1 and level in REGION_LEVELS:
        volume, height = np.median(others, axis=0)
        limits += [
            (volume * VOLUME_RATIO[0], volume * VOLUME_RATIO[1]),
            (height * HEIGHT_RATIO[0], height * HEIGHT_RATIO[1]),
        ]
    size = (own.volume_mm3, own.height_mm)
    return all(
        (low <= value or bool(own.touches)) and value <= high
        for value, (low, high) in zip(size * 2, limits, strict=False)
    )


def _holds_together(facts: LevelFacts) -> bool:
    """The border may cut a level into pieces; otherwise nearly all of it is one."""
    return not facts.whole or facts.fragments.share <= FRAGMENT_SHARE_MAX


def _unsound(facts: Facts, sound: frozenset[Level]) -> Iterator[Problem]:
    for level in REGION_LEVELS:
        if level is Level.L2 or level not in facts or level in sound:
            continue
        found = facts[level]
        if not _holds_together(found):
            yield Problem(
                IMPLAUSIBLE,
                f"{level} falls into pieces",
                f"at most {FRAGMENT_SHARE_MAX:.0%} of its voxels apart from the largest piece",
                f"{found.fragments.share:.0%} in {found.fragments.count} other pieces",
                "look for a level whose label is mixed with its neighbour's, and correct the label map",
            )
            continue
        yield Problem(
            IMPLAUSIBLE,
            f"{level} does not have the size of a vertebra",
            f"{VOLUME_MM3[0] / 1000:g}-{VOLUME_MM3[1] / 1000:g} ml and {HEIGHT_MM[0]:g}-{HEIGHT_MM[1]:g} mm "
            "high, and like the other levels",
            f"{found.volume_mm3 / 1000:.1f} ml, {found.height_mm:.0f} mm high",
            "correct the label map",
        )


def _out_of_order(facts: Facts, judged: list[Level]) -> Iterator[Problem]:
    """Centroids descend in the order of the levels."""
    for upper, lower in pairwise(judged):
        drop_mm = facts[upper].centroid_mm[2] - facts[lower].centroid_mm[2]
        if drop_mm <= 0:
            yield Problem(
                IMPLAUSIBLE,
                f"{upper} does not lie above {lower}",
                "levels in descending order",
                f"{upper} {-drop_mm:.0f} mm below {lower}",
                "correct the label map, or its orientation",
            )


def _odd_spacing(facts: Facts, judged: list[Level]) -> Iterator[Problem]:
    """One level's distance apart for each step; a cut level's centroid can lie too near, never too far."""
    pairs = list(pairwise(judged))
    per_step = {pair: _step_mm(facts, *pair) for pair in pairs}
    both_whole = {pair for pair in pairs if facts[pair[0]].whole and facts[pair[1]].whole}
    for pair in pairs:
        others = [per_step[other] for other in both_whole if other != pair]
        usual = float(np.median(others)) if len(others) > 1 else None
        low, high = SPACING_MM
        if usual is not None:
            low, high = max(low, usual * SPACING_RATIO[0]), min(high, usual * SPACING_RATIO[1])
        if per_step[pair] > high or (per_step[pair] < low and pair in both_whole):
            yield Problem(
                IMPLAUSIBLE,
                f"{pair[0]} and {pair[1]} do not lie a vertebra apart",
                f"{low:.0f}-{high:.0f} mm for each level",
                f"{per_step[pair]:.0f} mm",
                "look for a missed, skipped or doubled vertebra, and check the voxel spacing",
            )


def _step_mm(facts: Facts, upper: Level, lower: Level) -> float:
    """Distance of two centroids for each step between their levels."""
    apart = float(np.linalg.norm(facts[upper].centroid_mm - facts[lower].centroid_mm))
    return apart / (LEVEL_ORDER.index(lower) - LEVEL_ORDER.index(upper))


def _off_the_line(facts: Facts) -> Iterator[Problem]:
    """Names the worst level alone: it draws the line of its neighbours with it."""
    drifts = drifts_mm(facts)
    last = len(drifts) - 1
    limits = [DRIFT_AT_END_MM if place in (0, last) else DRIFT_MM for place in range(len(drifts))]
    excess = {level: drifts[level] / limit for level, limit in zip(drifts, limits, strict=True)}
    worst = max(excess, key=excess.__getitem__, default=None)
    if worst is not None and excess[worst] > 1:
        yield Problem(
            IMPLAUSIBLE,
            f"{worst} lies beside the spine",
            f"at most {drifts[worst] / excess[worst]:.0f} mm from the line through its neighbours",
            f"{drifts[worst]:.0f} mm",
            "look for a label on another bone, and correct the label map",
        )


def _overlap(vertebrae: Vertebrae) -> Iterator[Problem]:
    smallest = min(vertebra.voxels for vertebra in vertebrae.levels.values())
    if vertebrae.overlap_voxels > max(OVERLAP_SHARE_MAX * smallest, 1):
        yield Problem(
            IMPLAUSIBLE,
            "levels overlap",
            f"at most {OVERLAP_SHARE_MAX:.0%} of the smallest level",
            f"{vertebrae.overlap_voxels} voxels shared",
            "check that no per-level file holds another level",
        )
