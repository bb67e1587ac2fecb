"""A spine of blocks with known answers, for tests of landmarks, region, crop and paste."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from retroln.anatomy.vertebrae import LEVEL_ORDER, Level, Vertebrae
from retroln.imaging.geometry import Grid
from retroln.imaging.volume import Volume

ORIENTATIONS = tuple(
    "".join(letters[sign] for letters, sign in zip(axes, signs, strict=True))
    for axes in permutations(("LR", "PA", "IS"))
    for signs in product((0, 1), repeat=3)
)
V2 = {level: 33 - i for i, level in enumerate(LEVEL_ORDER)}


def grid_ras(
    shape: tuple[int, int, int] = (60, 60, 90),
    spacing_mm: tuple[float, float, float] = (4.0, 4.0, 3.0),
    origin_mm: tuple[float, float, float] = (-100.0, -50.0, 20.0),
) -> Grid:
    """An axis-parallel RAS+ grid."""
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = origin_mm
    return Grid(shape, affine)


def spine_labels(
    shape: tuple[int, int, int] = (60, 60, 90), levels: tuple[Level, ...] = LEVEL_ORDER
) -> NDArray[np.uint8]:
    """Blocks of 12 x 10 x 8 voxels (46 ml at 4x4x3 mm), one level every 11 slices, S1 lowest at slice 1.

    Level i from the top spans x 24..35, y 12 - i .. 21 - i and z 78 - 11 i .. 85 - 11 i.
    """
    labels = np.zeros(shape, np.uint8, order="F")
    for i, level in enumerate(LEVEL_ORDER):
        if level in levels:
            bottom = 78 - 11 * i
            labels[24:36, 12 - i : 22 - i, bottom : bottom + 8] = V2[level]
    return labels


def spine(labels: NDArray[np.uint8] | None = None, grid: Grid | None = None) -> Vertebrae:
    """The blocks as vertebrae."""
    array = spine_labels() if labels is None else labels
    place = grid or grid_ras(array.shape)
    return Vertebrae.from_label_map(Volume(array, place, place), "totalseg-v2")


def reoriented(volume: Volume, orientation: str) -> Volume:
    """The same voxels in the same place, delivered in another orientation."""
    order = [next(i for i, pair in enumerate(("LR", "PA", "IS")) if letter in pair) for letter in orientation]
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for axis, (ras, letter) in enumerate(zip(order, orientation, strict=True)):
        change[ras, axis] = 1 if letter in "RAS" else -1
        change[ras, 3] = 0 if letter in "RAS" else volume.grid.shape[ras] - 1
    shape = tuple(volume.grid.shape[ras] for ras in order)
    source = Grid(shape, volume.grid.affine @ change)  # type: ignore[arg-type]
    return Volume(volume.array, volume.grid, source)
