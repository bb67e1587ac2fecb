"""The plain detector finds round soft tissue and leaves tubes, specks and bone."""

import numpy as np

from retroln.anatomy import baseline
from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume

SPACING = np.array([1.0, 1.0, 2.5])


def scene():
    hu = np.full((80, 80, 32), -90, np.int16)
    index = np.indices(hu.shape).transpose(1, 2, 3, 0) * SPACING

    def ball(centre, radius):
        return np.linalg.norm(index - centre, axis=-1) <= radius

    node = ball((20, 20, 40), 7)
    hu[node] = 40
    hu[ball((60, 20, 40), 2)] = 40
    hu[ball((60, 60, 40), 8)] = 600
    hu[np.hypot(index[..., 0] - 20, index[..., 1] - 60) <= 5] = 45
    grid = Grid(hu.shape, np.diag([*SPACING, 1.0]))
    return Volume(hu, grid, grid), node


def test_it_finds_the_node_alone():
    ct, node = scene()
    found = baseline.detect(ct)
    assert found.dtype == np.uint8 and found.shape == ct.array.shape
    both = np.count_nonzero(found & node)
    assert 2 * both / (np.count_nonzero(found) + np.count_nonzero(node)) > 0.8


def test_limits_on_size_apply():
    ct, _ = scene()
    assert not baseline.detect(ct, baseline.BaselineSpec(min_diameter_mm=16)).any()
    assert not baseline.detect(ct, baseline.BaselineSpec(max_diameter_mm=10)).any()


def test_nothing_in_uniform_tissue_or_fat():
    ct, _ = scene()
    for value in (-90, 40):
        assert not baseline.detect(ct.with_array(np.full(ct.array.shape, value, np.int16))).any()
