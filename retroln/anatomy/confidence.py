"""One number that orders cases for the eye of a person. It is no probability: nothing was fitted to it."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

FACTORS = {
    # what was found of landmarks that may be used
    "absent": 0.95,
    "cut": 0.95,
    "fragments": 0.95,
    "implausible": 0.8,
    "interpolated_l1_l3": 0.8,
    "extrapolated": 0.6,
    "unanchored": 0.6,
    # what a person ruled
    "accepted": 0.9,
    "reviewed": 1.0,
    "names_set_aside": 1.0,
    # what holds a case back
    "numbering_doubtful": 0.4,
    "landmarks_implausible": 0.3,
    "not_hu": 0.1,
    "off_bone": 0.2,
    "l2_unresolved": 0.2,
    "landmarks_cut": 0.2,
    "no_lumbar_level": 0.1,
    "landmarks_missing": 0.1,
}
"""By the code of a finding (docs/reference/landmarks.md)."""
OTHER = 0.5
"""Of a code that is not in `FACTORS`, say of a tool that made the labels."""


def confidence(findings: Iterable[str]) -> float:
    """Product of the factors of all findings (`code: text`), rounded to four places; 1 for none.

    Only for sorting: a case with a lower number has more, or graver, findings. Equal numbers say nothing.
    """
    codes = (finding.split(":", 1)[0] for finding in findings)
    factors = sorted(FACTORS.get(code, OTHER) for code in codes)  # a product of floats depends on their order
    return round(prod(factors, start=1.0), 4)
