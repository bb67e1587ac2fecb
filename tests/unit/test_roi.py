"""Region: the definition, voxel by voxel, against exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from spine import grid_ras, reoriented, spine, spine_labels

from retroln.anatomy import roi
from retroln.anatomy.landmarks import Assessment, L2Reference, Ruling, assess
from retroln.anatomy.vertebrae import LEVEL_ORDER, Level, Vertebrae
from retroln.errors import InputError, LandmarkError
from retroln.imaging.geometry import Grid, VoxelBox
from retroln.imaging.volume import Volume
from retroln.settings import Hu, RoiSpec


def _located(found: Vertebrae, spec: RoiSpec | None = None) -> roi.Roi:
    return roi.locate(found, assess(found, unanchored="accept"), spec or RoiSpec())


def _meets(count: int, low: Fraction, high: Fraction) -> tuple[int, int]:
    """First and one past the last index whose closed extent meets [low, high], by trying each."""
    half = Fraction(1, 2)
    hits = [i for i in range(-count, 2 * count) if i + half >= low and i - half <= high]
    return hits[0], hits[-1] + 1


def test_box_of_the_block_spine() -> None:
    found = _located(spine())
    # centre 29.5 -+ 75/4 voxels; margin 18 - 30/4 to 18 + 150/4; T12 to L5
    assert found.unclamped == VoxelBox((11, 10, 12), (49, 57, 75))
    assert found.box == found.unclamped
    assert found.clamped_sides == ()
    assert found.rung == "l2"


@pytest.mark.parametrize("spacing", ["0.8", "0.789", "0.5", "1", "1.5", "2.5", "3", "4", "0.9765625"])
@pytest.mark.parametrize("as_stored", [False, True])
@pytest.mark.parametrize(("margin", "centre"), [(200.0, 256.0), (200.5, 255.25)])
def test_voxels_belong_by_their_closed_extent(
    spacing: str, as_stored: bool, margin: float, centre: float
) -> None:
    side = float(np.float32(spacing)) if as_stored else float(spacing)
    place = grid_ras((600, 900, 90), (side, side, 3.0))
    template = assess(spine(), unanchored="accept")
    assessment = Assessment(**{**template.__dict__, "l2": L2Reference(45, 52, margin, centre)})
    found = roi.locate(Vertebrae(place, spine().levels, 0, place), assessment, RoiSpec()).unclamped
    exact = Fraction(spacing)
    x = _meets(900, Fraction(centre) - 75 / exact, Fraction(centre) + 75 / exact)
    y = _meets(900, Fraction(margin) - 30 / exact, Fraction(margin) + 150 / exact)
    assert (found.start, found.stop) == ((x[0], y[0], 12), (x[1], y[1], 75))


def test_t11_and_s1_do_not_widen_the_region() -> None:
    few = spine_labels(levels=(Level.T11, Level.L1, Level.L2, Level.L3, Level.S1))
    assert _located(spine(few)).box.start[2] == 34
    assert _located(spine(few)).box.stop[2] == 64


def test_sizes_come_from_the_spec() -> None:
    found = _located(spine(), RoiSpec(behind_mm=8, ahead_mm=12, lateral_mm=16))
    assert found.box == VoxelBox((27, 16, 12), (33, 22, 75))


@pytest.mark.parametrize(
    ("cut", "sides"),
    [
        ((slice(15, 60), slice(0, 60)), ("left",)),
        ((slice(0, 40), slice(0, 60)), ("right",)),
        ((slice(0, 60), slice(12, 60)), ("posterior",)),
        ((slice(0, 60), slice(0, 30)), ("anterior",)),
        ((slice(15, 40), slice(12, 30)), ("left", "right", "posterior", "anterior")),
    ],
)
def test_clamped_sides_are_named(cut: tuple[slice, slice], sides: tuple[str, ...]) -> None:
    labels = np.asfortranarray(spine_labels()[cut])
    found = _located(spine(labels))
    assert found.clamped_sides == sides
    assert found.box == found.unclamped.clamp(labels.shape)


def test_an_extent_given_beyond_the_scan_is_clamped_and_said() -> None:
    whole = spine()
    x, y, z, low, high = (
        *map(float, whole.grid.world_mm(np.array([29.5, 18, 48.5]))),
        *(float(whole.grid.world_mm(np.array([0, 0, k]))[2]) for k in (-10, 92)),
    )
    ruling = Ruling("Dr A", l2_world_mm=(x, y, z), extent_world_mm=(low, high))
    found = roi.locate(whole, assess(whole, unanchored="accept", ruling=ruling), RoiSpec())
    assert found.unclamped == VoxelBox((11, 10, -10), (49, 57, 93))
    assert found.box == VoxelBox((11, 10, 0), (49, 57, 90))
    assert found.clamped_sides == ("inferior", "superior")
    assert roi.from_json(roi.to_json(found)).unclamped == found.unclamped


def test_box_beside_the_scan_is_refused() -> None:
    template = assess(spine(), unanchored="accept")
    astray = Assessment(**{**template.__dict__, "l2": L2Reference(45, 52, 18, -400.0)})
    with pytest.raises(LandmarkError) as caught:
        roi.locate(spine(), astray, RoiSpec())
    assert caught.value.reason == "l2_unresolved"


def _mask(*boxes: tuple[slice, slice, slice], labels: tuple[int, ...] = ()) -> Volume:
    array = np.zeros((60, 60, 90), np.uint8)
    for i, box in enumerate(boxes):
        array[box] = labels[i] if labels else 1
    return Volume(array, grid_ras(), grid_ras())


def test_containment_counts_each_node() -> None:
    box = VoxelBox((11, 10, 12), (49, 57, 75))
    inside = (slice(20, 23), slice(20, 22), slice(20, 21))
    half = (slice(47, 51), slice(20, 22), slice(40, 41))
    outside = (slice(20, 22), slice(20, 22), slice(80, 82))
    found = roi.containment(_mask(inside, half, outside), box)
    assert (found.inside_voxels, found.total_voxels) == (10, 22)
    assert found.share == 10 / 22
    assert sorted((node.voxels, node.inside) for node in found.nodes) == [(6, 6), (8, 0), (8, 4)]


def test_nodes_that_touch_by_a_corner_are_one_unless_labelled_apart() -> None:
    a, b = (slice(20, 22),) * 3, (slice(22, 24),) * 3
    box = VoxelBox((0, 0, 0), (60, 60, 90))
    assert len(roi.containment(_mask(a, b), box).nodes) == 1
    assert len(roi.containment(_mask(a, b, labels=(1, 2)), box).nodes) == 2


def test_a_case_without_nodes_is_contained() -> None:
    found = roi.containment(_mask(), VoxelBox((0, 0, 0), (1, 1, 1)))
    assert (found.share, found.nodes) == (1.0, ())


def test_paste_is_in_delivered_order_and_zero_outside() -> None:
    whole = Volume(spine_labels(), grid_ras(), grid_ras())
    delivered = reoriented(whole, "PIR")
    template = _located(spine())
    region = roi.Roi(**{**template.__dict__, "source": delivered.source})
    crop = whole.crop(region.box).array
    back = roi.paste(crop, region)
    expected = np.zeros_like(whole.array)
    expected[region.box.slices] = crop
    assert back.shape == delivered.source.shape
    assert back.dtype == np.uint8
    assert np.array_equal(back, delivered.with_array(expected).to_source())


def test_paste_refuses_another_shape() -> None:
    with pytest.raises(ValueError, match="crop must be"):
        roi.paste(np.zeros((2, 2, 2), np.uint8), _located(spine()))


def test_record_returns_the_same_region() -> None:
    region = _located(spine(), RoiSpec(lateral_mm=300))
    record = roi.to_json(region, containment=roi.Containment(1, 2, ()), hu=Hu())
    back = roi.from_json(record)
    assert (back.box, back.unclamped) == (region.box, region.unclamped)
    assert (back.clamped_sides, back.rung, back.spec) == (("left", "right"), "l2", region.spec)
    assert np.array_equal(back.grid.affine, region.grid.affine)
    assert np.array_equal(back.source.affine, region.source.affine)
    assert record["hu_window"] == [-1000.0, 400.0]
    assert record["containment"]["share"] == 0.5


def test_record_names_the_outer_corners_in_world_mm() -> None:
    corners = np.array(roi.to_json(_located(spine()))["corners_world_mm"])
    np.testing.assert_allclose(corners.min(0), (-100 + 10.5 * 4, -50 + 9.5 * 4, 20 + 11.5 * 3))
    np.testing.assert_allclose(corners.max(0), (-100 + 48.5 * 4, -50 + 56.5 * 4, 20 + 74.5 * 3))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"box_voxel": {"start": [0, 0, 0], "stop": [61, 60, 90]}},
        {"box_voxel": {"start": [5, 5, 5], "stop": [5, 9, 9]}},
        {"box_voxel": {"start": [5, 5], "stop": [5, 9, 9]}},
        {"grid": {"shape": [60, 60, 91], "affine": np.eye(4).tolist()}},
        {"source": {"shape": [60, 60, 90], "affine": [[1]]}},
        {"spec": {"lateral_mm": -1}},
    ],
)
def test_spoilt_records_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        roi.from_json({**roi.to_json(_located(spine())), **change})
    assert caught.value.reason == "bad_roi"


def test_default_source_is_that_of_the_vertebrae() -> None:
    volume = reoriented(Volume(spine_labels(), grid_ras(), grid_ras()), "LPS")
    found = Vertebrae.from_label_map(volume, "totalseg-v2")
    assessment = assess(found, unanchored="accept")
    assert roi.locate(found, assessment, RoiSpec()).source is volume.source
    other = Grid((60, 60, 90), np.eye(4))
    assert roi.locate(found, assessment, RoiSpec(), other).source is other


def test_region_spans_the_levels_that_the_assessment_allows() -> None:
    template = assess(spine(), unanchored="accept")
    fewer = Assessment(**{**template.__dict__, "levels": LEVEL_ORDER[2:5]})
    box = roi.locate(spine(), fewer, RoiSpec()).box
    assert (box.start[2], box.stop[2]) == (34, 64)
