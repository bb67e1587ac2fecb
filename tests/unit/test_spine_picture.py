"""The picture of the vertebrae shows each level where it lies, in radiological display."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from spine import V2, grid_ras, spine, spine_labels

from retroln.anatomy.vertebrae import LEVEL_ORDER, Level, Vertebrae
from retroln.imaging.volume import Volume
from retroln.report import spine_picture as module
from retroln.report.spine_picture import spine_picture

PIXEL_MM = 1.0
TITLE, NAMES, GAP = module._TITLE_PX, module._NAMES_PX, module._GAP_PX


def _drawn(vertebrae: Vertebrae, hu: int = 0) -> np.ndarray:
    place = vertebrae.grid
    ct = Volume(np.full(place.shape, hu, np.int16), place, place)
    png = spine_picture(ct, vertebrae, title="CASE, revision 1: unanchored", pixel_mm=PIXEL_MM)
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def _rows_of(picture: np.ndarray, colour: tuple[int, int, int], columns: slice) -> np.ndarray:
    return np.flatnonzero((picture[:, columns] == colour).all(axis=2).any(axis=1))


def test_levels_stand_in_order_and_at_scale() -> None:
    found = spine()
    picture = _drawn(found)
    # both cuts span all slices from 45 mm below S1 to 45 mm above T11, clamped to the 270 mm of the scan
    assert picture.shape[0] == TITLE + 270
    sagittal = slice(NAMES, picture.shape[1] // 2)
    for number, level in enumerate(LEVEL_ORDER[:4]):  # the four colours come once
        rows = _rows_of(picture, module._COLOURS[number], sagittal)
        top = TITLE + (90 - found.levels[level].box.stop[2]) * 3
        assert rows.min() == pytest.approx(top, abs=2)


def test_anterior_is_left_in_the_sagittal_and_right_is_left_in_the_coronal_cut() -> None:
    labels = spine_labels(levels=(Level.L2,))
    labels[36:40, 9:19, 45:53] = V2[Level.L2]  # to the right
    picture = _drawn(spine(labels))
    colour = module._COLOURS[0]
    hit = (picture == colour).all(axis=2).sum(axis=0) > 1  # the line to the name is one pixel high
    # voxels of 4 mm: front to back 9..18 with 45 mm more in front and all there is behind; across 24..39
    depth, width = 31 * 4, 40 * 4
    sagittal, coronal = hit[NAMES : NAMES + depth], hit[depth + 2 * NAMES + GAP :]
    assert np.flatnonzero(sagittal)[0] == pytest.approx(45, abs=5)
    assert len(coronal) == width
    assert np.flatnonzero(coronal)[0] == pytest.approx(45, abs=5)


def test_a_stray_piece_is_seen_in_the_shadow() -> None:
    labels = spine_labels(levels=(Level.L2, Level.L3))
    labels[50:53, 9:19, 70:73] = V2[Level.L2]
    rows = _rows_of(_drawn(spine(labels)), module._COLOURS[0], slice(NAMES, None))
    strays = rows[rows < TITLE + (73 + 15 - 53) * 3]
    assert strays.size


def test_without_levels_the_middle_of_the_scan_is_shown() -> None:
    empty = spine(np.zeros((60, 60, 90), np.uint8))
    picture = _drawn(empty, hu=250)
    assert picture.shape == (TITLE + 270, 2 * (NAMES + 240) + GAP, 3)
    assert (picture[TITLE + 30 : TITLE + 60, NAMES + 30 : NAMES + 60] == 128).all()


def test_a_ct_of_another_shape_is_a_bug() -> None:
    place = grid_ras((10, 10, 10))
    with pytest.raises(ValueError, match="CT must be"):
        spine_picture(Volume(np.zeros((10, 10, 10), np.int16), place, place), spine())
