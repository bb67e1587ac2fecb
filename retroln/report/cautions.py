"""What a reader must know of a region, its landmarks and the model: one sentence each, the same everywhere.

The command line, the case page and Prefect's pages all print what is made here from the record.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

from retroln.anatomy.levels import REGION_LEVELS
from retroln.anatomy.roi import SIDES
from retroln.counted import counted

if TYPE_CHECKING:  # SQLAlchemy comes with it, which the file tools do without
    from retroln.catalog.records import CaseHistory

UNANCHORED = (
    "Neither a sacral S1 next to L5 nor ribs at T12 confirm the numbering: region and levels may be one"
    " vertebra too high or too low."
)
_SAID: Mapping[str, str] = {
    "cut": "Cut: {}.",
    "interpolated_l1_l3": "The region does not rest on L2 itself: {}.",
    "extrapolated": "The region does not rest on L2 itself: {}.",
    "stand_in": "The vertebrae were labelled by stand-in weights: {}.",
    "reviewed": "By a person's word, {}.",
    "not_hu": "Not in HU: {}.",
    "names_set_aside": "The labels' names are set aside, since {}: nodes get no level.",
    "accepted": "A check that this person overruled: {}.",
}
_NO_CAUTION = ("made", "absent", "unanchored")  # the first is no caution; the others are said by themselves
_LISTED = 10


class Judged(Protocol):
    """Landmarks as the gate judged them: an `Account`, or its record in the catalog."""

    @property
    def findings(self) -> Sequence[str]:
        """`code: text`."""
        ...

    @property
    def truncated(self) -> Sequence[str]:
        """T12-L5 levels that the region does not hold whole."""
        ...

    @property
    def anchored(self) -> bool:
        """Something confirms the numbering."""
        ...


@dataclass(frozen=True)
class _Recorded:
    findings: Sequence[str]
    truncated: Sequence[str]
    anchored: bool


def cautions(landmarks: Judged, clamped_sides: Sequence[str] = ()) -> list[str]:
    """Sentences on landmarks and the region cut by them, the gravest first; [] for a faultless case.

    Args:
        clamped_sides: sides of the region where the field of view ends before it does.
    """
    codes = {finding.split(":", 1)[0] for finding in landmarks.findings}
    absent = [_text(one).split()[0] for one in landmarks.findings if one.startswith("absent:")]
    has_levels = len(absent) < len(REGION_LEVELS)
    found = [UNANCHORED] if has_levels and ("unanchored" in codes or not landmarks.anchored) else []
    if sides := short_sides(landmarks.truncated, clamped_sides):
        found.append(f"Cut short at: {', '.join(sides)}.")
    if absent:
        found.append(f"Not labelled: {', '.join(absent)}.")
    return [*found, *_in_words(landmarks.findings)]


def case_cautions(history: CaseHistory) -> list[str]:
    """`cautions` of a case of the catalog; [] before prepare has looked at it."""
    return cautions(history.landmarks, history.clamped_sides) if history.landmarks else []


def recorded_cautions(record: Mapping[str, Any]) -> list[str]:
    """`cautions` of the JSON that a file tool left: a crop's record, or a case's facts in a summary."""
    landmarks = _Recorded(
        record.get("findings", ()), record.get("truncated", ()), record.get("anchored", True)
    )
    return cautions(landmarks, record.get("clamped_sides", ()))


def short_sides(truncated: Sequence[str], clamped_sides: Sequence[str]) -> list[str]:
    """Sides where the region ends before its definition does, above and below with the levels concerned.

    A side is short where the scan is over, or where the levels towards it are cut or missing. Where every
    level is missing there is no region that could be short of them.
    """
    truncated = () if set(REGION_LEVELS) <= set(truncated) else truncated
    missing = {
        "superior": list(takewhile(truncated.__contains__, REGION_LEVELS)),
        "inferior": list(takewhile(truncated.__contains__, reversed(REGION_LEVELS)))[::-1],
    }
    return [
        f"{side} ({', '.join(missing[side])})" if missing.get(side) else side
        for side in SIDES
        if side in clamped_sides or missing.get(side)
    ]


def stand_in_caution(stand_in: str) -> str:
    """What is said wherever results of a stand-in appear, by what its contract says of it."""
    return f"The model is a stand-in, {stand_in}."


def by_sentence(cases: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """A line for each sentence with the cases it was said of, the most frequent first.

    Args:
        cases: case ids with their sentences.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for case_id, sentences in cases:
        for sentence in sentences:
            found[sentence].append(case_id)
    return [
        f"{sentence} {_counted(ids)}" for sentence, ids in sorted(found.items(), key=lambda one: -len(one[1]))
    ]


def _in_words(findings: Sequence[str]) -> Iterator[str]:
    for finding in findings:
        code = finding.split(":", 1)[0]
        if code not in _NO_CAUTION:
            plain = f"{code.replace('_', ' ').capitalize()}: {{}}."
            yield _SAID.get(code, plain).format(_text(finding))


def _text(finding: str) -> str:
    return finding.partition(": ")[2].rstrip(".")


def _counted(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - _LISTED} more" if len(ids) > _LISTED else ""
    return f"{counted(len(ids), 'case')}: {', '.join(ids[:_LISTED])}{more}"
