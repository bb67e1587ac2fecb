"""Measurements agree with a brute-force reading of their definition, on any shape."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from retroln.anatomy import nodes
from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume

SHAPES = hnp.arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 3)))
SPACINGS = st.tuples(*[st.sampled_from([0.5, 0.7, 0.8, 1.0, 2.5])] * 3)


def brute_force_axes(mask, spacing):
    """The definition, word by word: every pair of face corners of every slice."""
    best = (0.0, 0.0)
    for k in range(mask.shape[2]):
        corners = {
            ((i + a) * spacing[0], (j + b) * spacing[1])
            for i, j in np.argwhere(mask[:, :, k])
            for a, b in itertools.product((-0.5, 0.5), repeat=2)
        }
        for p, q in itertools.combinations(sorted(corners), 2):
            length = math.dist(p, q)
            if length < best[0] - 1e-9:
                continue
            across = [((q[1] - p[1]) * x - (q[0] - p[0]) * y) / length for x, y in corners]
            width = max(across) - min(across)
            best = (length, width) if length > best[0] + 1e-9 else (best[0], max(best[1], width))
    return best


def measure(array, spacing, shift=(0, 0, 0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = shift
    grid = Grid(array.shape, affine)
    return nodes.measure(Volume(array, grid, grid))


@settings(max_examples=150, deadline=None)
@given(SHAPES, SPACINGS)
def test_every_component_agrees_with_brute_force(mask, spacing):
    reference, count = ndimage.label(mask, np.ones((3, 3, 3)))
    measured = measure(mask, spacing)
    assert [node.label for node in measured] == list(range(1, count + 1))
    assert np.array_equal(nodes.instances(mask) > 0, mask)
    for node in measured:
        part = nodes.instances(mask) == node.label
        assert np.unique(reference[part]).size == 1 and (reference == reference[part][0]).sum() == part.sum()
        long_mm, short_mm = brute_force_axes(part, spacing)
        assert node.long_axis_mm == pytest.approx(long_mm, abs=1e-9)
        assert node.short_axis_mm == pytest.approx(short_mm, abs=1e-9)
        assert node.volume_mm3 == pytest.approx(part.sum() * math.prod(spacing))
        centre = np.argwhere(part).mean(axis=0) * spacing
        assert node.centroid_world_mm == pytest.approx(tuple(centre))


@settings(max_examples=60, deadline=None)
@given(SHAPES.filter(np.any), st.sampled_from([0.5, 0.8, 1.0]), st.tuples(*[st.integers(-200, 200)] * 3))
def test_quarter_turns_mirrors_and_shifts_change_no_size(mask, side, shift):
    spacing = (side, side, 2.5)

    def sizes(array, **where):
        found = measure(array, spacing, **where)
        return sorted((round(n.long_axis_mm, 9), round(n.short_axis_mm, 9), n.volume_mm3) for n in found)

    expected = sizes(mask)
    for turned in (np.rot90(mask), mask[::-1], mask[:, ::-1], mask[:, :, ::-1], np.pad(mask, 2)):
        assert sizes(turned) == expected
    assert sizes(mask, shift=shift) == expected


@settings(max_examples=60, deadline=None)
@given(SHAPES.filter(np.any), SPACINGS)
def test_the_short_axis_never_exceeds_the_long_one(mask, spacing):
    nodes = measure(mask, spacing)
    assert nodes
    for node in nodes:
        assert 0 < node.short_axis_mm <= node.long_axis_mm * (1 + 1e-12)
