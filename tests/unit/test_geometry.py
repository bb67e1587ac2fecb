"""Grids, boxes and orientations against nibabel and against world coordinates."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from retroln.errors import GeometryError
from retroln.imaging.geometry import (
    Grid,
    VoxelBox,
    axis_map,
    require_same_grid,
    require_usable,
)
from retroln.imaging.volume import Volume

ORIENTATIONS = [
    "".join(pair[side] for pair, side in zip(order, sides, strict=True))
    for order in permutations(("RL", "AP", "SI"))
    for sides in product((0, 1), repeat=3)
]
RAS_SHAPE = (4, 5, 6)


def rotation(*degrees):
    turned = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        a, b = [other for other in range(3) if other != axis]
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        turned = step @ turned
    return turned


def ras_grid(degrees=(0, 0, 0)):
    affine = np.eye(4)
    affine[:3, :3] = rotation(*degrees) @ np.diag([0.8, 0.7, 2.5])
    affine[:3, 3] = (-90.5, 33.25, 700.0)
    return Grid(RAS_SHAPE, affine)


def reoriented(letters, degrees=(0, 0, 0)):
    """The RAS volume 0..119 as nibabel delivers it in another orientation: array and grid."""
    ras = np.arange(120).reshape(RAS_SHAPE)
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(letters))
    array = nib.orientations.apply_orientation(ras, change)
    return array, Grid(array.shape, ras_grid(degrees).affine @ inv_ornt_aff(change, RAS_SHAPE))


@pytest.mark.parametrize("degrees", [(0, 0, 0), (12, -20, 9)])
@pytest.mark.parametrize("letters", ORIENTATIONS)
def test_every_orientation_comes_to_ras_and_back_bit_exact(letters, degrees):
    array, grid = reoriented(letters, degrees)
    assert grid.orientation == letters == "".join(nib.aff2axcodes(grid.affine))
    volume = Volume.from_source(array, grid)
    assert np.array_equal(volume.array, np.arange(120).reshape(RAS_SHAPE))
    assert volume.grid.shape == RAS_SHAPE and volume.grid.orientation == "RAS"
    assert np.allclose(volume.grid.affine, ras_grid(degrees).affine, atol=1e-9)
    assert np.array_equal(volume.to_source(), array)
    assert volume.grid.spacing_mm == pytest.approx((0.8, 0.7, 2.5))


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("letters", ["PIR", "LSA", "SRP"])
def test_a_voxel_keeps_its_place_in_the_world(letters):
    array, grid = reoriented(letters, (5, 10, -15))
    volume = Volume.from_source(array, grid)
    for value in (0, 1, 37, 119):
        source = grid.world_mm(np.argwhere(array == value))
        ras = volume.grid.world_mm(np.argwhere(volume.array == value))
        assert np.allclose(source, ras, atol=1e-9)


def test_steep_rotations_still_give_a_permutation_and_keep_the_world():
    random = np.random.default_rng(3)
    for _ in range(200):
        affine = np.eye(4)
        affine[:3, :3] = rotation(*random.uniform(-180, 180, 3)) @ np.diag(random.uniform(0.5, 5, 3))
        grid = Grid((3, 4, 5), affine)
        axes = axis_map(grid)
        assert sorted(axes.order) == [0, 1, 2]
        array = random.integers(0, 9, grid.shape)
        assert np.array_equal(axes.from_ras(axes.to_ras(array)), array)
        ras = axes.grid_to_ras(grid)
        assert ras.orientation == "RAS"
        corners = {tuple(corner) for corner in grid.corners_world_mm().round(6) + 0.0}
        assert {tuple(corner) for corner in ras.corners_world_mm().round(6) + 0.0} == corners


def test_moderate_obliqueness_agrees_with_nibabel():
    random = np.random.default_rng(4)
    for _ in range(100):
        affine = np.eye(4)
        affine[:3, :3] = rotation(*random.uniform(-25, 25, 3)) @ np.diag(random.uniform(0.5, 5, 3))
        _, grid = reoriented(ORIENTATIONS[random.integers(48)])
        affine = affine @ np.linalg.inv(ras_grid().affine) @ grid.affine
        assert Grid((3, 3, 3), affine).orientation == "".join(nib.aff2axcodes(affine))


def test_a_strongly_sheared_grid_has_a_sign_on_every_axis():
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0.59, 0.8], [0, 0.8, 0.6], [0, 0.1, 0]])
    require_usable(affine)
    grid = Grid((3, 4, 5), affine)
    assert grid.orientation == "RSA"
    assert axis_map(grid).grid_to_ras(grid).orientation == "RAS"


@pytest.mark.parametrize("degrees", [(0, 0, 0), (20, 5, -10)])
def test_a_crop_lies_where_it_was(degrees):
    parent = ras_grid(degrees)
    box = VoxelBox((1, 2, 3), (3, 5, 6))
    crop = box.grid(parent)
    assert crop.shape == box.shape == (2, 3, 3)
    assert np.allclose(crop.world_mm([0, 0, 0]), parent.world_mm([1, 2, 3]))
    assert np.allclose(crop.world_mm([1, 2, 2]), parent.world_mm([2, 4, 5]))
    assert np.allclose(crop.spacing_mm, parent.spacing_mm)


def test_volume_crop_cuts_the_same_voxels():
    array, grid = reoriented("PIR")
    volume = Volume.from_source(array, grid)
    box = VoxelBox((1, 0, 2), (4, 3, 5))
    crop = volume.crop(box)
    assert np.array_equal(crop.array, volume.array[1:4, 0:3, 2:5])
    assert crop.source.shape == crop.grid.shape == (3, 3, 3)


def test_box_corners_are_faces():
    grid = Grid((9, 9, 9), np.diag([2.0, 3.0, 4.0, 1.0]))
    corners = VoxelBox((1, 1, 1), (2, 3, 2)).corners_world_mm(grid)
    assert corners.shape == (8, 3)
    assert corners.min(axis=0).tolist() == [1, 1.5, 2] and corners.max(axis=0).tolist() == [3, 7.5, 6]


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        ((-3, 2, 0), (2, 20, 4), VoxelBox((0, 2, 0), (2, 10, 4))),
        ((12, -9, 0), (15, -2, 10), VoxelBox((10, 0, 0), (10, 0, 10))),
    ],
)
def test_clamp(start, stop, expected):
    assert VoxelBox(start, stop).clamp((10, 10, 10)) == expected


def moved(grid, shift):
    affine = grid.affine.copy()
    affine[:3, 3] += shift
    return Grid(grid.shape, affine)


def test_same_grid_tolerance_is_a_tenth_of_a_millimetre_inclusive():
    grid = Grid((5, 5, 5), np.eye(4))
    one = moved(grid, (1.0, 0, 0))
    for near in ((0.1, 0, 0), (0, 0, -0.0999)):
        require_same_grid(grid, moved(grid, near), what="mask")
        require_same_grid(one, moved(one, near), what="mask")
    with pytest.raises(GeometryError, match=r"mask does not lie on the CT.*0\.11 mm apart") as caught:
        require_same_grid(grid, moved(grid, (0.11, 0, 0)), what="mask", file="m.nii.gz")
    assert caught.value.reason == "grid_mismatch" and caught.value.file == "m.nii.gz"


def test_a_small_turn_shows_at_the_far_corner():
    grid = Grid((200, 5, 5), np.eye(4))
    affine = np.eye(4)
    affine[:3, :3] = rotation(0, 0, 0.05)
    assert np.allclose(affine[:3, 3], grid.affine[:3, 3])
    with pytest.raises(GeometryError, match=r"0\.17 mm apart"):
        require_same_grid(grid, Grid(grid.shape, affine), what="mask")


def test_another_shape_or_nan_is_never_the_same_grid():
    grid = Grid((5, 5, 5), np.eye(4))
    with pytest.raises(GeometryError, match=r"another shape than the model's crop.*\(5, 5, 6\)"):
        require_same_grid(grid, Grid((5, 5, 6), np.eye(4)), what="mask", reference_name="the model's crop")
    with pytest.raises(GeometryError, match="nan mm apart"):
        require_same_grid(grid, moved(grid, (np.nan, 0, 0)), what="mask")


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.eye(3), "wrong shape.*expected: 4x4; got: \\(3, 3\\)"),
        (np.diag([1, np.nan, 1, 1]), "NaN or infinity"),
        (np.diag([1, np.inf, 1, 1]), "NaN or infinity"),
        (np.diag([1.0, 0.0, 1.0, 1.0]), "singular"),
        (np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "singular"),
    ],
)
def test_unusable_affines_are_refused(affine, message):
    with pytest.raises(GeometryError, match=message) as caught:
        require_usable(affine, "ct.nii.gz")
    assert caught.value.reason == "bad_affine"
    assert str(caught.value).startswith("ct.nii.gz: ")


def test_ordinary_affines_are_usable():
    for degrees in ((0, 0, 0), (30, 44, -20)):
        require_usable(ras_grid(degrees).affine)


def test_with_array_keeps_the_grid_and_refuses_another_shape():
    array, grid = reoriented("LPS")
    volume = Volume.from_source(array, grid)
    assert volume.with_array(np.zeros(RAS_SHAPE)).source is grid
    with pytest.raises(ValueError, match=r"\(4, 5, 6\), got \(6, 5, 4\)"):
        volume.with_array(np.zeros((6, 5, 4)))
