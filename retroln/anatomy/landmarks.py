"""May these vertebrae place a region, and on what terms? The gate between a label map and a region.

What was found is recorded as findings `code: text`; what a person must look at is a `LandmarkError`. What
a person then rules is a `Ruling`, and the gate is passed again with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retroln.anatomy.by_hand import (
    Extent,
    GivenExtent,
    given_extent,
    off_labelled_l2,
    reference_at,
    require_at_labelled_l2,
    require_beside_labels,
)
from retroln.anatomy.confidence import confidence
from retroln.anatomy.ladder import L2Reference, Rung, Step, climb, reference_of
from retroln.anatomy.level_facts import measure, record
from retroln.anatomy.levels import REGION_LEVELS, Level
from retroln.anatomy.numbering import Numbering, numbering
from retroln.anatomy.on_bone import BoneContrast, bone_contrast, off_bone
from retroln.anatomy.plausibility import FRAGMENT_SHARE_NOTED, Facts, Problem, problems, sound_levels
from retroln.anatomy.tissue_hu import NOT_HU, TissueHu, overall, tissue_hu
from retroln.anatomy.tissue_hu import problems as hu_problems
from retroln.anatomy.vertebrae import Vertebrae
from retroln.counted import counted
from retroln.errors import InputError, LandmarkError
from retroln.imaging.volume import Volume

__all__ = [
    "Account",
    "Assessment",
    "L2Reference",
    "Ruling",
    "account_of",
    "assess",
    "naming_inputs",
    "reference_of",
]


@dataclass(frozen=True)
class Ruling:
    """A person's word on the landmarks of one scan; it confirms the numbering.

    Attributes:
        reviewer: who, as stated.
        comment: why, as stated.
        accepted: the levels count as labelled, whatever the checks say, that of the CT's HU included.
        l2_world_mm: the middle of L2's front surface; None takes it from the labels.
        extent_world_mm: heights (superior coordinate) of the lower end of L5 and the upper end of T12; None
            takes the labelled levels.
    """

    reviewer: str
    comment: str = ""
    accepted: bool = False
    l2_world_mm: tuple[float, float, float] | None = None
    extent_world_mm: Extent | None = None


@dataclass(frozen=True)
class Account:
    """What the catalog keeps of a spine, used or not.

    Attributes:
        findings: `code: text`, in the order found; empty for a faultless spine.
        truncated: T12-L5 levels absent at either end, or cut by the border.
        anchored: S1 below L5, a rib at T12 or a person confirms the numbering.
        confidence: 0 to 1, only for sorting (`confidence.confidence`).
        per_level: see `level_facts.record`; with a CT also `bone_contrast_hu` and `_aside_hu`, and in lumbar
            levels what `tissue_hu` tells.
        tissue_hu: the last over all levels; all None without a CT.
    """

    findings: tuple[str, ...]
    truncated: tuple[Level, ...]
    anchored: bool
    confidence: float
    per_level: dict[str, dict[str, Any]]
    tissue_hu: TissueHu


@dataclass(frozen=True)
class Assessment(Account):
    """Vertebrae that may be used, and on what terms.

    Attributes:
        vertebrae: the levels without their fragments.
        rung: step of the ladder that gave L2.
        l2: the reference for the region.
        levels: T12-L5 levels that span the region, top to bottom; none where a person gave the extent.
        extent: lowest slice and slice above the highest, RAS+ voxels, where a person gave them; they may lie
            outside the scan.
    """

    vertebrae: Vertebrae
    rung: Rung
    l2: L2Reference
    levels: tuple[Level, ...]
    extent: tuple[int, int] | None = None

    @property
    def slices(self) -> tuple[int, int]:
        """Lowest slice of the region, and the one above its highest."""
        if self.extent:
            return self.extent
        boxes = [self.vertebrae.levels[level].box for level in self.levels]
        return min(box.start[2] for box in boxes), max(box.stop[2] for box in boxes)


@dataclass(frozen=True)
class _Found:
    """Everything measured on a spine, before it is judged."""

    vertebrae: Vertebrae
    facts: Facts
    numbering: Numbering
    contrast: dict[Level, BoneContrast]
    tissue: dict[Level, TissueHu]

    @property
    def sound(self) -> frozenset[Level]:
        return sound_levels(self.facts)

    def problems(self) -> list[Problem]:
        """What keeps the spine from being used as labelled, gravest first.

        Around levels that are no spine nothing is told of the CT.
        """
        found = list(problems(self.facts, self.vertebrae))
        not_hu = [] if found else list(hu_problems(self.tissue))
        doubt = self.numbering.problem()
        return [*found, *off_bone(self.contrast), *not_hu, *([doubt] if doubt else [])]


def assess(
    vertebrae: Vertebrae,
    *,
    unanchored: Literal["accept", "review"],
    ct: Volume | None = None,
    ruling: Ruling | None = None,
) -> Assessment:
    """Judge the spine and find L2, on the highest rung of the ladder that holds.

    Args:
        vertebrae: T11-S1 as labelled.
        unanchored: whether numbering that neither S1 nor ribs confirm is accepted (and recorded).
        ct: the scan on the same grid: the levels must lie on bone, and the tissues around them must be as
            bright as in HU. None leaves both out.
        ruling: what a person said of this scan.

    Raises:
        LandmarkError: `no_lumbar_level`, `landmarks_implausible` (order, spacing, size, pieces, place,
            overlap), `off_bone`, `not_hu`, `numbering_doubtful`, `l2_unresolved` (no rung holds) or
            `unanchored`.
    """
    found = _find(vertebrae, ct)
    if ruling and ruling.l2_world_mm:
        return _with_given_l2(found, ruling)
    if troubles := [trouble for trouble in found.problems() if not _overruled(trouble, ruling)]:
        raise troubles[0].error()
    accepted = ruling is not None and ruling.accepted
    step = _as_labelled(found) if accepted else climb(found.facts)
    if not (found.numbering.anchored or ruling or unanchored == "accept"):
        raise _UNANCHORED.error()
    levels = tuple(level for level in REGION_LEVELS if level in (found.facts if accepted else found.sound))
    return _assessment(found, step, levels, ruling)


def account_of(vertebrae: Vertebrae, error: LandmarkError, ct: Volume | None = None) -> Account:
    """What is known of a spine that `assess` refused with `error`."""
    found = _find(vertebrae, ct)
    reasons = [(trouble.reason, f"{trouble.what} ({trouble.got})") for trouble in found.problems()]
    if error.reason not in [reason for reason, _ in reasons]:
        reasons.append((error.reason, error.what))
    held = [f"{reason}: {text}" for reason, text in reasons]
    levels = tuple(level for level in REGION_LEVELS if level in found.sound)
    findings = (*_observations(found), *held)
    return Account(
        findings=findings,
        truncated=_truncated(found.facts, levels),
        anchored=found.numbering.anchored,
        confidence=confidence(findings),
        per_level=_per_level(found),
        tissue_hu=overall(found.tissue),
    )


@contextmanager
def naming_inputs(ct: str | Path, labels: str | Path) -> Iterator[None]:
    """Let an `InputError` that names no file name the one that it is about."""
    try:
        yield
    except InputError as error:
        if error.file is not None:
            raise
        raise error.reworded(file=ct if error.reason == NOT_HU else labels) from error


NAMES_SET_ASIDE = "names_set_aside"
"""Code of the finding that a person placed L2 where the labels have another level."""
_UNANCHORED = Problem(
    "unanchored",
    "nothing confirms the numbering of the vertebrae",
    "a sacral S1 next to L5, or ribs at T12",
    "neither",
    "count the levels by eye, then `retroln review accept`; RETROLN_UNANCHORED=accept and"
    " `retroln requeue CASE` let such cases pass",
)


def _find(vertebrae: Vertebrae, ct: Volume | None) -> _Found:
    kept, facts = measure(vertebrae)
    contrast, tissue = (bone_contrast(ct, kept), tissue_hu(ct, kept)) if ct else ({}, {})
    return _Found(kept, facts, numbering(facts, vertebrae.rib_12), contrast, tissue)


def _overruled(trouble: Problem, ruling: Ruling | None) -> bool:
    """A ruling always settles the numbering; an acceptance all else, but it cannot make levels appear."""
    if ruling is None or trouble.reason == "no_lumbar_level":
        return False
    return ruling.accepted or trouble.reason == "numbering_doubtful"


def _as_labelled(found: _Found) -> Step:
    """L2 for a spine that a person accepted: the ladder, or the labelled L2 where no rung holds."""
    try:
        return climb(found.facts)
    except LandmarkError:
        if Level.L2 not in found.facts:
            raise
        return Step("l2", reference_of(found.facts[Level.L2].vertebra), (Level.L2,))


def _with_given_l2(found: _Found, ruling: Ruling) -> Assessment:
    """L2 where a person put it; the levels give the extent unless the person did.

    Raises:
        LandmarkError: `l2_unresolved`, the point lies outside the scan or beside the spine, no T12-L5 lies as
            the extent says, or none was given and the labelled levels have none that can be trusted;
            `not_hu`.
    """
    assert ruling.l2_world_mm
    troubles = [trouble for trouble in found.problems() if not _overruled(trouble, ruling)]
    if troubles and troubles[0].reason == NOT_HU:
        raise troubles[0].error()
    grid = found.vertebrae.grid
    step = Step("reviewer", reference_at(ruling.l2_world_mm, grid), ())
    if not any(trouble.reason == "off_bone" for trouble in troubles):  # else they may lie anywhere
        require_beside_labels(step.l2, found.vertebrae)
    if ruling.extent_world_mm:
        extent = given_extent(ruling.l2_world_mm, ruling.extent_world_mm, grid)
        return _assessment(found, step, (), ruling, extent)
    if troubles:
        raise Problem(
            "l2_unresolved",
            "the labelled levels cannot say how far T12-L5 reach",
            "levels that pass the checks, or an extent given by hand",
            troubles[0].what,
            "give the extent as well (--extent BOTTOM,TOP in world mm)",
        ).error()
    require_at_labelled_l2(step.l2, found.vertebrae, found.facts)
    levels = tuple(level for level in REGION_LEVELS if level in found.sound)
    return _assessment(found, step, levels, ruling)


def _assessment(
    found: _Found,
    step: Step,
    levels: tuple[Level, ...],
    ruling: Ruling | None,
    extent: GivenExtent | None = None,
) -> Assessment:
    seen = _beyond(extent) if extent else _observations(found)
    findings = (*seen, *_terms(found, step, ruling))
    return Assessment(
        findings=findings,
        truncated=tuple(extent.beyond) if extent else _truncated(found.facts, levels),
        anchored=found.numbering.anchored or ruling is not None,
        confidence=confidence(findings),
        per_level=_per_level(found),
        tissue_hu=overall(found.tissue),
        vertebrae=found.vertebrae,
        rung=step.rung,
        l2=step.l2,
        levels=levels,
        extent=extent.slices if extent else None,
    )


def _beyond(extent: GivenExtent) -> Iterator[str]:
    """What a person's extent says in place of the labels."""
    for level, border in extent.beyond.items():
        yield f"cut: {level} reaches beyond the {border} border, by the extent that was given"


