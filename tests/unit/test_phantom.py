"""The phantom's truths hold: sizes, labels, plausibility, and one patient on every grid."""

from __future__ import annotations

import time
from functools import cache
from itertools import pairwise
from typing import Literal

import cc3d
import numpy as np
import pytest

from retroln.imaging.phantom import Phantom, PhantomSpec, make_phantom, shifted_names
from retroln.imaging.phantom.lesions import STATIONS, draw_shape, draw_sizes
from retroln.imaging.phantom.make import make_anatomy
from retroln.imaging.phantom.spec import ORIENTATIONS, Variant

COARSE = (2.0, 2.0, 3.0)
SPINE_IDS = tuple(range(26, 34))


@cache
def coarse(seed: int) -> Phantom:
    return make_phantom(PhantomSpec(seed, COARSE))


def voxel_mm3(phantom: Phantom) -> float:
    return float(np.prod(phantom.ct.grid.spacing_mm))


def heights_mm(phantom: Phantom) -> dict[int, float]:
    return {
        label: float(phantom.ct.grid.world_mm(np.argwhere(phantom.vertebrae.array == label)).mean(0)[2])
        for label in SPINE_IDS
    }


def test_same_spec_gives_the_same_bits_and_another_seed_another_patient() -> None:
    first, again, other = coarse(3), make_phantom(PhantomSpec(3, COARSE)), coarse(4)
    for name in ("ct", "vertebrae", "nodes", "vessels"):
        assert np.array_equal(getattr(first, name).array, getattr(again, name).array)
    assert first.node_table == again.node_table
    assert not np.array_equal(first.vertebrae.array, other.vertebrae.array)


def test_volumes_share_one_grid_with_the_promised_types() -> None:
    phantom = coarse(3)
    assert phantom.ct.array.dtype == np.int16
    assert phantom.ct.array.min() < -900 and phantom.ct.array.max() > 300
    for volume in (phantom.vertebrae, phantom.nodes, phantom.vessels):
        assert volume.array.dtype == np.uint8
        assert volume.array.shape == phantom.ct.array.shape == phantom.ct.grid.shape


@pytest.mark.parametrize("seed", range(6))
def test_vertebrae_are_humanly_plausible(seed: int) -> None:
    phantom = coarse(seed)
    centres = heights_mm(phantom)
    steps = [centres[b] - centres[a] for a, b in pairwise(SPINE_IDS)]
    assert all(20 < step < 42 for step in steps), steps
    for label in SPINE_IDS:
        mask = phantom.vertebrae.array == label
        assert 20e3 < mask.sum() * voxel_mm3(phantom) < 110e3
        assert cc3d.connected_components(mask, connectivity=26).max() == 1


@pytest.mark.parametrize("seed", range(6))
def test_aorta_is_left_and_cava_right_in_front_of_the_spine(seed: int) -> None:
    phantom = coarse(seed)
    l3 = phantom.ct.grid.world_mm(np.argwhere(phantom.vertebrae.array == 29))
    level = np.abs(np.arange(phantom.ct.grid.shape[2]) * 3.0 + phantom.ct.grid.affine[2, 3] - l3[:, 2].mean())
    at_l3 = level < 15

    def centre(label: int) -> np.ndarray:
        return phantom.ct.grid.world_mm(np.argwhere((phantom.vessels.array == label) & at_l3)).mean(0)

    body_x, front_y = np.median(l3[:, 0]), l3[:, 1].max()
    assert centre(52)[0] < body_x < centre(63)[0]
    assert centre(52)[1] > front_y - 5 and centre(63)[1] > front_y - 5
    assert {52, 63, 65, 66, 67, 68} == set(np.unique(phantom.vessels.array)) - {0}


@pytest.mark.parametrize("seed", range(6))
def test_node_labels_agree_with_the_table(seed: int) -> None:
    phantom = coarse(seed)
    labels = phantom.nodes.array
    assert phantom.node_table
    assert sorted(np.unique(labels))[1:] == [node.label for node in phantom.node_table]
    assert cc3d.connected_components(labels > 0, connectivity=26).max() == len(phantom.node_table)
    for node in phantom.node_table:
        where = np.argwhere(labels == node.label)
        centroid = phantom.ct.grid.world_mm(where).mean(0)
        assert np.abs(centroid - node.centroid_world_mm).max() < 1.0
        assert len(where) * voxel_mm3(phantom) == pytest.approx(node.volume_mm3, rel=0.2)
        assert node.station in STATIONS and node.short_axis_mm <= node.long_axis_mm


def test_voxel_measured_axes_approach_the_analytic_ones() -> None:
    phantom = make_phantom(PhantomSpec(5, (0.5, 0.5, 1.0), extent_mm=(140, 140, 240), node_count=4))
    grid = phantom.ct.grid
    assert len(phantom.node_table) == 4
    for node in phantom.node_table:
        where = phantom.nodes.array == node.label
        middle = int(np.argmax(where.sum((0, 1))))
        points = np.argwhere(where[:, :, middle]) * 0.5
        apart = points[:, None] - points[None]
        lengths = np.linalg.norm(apart, axis=2)
        along = apart[np.unravel_index(lengths.argmax(), lengths.shape)] / lengths.max()
        across = points @ np.array([-along[1], along[0]])
        assert lengths.max() == pytest.approx(node.long_axis_mm, abs=1.0)
        assert np.ptp(across) == pytest.approx(node.short_axis_mm, abs=1.3)
        assert grid.orientation == "RAS"


