"""Confidence: a number for sorting, made of the findings alone."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from retroln.anatomy.confidence import FACTORS, confidence
from retroln.catalog.landmark_reviews import LANDMARK_REASONS

FINDINGS = st.lists(st.sampled_from(sorted(FACTORS)).map(lambda code: f"{code}: text"), max_size=8)


def test_a_faultless_spine_has_one() -> None:
    assert confidence(()) == 1.0
    assert confidence(("cut: T12 touches the superior border", "absent: L5 is not labelled")) == 0.9025


@given(FINDINGS, FINDINGS)
def test_more_findings_never_raise_it(some: list[str], more: list[str]) -> None:
    assert 0 <= confidence(some + more) <= confidence(some) <= 1


@given(FINDINGS)
@example(["absent: text", "accepted: text", "accepted: text", "accepted: text"])
def test_the_order_of_findings_does_not_matter(findings: list[str]) -> None:
    assert confidence(findings) == confidence(findings[::-1])


def test_an_unknown_code_counts_as_half() -> None:
    assert confidence(("new: something", "cut: T12")) == 0.475


def test_every_reason_that_a_person_can_settle_has_a_factor() -> None:
    assert set(FACTORS) >= LANDMARK_REASONS


def test_the_page_lists_the_factors() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "landmarks.md").read_text()
    listed = dict(re.findall(r"^\| `(\w+)` \| (\d\.\d+) \|", page, re.MULTILINE))
    assert {code: float(factor) for code, factor in listed.items()} == FACTORS
