"""Intervals resample patients, not nodes."""

import numpy as np
import pytest

from retroln.metrics.bootstrap import Interval, interval


def test_no_spread_gives_no_width():
    assert interval({"a": [1.0, 1.0], "b": [1.0]}, seed=1) == Interval(1.0, 1.0)


def test_same_seed_same_interval_whatever_the_order():
    values = {f"p{n}": [n**1.5, 1.0] for n in range(12)}
    backwards = dict(reversed(values.items()))
    assert interval(values, seed=4) == interval(backwards, seed=4)
    assert interval(values, seed=4) != interval(values, seed=5)


@pytest.mark.parametrize("values", [{}, {"a": [1.0, 0.0]}, {"a": [1.0], "b": []}])
def test_under_two_patients_there_is_no_interval(values):
    assert interval(values, seed=1) is None


def test_nodes_of_one_patient_move_together():
    clustered = interval({"a": [1.0] * 50, "b": [0.0] * 50}, seed=1)
    assert (clustered.low, clustered.high) == (0.0, 1.0)


def test_width_agrees_with_the_normal_approximation():
    random = np.random.default_rng(0)
    values = {f"p{n}": [float(x)] for n, x in enumerate(random.normal(5, 2, 400))}
    found = interval(values, seed=1)
    flat = np.concatenate(list(values.values()))
    half = 1.96 * flat.std() / np.sqrt(400)
    assert (found.low, found.high) == pytest.approx((flat.mean() - half, flat.mean() + half), abs=0.03)


def test_a_lower_level_is_narrower():
    values = {f"p{n}": [float(n)] for n in range(20)}
    wide, narrow = interval(values, seed=1), interval(values, seed=1, level=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high
