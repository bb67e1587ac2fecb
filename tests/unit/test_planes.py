import io

import numpy as np
import pytest
from PIL import Image

from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume
from retroln.report import planes

SHAPE, SPACING = (8, 10, 6), (1.0, 1.0, 3.0)


def _volumes(ct=None):
    grid = Grid(SHAPE, np.diag([*SPACING, 1.0]))
    array = np.full(SHAPE, -200, np.int16) if ct is None else ct
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 3:7, 2:4] = 7
    return Volume(array, grid, grid), Volume(labels, grid, grid)


@pytest.mark.parametrize(
    ("plane", "index", "expected"),
    [("axial", 5, (0, 0)), ("coronal", 9, (0, 0)), ("sagittal", 7, (0, 0))],
)
def test_right_anterior_superior_lies_in_the_upper_left_corner(plane, index, expected):
    array = np.zeros(SHAPE)
    array[-1, -1, -1] = 1
    assert [tuple(p) for p in np.argwhere(planes.displayed(array, plane, index))] == [expected]


@pytest.mark.parametrize(
    ("plane", "index", "corner"),
    [("axial", 0, (9, 7)), ("coronal", 0, (5, 7)), ("sagittal", 0, (5, 9))],
)
def test_left_posterior_inferior_lies_in_the_lower_right_corner(plane, index, corner):
    array = np.zeros(SHAPE)
    array[0, 0, 0] = 1
    assert [tuple(p) for p in np.argwhere(planes.displayed(array, plane, index))] == [corner]


@pytest.mark.parametrize(
    ("plane", "size"), [("axial", (16, 20)), ("coronal", (16, 36)), ("sagittal", (20, 36))]
)
def test_pixels_are_square_millimetres(plane, size):
    assert planes.picture(*_volumes(), plane, 0, colours={}, pixel_mm=0.5).size == size


def test_the_window_maps_its_ends_to_black_and_white_and_clips():
    grey = planes.Window(level=40, width=400).grey(np.array([-1000, -160, 40, 240, 3000]))
    assert grey.tolist() == [0, 0, 128, 255, 255]


def test_an_outline_is_the_labels_rim_alone():
    ids = np.zeros((5, 5), np.uint8)
    ids[1:4, 1:4] = 3
    expected = ids.astype(bool)
    expected[2, 2] = False
    assert np.array_equal(planes.outline(ids), expected)
    assert planes.outline(ids, 2).sum() == 9


def test_touching_labels_keep_a_border_between_them():
    ids = np.repeat(np.array([[1, 1, 1, 2, 2, 2]]), 5, axis=0)
    assert planes.outline(ids)[2].tolist() == [True, False, True, True, False, True]


def test_a_node_is_outlined_in_its_colour_where_it_lies():
    image = np.array(planes.picture(*_volumes(), "axial", 2, colours={7: (255, 110, 64)}, pixel_mm=1))
    coloured = np.argwhere((image == (255, 110, 64)).all(axis=2))
    assert coloured.min(axis=0).tolist() == [10 - 7, 8 - 5]
    assert coloured.max(axis=0).tolist() == [10 - 1 - 3, 8 - 1 - 2]
    assert len(coloured) == 3 * 4 - 2


def test_a_slice_without_nodes_stays_grey():
    image = np.array(planes.picture(*_volumes(), "axial", 5, colours={7: (255, 0, 0)}))
    assert (image[..., 0] == image[..., 1]).all()


def test_labels_of_another_shape_are_refused():
    ct, labels = _volumes()
    other = Volume(labels.array[1:], labels.grid, labels.source)
    with pytest.raises(ValueError, match="labels must be"):
        planes.picture(ct, other, "axial", 0, colours={})


def test_the_sheet_holds_three_planes_at_one_scale():
    sheet = Image.open(io.BytesIO(planes.three_planes(*_volumes(), (3, 5, 2), colours={}, pixel_mm=0.1)))
    assert sheet.format == "PNG"
    assert sheet.size == (80 + 80 + 100 + 12, 180)


def test_a_thumbnail_is_centred_on_its_voxel():
    bright = np.full(SHAPE, -1000, np.int16)
    bright[1, 8, 2] = 1000
    ct, labels = _volumes(bright)
    jpeg = planes.thumbnail(
        ct, labels.with_array(labels.array * 0), (1, 8, 2), colours={}, side_mm=20, pixel_mm=0.25
    )
    image = np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"), float)
    assert image.shape == (80, 80)
    rows, columns = np.nonzero(image > 128)
    assert (rows.mean(), columns.mean()) == pytest.approx((39.5, 39.5), abs=1)