def _truncated(facts: Facts, levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """Levels missing above the first or below the last, and levels that the top or bottom border cuts."""
    present = [REGION_LEVELS.index(level) for level in levels]
    between = range(min(present), max(present) + 1) if present else range(0)
    return tuple(
        level
        for place, level in enumerate(REGION_LEVELS)
        if place not in between or (level in facts and not facts[level].whole)
    )


def _observations(found: _Found) -> Iterator[str]:
    """What was seen of the levels, whether or not it matters here."""
    facts = found.facts
    for level in REGION_LEVELS:
        if level not in facts:
            yield f"absent: {level} is not labelled"
        elif facts[level].touches:
            yield f"cut: {level} touches the {' and '.join(facts[level].touches)} border"
    for level, one in facts.items():
        if one.fragments.share > FRAGMENT_SHARE_NOTED:
            yield (
                f"fragments: {level} has {counted(one.fragments.count, 'stray piece')}, "
                f"{one.fragments.share:.1%} of its voxels, left out"
            )
        if level not in found.sound:
            yield f"implausible: {level} does not have the size of one solid vertebra"


def _contradicted(found: _Found, step: Step) -> str | None:
    """Why the labels' names cannot be kept beside L2 and an extent that a person gave; None if they can."""
    if off := off_labelled_l2(step.l2, found.vertebrae, found.facts):
        return f"L2 was placed {off}"
    broken = [one for one in found.problems() if one.reason != "numbering_doubtful"]
    return f"they break a check, {broken[0].what}" if broken and found.facts else None


def _terms(found: _Found, step: Step, ruling: Ruling | None) -> Iterator[str]:
    """On what terms the spine may be used."""
    if step.rung in ("interpolated_l1_l3", "extrapolated"):
        yield f"{step.rung}: L2 taken from {step.used[0]} and {step.used[1]}"
    if ruling is None:
        if not found.numbering.anchored:
            yield "unanchored: neither a sacral S1 nor ribs confirm the numbering"
        return
    if ruling.extent_world_mm:
        yield f"reviewed: L2 and the ends of T12-L5 were placed by {ruling.reviewer}"
        if why := _contradicted(found, step):
            yield f"{NAMES_SET_ASIDE}: {why}"
    elif ruling.l2_world_mm:
        yield f"reviewed: L2 was placed by {ruling.reviewer}"
    elif ruling.accepted:
        yield f"reviewed: the landmarks were accepted by {ruling.reviewer}"
    else:
        yield f"reviewed: the label map was corrected by {ruling.reviewer}"
    for trouble in found.problems():
        yield f"accepted: {trouble.what} ({trouble.got})"
    if ruling.accepted:
        try:
            climb(found.facts)
        except LandmarkError as error:
            yield f"accepted: {error.what} ({error.got})"


def _per_level(found: _Found) -> dict[str, dict[str, Any]]:
    levels = record(found.facts, found.vertebrae)
    for level, contrast in found.contrast.items():
        aside = contrast.aside_hu
        levels[level.value]["bone_contrast_hu"] = round(contrast.here_hu, 1)
        levels[level.value]["bone_contrast_aside_hu"] = None if aside is None else round(aside, 1)
    for level, tissue in found.tissue.items():
        levels[level.value].update(tissue.record())
    return levels
