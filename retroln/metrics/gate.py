"""The promotion rule: pure, so that anybody can replay a decision from its recorded figures."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from retroln.settings import GateSpec

# A drop of exactly the allowed 0.02 must pass: 0.90 - 0.88 is 0.020000000000000018.
_SLACK = 1e-9


@dataclass(frozen=True)
class GateCheck:
    """One condition in words: what was found, what was needed."""

    name: str
    passed: bool
    got: str
    needed: str


@dataclass(frozen=True)
class GateDecision:
    """All conditions; `passed` only if every one is."""

    checks: tuple[GateCheck, ...]

    @property
    def passed(self) -> bool:
        """True when there are conditions and all hold."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        """One line for each condition that does not hold."""
        return tuple(f"{c.name}: got {c.got}, needed {c.needed}" for c in self.checks if not c.passed)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks]}


def decide(
    candidate: Mapping[str, Any],
    champion: Mapping[str, Any] | None,
    spec: GateSpec,
    *,
    candidate_test_hash: str,
    champion_test_hash: str | None = None,
    train_patients: Collection[str],
    test_patients: Collection[str],
) -> GateDecision:
    """Decide whether a candidate may go before a person.

    Args:
        candidate: `Summary.to_dict()` on the locked test set.
        champion: the champion's figures on its test set; None when there is no champion yet.
        spec: the limits.
        candidate_test_hash: hash of the locked test set behind `candidate`.
        champion_test_hash: the same for `champion`; unless equal, the two cannot be compared.
        train_patients: whom the candidate has seen.
        test_patients: whom it was tested on.
    """
    checks = [
        _enough_patients(test_patients, spec),
        _no_overlap(train_patients, test_patients),
        _at_least("sensitivity_ge10mm", candidate, spec.min_sensitivity_ge10mm),
        _at_most("fp_per_volume", candidate, spec.max_fp_per_volume),
    ]
    if champion is not None:
        checks.append(_same_test_set(candidate_test_hash, champion_test_hash))
        if checks[-1].passed:
            checks.append(_drop("sensitivity_ge10mm", candidate, champion, spec.max_sensitivity_drop))
            checks.append(_drop("dice_mean", candidate, champion, spec.max_dice_drop))
    return GateDecision(tuple(checks))


def _enough_patients(test_patients: Collection[str], spec: GateSpec) -> GateCheck:
    count = len(set(test_patients))
    return GateCheck(
        "test_patients", count >= spec.min_test_patients, str(count), f"at least {spec.min_test_patients}"
    )


def _no_overlap(train_patients: Collection[str], test_patients: Collection[str]) -> GateCheck:
    shared = sorted(set(train_patients) & set(test_patients))
    named = ", ".join(shared[:5]) + (", ..." if len(shared) > 5 else "")
    got = f"{len(shared)} shared: {named}" if shared else "none shared"
    return GateCheck("patients_apart", not shared, got, "no patient in both training and test set")


def _same_test_set(candidate_hash: str, champion_hash: str | None) -> GateCheck:
    same = bool(candidate_hash) and candidate_hash == champion_hash
    got = "the same" if same else f"candidate {candidate_hash or 'none'}, champion {champion_hash or 'none'}"
    needed = "both on the same locked test set; evaluate the champion on the candidate's"
    return GateCheck("same_test_set", same, got, needed)


def _at_least(name: str, figures: Mapping[str, Any], limit: float) -> GateCheck:
    value = _figure(figures, name)
    return GateCheck(name, value is not None and value >= limit - _SLACK, _text(value), f"at least {limit:g}")


def _at_most(name: str, figures: Mapping[str, Any], limit: float) -> GateCheck:
    value = _figure(figures, name)
    return GateCheck(name, value is not None and value <= limit + _SLACK, _text(value), f"at most {limit:g}")


def _drop(name: str, candidate: Mapping[str, Any], champion: Mapping[str, Any], limit: float) -> GateCheck:
    new, old = _figure(candidate, name), _figure(champion, name)
    passed = new is not None and old is not None and old - new <= limit + _SLACK
    got = f"{_text(new)} against the champion's {_text(old)}"
    return GateCheck(f"{name}_drop", passed, got, f"a drop of at most {limit:g}")


def _figure(figures: Mapping[str, Any], name: str) -> float | None:
    """The figure if it is a finite number; an undefined figure never passes a gate."""
    value = figures.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _text(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
