"""L2 and the reach of T12-L5 as a person gave them in world mm: what is believed, and what the scan misses.

Measured here means on the spines of `plausibility`, T12-L5 with arches: 187 to 224 mm from end to end.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from retroln.anatomy.ladder import L2Reference, climb
from retroln.anatomy.levels import REGION_LEVELS, Level
from retroln.anatomy.plausibility import Facts, Problem, sound_levels
from retroln.anatomy.vertebrae import Vertebra, Vertebrae
from retroln.errors import LandmarkError
from retroln.imaging.geometry import Grid

Point = tuple[float, float, float]
Extent = tuple[float, float]

# L1-L5 is 7 cm long in a newborn and 16 cm in a grown man (Canavese and Dimeglio, World J Orthop 2013,
# doi 10.5312/wjo.v4.i4.167), and T12-L5 with its arches measured here up to 1.4 times that. The tallest man
# on record was 1.55 times as tall as an adult.
EXTENT_MM = (60.0, 350.0)
# From the upper end of T12 down to the middle of L2's front, over the whole; measured here 0.36 to 0.41.
L2_SHARE = (0.2, 0.6)

# The front of a body is where its label begins; L1 to L5 lie up to 3 cm before and behind each other.
BESIDE_MM = 40.0
# A point on the front of a body lies at its label; half a body is 13 mm high and more.
ON_LEVEL_MM = 10.0

_FIX = "read the heights in RAS+ world mm, as a NIfTI viewer shows them: they grow towards the head"
_L2_PLACE = REGION_LEVELS.index(Level.L2)
_TOLERANCE = 1e-6


class GivenExtent(NamedTuple):
    """T12-L5 between two heights.

    Attributes:
        slices: lowest slice and the one above the highest, RAS+ voxels; they may lie outside the scan.
        beyond: the border that cuts a level, or that it lies beyond; only levels that the scan does not hold
            whole, top to bottom.
    """

    slices: tuple[int, int]
    beyond: dict[Level, str]


def reference_at(point_world_mm: Point, grid: Grid) -> L2Reference:
    """L2 as a person gave it: the middle of its front surface, in world mm.

    Raises:
        LandmarkError: `l2_unresolved`, the point lies outside the grid.
    """
    index = np.linalg.inv(grid.affine) @ [*point_world_mm, 1.0]
    right, front, height = (float(x) for x in index[:3])
    inside = all(-0.5 <= x <= n - 0.5 for x, n in zip(index[:3], grid.shape, strict=True))
    if not inside:
        low, high = grid.corners_world_mm().min(0), grid.corners_world_mm().max(0)
        raise Problem(
            "l2_unresolved",
            "the point given for L2 lies outside the scan",
            f"world mm between {low.round().tolist()} and {high.round().tolist()}",
            f"{list(point_world_mm)}",
            "read the point in RAS+ world mm, as a NIfTI viewer shows it",
        ).error()
    return L2Reference(height, height, front, right)


def given_extent(l2_world_mm: Point, extent_world_mm: Extent, grid: Grid) -> GivenExtent:
    """Slices at L2's place between two heights, also where these lie outside the scan.

    Raises:
        LandmarkError: `l2_unresolved`, no T12-L5 lies between these heights (`EXTENT_MM`, `L2_SHARE`).
    """
    _require_human(l2_world_mm[2], extent_world_mm)
    x, y, _ = l2_world_mm
    heights_mm = (extent_world_mm[0], l2_world_mm[2], extent_world_mm[1])
    to_voxel = np.linalg.inv(grid.affine)
    low, l2, high = (float((to_voxel @ [x, y, z, 1.0])[2]) for z in heights_mm)
    slices = round(low), round(high) + 1
    return GivenExtent(slices, _beyond(l2, slices, grid.shape[2]))


def off_labelled_l2(reference: L2Reference, vertebrae: Vertebrae, facts: Facts) -> str | None:
    """Where the labels have the L2 that a person placed, if that is more than half a vertebra off; else None.

    Their names are then off, and so are the ends of what they call T12-L5. Labels that cannot say where L2 is
    contradict a point only if it lies on another level.
    """
    levels = [level for level in REGION_LEVELS if level in sound_levels(facts)]
    try:
        labelled = climb(facts).l2 if len(levels) > 1 else None
    except LandmarkError:
        labelled = None
    if labelled is None:
        return _on_another(reference, vertebrae)
    first, last = (facts[level].vertebra.centroid_index()[2] for level in (levels[0], levels[-1]))
    step = (first - last) / (REGION_LEVELS.index(levels[-1]) - REGION_LEVELS.index(levels[0]))
    off = (reference.lo - (labelled.lo + labelled.hi) / 2) / step
    side = "above" if off > 0 else "below"
    return f"{abs(off):.1f} vertebrae {side} what they call L2" if abs(off) > 0.5 else None


def _on_another(reference: L2Reference, vertebrae: Vertebrae) -> str | None:
    """The labelled level other than L2 on which the point lies: no label is nearer."""
    away = [(_away_mm(reference, one, vertebrae.grid), level) for level, one in vertebrae.levels.items()]
    nearest_mm, level = min(away, default=(np.inf, Level.L2))
    return f"on what they call {level}" if nearest_mm <= ON_LEVEL_MM and level is not Level.L2 else None


def _away_mm(reference: L2Reference, vertebra: Vertebra, grid: Grid, axes: int = 3) -> float:
    """Distance of the point from the nearest voxel of a vertebra, in mm; by two axes, seen from above."""
    point = (reference.centre_index, reference.margin_index, reference.lo)
    apart = (np.argwhere(vertebra.mask) + vertebra.box.start - point) * grid.spacing_mm
    return float(np.linalg.norm(apart[:, :axes], axis=1).min())


def require_at_labelled_l2(reference: L2Reference, vertebrae: Vertebrae, facts: Facts) -> None:
    """Raise `LandmarkError` (`l2_unresolved`) where the labels have another level at L2's height."""
    if off := off_labelled_l2(reference, vertebrae, facts):
        raise Problem(
            "l2_unresolved",
            "L2 was placed where the labels have another level, so they cannot say how far T12-L5 reach",
            "a point within half a vertebra of what they call L2, or an extent given by hand",
            f"L2 {off}",
            "give the extent as well (--extent BOTTOM,TOP in world mm), or check the point",
        ).error()


