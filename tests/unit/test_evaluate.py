"""Scores of hand-made cases and their summary."""

import json

import numpy as np
import pytest

from retroln.metrics.evaluate import score_case, summarise


def boxes(*starts, label=None):
    array = np.zeros((40, 12, 12), np.int32)
    for number, start in enumerate(starts, 1):
        array[start : start + 4, 2:6, 2:6] = label or number
    return array


def scores():
    return [
        score_case("c1", "p1", boxes(2, 20), boxes(2, 30, label=1), (1, 1, 2), {1: 12.0, 2: 7.0}),
        score_case("c2", "p2", boxes(), boxes(8, 20, label=1), (1, 1, 2), {}),
        score_case("c3", "p2", boxes(2), boxes(2, label=1), (1, 1, 2), {1: 9.9999999}),
    ]


def test_a_case_with_nodes():
    case = scores()[0]
    assert case.dice == 0.5 and 0 < case.nsd < 1
    assert [(n.label, n.hit, n.hit_any_overlap) for n in case.nodes] == [(1, True, True), (2, False, False)]
    assert (case.false_positives, case.fp_any_overlap, case.fp_volume_mm3) == (1, 1, 128.0)


def test_a_node_free_case_is_scored_by_false_positives_alone():
    case = scores()[1]
    assert case.dice is None and case.nsd is None and case.n_nodes == 0
    assert (case.false_positives, case.fp_volume_mm3) == (2, 256.0)


def test_summary():
    summary = summarise(scores())
    assert (summary.cases, summary.patients, summary.nodes, summary.node_free_cases) == (3, 2, 3, 1)
    assert summary.dice_mean == pytest.approx(0.75)
    assert summary.sensitivity == pytest.approx(2 / 3)
    assert summary.sensitivity_ge10mm == 1.0
    assert summary.fp_per_volume == 1.0 and summary.fp_per_node_free_volume == 2.0
    assert {name: (s.nodes, s.hits) for name, s in summary.strata.items()} == {
        "<8": (1, 0),
        "8-10": (0, 0),
        "10-15": (2, 2),
        ">=15": (0, 0),
    }
    assert summary.strata["8-10"].sensitivity is None
    assert summary.intervals["sensitivity_ge10mm"].low == 1.0
    assert summary.intervals["fp_per_node_free_volume"] is None


def test_summary_is_plain_json():
    plain = json.loads(json.dumps(summarise(scores()).to_dict(), allow_nan=False))
    assert plain["min_iou"] == 0.1 and plain["nsd_tolerance_mm"] == 2.0
    assert set(plain["intervals"]["sensitivity"]) == {"low", "high"}
    assert json.dumps(scores()[0].to_dict(), allow_nan=False)


def test_without_nodes_sensitivity_is_undefined():
    summary = summarise([scores()[1]])
    assert summary.sensitivity is summary.dice_mean is summary.sensitivity_ge10mm is None


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="must name the labels"):
        score_case("c", "p", boxes(2), boxes(2), (1, 1, 1), {})
    with pytest.raises(ValueError, match="at least one case"):
        summarise([])
    with pytest.raises(ValueError, match="twice"):
        summarise([scores()[0], scores()[0]])
