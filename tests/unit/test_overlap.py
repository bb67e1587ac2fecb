"""Dice on masks with a known overlap."""

import numpy as np
import pytest

from retroln.metrics.overlap import dice


def line(*places):
    array = np.zeros((10, 1, 1), np.uint8)
    array[list(places)] = 3
    return array


@pytest.mark.parametrize(
    ("truth", "prediction", "expected"),
    [
        (line(0, 1, 2), line(0, 1, 2), 1.0),
        (line(0, 1, 2), line(2, 3), 2 / 5),
        (line(0), line(9), 0.0),
        (line(0), line(), 0.0),
        (line(), line(1), None),
        (line(), line(), None),
    ],
)
def test_dice(truth, prediction, expected):
    assert dice(truth, prediction) == expected


def test_shapes_are_never_broadcast():
    with pytest.raises(ValueError, match=r"\(10, 1, 1\), got \(10, 10, 1\)"):
        dice(line(1), np.ones((10, 10, 1)))
