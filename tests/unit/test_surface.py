"""Surface agreement of boxes whose faces can be counted by hand."""

import numpy as np
import pytest

from retroln.metrics.surface import nsd


def box(start, stop, shape=(30, 30, 30)):
    array = np.zeros(shape, bool)
    array[start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]] = True
    return array


def test_equal_masks_agree_even_at_the_array_border():
    for mask in (box((5, 5, 5), (9, 9, 9)), np.ones((3, 3, 3), bool)):
        assert nsd(mask, mask, (1, 1, 1), tolerance_mm=0.0) == 1.0


def test_empty_masks():
    some, none = box((5, 5, 5), (9, 9, 9)), np.zeros((30, 30, 30), bool)
    assert nsd(none, none, (1, 1, 1)) is None
    assert nsd(none, some, (1, 1, 1)) is None
    assert nsd(some, none, (1, 1, 1)) == 0.0


def test_tolerance_is_inclusive_and_in_millimetres():
    truth, moved = box((5, 5, 5), (15, 15, 15)), box((5, 5, 6), (15, 15, 16))
    assert nsd(truth, moved, (0.8, 0.8, 2.0), tolerance_mm=2.0) == 1.0
    assert nsd(truth, moved, (0.8, 0.8, 2.1), tolerance_mm=2.0) < 1.0


def test_share_is_weighted_by_face_area():
    # Only the two ends (1 x 1 voxel, 2 x 3 mm) lie too far; the sides of the common part agree.
    truth, longer = box((5, 5, 5), (15, 6, 6)), box((5, 5, 5), (19, 6, 6))
    end, ring = 2.0 * 3.0, 2 * (2.0 + 3.0)
    extra = 1.0 * ring * 4
    area = 2 * 2 * end + ring * 10 + ring * 14
    # Truth's far end: its centre lies sqrt(0.5^2 + 1^2) mm from a side of the longer box.
    assert nsd(truth, longer, (1, 2, 3), tolerance_mm=0.4) == pytest.approx((area - end - end - extra) / area)


def test_far_apart_is_zero_and_order_does_not_matter():
    a, b = box((2, 2, 2), (6, 6, 6)), box((20, 20, 20), (26, 24, 28))
    c = box((3, 2, 2), (9, 6, 6))
    assert nsd(a, b, (1, 1, 1)) == 0.0
    assert nsd(a, c, (1, 1, 1), 1.0) == nsd(c, a, (1, 1, 1), 1.0)
    assert 0 < nsd(a, c, (1, 1, 1), 1.0) < 1
