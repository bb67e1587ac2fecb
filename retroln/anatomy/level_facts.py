"""What is measured once on each labelled level: its pieces, size, shape, place and the borders it touches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.anatomy.levels import Level, Vertebra, cut_out
from retroln.anatomy.vertebrae import Vertebrae
from retroln.metrics.components import connected

SIDES = ("left", "right", "posterior", "anterior", "inferior", "superior")


@dataclass(frozen=True)
class Fragments:
    """Pieces of a level beside its largest 26-connected one; they belong to nothing and are left out.

    Attributes:
        count: how many.
        voxels: of all of them.
        share: of the level's voxels, 0 to below 1.
    """

    count: int = 0
    voxels: int = 0
    share: float = 0.0


@dataclass(frozen=True, eq=False)
class LevelFacts:
    """One level's largest piece in numbers. Lengths are in mm along the array axes, but for `spread_mm`.

    Attributes:
        vertebra: the largest piece.
        volume_mm3: its voxels times the voxel's volume.
        width_mm, depth_mm, height_mm: its box along right, anterior and superior.
        centroid_mm: shape (3,), from the centre of voxel (0, 0, 0).
        touches: sides (of `SIDES`) where it reaches the border of the field of view.
        fragments: what was left out.
        steps_mm: shape (3, 3), world mm of one voxel along each array axis, in columns.
    """

    vertebra: Vertebra
    volume_mm3: float
    width_mm: float
    depth_mm: float
    height_mm: float
    centroid_mm: NDArray[np.float64]
    touches: tuple[str, ...]
    fragments: Fragments
    steps_mm: NDArray[np.float64]

    @property
    def whole(self) -> bool:
        """Neither the top nor the bottom border cuts it."""
        return not {"inferior", "superior"} & set(self.touches)

    @cached_property
    def spread_mm(self) -> tuple[float, float]:
        """Standard deviation of its voxels left-right and front-back in the world, however the scan lies.

        A measure of shape that single voxels hardly move.
        """
        index = np.argwhere(self.vertebra.mask).T.astype(np.float64)
        index -= index.mean(axis=1, keepdims=True)
        spread = self.steps_mm @ (index @ index.T / index.shape[1]) @ self.steps_mm.T
        return float(np.sqrt(spread[0, 0])), float(np.sqrt(spread[1, 1]))


def measure(vertebrae: Vertebrae) -> tuple[Vertebrae, dict[Level, LevelFacts]]:
    """The vertebrae without their fragments, and the facts of each level, top to bottom."""
    parted = {level: _largest_piece(vertebra) for level, vertebra in vertebrae.levels.items()}
    kept = replace(vertebrae, levels={level: vertebra for level, (vertebra, _) in parted.items()})
    facts = {
        level: _measure(vertebra, fragments, vertebrae) for level, (vertebra, fragments) in parted.items()
    }
    return kept, facts


def drifts_mm(facts: Mapping[Level, LevelFacts]) -> dict[Level, float]:
    """How far each whole level lies beside the line through its neighbours, in the axial plane.

    For the first and the last level, which have one neighbour, the line through the nearest two is
    extended and only the lateral distance counts: front to back the spine is curved. What a border cuts
    has no true centroid and is passed over; fewer than three whole levels give nothing. Top to bottom.
    """
    whole = [level for level, found in facts.items() if found.whole]
    if len(whole) < 3:
        return {}
    at = [facts[level].centroid_mm for level in whole]
    between = {
        level: float(np.linalg.norm(_beside_mm(at[i], at[i - 1], at[i + 1])))
        for i, level in enumerate(whole[1:-1], start=1)
    }
    first, last = (abs(float(_beside_mm(*three)[0])) for three in (at[:3], at[:-4:-1]))
    return {whole[0]: first} | between | {whole[-1]: last}


def record(facts: Mapping[Level, LevelFacts], vertebrae: Vertebrae) -> dict[str, dict[str, Any]]:
    """The facts of each level as plain JSON, for the catalog; distances in world mm."""
    levels, drifts = list(facts), drifts_mm(facts)
    below = dict(pairwise(levels))
    return {
        level.value: {
            "voxels": found.vertebra.voxels,
            "volume_mm3": round(found.volume_mm3, 3),
            "width_mm": round(found.width_mm, 3),
            "depth_mm": round(found.depth_mm, 3),
            "height_mm": round(found.height_mm, 3),
            "centroid_world_mm": _world_mm(found, vertebrae),
            "to_next_mm": _distance_mm(found, facts[below[level]]) if level in below else None,
            "drift_mm": round(drifts[level], 3) if level in drifts else None,
            "box": {"start": list(found.vertebra.box.start), "stop": list(found.vertebra.box.stop)},
            "touches": list(found.touches),
            "fragments": vars(found.fragments) | {"share": round(found.fragments.share, 5)},
        }
        for level, found in facts.items()
    }


def _largest_piece(vertebra: Vertebra) -> tuple[Vertebra, Fragments]:
    pieces = connected(vertebra.mask)
    voxels = np.bincount(pieces.ravel(order="K"))[1:]
    if len(voxels) < 2:
        return vertebra, Fragments()
    largest = cut_out(pieces == int(voxels.argmax()) + 1, vertebra.level, vertebra.box.start)
    assert largest is not None
    rest = int(voxels.sum() - voxels.max())
    return largest, Fragments(len(voxels) - 1, rest, rest / int(voxels.sum()))


def _measure(vertebra: Vertebra, fragments: Fragments, vertebrae: Vertebrae) -> LevelFacts:
    spacing_mm = vertebrae.grid.spacing_mm
    width, depth, height = (n * step for n, step in zip(vertebra.box.shape, spacing_mm, strict=True))
    return LevelFacts(
        vertebra=vertebra,
        volume_mm3=vertebra.voxels * float(np.prod(spacing_mm)),
        width_mm=width,
        depth_mm=depth,
        height_mm=height,
        centroid_mm=vertebra.centroid_index() * np.array(spacing_mm),
        touches=_touched_sides(vertebra, vertebrae.grid.shape),
        fragments=fragments,
        steps_mm=vertebrae.grid.affine[:3, :3],
    )


def _touched_sides(vertebra: Vertebra, shape: tuple[int, int, int]) -> tuple[str, ...]:
    at_border = [
        reached
        for axis in range(3)
        for reached in (vertebra.box.start[axis] == 0, vertebra.box.stop[axis] == shape[axis])
    ]
    return tuple(side for side, reached in zip(SIDES, at_border, strict=True) if reached)


def _beside_mm(
    place: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Offset (right, anterior) of a place from the line through two others, at the place's own height."""
    rise = second[2] - first[2]
    share = (place[2] - first[2]) / rise if rise else 0.0
    return np.asarray((place - first - share * (second - first))[:2])


def _world_mm(facts: LevelFacts, vertebrae: Vertebrae) -> list[float]:
    world = vertebrae.grid.world_mm(facts.vertebra.centroid_index())
    return [round(float(x), 3) for x in world]


def _distance_mm(upper: LevelFacts, lower: LevelFacts) -> float:
    return round(float(np.linalg.norm(upper.centroid_mm - lower.centroid_mm)), 3)
