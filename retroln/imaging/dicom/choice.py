"""Which of a study's CT series is used: a rule that is the same every time, and says why not the others.

Criteria are asked one after the other, in the order of the rule. Each keeps the series that are best by it,
until one is left. What still ties goes to the lowest series number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from retroln.errors import InputError
from retroln.settings import SeriesRule

Sharpness = Literal["soft", "unknown", "sharp"]
Phase = Literal["portal_venous", "contrast", "unknown", "plain"]
Orientation = Literal["axial", "coronal", "sagittal"]

_COVERAGE_STEP_MM = 10.0  # less is no difference


@dataclass(frozen=True, kw_only=True)
class SeriesFacts:
    """What the rule looks at.

    Attributes:
        key: SeriesInstanceUID; the last word where everything else ties.
        number: SeriesNumber.
        orientation: plane that the slices lie in.
        sharpness: of the convolution kernel.
        phase: of the contrast medium.
        spacing_mm: distance of neighbouring slices; thickness_mm: of one slice.
        coverage_mm: extent from feet to head, 0 for parts of the body that hold no lumbar spine.
        is_original: reconstructed from the scan, not made from other images.
        slices: how many.
    """

    key: str
    number: int | None
    orientation: Orientation
    sharpness: Sharpness
    phase: Phase
    spacing_mm: float
    thickness_mm: float
    coverage_mm: float
    is_original: bool
    slices: int


@dataclass(frozen=True)
class Choice:
    """The series to use.

    Attributes:
        chosen: its facts.
        why: the criterion that decided, or who asked for it.
        rejected: reason for each of the others, by its SeriesInstanceUID.
    """

    chosen: SeriesFacts
    why: str
    rejected: dict[str, str]


def choose(candidates: Sequence[SeriesFacts], rule: SeriesRule) -> Choice:
    """Apply the rule. Raises `ValueError` without a candidate."""
    if not candidates:
        raise ValueError("no series to choose from")
    left, rejected, why = list(candidates), {}, "the only CT series that can be used"
    for name in rule.order:
        rank, words = _CRITERIA[name]
        best = min(rank(facts, rule) for facts in left)
        worse = [facts for facts in left if rank(facts, rule) > best]
        left = [facts for facts in left if rank(facts, rule) == best]
        for facts in worse:
            rejected[facts.key] = f"{name}: {words(facts)}; chosen: {words(left[0])}"
        if worse:
            why = name
    first, *others = sorted(left, key=_tie_break)
    for facts in others:
        rejected[facts.key] = "alike by every criterion; the lowest series number is taken"
    return Choice(first, "the lowest series number" if others else why, rejected)


def asked_for(candidates: Sequence[SeriesFacts], key: str, why: str) -> Choice:
    """The series that somebody asked for, whatever the rule says."""
    chosen = next(facts for facts in candidates if facts.key == key)
    return Choice(chosen, why, {facts.key: why for facts in candidates if facts.key != key})


def find(wanted: str, known: Sequence[tuple[str, int | None]]) -> str:
    """UID of the series with this SeriesInstanceUID or series number, of those known by both.

    Raises:
        InputError: `series_not_found`, none or more than one.
    """
    found = [uid for uid, number in known if wanted in (uid, str(number))]
    if len(found) != 1:
        numbers = sorted(number for _, number in known if number is not None)
        raise InputError(
            "the series that was asked for is not in the study, or more than one is",
            reason="series_not_found",
            expected="a SeriesInstanceUID or series number of one series",
            got=f"{len(found)} that fit; the study has series {', '.join(map(str, numbers))}",
            fix="correct the column series of cases.csv",
        )
    return found[0]


def _tie_break(facts: SeriesFacts) -> tuple[bool, int, str]:
    return facts.number is None, facts.number or 0, facts.key


def _by_orientation(facts: SeriesFacts, rule: SeriesRule) -> float:
    return facts.orientation != "axial"


def _by_kernel(facts: SeriesFacts, rule: SeriesRule) -> float:
    """The wanted sharpness, then an unknown one, then the other."""
    return {rule.kernel: 0, "unknown": 1}.get(facts.sharpness, 2)


def _by_coverage(facts: SeriesFacts, rule: SeriesRule) -> float:
    """Whether the lumbar range fits in; more than that is no better."""
    return -(min(facts.coverage_mm, rule.coverage_mm) // _COVERAGE_STEP_MM)


def _by_phase(facts: SeriesFacts, rule: SeriesRule) -> float:
    """The wanted phase; where that is portal venous, any contrast before an unknown phase before none."""
    if facts.phase == rule.phase:
        return 0
    after = ("portal_venous", "contrast", "unknown", "plain")
    return 1 + (after if rule.phase != "plain" else after[::-1]).index(facts.phase)


def _by_thickness(facts: SeriesFacts, rule: SeriesRule) -> float:
    """How far the greater of slice distance and thickness is outside the wanted range, in 0.1 mm steps."""
    size = max(facts.spacing_mm, facts.thickness_mm)
    outside = max(rule.thinnest_mm - size, size - rule.thickest_mm, 0.0)
    return round(outside, 1)


def _by_original(facts: SeriesFacts, rule: SeriesRule) -> float:
    return not facts.is_original


def _by_slices(facts: SeriesFacts, rule: SeriesRule) -> float:
    return -facts.slices


_CRITERIA: dict[str, tuple[Callable[[SeriesFacts, SeriesRule], float], Callable[[SeriesFacts], str]]] = {
    "orientation": (_by_orientation, lambda facts: facts.orientation),
    "kernel": (_by_kernel, lambda facts: f"{facts.sharpness} kernel"),
    "coverage": (_by_coverage, lambda facts: f"{facts.coverage_mm:.0f} mm"),
    "phase": (_by_phase, lambda facts: f"{facts.phase} phase"),
    "thickness": (_by_thickness, lambda facts: f"{max(facts.spacing_mm, facts.thickness_mm):g} mm"),
    "original": (_by_original, lambda facts: "original" if facts.is_original else "derived"),
    "slices": (_by_slices, lambda facts: f"{facts.slices} slices"),
}
