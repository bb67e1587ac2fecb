"""Each condition of the promotion rule alone decides."""

import math

import pytest

from retroln.metrics.gate import decide
from retroln.settings import GateSpec

GOOD = {"sensitivity_ge10mm": 0.9, "fp_per_volume": 1.5, "dice_mean": 0.8}
TEST = [f"t{n}" for n in range(6)]


def run(candidate=GOOD, champion=None, **changes):
    named = {
        "candidate_test_hash": "h1",
        "champion_test_hash": "h1" if champion else None,
        "train_patients": ["a", "b"],
        "test_patients": TEST,
    }
    return decide(candidate, champion, GateSpec(), **(named | changes))


def failed(decision):
    assert decision.passed == all(check.passed for check in decision.checks)
    return [check.name for check in decision.checks if not check.passed]


def test_a_first_good_candidate_passes():
    assert failed(run()) == [] and run().failures == ()
    assert [check.name for check in run().checks] == [
        "test_patients",
        "patients_apart",
        "sensitivity_ge10mm",
        "fp_per_volume",
    ]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"sensitivity_ge10mm": 0.79}, "sensitivity_ge10mm"),
        ({"sensitivity_ge10mm": None}, "sensitivity_ge10mm"),
        ({"sensitivity_ge10mm": math.nan}, "sensitivity_ge10mm"),
        ({"fp_per_volume": 2.1}, "fp_per_volume"),
        ({"fp_per_volume": -math.inf}, "fp_per_volume"),
    ],
)
def test_absolute_limits(change, name):
    assert failed(run({**GOOD, **change})) == [name]


def test_a_missing_figure_fails():
    assert failed(run({})) == ["sensitivity_ge10mm", "fp_per_volume"]


def test_limits_themselves_pass():
    edge = {"sensitivity_ge10mm": 0.8, "fp_per_volume": 2.0, "dice_mean": 0.1}
    assert run(edge).passed


def test_too_few_distinct_test_patients():
    decision = run(test_patients=["t1"] * 9)
    assert failed(decision) == ["test_patients"]
    assert decision.failures == ("test_patients: got 1, needed at least 6",)


def test_a_patient_in_both_sets_is_named():
    decision = run(train_patients=["a", "t3"])
    assert failed(decision) == ["patients_apart"] and "t3" in decision.failures[0]


def test_drops_against_the_champion():
    assert run(GOOD, {"sensitivity_ge10mm": 0.92, "fp_per_volume": 9, "dice_mean": 0.82}).passed
    assert failed(run(GOOD, {"sensitivity_ge10mm": 0.93, "dice_mean": 0.8})) == ["sensitivity_ge10mm_drop"]
    assert failed(run(GOOD, {"sensitivity_ge10mm": 0.5, "dice_mean": 0.83})) == ["dice_mean_drop"]
    assert failed(run(GOOD, {"sensitivity_ge10mm": 0.5, "dice_mean": None})) == ["dice_mean_drop"]


@pytest.mark.parametrize("other", ["h2", None, ""])
def test_another_test_set_is_not_compared(other):
    decision = run(GOOD, GOOD, champion_test_hash=other)
    assert failed(decision) == ["same_test_set"]
    assert "h1" in decision.failures[0] and (other or "none") in decision.failures[0]
    assert not [check for check in decision.checks if check.name.endswith("_drop")]


def test_two_empty_hashes_are_not_the_same_test_set():
    assert failed(run(GOOD, GOOD, candidate_test_hash="", champion_test_hash="")) == ["same_test_set"]


def test_decision_as_plain_values():
    plain = run().to_dict()
    assert plain["passed"] is True
    assert plain["checks"][0] == {"name": "test_patients", "passed": True, "got": "6", "needed": "at least 6"}