@pytest.mark.parametrize("seed", range(10))
def test_nodes_keep_clear_of_vessels_bone_and_each_other(seed: int) -> None:
    anatomy = make_anatomy(PhantomSpec(seed, node_count=8))
    solid = [part.shape for part in anatomy.parts if part.solid]
    rng = np.random.default_rng(0)
    sphere = rng.normal(size=(300, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    assert len(anatomy.nodes) == 8
    for node in anatomy.nodes:
        surface = sphere @ np.linalg.inv(node.shape.to_unit).T + node.shape.centre
        depth = min(float(shape.distance(*surface.T).min()) for shape in solid)
        assert depth > -0.6
        others = [other.shape for other in anatomy.nodes if other is not node]
        assert min(float(shape.distance(*surface.T).min()) for shape in others) > 3.5


def test_sizes_follow_the_public_distribution() -> None:
    sizes = draw_sizes(np.random.default_rng(1), 20_000)
    short, ratio = sizes[:, 0], sizes[:, 1] / sizes[:, 0]
    assert np.percentile(short, [5, 50, 95]) == pytest.approx([8.4, 12.61, 26.15], rel=0.03)
    assert (short >= 10).mean() == pytest.approx(0.787, abs=0.02)
    assert np.median(ratio) == pytest.approx(1.219, rel=0.02)
    assert np.corrcoef(np.log(short), np.log(ratio))[0, 1] == pytest.approx(-0.11, abs=0.04)


def test_a_drawn_shape_has_the_drawn_axial_section() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        shape = draw_shape(rng, 9.0, 13.0)
        section = np.linalg.inv((shape.to_unit.T @ shape.to_unit)[:2, :2])
        assert 2 * np.sqrt(np.linalg.eigvalsh(section)) == pytest.approx([9.0, 13.0])


@pytest.mark.parametrize("orientation", sorted(ORIENTATIONS))
def test_every_orientation_holds_the_same_patient(orientation: str) -> None:
    spec = {"seed": 2, "spacing_mm": (6.0, 7.0, 8.0)}
    ras, turned = (
        make_phantom(PhantomSpec(**spec)),
        make_phantom(PhantomSpec(**spec, orientation=orientation)),
    )
    assert turned.ct.source.orientation == orientation
    assert np.array_equal(turned.ct.array, ras.ct.array)
    assert np.array_equal(turned.vertebrae.to_source(), turned.vertebrae.axes.from_ras(ras.vertebrae.array))
    assert turned.ct.to_source().shape == turned.ct.source.shape
    rebuilt = type(turned.ct).from_source(turned.ct.to_source(), turned.ct.source)
    assert np.allclose(rebuilt.grid.affine, ras.ct.grid.affine)
    assert np.array_equal(rebuilt.array, ras.ct.array)


@pytest.mark.parametrize(
    "change", [{"spacing_mm": (1.5, 1.0, 2.0)}, {"tilt_deg": 15.0}, {"phase": "native"}, {"node_free": True}]
)
def test_the_world_anatomy_does_not_depend_on_the_grid(change: dict[str, object]) -> None:
    spec = {"seed": 7, "spacing_mm": COARSE}
    one, two = make_phantom(PhantomSpec(**spec)), make_phantom(PhantomSpec(**(spec | change)))
    for name, labels in (("vertebrae", (28, 29, 30)), ("vessels", (52, 63))):
        a, b = getattr(one, name), getattr(two, name)
        for label in labels:
            points = a.grid.world_mm(np.argwhere(a.array == label))
            to_index = np.linalg.inv(b.grid.affine)
            index = np.round(points @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
            inside = ((index >= 0) & (index < b.grid.shape)).all(1)
            hit = b.array[tuple(index[inside].T)] == label
            assert inside.mean() > 0.8 and hit.mean() > 0.8
    if "node_free" not in change:
        centroids = [[n.centroid_world_mm for n in p.node_table] for p in (one, two)]
        assert centroids[0] == centroids[1]


def test_a_tilted_grid_is_oblique_and_keeps_its_spacing() -> None:
    grid = make_phantom(PhantomSpec(1, (4.0, 4.0, 5.0), tilt_deg=20.0)).ct.grid
    assert grid.spacing_mm == pytest.approx((4.0, 4.0, 5.0))
    assert np.degrees(np.arctan2(grid.affine[2, 1], grid.affine[1, 1])) == pytest.approx(20.0)


def test_a_cut_field_of_view_is_the_same_scan_cropped() -> None:
    whole = coarse(3)
    part = make_phantom(PhantomSpec(3, COARSE, field_of_view=(0.3, 0.8)))
    low, high = round(0.3 * 110), round(0.8 * 110)
    assert np.array_equal(part.vertebrae.array, whole.vertebrae.array[:, :, low:high])
    assert np.allclose(part.ct.grid.world_mm(np.zeros(3)), whole.ct.grid.world_mm(np.array([0, 0, low])))
    assert {n.label for n in part.node_table} == set(np.unique(part.nodes.array)) - {0}


def test_node_free_and_counted_nodes() -> None:
    free = make_phantom(PhantomSpec(3, COARSE, node_free=True))
    assert free.node_table == () and not free.nodes.array.any()
    assert len(make_phantom(PhantomSpec(3, COARSE, node_count=1)).node_table) == 1


def test_missing_and_fused_levels() -> None:
    missing = make_phantom(PhantomSpec(3, COARSE, missing_levels=("L2", "T12")))
    assert set(np.unique(missing.vertebrae.array)) == {0, *SPINE_IDS} - {30, 32}
    fused = make_phantom(PhantomSpec(3, COARSE, fused_l2=True))
    assert 29 not in fused.vertebrae.array
    assert (fused.vertebrae.array == 30).sum() > 1.9 * (coarse(3).vertebrae.array == 30).sum()


def test_names_change_the_label_map_alone() -> None:
    high = make_phantom(PhantomSpec(3, COARSE, level_names=shifted_names(1)))
    usual = coarse(3)
    assert np.array_equal(high.ct.array, usual.ct.array)
    assert np.array_equal(high.vertebrae.array == 31, usual.vertebrae.array == 30)  # L2 is called L1
    assert np.array_equal(high.vertebrae.array == 27, usual.vertebrae.array == 26)  # S1 is called L5
    assert set(np.unique(high.vertebrae.array)) == {0, *range(27, 34)}
    assert shifted_names(0) == PhantomSpec(3).level_names


def _width_mm(phantom: Phantom, label: int) -> float:
    return float(np.ptp(np.argwhere(phantom.vertebrae.array == label)[:, 0]) * COARSE[0])


@pytest.mark.parametrize(
    ("variant", "label", "wider"),
    [("l6", 32, True), ("lumbar_rib", 31, False), ("sacralised_l5", 27, True)],
)
def test_a_variant_changes_the_vertebra_that_it_is_about(variant: Variant, label: int, wider: bool) -> None:
    other = make_phantom(PhantomSpec(3, COARSE, variant=variant))
    widths = _width_mm(other, label), _width_mm(coarse(3), label)
    assert (widths[0] > 1.1 * widths[1]) if wider else (widths[0] < 0.8 * widths[1])
    for same in {28, 29, 30}:
        assert _width_mm(other, same) == _width_mm(coarse(3), same)


@pytest.mark.parametrize(
    ("variant", "labels", "vertebra"),
    [
        ("usual", "twelfth", 32),
        ("l6", "twelfth", 33),
        ("lumbar_rib", "twelfth", 32),
        ("lumbar_rib", "lowest", 31),
    ],
)
def test_labelled_ribs_start_at_their_vertebra(
    variant: Variant, labels: Literal["twelfth", "lowest"], vertebra: int
) -> None:
    phantom = make_phantom(PhantomSpec(3, COARSE, variant=variant, rib_labels=labels))
    heights = heights_mm(phantom)
    for rib in (103, 115):
        points = phantom.ct.grid.world_mm(np.argwhere(phantom.vertebrae.array == rib))
        start = points[np.abs(points[:, 0]).argsort()[:20]].mean(0)
        assert min(heights, key=lambda label: abs(heights[label] - start[2])) == vertebra
        assert (start[0] < 0) == (rib == 103)


def test_contrast_phase_lifts_the_aorta() -> None:
    means = {
        phase: float(p.ct.array[p.vessels.array == 52].mean())
        for phase in ("native", "portal", "arterial")
        for p in [make_phantom(PhantomSpec(3, COARSE, phase=phase))]  # type: ignore[arg-type]
    }
    assert means["native"] < 70 < 100 < means["portal"] < means["arterial"]


def test_node_attenuation_overlaps_bowel_and_unenhanced_vessels() -> None:
    nodes = np.concatenate([coarse(s).ct.array[coarse(s).nodes.array > 0] for s in range(4)])
    cava = np.concatenate([coarse(s).ct.array[coarse(s).vessels.array == 67] for s in range(4)])
    assert np.percentile(nodes, 90) > np.percentile(cava, 15)


@pytest.mark.parametrize(
    "bad",
    [
        {"orientation": "RRS"},
        {"phase": "late"},
        {"tilt_deg": 60.0},
        {"field_of_view": (0.5, 0.5)},
        {"spacing_mm": (0.0, 1.0, 1.0)},
        {"level_names": ("L1", "L2")},
        {"level_names": ("L6",) * 8},
    ],
)
def test_a_meaningless_spec_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        PhantomSpec(1, **bad)  # type: ignore[arg-type]


def test_a_coarse_phantom_is_quick() -> None:
    begin = time.process_time()
    make_phantom(PhantomSpec(11, COARSE))
    assert time.process_time() - begin < 4
