"""Are the tissues around the spine as bright as in a CT in Hounsfield units: bone, muscle, fat?

Each lumbar level tells the HU of its own voxels, of the muscle beside it and of the fat around it. Muscle and
fat are not segmented, which would take for granted what is asked: they are peaks of a histogram. It is made
of means over blocks of 4 mm, which quiets noise, of the half that differs least from its neighbours, which
leaves out partial volumes. What is not there cannot be told and is no reason to hold a case.

Limits, their sources and what was measured are in docs/reference/hounsfield.md. What a whole volume tells
without labels is asked in `retroln.imaging.hounsfield`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retroln.anatomy.levels import LUMBAR, Level, Vertebra
from retroln.anatomy.plausibility import Problem
from retroln.anatomy.vertebrae import Vertebrae
from retroln.imaging.geometry import VoxelBox
from retroln.imaging.hounsfield import AIR_HU, CLIPPED_BELOW_HU, FIX
from retroln.imaging.volume import Volume

NOT_HU = "not_hu"

MUSCLE_HU = (-29.0, 150.0)
"""The usual range of skeletal muscle in body composition (doi 10.1038/s41598-025-96238-6, table 1).

Psoas has 42 +- 8 HU in the portal phase (Rollins et al., Clin Nutr 2020;39:2227).
"""
FAT_HU = (-240.0, -30.0)
"""Adipose tissue ends at -30 HU (the same table); retroperitoneal fat has -140 to -71 (PMC4043057).

The lower end is for dual energy: oil of -119 HU at 120 kVp has -228 at 40 keV and -86 at 190 keV (doi
10.1155/2012/150980, table 1).
"""
BONE_HU = (-50.0, 2000.0)
"""Spongy bone of L1 has 226 +- 44 HU below 30 years, 89 +- 38 from 90 (doi 10.1148/radiol.2019181648).

