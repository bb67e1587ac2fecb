"""Crop then paste back is the identity inside the box, for any grid, orientation and box."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from spine import ORIENTATIONS, reoriented

from retroln.anatomy import roi
from retroln.imaging import nifti
from retroln.imaging.geometry import Grid, VoxelBox
from retroln.imaging.volume import Volume, occupied_box
from retroln.settings import RoiSpec

_spacing = st.floats(0.3, 5.0)
_angle = st.floats(-22.0, 22.0)
_side = st.integers(1, 7)


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    """Random voxels on an oblique grid, delivered in any of the 48 orientations."""
    shape = draw(st.tuples(_side, _side, _side))
    spacing = draw(st.tuples(_spacing, _spacing, _spacing))
    angles = draw(st.tuples(_angle, _angle, _angle))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * np.array(spacing)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-800, 800)] * 3))
    dtype = draw(st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32]))
    voxels = np.random.default_rng(draw(st.integers(0, 999))).integers(0, 250, shape).astype(dtype)
    grid = Grid(shape, affine)
    return reoriented(Volume(np.asfortranarray(voxels), grid, grid), draw(st.sampled_from(ORIENTATIONS)))


@st.composite
def regions(draw: st.DrawFn) -> tuple[Volume, roi.Roi]:
    """A volume and a box in it."""
    volume = draw(volumes())
    start = tuple(draw(st.integers(0, n - 1)) for n in volume.grid.shape)
    stop = tuple(draw(st.integers(lo + 1, n)) for lo, n in zip(start, volume.grid.shape, strict=True))
    box = VoxelBox(start, stop)  # type: ignore[arg-type]
    return volume, roi.Roi(box, box, (), volume.grid, volume.source, RoiSpec(), "l2")


@settings(deadline=None)
@given(regions())
def test_paste_undoes_crop_in_memory(case: tuple[Volume, roi.Roi]) -> None:
    volume, region = case
    back = Volume.from_source(roi.paste(volume.crop(region.box).array, region), region.source)
    assert np.array_equal(back.array[region.box.slices], volume.array[region.box.slices])
    assert np.count_nonzero(back.array) == np.count_nonzero(volume.array[region.box.slices])


@settings(deadline=None)
@given(regions())
def test_paste_undoes_crop_through_files_and_record(case: tuple[Volume, roi.Roi]) -> None:
    volume, region = case
    with tempfile.TemporaryDirectory() as name:
        whole, cut, back = (Path(name) / f"{part}.nii.gz" for part in ("whole", "cut", "back"))
        nifti.write_source(whole, volume)
        delivered = nifti.read(whole)
        assert np.array_equal(delivered.array, volume.array)
        crop = delivered.crop(region.box)
        nifti.write(cut, crop.array, crop.grid)
        record = roi.from_json(roi.to_json(region))
        nifti.write(back, roi.paste(nifti.read(cut).array, record), record.source)
        returned = nifti.read(back)
    assert returned.array.dtype == volume.array.dtype
    assert returned.source.distance_mm(delivered.source) < 1e-3
    expected = np.zeros_like(volume.array)
    expected[region.box.slices] = volume.array[region.box.slices]
    assert np.array_equal(returned.array, expected)


@settings(deadline=None)
@given(regions(), st.tuples(*[st.floats(0, 1)] * 3))
def test_a_voxel_keeps_its_place_in_the_world(
    case: tuple[Volume, roi.Roi], where: tuple[float, float, float]
) -> None:
    volume, region = case
    inner = np.array([int(f * (n - 1)) for f, n in zip(where, region.box.shape, strict=True)])
    in_crop = volume.crop(region.box).grid.world_mm(inner)
    in_scan = volume.grid.world_mm(inner + np.array(region.box.start))
    np.testing.assert_allclose(in_crop, in_scan, atol=1e-9)
    corners = region.box.corners_world_mm(region.grid)
    middle = volume.grid.world_mm((np.array(region.box.start) + np.array(region.box.stop) - 1) / 2)
    np.testing.assert_allclose(corners.mean(0), middle, atol=1e-6)


@settings(deadline=None)
@given(volumes(), st.integers(0, 250))
def test_occupied_box_is_the_smallest_that_holds_all(volume: Volume, above: int) -> None:
    mask = volume.array > above
    found = occupied_box(mask)
    index = np.argwhere(mask)
    if found is None:
        assert not len(index)
    else:
        assert found.start == tuple(index.min(0))
        assert found.stop == tuple(index.max(0) + 1)


@settings(deadline=None)
@given(regions())
def test_containment_counts_every_voxel_once(case: tuple[Volume, roi.Roi]) -> None:
    volume, region = case
    mask = volume.with_array((volume.array > 180).astype(np.uint8))
    found = roi.containment(mask, region.box)
    assert found.total_voxels == np.count_nonzero(mask.array)
    assert found.inside_voxels == np.count_nonzero(mask.array[region.box.slices])
    assert sum(node.voxels for node in found.nodes) == found.total_voxels
    assert sum(node.inside for node in found.nodes) == found.inside_voxels
