"""Known shapes have known measurements."""

import csv
import io
import math

import numpy as np
import pytest

from retroln.anatomy import nodes
from retroln.errors import GeometryError, InputError
from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume


def volume(array, spacing=(1.0, 1.0, 1.0), affine=None):
    affine = np.diag([*spacing, 1.0]) if affine is None else affine
    grid = Grid(array.shape, affine)
    return Volume(array, grid, grid)


def box_map(shape, *boxes):
    array = np.zeros(shape, np.uint8)
    for box in boxes:
        array[tuple(slice(a, b) for a, b in box)] = 1
    return array


def ellipsoid(shape, centre, radii):
    index = np.indices(shape).transpose(1, 2, 3, 0)
    return (((index - centre) / radii) ** 2).sum(-1) <= 1


def test_a_rectangle_is_measured_between_its_face_corners():
    array = box_map((20, 20, 6), [(3, 7), (5, 15), (2, 4)])
    (node,) = nodes.measure(volume(array, (0.8, 0.7, 2.5)))
    width, height = 4 * 0.8, 10 * 0.7
    diagonal = math.hypot(width, height)
    assert node.long_axis_mm == pytest.approx(diagonal, rel=1e-12)
    assert node.short_axis_mm == pytest.approx(2 * width * height / diagonal, rel=1e-12)
    assert node.volume_mm3 == pytest.approx(80 * 0.8 * 0.7 * 2.5, rel=1e-12)
    assert node.centroid_world_mm == pytest.approx((4.5 * 0.8, 9.5 * 0.7, 2.5 * 2.5))


def test_one_voxel_measures_its_own_face():
    (node,) = nodes.measure(volume(box_map((3, 3, 3), [(1, 2)] * 3), (3.0, 4.0, 9.0)))
    assert node.long_axis_mm == pytest.approx(5.0)
    assert node.short_axis_mm == pytest.approx(2 * 12 / 5)


def test_axes_come_from_the_slice_with_the_longest_axis_only():
    array = box_map((30, 30, 4), [(0, 10), (0, 10), (0, 1)], [(0, 2), (0, 20), (1, 2)])
    (node,) = nodes.measure(volume(array))
    diagonal = math.hypot(2, 20)
    assert node.long_axis_mm == pytest.approx(diagonal)
    assert node.short_axis_mm == pytest.approx(2 * 40 / diagonal)


def test_height_does_not_lengthen_an_axis():
    (node,) = nodes.measure(volume(box_map((4, 4, 40), [(0, 2), (0, 2), (0, 40)])))
    assert node.long_axis_mm == pytest.approx(math.sqrt(8))


def test_tied_slices_report_the_longer_short_axis():
    array = np.zeros((12, 12, 2), np.uint8)
    array[np.arange(10), np.arange(10), 0] = 1
    array[:10, :10, 1] = 1
    (node,) = nodes.measure(volume(array))
    assert node.long_axis_mm == pytest.approx(math.hypot(10, 10))
    assert node.short_axis_mm == pytest.approx(math.hypot(10, 10))


@pytest.mark.parametrize(
    ("side", "recist", "stratum"),
    [(5, "normal", "<8"), (8, "normal", "8-10"), (10, "non_target", "10-15"), (15, "target", ">=15")],
)
def test_recist_and_stratum_include_their_lower_limit(side, recist, stratum):
    # Both axes of a square are its diagonal; NIfTI's float32 spacing leaves it a hair off `side`.
    spacing = float(np.float32(side / (10 * math.sqrt(2))))
    (node,) = nodes.measure(volume(box_map((12, 12, 1), [(0, 10), (0, 10), (0, 1)]), (spacing, spacing, 1.0)))
    assert node.short_axis_mm == pytest.approx(side, rel=1e-6)
    assert (node.recist, node.stratum) == (recist, stratum)


def test_voxels_that_touch_by_a_corner_are_one_instance():
    array = np.zeros((4, 4, 4), np.uint8)
    array[0, 0, 0] = array[1, 1, 1] = array[3, 3, 3] = 1
    assert nodes.instances(array).max() == 2
    assert nodes.instances(array)[0, 0, 0] == nodes.instances(array)[1, 1, 1] == 1


def test_touching_labels_stay_apart_and_broken_labels_split_unless_instances():
    array = np.zeros((9, 3, 3), np.uint8)
    array[0:2], array[2:4], array[6:8] = 4, 7, 7
    assert [n.label for n in nodes.measure(volume(array))] == [1, 2, 3]
    whole = nodes.measure(volume(array), instances=True)
    assert [n.label for n in whole] == [4, 7]
    assert whole[1].volume_mm3 == 4 * 9


