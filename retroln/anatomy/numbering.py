"""Is L2 called L2? What the shapes of the levels and the ribs say about the numbering of a whole spine.

A spine whose names are all one level off keeps order, size and spacing. What it cannot keep: the sacral
segment, L5 and the change from thoracic to lumbar transverse processes lie where they lie. One person in
six to ten has a vertebra more or fewer than usual, or one that is half sacral or half thoracic (whole-spine
CT: 16 % of 551, doi:10.1007/s00256-025-04952-z; lumbarisation 6.2 %, sacralisation 2.7 %, lumbar ribs 5.8 %
of 226, doi:10.1007/s13244-013-0286-0). TotalSegmentator leaves such a vertebra out and counts on.

The limits were set between what was measured on three adults (TotalSegmentator s0328 and example_ct, VerSe
004, docs/reference/landmarks.md). They say which scans need a look; they decide no numbering.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retroln.anatomy.levels import Level
from retroln.anatomy.plausibility import SPACING_MM, Facts, Problem, sound_levels

Look = Literal["lumbar", "l5", "sacral"]

# Front-back spread of a level over the median of L1-L3: L4 0.98-1.02, L5 0.84-0.90, S1 0.62-0.65 (it has
# hardly any spinous process). Between the two limits nothing is said.
SACRAL_DEPTH_BELOW = 0.75
LUMBAR_DEPTH_ABOVE = 0.80
# Left-right over front-back spread, over the same median: L4 1.03-1.14, L5 1.40-1.57.
L5_ASPECT_ABOVE = 1.25
# Left-right over front-back spread itself: with arch 0.64-0.83, body alone 1.13-1.19. Without arches the
# shapes say nothing.
ARCH_ASPECT_BELOW = 1.0
# Width of a level over that of the one below it: T11/T12 1.02-1.05, T12/L1 0.56-0.75, L1/L2 0.87-0.93
# (transverse processes begin at L1). Between the two limits nothing is said.
NARROW_BELOW = 0.80
WIDE_ABOVE = 0.86
_REFERENCE = (Level.L1, Level.L2, Level.L3)


@dataclass(frozen=True)
class Numbering:
    """What speaks for and against the names of the levels.

    Attributes:
        anchors: `S1` (a sacral segment follows L5) and `ribs` (a 12th rib starts at T12), if they hold.
        agrees: shapes that fit the names and are no anchor by themselves.
        contradicts: what does not fit, in words; any of it sends the case to a person.
    """

    anchors: tuple[str, ...]
    agrees: tuple[str, ...]
    contradicts: tuple[str, ...]

    @property
    def anchored(self) -> bool:
        """Something independent confirms the numbering, and nothing contradicts it."""
        return bool(self.anchors) and not self.contradicts

    def problem(self) -> Problem | None:
        """The contradiction that a person must look at."""
        if not self.contradicts:
            return None
        return Problem(
            "numbering_doubtful",
            "the names of the vertebrae do not fit their shapes or the ribs",
            "a sacral S1 below a lumbar L5, transverse processes from L1 on, the 12th rib at T12",
            "; ".join(self.contradicts),
            "count the levels by eye: all may be one too high or too low, or a vertebra is transitional",
        )


def numbering(facts: Facts, rib_12: Level | None) -> Numbering:
    """Judge the names by what is labelled whole, with arches, away from every border."""
    looks, widths = _looks(facts), _widths(facts)
    anchors = ["S1"] if looks.get(Level.S1) == "sacral" and _s1_follows_l5(facts) else []
    anchors += ["ribs"] if rib_12 is Level.T12 else []
    agrees = ["L5"] if looks.get(Level.L5) == "l5" and looks.get(Level.L4) == "lumbar" else []
    agrees += ["T12"] if _narrower(widths, Level.T12, Level.L1) else []
    against = [*_against_by_look(looks), *_against_by_width(widths), *_against_by_rib(rib_12)]
    return Numbering(tuple(anchors), tuple(agrees), tuple(against))


def _against_by_look(looks: dict[Level, Look]) -> Iterator[str]:
    if looks.get(Level.S1) in ("lumbar", "l5"):
        yield "S1 has the spinous process of a lumbar vertebra"
    if looks.get(Level.L5) == "sacral":
        yield "L5 has the shape of a sacral segment"
    if looks.get(Level.L4) in ("l5", "sacral"):
        yield "L4 has the shape of an L5"


def _against_by_width(widths: dict[Level, float]) -> Iterator[str]:
    if _narrower(widths, Level.T11, Level.T12):
        yield "transverse processes begin at T12"
    elif Level.T12 in widths and Level.L1 in widths and widths[Level.T12] > WIDE_ABOVE * widths[Level.L1]:
        yield "T12 is as wide as L1"
    if _narrower(widths, Level.L1, Level.L2):
        yield "L1 is as narrow as a thoracic vertebra"


def _against_by_rib(rib_12: Level | None) -> Iterator[str]:
    if rib_12 not in (None, Level.T12):
        yield f"the 12th rib starts at {rib_12}"


def _looks(facts: Facts) -> dict[Level, Look]:
    """What S1, L5 and L4 look like beside L1-L3; empty where that cannot be said."""
    judged = _judged(facts)
    reference = [facts[level].spread_mm for level in _REFERENCE if level in judged]
    if len(reference) < 2:
        return {}
    depth = float(np.median([along for _, along in reference]))
    aspect = float(np.median([across / along for across, along in reference]))
    if aspect >= ARCH_ASPECT_BELOW:
        return {}
    looks = {level: _look(facts[level].spread_mm, depth, aspect) for level in judged - set(_REFERENCE)}
    return {level: look for level, look in looks.items() if look is not None}


def _look(spread_mm: tuple[float, float], depth_mm: float, aspect: float) -> Look | None:
    across, along = spread_mm
    if along < SACRAL_DEPTH_BELOW * depth_mm:
        return "sacral"
    if along <= LUMBAR_DEPTH_ABOVE * depth_mm:
        return None
    return "l5" if across / along >= L5_ASPECT_ABOVE * aspect else "lumbar"


def _widths(facts: Facts) -> dict[Level, float]:
    """Width of each judged level, with arches; nothing without them."""
    judged = _judged(facts)
    aspects = [across / along for across, along in (facts[level].spread_mm for level in judged)]
    if not aspects or float(np.median(aspects)) >= ARCH_ASPECT_BELOW:
        return {}
    return {level: facts[level].width_mm for level in judged}


def _narrower(widths: dict[Level, float], upper: Level, lower: Level) -> bool:
    return upper in widths and lower in widths and widths[upper] < NARROW_BELOW * widths[lower]


def _judged(facts: Facts) -> frozenset[Level]:
    """Levels whose shape can be seen whole."""
    return frozenset(level for level in sound_levels(facts) if not facts[level].touches)


def _s1_follows_l5(facts: Facts) -> bool:
    if Level.S1 not in facts or Level.L5 not in facts:
        return False
    upper, lower = facts[Level.L5].centroid_mm, facts[Level.S1].centroid_mm
    return bool(upper[2] > lower[2] and np.linalg.norm(upper - lower) <= SPACING_MM[1])
