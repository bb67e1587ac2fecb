import io

import numpy as np
import pytest
from PIL import Image

from retroln.report import figures


def _pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_a_training_curve_shows_its_numbers():
    epochs = [
        {"epoch": e, "train_loss": 1 - e / 9, "val_loss": None, "pseudo_dice": [e / 9]} for e in range(9)
    ]
    flat = [epoch | {"train_loss": 0.5} for epoch in epochs]
    assert not np.array_equal(_pixels(figures.training_curve(epochs)), _pixels(figures.training_curve(flat)))


def test_one_epoch_is_enough_and_none_is_refused():
    assert _pixels(figures.training_curve([{"epoch": 0, "train_loss": 1.0}])).shape == (480, 768, 3)
    with pytest.raises(ValueError, match="at least one epoch"):
        figures.training_curve([])


def test_froc_is_drawn_at_its_operating_points():
    points = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
    low, high = (figures.froc(points, [s] * 7, hit_rule="3D IoU >= 0.1") for s in (0.2, 0.8))
    assert not np.array_equal(_pixels(low), _pixels(high))


def test_a_stratum_without_nodes_is_no_zero():
    none, missed = (figures.sensitivity_by_stratum({"<8": n, ">=15": (3, 3)}) for n in ((0, 0), (0, 5)))
    assert not np.array_equal(_pixels(none), _pixels(missed))