Bone metastases have 654 +- 176, bone islands 1190 +- 239 (Ulano et al., AJR 2016;207:362).
"""

_BLOCK_MM = 4.0
_GRAIN_MM = 1.4  # finer voxels are read in steps
_LEAST_BLOCKS = 100
# Around a level, in widths of its body (45 to 50 mm in adults), so that a child's kidneys stay outside.
_BESIDE = 1.0
_AROUND, _BEHIND, _AHEAD = 1.9, 0.85, 1.7
_BIN_HU, _NEAR_HU, _APART_HU = 5.0, 30.0, 50.0
_MUSCLE_SHARE, _FAT_SHARE = 0.2, 0.03
_DIP = 0.8
_FAT_BELOW_MUSCLE_HU = (350.0, 75.0)
_CLIPPED_SHARE = 0.02
_LEAST_VOXELS = 500  # of which one share tells more than a few voxels


class TissueHu(NamedTuple):
    """What one level tells, in HU; None where it cannot.

    Attributes:
        bone: median of its voxels.
        muscle: the brightest frequent value beside it.
        fat: the darkest frequent value around it that lies as far below the muscle as fat can.
        floor: the lowest value around it, where many voxels have just that.
        ceiling: the highest value in it, where many voxels have just that.
    """

    bone: float | None
    muscle: float | None
    fat: float | None
    floor: float | None = None
    ceiling: float | None = None

    def record(self) -> dict[str, float | None]:
        """Plain JSON; null is untold."""
        named = {"bone_hu": self.bone, "muscle_hu": self.muscle, "fat_hu": self.fat}
        return {name: None if value is None else round(value, 1) for name, value in named.items()}


def tissue_hu(ct: Volume, vertebrae: Vertebrae) -> dict[Level, TissueHu]:
    """What each lumbar level tells.

    Args:
        ct: the scan, values as delivered.
        vertebrae: the levels on the same grid.
    """
    return {level: _of_level(ct, vertebrae, level) for level in LUMBAR if level in vertebrae.levels}


def overall(found: Mapping[Level, TissueHu]) -> TissueHu:
    """The medians over the levels that can tell; a floor or a ceiling only if most levels have one."""
    columns = zip(*found.values(), strict=True) if found else [()] * len(TissueHu._fields)
    *tissues, floors, ceilings = ([one for one in column if one is not None] for column in columns)
    ends = (ends if 2 * len(ends) > len(found) else [] for ends in (floors, ceilings))
    return TissueHu(*map(_median, (*tissues, *ends)))


def problems(found: Mapping[Level, TissueHu]) -> Iterator[Problem]:
    """The problem, if any tissue is not as bright as in a CT in HU, or the CT is clipped."""
    spine = overall(found)
    limits = {"muscle": MUSCLE_HU, "fat": FAT_HU, "bone": BONE_HU}
    seen = {name: value for name in limits if (value := getattr(spine, name)) is not None}
    expected = [_range(name, limits[name]) for name in seen if not _fits(seen[name], limits[name])]
    got = [f"{name} {value:.0f}" for name, value in seen.items()]
    for end, value in (("below", spine.floor), ("above", spine.ceiling)):
        if value is not None:
            expected.append(f"values {end} {value:g}")
            got.append(f"none {end} {value:g}")
    if expected:
        yield Problem(
            NOT_HU,
            "the CT is not in Hounsfield units around the lumbar vertebrae",
            ", ".join(expected),
            ", ".join(got),
            FIX,
        )


def _range(name: str, limits: tuple[float, float]) -> str:
    return f"{name} at {limits[0]:g} to {limits[1]:g}"


def _median(values: list[float]) -> float | None:
    return float(np.median(values)) if values else None


def _of_level(ct: Volume, vertebrae: Vertebrae, level: Level) -> TissueHu:
    vertebra = vertebrae.levels[level]
    around = _Surroundings.of(ct, vertebrae, vertebra)
    bone = ct.array[vertebra.box.slices][vertebra.mask]
    muscle, fat = _muscle_and_fat(around)
    low, high = float(around.lowest), float(bone.max())
    share = np.mean(bone == high) if bone.size >= _LEAST_VOXELS else 0.0
    return TissueHu(
        bone=float(np.median(bone)),
        muscle=muscle,
        fat=fat,
        floor=low if low > AIR_HU[1] and around.lowest_share >= _CLIPPED_SHARE else None,
        ceiling=high if high < CLIPPED_BELOW_HU and share >= _CLIPPED_SHARE else None,
    )


class _Surroundings(NamedTuple):
    """Block means around a level, without what is labelled, and its lowest value.

    Attributes:
        beside: means of the even blocks at its sides.
        around: means of all even blocks.
        lowest, lowest_share: the lowest value of any voxel, and the share of the voxels that have it.
    """

    beside: NDArray[np.float32]
    around: NDArray[np.float32]
    lowest: float
    lowest_share: float

    @classmethod
    def of(cls, ct: Volume, vertebrae: Vertebrae, vertebra: Vertebra) -> _Surroundings:
        box, width_mm = vertebra.box, _body_width_mm(vertebra, ct)
        spacing = ct.grid.spacing_mm
        middle = (box.start[0] + box.stop[0]) / 2
        reach, behind, ahead = (width_mm * share for share in (_AROUND, _BEHIND, _AHEAD))
        outer = VoxelBox(
            (round(middle - reach / spacing[0]), round(box.start[1] - behind / spacing[1]), box.start[2]),
            (round(middle + reach / spacing[0]), round(box.stop[1] + ahead / spacing[1]), box.stop[2]),
        ).clamp(ct.grid.shape)
        steps = tuple(max(1, int(_GRAIN_MM / step)) for step in spacing)
        grain = tuple(slice(None, None, step) for step in steps)
        values = ct.array[outer.slices][grain]
        sides = tuple(max(1, round(_BLOCK_MM / (mm * step))) for mm, step in zip(spacing, steps, strict=True))
        means = _blocks(values.astype(np.float32), sides, np.add)
        means /= np.float32(prod(sides))
        even = ~_blocks(_labelled(vertebrae, outer)[grain], sides, np.logical_or)
        if even.any():
            unevenness = _unevenness(means)
            even &= unevenness <= np.median(unevenness[even])
        x, y = (
            outer.start[axis] + (np.arange(means.shape[axis]) + 0.5) * sides[axis] * steps[axis]
            for axis in (0, 1)
        )
        near = np.abs(x - middle) * spacing[0] <= _BESIDE * width_mm
        level = (y >= box.start[1]) & (y < box.stop[1])
        beside = even & near[:, None, None] & level[None, :, None]
        lowest = values.min()
        return cls(means[beside], means[even], float(lowest), float(np.mean(values == lowest)))


def _body_width_mm(vertebra: Vertebra, ct: Volume) -> float:
    """Width of the front third, which holds no arch."""
    front = vertebra.mask[:, 2 * vertebra.mask.shape[1] // 3 :]
    across = np.flatnonzero(front.any(axis=(1, 2)))
    return float(across[-1] - across[0] + 1) * ct.grid.spacing_mm[0]


def _labelled(vertebrae: Vertebrae, box: VoxelBox) -> NDArray[np.bool_]:
    """Where any level is labelled, in `box`."""
    labelled = np.zeros(box.shape, bool)
    for other in vertebrae.levels.values():
        pairs = zip(box.start, box.stop, other.box.start, other.box.stop, strict=True)
        shared = [(max(a, c), min(b, d)) for a, b, c, d in pairs]
        if all(low < high for low, high in shared):
            here, there = (
                tuple(slice(low - at, high - at) for (low, high), at in zip(shared, start, strict=True))
                for start in (box.start, other.box.start)
            )
            labelled[here] |= other.mask[there]
    return labelled


def _blocks(array: NDArray[Any], sides: tuple[int, ...], how: np.ufunc) -> NDArray[Any]:
    """`array` reduced over blocks; what is left over at the upper ends is dropped."""
    for axis, side in enumerate(sides):
        if side > 1:
            array = np.moveaxis(array, axis, 0)
            whole = array.shape[0] // side * side
            parts = (array[first:whole:side] for first in range(side))
            array = np.moveaxis(reduce(how, parts), 0, axis)
    return array


def _unevenness(means: NDArray[np.float32]) -> NDArray[np.float32]:
    """Largest step from each block to a neighbour."""
    largest = np.zeros_like(means)
    for axis in range(3):
        step = np.abs(np.diff(means, axis=axis))
        lower, upper = (np.moveaxis(largest, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        for side in (lower, upper):
            np.maximum(side, np.moveaxis(step, axis, 0), out=side)
    return largest


def _muscle_and_fat(around: _Surroundings) -> tuple[float | None, float | None]:
    """The brightest frequent value beside a level, or one that fits muscle and has fat below it; that fat.

    Beside the spine kidneys and vessels full of contrast medium are as frequent as muscle only by accident. A
    single value that fits fat is fat.
    """
    candidates = [(muscle, _fat_below(muscle, around)) for muscle in _peaks(around.beside, _MUSCLE_SHARE)]
    for muscle, fat in candidates:
        if fat is not None and _fits(muscle, MUSCLE_HU) and _fits(fat, FAT_HU):
            return muscle, fat
    if not candidates:
        return None, None
    brightest, fat = candidates[-1]
    return (None, brightest) if fat is None and _fits(brightest, FAT_HU) else (brightest, fat)


def _fits(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def _fat_below(muscle: float, around: _Surroundings) -> float | None:
    farthest, nearest = _FAT_BELOW_MUSCLE_HU
    within = [hu for hu in _peaks(around.around, _FAT_SHARE) if farthest >= muscle - hu >= nearest]
    return within[0] if within else None


def _peaks(values: NDArray[np.float32], least_share: float) -> list[float]:
    """Values that at least this share of all lies within 30 HU of, more than of any within 50 HU; rising.

    Of two values without a dip between them, as in much noise, the rarer is none.
    """
    if values.size < _LEAST_BLOCKS:
        return []
    reach, apart = int(_NEAR_HU / _BIN_HU), int(_APART_HU / _BIN_HU)
    low = np.floor(values.min() / _BIN_HU) * _BIN_HU
    counts = np.bincount(((values - low) / _BIN_HU).astype(np.int64))
    near = np.convolve(np.pad(counts, apart), np.ones(2 * reach + 1, np.int64), "same")
    highest = np.lib.stride_tricks.sliding_window_view(near, 2 * apart + 1).max(axis=1)
    near = near[apart:-apart]
    tops = np.flatnonzero((near >= least_share * values.size) & (near == highest)).tolist()
    distinct = [top for top in tops if all(_dips(near, top, other) for other in tops)]
    centres = [low + (top + 0.5) * _BIN_HU for top in distinct]
    return [float(np.median(values[np.abs(values - hu) <= _NEAR_HU + _BIN_HU / 2])) for hu in centres]


def _dips(near: NDArray[np.int64], top: int, other: int) -> bool:
    """Whether a top stands by itself beside another: it is no lower, or there is a dip between them."""
    between = near[min(top, other) : max(top, other) + 1]
    return bool(near[other] <= near[top] or between.min() <= _DIP * near[top])
