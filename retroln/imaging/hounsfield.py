"""Are these Hounsfield units? What a whole volume tells before anybody knows where anything lies in it.

By definition water is 0 HU and air -1000 HU. What is asked here holds for every CT of a trunk, with and
without contrast, clipped at -1000 or -1024, padded with -2000 or -3024, noisy, or cut so tightly that no air
is left. How far real CT stays within is in docs/reference/hounsfield.md. What the tissues around the spine
say, which is more, is asked in `retroln.anatomy.tissue_hu`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FARTHEST_HU = 100_000
"""No CT has a value beyond: 16 stored bits at 1 HU each, with some room for coarser steps."""
NARROWEST_HU = 300.0
"""Fat and the bone beside it lie farther apart; masks and values scaled to 0..1 do not."""
AIR_HU = (-1100.0, -850.0)
"""Air has -1000 HU by definition; the rest is room for noise, and for partial volumes."""
SOFT_HU = (-240.0, 250.0)
"""From fat at 40 keV (see `tissue_hu.FAT_HU`) to organs full of contrast medium."""
FIX = "deliver the CT in HU, slope and intercept applied, not scaled, shifted, masked or windowed"
DARK_HU = -60.0
"""Retroperitoneal and subcutaneous fat end below (-71 and -70 HU, PMC4043057)."""
BONE_HU = 200.0
"""Some bone in a trunk is brighter, in children and in thick slices too."""
CLIPPED_BELOW_HU = 400.0
"""A CT clipped above this has lost nothing that the network sees: its window ends at 400 (`settings.Hu`)."""

_MOST_SAMPLED = 1 << 20
_BIN_HU = 4.0
# Shares of the voxels; docs/reference/hounsfield.md sets them beside those of real CT.
_ONE_VALUE = 0.25
_AT_THE_TOP = 5e-4
_DARK = 0.01
_SOFT = 1 / 6
_AIR = 0.1
_OF_THE_AIR = 0.02
_MIRRORED = 0.2


class Doubt(NamedTuple):
    """Why values are not Hounsfield units: what, expected, got."""

    what: str
    expected: str
    got: str


def doubts(array: NDArray[Any]) -> Iterator[Doubt]:
    """What speaks against Hounsfield units in a 3D array of finite, differing values, gravest first.

    Lowest and highest value are exact; shares are counted on a grid of at most a million voxels or so.
    """
    low, high = float(array.min()), float(array.max())
    if high - low < NARROWEST_HU or high < BONE_HU or max(-low, high) > FARTHEST_HU:
        yield Doubt(
            "not CT in Hounsfield units", f"air near -1000, bone above {BONE_HU:g}", f"{low:g} to {high:g}"
        )
        return
    sample = _sampled(array)
    yield from _clipped(sample, high)
    yield from _shifted(sample, low)


def _clipped(sample: NDArray[np.float32], high: float) -> Iterator[Doubt]:
    """Ends of the scale that are missing."""
    value, share = _commonest(sample[sample > AIR_HU[1]])
    share *= _share(sample > AIR_HU[1])
    if share >= _ONE_VALUE:
        yield Doubt(
            "not CT in Hounsfield units: clipped or masked",
            f"no single value in {_ONE_VALUE:.0%} of the voxels, unless it is air (below {AIR_HU[1]:g})",
            f"{value:g} in {share:.0%}",
        )
    share = _share(sample >= high - 1)
    if high < CLIPPED_BELOW_HU and share >= _AT_THE_TOP and _share(sample < high) > 0:
        yield Doubt(
            "not CT in Hounsfield units: clipped at the top",
            f"bone above {CLIPPED_BELOW_HU:g}",
            f"nothing above {high:g}, which {share:.2%} of the voxels have",
        )


def _shifted(sample: NDArray[np.float32], low: float) -> Iterator[Doubt]:
    """Tissue or air that does not lie where water is 0 and air is -1000."""
    dark = _share(sample < DARK_HU)
    if dark < _DARK:
        yield Doubt(
            "not CT in Hounsfield units: neither fat nor air",
            f"at least {_DARK:.0%} of the voxels below {DARK_HU:g}",
            f"{dark:.2%}; lowest {low:g}",
        )
    brighter = sample[sample > AIR_HU[1]]
    soft = _share(_within(brighter, SOFT_HU))
    if soft < _SOFT:
        yield Doubt(
            "not CT in Hounsfield units: hardly any fat or soft tissue",
            f"at least {_SOFT:.0%} of what is brighter than air within {_text(SOFT_HU)}",
            f"{soft:.1%}; half of it above {_median(brighter)}",
        )
    mirrored = _share(_within(sample, (-AIR_HU[1], -AIR_HU[0])))
    if mirrored >= _MIRRORED:
        yield Doubt(
            "not CT in Hounsfield units: too much is as bright as dense bone",
            f"less than {_MIRRORED:.0%} of the voxels within {-AIR_HU[1]:g} to {-AIR_HU[0]:g}",
            f"{mirrored:.0%}",
        )
    yield from _misplaced_air(sample, low)


def _misplaced_air(sample: NDArray[np.float32], low: float) -> Iterator[Doubt]:
    """The lowest value is left out: what lies beyond the round field of view is padded with any number."""
    air = _share(_within(sample, AIR_HU))
    above = sample[(sample > AIR_HU[1]) & (sample < -300)]
    below = sample[(sample < AIR_HU[0]) & (sample > low + _BIN_HU)]
    for values, enough in ((above, _OF_THE_AIR), (below, 1 / 3)):
        share = values.size / sample.size
        if share >= _AIR and air < enough * share:
            yield Doubt(
                "not CT in Hounsfield units: air does not lie at -1000",
                f"air within {_text(AIR_HU)}",
                f"{air:.1%} of the voxels there, {share:.0%} around {_median(values)}",
            )


def _sampled(array: NDArray[Any]) -> NDArray[np.float32]:
    step = 1
    while array.size > _MOST_SAMPLED * step**3:
        step += 1
    return np.asarray(array[::step, ::step, ::step], np.float32).ravel()


def _commonest(values: NDArray[np.float32]) -> tuple[float, float]:
    """The value that most share, to 4 HU, and their share; of no values 0 and 0."""
    if not values.size:
        return 0.0, 0.0
    bins = np.floor(values / _BIN_HU).astype(np.int64)
    counts = np.bincount(bins - bins.min())
    most = int(counts.argmax())
    return float(np.median(values[bins == most + bins.min()])), float(counts[most] / values.size)


def _share(hits: NDArray[np.bool_]) -> float:
    return float(np.count_nonzero(hits) / hits.size) if hits.size else 0.0


def _within(values: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.bool_]:
    low, high = limits
    return (values >= low) & (values <= high)


def _median(values: NDArray[np.float32]) -> str:
    return f"{float(np.median(values)):.0f}" if values.size else "nothing"


def _text(limits: tuple[float, float]) -> str:
    return f"{limits[0]:g} to {limits[1]:g}"
