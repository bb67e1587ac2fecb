"""Node masks as SEG or RTSTRUCT: voxel for voxel on the series' grid, or refused."""

from __future__ import annotations

from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from retroln.errors import InputError
from retroln.imaging.dicom.masks import read_mask, referenced_series
from retroln.imaging.dicom.structures import rasterise
from retroln.imaging.dicom.study import Series, open_study
from retroln.settings import Settings
from tests.dicom_masks import rectangle, segmentation, structure_set
from tests.dicom_series import Made, ct_array, lps_grid, rotated, series, write

NAMES = Settings.model_fields["mask_names"].default
SHAPE = (23, 19, 12)  # 437 pixels: frames of bits do not end on a byte


def _labels() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:7, 4:9, 2:5] = 1
    labels[15:20, 10:14, 6:9] = 2
    labels[17, 12, 7] = 0
    return labels


def _series(folder: Path, grid_rotation: np.ndarray | None = None) -> tuple[Series, list[Dataset]]:
    datasets = series(ct_array(SHAPE), lps_grid(SHAPE, rotation=grid_rotation))
    write(folder, datasets)
    (found,) = open_study(folder.iterdir()).series
    return found, datasets


def _saved(folder: Path, dataset: Dataset) -> Path:
    path = folder.parent / "mask.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "series"


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        ("BINARY", ExplicitVRLittleEndian),
        ("FRACTIONAL", ExplicitVRLittleEndian),
        ("FRACTIONAL", RLELossless),
        ("LABELMAP", ExplicitVRLittleEndian),
        ("LABELMAP", RLELossless),
    ],
)
def test_a_segmentation_comes_back_voxel_for_voxel(folder: Path, kind: str, syntax: str) -> None:
    found, datasets = _series(folder, rotated((4.0, 0.0, 0.0)))
    labels = _labels() if kind != "FRACTIONAL" else (_labels() > 0).astype(np.uint8)
    names = ("Lymph node 1", "Lymph node 2")[: labels.max()]
    made = segmentation(datasets, labels, names, kind=kind, transfer_syntax=syntax)
    assert int(made.NumberOfFrames) < 12 * 2
    volume = read_mask(_saved(folder, made), found, NAMES)
    assert np.array_equal(volume.to_source(), labels)
    assert volume.grid.distance_mm(found.volume().grid) == 0


def test_segments_are_told_by_their_names(folder: Path) -> None:
    found, datasets = _series(folder)
    path = _saved(folder, segmentation(datasets, _labels(), ("Aorta", "Lymph node left")))
    assert np.array_equal(read_mask(path, found, NAMES).to_source(), _labels() == 2)
    assert np.array_equal(read_mask(path, found, "(?i)aorta").to_source(), _labels() == 1)
    with pytest.raises(InputError, match="2, of which 0 fit") as caught:
        read_mask(path, found, "kidney")
    assert caught.value.reason == "mask_segments"
    assert "Aorta" not in str(caught.value)


def test_the_only_segment_counts_whatever_its_name(folder: Path) -> None:
    found, datasets = _series(folder)
    labels = (_labels() > 0).astype(np.uint8)
    path = _saved(folder, segmentation(datasets, labels, ("Region 1",)))
    assert np.array_equal(read_mask(path, found, NAMES).to_source(), labels)


