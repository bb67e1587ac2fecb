"""Do the labelled levels lie on bone of this CT? A label map of another scan, moved or mirrored, does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retroln.anatomy.levels import Level, Vertebra
from retroln.anatomy.plausibility import Problem
from retroln.anatomy.vertebrae import Vertebrae
from retroln.imaging.volume import Volume

# Medians over the levels, measured on real CT (TotalSegmentator example_ct, TPTBox L3, the bone of s0328):
# 203, 227 and 310 HU in place, and 2.3, 5.6 and 2.5 times as much as 10 mm beside it. On example_ct a map
# that lies 5 to 30 mm beside its place has 0.1 to 0.9 times as much. Thinned bone lowers both alike.
CONTRAST_MIN_HU = 60.0
SHARPNESS_MIN = 1.25
ASIDE_MM = 10.0
_GRAIN_MM = 2.0


class BoneContrast(NamedTuple):
    """Mean HU of a level less that of the unlabelled rest of its box (muscle, fat, canal, discs).

    Attributes:
        here_hu: where the level is labelled.
        aside_hu: the highest of four, with the level moved by 10 mm to either side, forward and back; None if
            the scan's border allows none of them.
    """

    here_hu: float
    aside_hu: float | None


def bone_contrast(ct: Volume, vertebrae: Vertebrae) -> dict[Level, BoneContrast]:
    """The contrast of each level that has any rest in its box.

    Voxels finer than 2 mm are read in steps, which leaves means as they are.

    Raises:
        ValueError: the CT has another shape than the levels' grid.
    """
    if ct.array.shape != vertebrae.grid.shape:
        raise ValueError(f"CT must be {vertebrae.grid.shape}, got {ct.array.shape}")
    found = {}
    for level, vertebra in vertebrae.levels.items():
        rest = _rest(vertebra, vertebrae)
        here = _contrast(ct, vertebra, rest, (0, 0))
        if here is not None:
            aside = [_contrast(ct, vertebra, rest, move) for move in _moves(ct)]
            found[level] = BoneContrast(here, max((x for x in aside if x is not None), default=None))
    return found


def _rest(vertebra: Vertebra, vertebrae: Vertebrae) -> NDArray[np.bool_]:
    """What no level claims of a level's box; a label map of the whole grid would be most of the cost."""
    rest = np.ones(vertebra.mask.shape, bool)
    for other in vertebrae.levels.values():
        pairs = list(zip(vertebra.box.start, vertebra.box.stop, other.box.start, other.box.stop, strict=True))
        shared = [(max(a, c), min(b, d)) for a, b, c, d in pairs]
        if all(low < high for low, high in shared):
            here = tuple(slice(low - a, high - a) for (low, high), (a, *_) in zip(shared, pairs, strict=True))
            there = tuple(
                slice(low - c, high - c) for (low, high), (_, _, c, _) in zip(shared, pairs, strict=True)
            )
            rest[here] &= ~other.mask[there]
    return rest


def off_bone(contrast: Mapping[Level, BoneContrast]) -> Iterator[Problem]:
    """The problem, if the levels do not stand out, or not clearly better than beside their place."""
    if not contrast:
        return
    here = float(np.median([one.here_hu for one in contrast.values()]))
    beside = [one for one in contrast.values() if one.aside_hu is not None]
    sharpness = _sharpness(beside)
    if here >= CONTRAST_MIN_HU and (sharpness is None or sharpness >= SHARPNESS_MIN):
        return
    compared = "" if sharpness is None else f", {sharpness:.1f} times as much as {ASIDE_MM:g} mm beside it"
    yield Problem(
        "off_bone",
        "the labelled levels do not lie on bone of this CT",
        f"at least {CONTRAST_MIN_HU:g} HU brighter than what surrounds them, and {SHARPNESS_MIN:g} times as "
        f"much as {ASIDE_MM:g} mm beside it",
        f"{here:.0f} HU{compared}",
        "deliver the label map that was made on this CT, and the CT in HU",
    )


def _sharpness(contrast: list[BoneContrast]) -> float | None:
    """Contrast in place over contrast aside; None if there is nothing aside, or no bone at all."""
    if not contrast:
        return None
    aside = float(np.median([one.aside_hu for one in contrast if one.aside_hu is not None]))
    return float(np.median([one.here_hu for one in contrast])) / aside if aside > 0 else None


def _moves(ct: Volume) -> list[tuple[int, int]]:
    """Voxels along right and anterior."""
    across, along = (round(ASIDE_MM / step) or 1 for step in ct.grid.spacing_mm[:2])
    return [(across, 0), (-across, 0), (0, along), (0, -along)]


def _contrast(ct: Volume, vertebra: Vertebra, rest: NDArray[np.bool_], move: tuple[int, int]) -> float | None:
    """Contrast of the level's mask when it is laid on the CT beside its place; None beyond the border."""
    starts = [start + step for start, step in zip(vertebra.box.start, (*move, 0), strict=True)]
    stops = [stop + step for stop, step in zip(vertebra.box.stop, (*move, 0), strict=True)]
    if min(starts) < 0 or any(stop > side for stop, side in zip(stops, ct.array.shape, strict=True)):
        return None
    grain = tuple(slice(None, None, max(1, int(_GRAIN_MM / step))) for step in ct.grid.spacing_mm)
    values: NDArray[Any] = ct.array[tuple(slice(a, b) for a, b in zip(starts, stops, strict=True))][grain]
    inside, outside = vertebra.mask[grain], rest[grain]
    if not inside.any() or not outside.any():
        return None
    return float(values[inside].mean(dtype=np.float64) - values[outside].mean(dtype=np.float64))
