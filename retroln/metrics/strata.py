"""Size classes of a node by its short axis: RECIST 1.1 and the strata that results are reported in.

RECIST 1.1 (Eisenhauer et al., Eur J Cancer 2009;45:228-247): short axis below 10 mm normal,
10 to below 15 mm pathological but non-target, 15 mm and above target.
"""

from __future__ import annotations

from typing import Literal

Recist = Literal["normal", "non_target", "target"]
Stratum = Literal["<8", "8-10", "10-15", ">=15"]

STRATA: tuple[Stratum, ...] = ("<8", "8-10", "10-15", ">=15")
ENLARGED_MM = 10.0
TARGET_MM = 15.0
SMALL_MM = 8.0
# NIfTI keeps spacings as float32: ten voxels of "1 mm" may sum to 9.9999994 mm.
_SLACK_MM = 1e-5


def at_least(short_axis_mm: float, limit_mm: float) -> bool:
    """True when the axis reaches the limit, forgiving the rounding of a float32 spacing."""
    return short_axis_mm >= limit_mm - _SLACK_MM


def recist(short_axis_mm: float) -> Recist:
    """RECIST 1.1 class of a node."""
    if at_least(short_axis_mm, TARGET_MM):
        return "target"
    return "non_target" if at_least(short_axis_mm, ENLARGED_MM) else "normal"


def stratum(short_axis_mm: float) -> Stratum:
    """The stratum, lower limit included: "8-10" is 8 <= short axis < 10 mm."""
    limits = (SMALL_MM, ENLARGED_MM, TARGET_MM)
    return STRATA[sum(at_least(short_axis_mm, limit) for limit in limits)]