def test_a_segmentation_stored_turned_lies_in_the_same_place(folder: Path) -> None:
    """Rows and columns swapped and rows upside down: what counts is where the frame says it lies."""
    found, _ = _series(folder)
    labels = (_labels() > 0).astype(np.uint8)
    grid = lps_grid(SHAPE)
    turned = grid.affine @ np.array([[0, 1, 0, 0], [-1, 0, 0, SHAPE[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    # index (a, b, k) of the turned array is (b, rows - 1 - a, k) of the grid
    other = np.array([[labels[b, SHAPE[1] - 1 - a] for b in range(SHAPE[0])] for a in range(SHAPE[1])])
    sources = series(np.zeros(other.shape, np.int16), type(grid)(other.shape, turned))
    path = _saved(folder, segmentation(sources, other))
    assert np.array_equal(read_mask(path, found, NAMES).to_source(), labels)


def test_structure_sets_are_filled_by_centres_with_holes(folder: Path) -> None:
    found, _ = _series(folder, rotated((0.0, 3.0, 0.0)))
    grid = found.require_usable().grid
    nodes = [
        rectangle((2.5, 6.5), (3.5, 8.5), 2),
        rectangle((2.5, 6.5), (3.5, 8.5), 3),
        rectangle((10.5, 18.5), (9.5, 15.5), 5),
        rectangle((12.5, 14.5), (11.5, 13.5), 5),  # a hole
    ]
    path = _saved(folder, structure_set([("LN para-aortic", nodes), ("Kidney", [nodes[0]])], grid))
    expected = np.zeros(SHAPE, np.uint8)
    expected[3:7, 4:9, 2:4] = 1
    expected[11:19, 10:16, 5] = 1
    expected[13:15, 12:14, 5] = 0
    assert np.array_equal(read_mask(path, found, NAMES).to_source(), expected)


def test_overlapping_rois_keep_the_lower_number(folder: Path) -> None:
    found, _ = _series(folder)
    grid = found.require_usable().grid
    first, second = rectangle((1.5, 6.5), (1.5, 6.5), 4), rectangle((4.5, 9.5), (1.5, 6.5), 4)
    path = _saved(folder, structure_set([("node a", [first]), ("node b", [second])], grid))
    found_labels = read_mask(path, found, NAMES).to_source()[:, :, 4]
    assert (found_labels[2:7, 2:7] == 1).all() and (found_labels[7:10, 2:7] == 2).all()
    assert np.count_nonzero(found_labels) == 25 + 15


def _odd_even(polygon: np.ndarray, x: float, y: float) -> bool:
    """Crossings of a ray to the left, edge by edge."""
    inside = False
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if (y0 > y) != (y1 > y) and (x1 - x0) * (y - y0) / (y1 - y0) + x0 < x:
            inside = not inside
    return inside


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(-3, 12), st.floats(-3, 10)), min_size=3, max_size=9),
        min_size=1,
        max_size=3,
    )
)
def test_rasterising_is_the_even_odd_rule_at_each_centre(polygons: list[list[tuple[float, float]]]) -> None:
    # a little off the grid: centres on an edge are another test's
    shapes = [np.round(np.array(points), 2) + np.array([0.00137, 0.00291]) for points in polygons]
    found = rasterise(shapes, (10, 8))
    for i, j in product(range(10), range(8)):
        assert found[i, j] == sum(_odd_even(shape, i, j) for shape in shapes) % 2


def test_pieces_of_a_plane_share_no_centre_and_leave_none_out() -> None:
    """Edges through the centres: each belongs to one side, so four quarters make the whole."""
    corners = [0.0, 4.0, 9.0]
    pieces = [
        rasterise([np.array([[a, c], [b, c], [b, d], [a, d]])], (10, 10)).astype(int)
        for a, b in pairwise(corners)
        for c, d in pairwise(corners)
    ]
    total = np.sum(pieces, axis=0)
    assert (total[:9, :9] == 1).all() and total.sum() == 81


def test_a_mask_of_another_series_is_refused(folder: Path, tmp_path: Path) -> None:
    found, _ = _series(folder)
    others = (Made(number=8), Made(study=2))
    for made in others:
        datasets = series(ct_array(SHAPE), lps_grid(SHAPE), made)
        labels = (_labels() > 0).astype(np.uint8)
        for mask in (
            segmentation(datasets, labels),
            structure_set([("node", [rectangle((1.5, 6.5), (1.5, 6.5), 4)])], lps_grid(SHAPE), made),
        ):
            path = _saved(folder, mask)
            assert referenced_series(path) == {made.series_uid}
            with pytest.raises(InputError, match="another series") as caught:
                read_mask(path, found, NAMES)
            assert caught.value.reason == "mask_reference"


def test_a_segmentation_beside_the_grid_is_refused_in_millimetres(folder: Path) -> None:
    found, _ = _series(folder)
    moved = lps_grid(SHAPE, origin_mm=(100.0, 150.4, -300.0))
    path = _saved(folder, segmentation(series(ct_array(SHAPE), moved), (_labels() > 0).astype(np.uint8)))
    with pytest.raises(InputError, match=r"0\.40 mm off") as caught:
        read_mask(path, found, NAMES)
    assert caught.value.reason == "grid_mismatch"


@pytest.mark.parametrize(
    ("k", "kind", "mentions"), [(4.3, "CLOSED_PLANAR", "0.60 mm"), (4.0, "POINT", "another type")]
)
def test_contours_that_cannot_be_drawn_are_refused(folder: Path, k: float, kind: str, mentions: str) -> None:
    found, _ = _series(folder)
    grid = found.require_usable().grid
    mask = structure_set([("node", [rectangle((1.5, 6.5), (1.5, 6.5), k)])], grid, geometric_type=kind)
    with pytest.raises(InputError, match=mentions) as caught:
        read_mask(_saved(folder, mask), found, NAMES)
    assert caught.value.reason == "mask_contours"


def test_an_image_is_no_mask(folder: Path) -> None:
    found, datasets = _series(folder)
    with pytest.raises(InputError, match="SEG") as caught:
        read_mask(_saved(folder, datasets[0]), found, NAMES)
    assert caught.value.reason == "not_a_mask"


def test_a_cut_segmentation_is_truncated(folder: Path) -> None:
    found, datasets = _series(folder)
    path = _saved(folder, segmentation(datasets, (_labels() > 0).astype(np.uint8)))
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError) as caught:
        read_mask(path, found, NAMES)
    assert caught.value.reason == "truncated"