def require_beside_labels(reference: L2Reference, vertebrae: Vertebrae) -> None:
    """Raise `LandmarkError` (`l2_unresolved`) for a point that lies beside every labelled vertebra.

    Seen from above, within `BESIDE_MM`: names may be off and levels missing, but labels lie on the spine.
    """
    away = [_away_mm(reference, one, vertebrae.grid, axes=2) for one in vertebrae.levels.values()]
    if away and min(away) > BESIDE_MM:
        raise Problem(
            "l2_unresolved",
            "the point given for L2 lies beside the spine",
            f"seen from above within {BESIDE_MM:g} mm of a labelled vertebra",
            f"{min(away):.0f} mm from the nearest",
            "read the point in RAS+ world mm, as a NIfTI viewer shows it; DICOM turns the signs of x and y",
        ).error()


def _require_human(l2_mm: float, extent_mm: Extent) -> None:
    """NaN is refused like any other height that cannot be."""
    bottom, top = extent_mm
    if not bottom < top:
        raise _refused(
            "the extent given for T12-L5 does not run from bottom to top",
            "BOTTOM, the lower end of L5, below TOP, the upper end of T12",
            f"{bottom:g} and {top:g} mm",
        )
    if not EXTENT_MM[0] <= top - bottom <= EXTENT_MM[1]:
        raise _refused(
            "no T12-L5 is as long as the extent that was given",
            f"{EXTENT_MM[0]:g} to {EXTENT_MM[1]:g} mm",
            f"{top - bottom:.0f} mm, from {bottom:g} to {top:g} mm",
        )
    share = (top - l2_mm) / (top - bottom)
    if not L2_SHARE[0] <= share <= L2_SHARE[1]:
        raise _refused(
            "L2 does not lie in the extent given for T12-L5 as in any spine",
            f"L2 {L2_SHARE[0]:.0%} to {L2_SHARE[1]:.0%} of the way down from TOP to BOTTOM",
            f"{share:.0%}: L2 at {l2_mm:g} mm, the extent from {bottom:g} to {top:g} mm",
        )


def _refused(what: str, expected: str, got: str) -> LandmarkError:
    return Problem("l2_unresolved", what, expected, got, _FIX).error()


def _beyond(l2: float, slices: tuple[int, int], count: int) -> dict[Level, str]:
    """Levels that a scan of `count` slices does not hold whole.

    Levels on one side of L2's middle are taken as equally high; on the spines measured here that puts their
    ends at most 15 mm beside their place.
    """
    place = {level: i - _L2_PLACE + 0.5 for i, level in enumerate(REGION_LEVELS)}
    below = (l2 - (slices[0] - 0.5)) / place[REGION_LEVELS[-1]]
    above = (slices[1] - 0.5 - l2) / (1 - place[REGION_LEVELS[0]])
    found: dict[Level, str] = {}
    for level, steps in place.items():
        if steps <= 0.5 and l2 + (1 - steps) * above > count - 0.5 + _TOLERANCE:
            found[level] = "superior"
        elif steps >= 0.5 and l2 - steps * below < -0.5 - _TOLERANCE:
            found[level] = "inferior"
    return found
