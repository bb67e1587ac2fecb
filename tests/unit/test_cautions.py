"""The sentences on landmarks and region that every place prints."""

from __future__ import annotations

import pytest

from retroln.anatomy.confidence import FACTORS
from retroln.anatomy.levels import REGION_LEVELS
from retroln.report.cautions import UNANCHORED, by_sentence, cautions, recorded_cautions, short_sides

FAULTLESS = {"findings": [], "truncated": [], "anchored": True, "clamped_sides": []}


@pytest.mark.parametrize(
    ("truncated", "clamped", "sides"),
    [
        ((), (), []),
        ((), ("left", "anterior"), ["left", "anterior"]),
        (("T12",), (), ["superior (T12)"]),
        (("L2", "L3", "L4", "L5"), (), ["inferior (L2, L3, L4, L5)"]),
        (("T12", "L4", "L5"), ("right",), ["right", "inferior (L4, L5)", "superior (T12)"]),
        (("L5",), ("inferior",), ["inferior (L5)"]),
        (REGION_LEVELS, ("left",), ["left"]),
    ],
)
def test_a_side_is_short_where_the_scan_or_the_levels_end(
    truncated: tuple[str, ...], clamped: tuple[str, ...], sides: list[str]
) -> None:
    assert short_sides(truncated, clamped) == sides
    said = recorded_cautions(FAULTLESS | {"truncated": truncated, "clamped_sides": clamped})
    assert said == ([f"Cut short at: {', '.join(sides)}."] if sides else [])


@pytest.mark.parametrize("code", FACTORS)
def test_every_finding_is_said(code: str) -> None:
    (sentence,) = recorded_cautions(FAULTLESS | {"findings": [f"{code}: L4 is a test"]})
    assert sentence == UNANCHORED if code == "unanchored" else "L4" in sentence


def test_where_labels_came_from_is_no_caution_and_a_record_of_old_says_what_it_knew() -> None:
    assert recorded_cautions(FAULTLESS | {"findings": ["made: by TotalSegmentator"]}) == []
    assert recorded_cautions({"findings": ["unanchored: neither"]}) == [UNANCHORED]
    assert recorded_cautions({}) == []


def test_a_case_without_labels_is_not_called_cut_nor_unanchored() -> None:
    absent = [f"absent: {level} is not labelled" for level in REGION_LEVELS]
    said = recorded_cautions(FAULTLESS | {"findings": absent, "truncated": REGION_LEVELS, "anchored": False})
    assert said == [f"Not labelled: {', '.join(REGION_LEVELS)}."]


def test_absent_levels_are_one_sentence_and_the_gravest_comes_first() -> None:
    class Found:
        findings = (
            "absent: L4 is not labelled",
            "absent: L5 is not labelled",
            "cut: L3 touches the left border",
        )
        truncated = ("L4", "L5")
        anchored = False

    assert cautions(Found(), ("left",)) == [
        UNANCHORED,
        "Cut short at: left, inferior (L4, L5).",
        "Not labelled: L4, L5.",
        "Cut: L3 touches the left border.",
    ]


def test_cases_are_listed_by_sentence_the_most_frequent_first() -> None:
    lines = by_sentence(
        [("A", ["One."]), ("B", ["Two.", "One."]), *((f"C{i}", ["Many."]) for i in range(12))]
    )
    assert lines == [
        "Many. 12 cases: C0, C1, C2, C3, C4, C5, C6, C7, C8, C9 and 2 more",
        "One. 2 cases: A, B",
        "Two. 1 case: B",
    ]