def test_numbers_do_not_depend_on_memory_order_or_type():
    array = (np.random.default_rng(1).random((12, 11, 10)) < 0.08).astype(np.uint8)
    expected = nodes.instances(array)
    for other in (np.asfortranarray(array), array.astype(bool), array.astype(float), array.astype(np.int16)):
        assert np.array_equal(nodes.instances(other), expected)
    assert np.array_equal(nodes.instances(array[::-1])[::-1] > 0, expected > 0)
    first = [np.flatnonzero(expected == label)[0] for label in range(1, expected.max() + 1)]
    assert first == sorted(first)


def test_a_sheared_affine_is_measured_in_the_world():
    affine = np.eye(4)
    affine[:3, :3] = [[1, 0.3, 0], [0, 1.0, 0], [0, 0.2, 2]]
    (node,) = nodes.measure(volume(box_map((6, 6, 2), [(0, 1), (0, 5), (0, 1)]), affine=affine))
    steps = [affine[:3, :3] @ [a, b, 0] for a, b in ((1, 5), (-1, 5))]
    assert node.long_axis_mm == pytest.approx(max(np.linalg.norm(step) for step in steps))
    assert node.volume_mm3 == pytest.approx(5 * np.linalg.det(affine[:3, :3]))


def test_an_empty_map_has_no_nodes():
    assert nodes.measure(volume(np.zeros((4, 5, 6), np.uint8))) == ()
    assert nodes.measure(volume(np.zeros((4, 5, 6), np.uint8)), instances=True) == ()
    assert nodes.to_csv(()).splitlines() == [
        "label,volume_mm3,short_axis_mm,long_axis_mm,centroid_world_mm,recist,stratum,station,level"
    ]


@pytest.mark.parametrize("bad", [np.full((2, 2, 2), -1000, np.int16), np.full((2, 2, 2), 0.5)])
@pytest.mark.parametrize("instances", [True, False])
def test_a_ct_or_a_probability_map_is_refused(bad, instances):
    with pytest.raises(InputError) as caught:
        nodes.measure(volume(bad), instances=instances)
    assert caught.value.reason == "not_labels"


def test_organs_on_another_grid_are_refused():
    labels = volume(np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(GeometryError, match="organ map has another shape than the label map"):
        nodes.measure(labels, organs=volume(np.zeros((4, 4, 5), np.uint8)))
    moved = np.eye(4)
    moved[2, 3] = 246
    with pytest.raises(GeometryError, match=r"246\.00 mm apart"):
        nodes.measure(labels, organs=volume(np.zeros((4, 4, 4), np.uint8), affine=moved))


def test_csv_and_dict_hold_every_field():
    measured = nodes.measure(volume(box_map((9, 9, 9), [(1, 3)] * 3, [(5, 8)] * 3)))
    rows = list(csv.DictReader(io.StringIO(nodes.to_csv(measured))))
    assert [float(row["volume_mm3"]) for row in rows] == [8.0, 27.0]
    assert [float(x) for x in rows[1]["centroid_world_mm"].split()] == [6.0, 6.0, 6.0]
    assert rows[0]["station"] == "" and measured[0].to_dict()["station"] is None
    assert list(rows[0]) == list(measured[0].to_dict())


def test_thirty_nodes_in_a_crop_are_thirty():
    array = np.zeros((200, 230, 70), np.uint8)
    for number in range(30):
        corner = np.array([3 + 32 * (number % 6), 4 + 44 * (number // 6), 5 + number])
        part = array[tuple(slice(start, start + 25) for start in corner)]
        part |= ellipsoid(part.shape, (12, 12, 12), (4 + number % 7, 9, 11))
    measured = nodes.measure(volume(array, (0.8, 0.8, 2.5)))
    assert len(measured) == 30


def test_specks_are_no_findings_and_the_rest_is_numbered_from_one() -> None:
    array = np.zeros((20, 20, 20), np.uint8)
    array[1, 1, 1] = 1  # 12 mm3
    array[5:8, 5:8, 5:8] = 1  # 324 mm3
    array[12:15, 12:15, 12:14] = 1  # 216 mm3
    grid = Grid((20, 20, 20), np.diag([2.0, 2.0, 3.0, 1.0]))
    found = nodes.findings(Volume(array, grid, grid), 65)
    assert found[1, 1, 1] == 0
    assert {found[6, 6, 6], found[13, 13, 13]} == {1, 2}
    assert not nodes.findings(Volume(np.zeros_like(array), grid, grid), 65).any()
