"""Matching by hand, against brute force, and the FROC curve of a small set."""

import itertools

import numpy as np
import pytest

from retroln.metrics.detection import (
    FrocCase,
    Match,
    OverlapTable,
    froc,
    match,
    match_table,
    overlap_table,
)


def line(**places):
    array = np.zeros((40, 1, 1), np.int32)
    for name, (start, stop) in places.items():
        array[start:stop] = int(name[1:])
    return array


def table(iou):
    iou = np.asarray(iou, float)
    return OverlapTable(np.arange(1, iou.shape[0] + 1), np.arange(1, iou.shape[1] + 1), iou)


def test_iou_limit_is_inclusive():
    truth = line(n3=(0, 1))
    assert match(truth, line(n8=(0, 10))).matches == (Match(3, 8, 0.1),)
    below = match(truth, line(n8=(0, 11)))
    assert below.misses == (3,) and below.false_positives == (8,)
    assert below.any_overlap_hits == (3,) and below.any_overlap_false_positives == ()


def test_one_to_one_fragments_are_false_positives_and_a_bridge_hits_once():
    fragments = match(line(n1=(0, 10)), line(n1=(0, 4), n2=(5, 10)))
    assert fragments.matches == (Match(1, 2, 0.5),) and fragments.false_positives == (1,)
    bridge = match(line(n1=(0, 6), n2=(7, 10)), line(n5=(0, 10)))
    assert bridge.hits == (1,) and bridge.misses == (2,) and bridge.any_overlap_hits == (1, 2)


def test_more_pairs_beat_a_better_single_pair():
    result = match_table(table([[0.9, 0.1], [0.1, 0.0]]))
    assert {(m.truth, m.prediction) for m in result.matches} == {(1, 2), (2, 1)}


def test_matching_is_the_best_of_all_assignments():
    random = np.random.default_rng(5)
    for _ in range(60):
        iou = random.random(random.integers(1, 5, 2)) * (random.random() < 0.9)
        iou[random.random(iou.shape) < 0.5] *= 0.1
        result = match_table(table(iou))
        rows, columns = iou.shape
        best = (0, 0.0)
        for chosen in itertools.product([None, *range(columns)], repeat=rows):
            used = [c for c in chosen if c is not None]
            pairs = [iou[r, c] for r, c in enumerate(chosen) if c is not None]
            if len(set(used)) == len(used) and all(value >= 0.1 for value in pairs):
                best = max(best, (len(pairs), sum(pairs)))
        assert (len(result.matches), sum(m.iou for m in result.matches)) == pytest.approx(best)
        assert len(result.hits) + len(result.misses) == rows
        assert len(result.matches) + len(result.false_positives) == columns


def test_empty_sides():
    none, one = line(), line(n1=(0, 3))
    assert match(none, none) == match_table(table(np.zeros((0, 0))))
    assert match(none, one).false_positives == match(none, one).any_overlap_false_positives == (1,)
    assert match(one, none).misses == (1,)
    with pytest.raises(ValueError, match="shape"):
        match(one, np.zeros((2, 2, 2), int))


def test_overlap_table_counts_voxels():
    found = overlap_table(line(n2=(0, 4), n9=(10, 12)), line(n1=(2, 11)))
    assert found.truths.tolist() == [2, 9] and found.predictions.tolist() == [1]
    assert found.iou.ravel().tolist() == [2 / 11, 1 / 10]


def test_froc_steps_through_the_thresholds():
    truth = line(n1=(0, 4), n2=(10, 14))
    cases = [
        FrocCase.of(truth, line(n1=(0, 4), n2=(10, 14), n3=(20, 22)), {1: 0.9, 2: 0.3, 3: 0.8}),
        FrocCase.of(line(), line(n1=(5, 6)), {1: 0.5}),
    ]
    curve = froc(cases)
    assert [(p.threshold, p.fp_per_volume, p.sensitivity) for p in curve.points] == [
        (0.9, 0.0, 0.5),
        (0.8, 0.5, 0.5),
        (0.5, 1.0, 0.5),
        (0.3, 1.0, 1.0),
    ]
    assert curve.sensitivity_at == {0.125: 0.5, 0.25: 0.5, 0.5: 0.5, 1.0: 1.0, 2.0: 1.0, 4.0: 1.0, 8.0: 1.0}


def test_froc_equals_matching_at_each_threshold():
    random = np.random.default_rng(2)
    iou = random.random((4, 6)) * (random.random((4, 6)) < 0.5)
    scores = random.choice([0.2, 0.4, 0.6, 0.8], 6)
    points = froc([FrocCase(table(iou), scores)]).points
    assert len(points) == len(set(scores))
    for point in points:
        kept = match_table(table(iou[:, scores >= point.threshold]))
        assert (point.sensitivity * 4, point.fp_per_volume) == (len(kept.hits), len(kept.false_positives))


def test_froc_without_nodes_or_predictions():
    assert froc([FrocCase.of(line(), line(n1=(0, 2)), {1: 0.5})]) is None
    silent = froc([FrocCase.of(line(n1=(0, 2)), line(), {})])
    assert silent.points == () and set(silent.sensitivity_at.values()) == {0.0}
    with pytest.raises(KeyError):
        FrocCase.of(line(n1=(0, 2)), line(n1=(0, 2)), {})
