"""Slices of two acquisitions that take turns in one volume, told by their voxels.

In one acquisition a slice resembles its neighbours more than the slices beyond them. In two that were woven
from different breaths, every second slice is of another kind. This tells gross cases alone, in NIfTI too,
whose headers no longer can (`retroln.imaging.dicom.woven`): two phases of one breath differ by less than the
anatomy changes from slice to slice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import InputError
from retroln.imaging.volume import Volume

_BLOCK = 8  # voxels to a side, whose mean evens out noise
_FEWEST_BLOCKS = 64
_FEWEST_SLICES = 10
_MOST_RATIO = 1.2
"""Of neighbours' difference to that of every second slice. Real CT of 1.5 to 3 mm has 0.5 to 0.8."""
_LEAST_MORE_HU = 5.0
_WINDOW_HU = (-1024, 1000)


def require_no_turns(volume: Volume, file: str | Path) -> None:
    """Refuse a CT, in HU, whose slices (the third axis as delivered) take turns.

    Below 64 x 64 voxels or 10 slices nothing can be told, and nothing is refused.

    Raises:
        InputError: `mixed_series`.
    """
    means = _means(volume.to_source())
    if means.shape[1] < _FEWEST_BLOCKS or len(means) < _FEWEST_SLICES:
        return
    near, far = (float(np.median(np.abs(means[n:] - means[:-n]).mean(axis=1))) for n in (1, 2))
    if near > _MOST_RATIO * far and near > far + _LEAST_MORE_HU:
        raise InputError(
            "neighbouring slices take turns between two kinds",
            reason="mixed_series",
            file=file,
            expected="slices that resemble their neighbours most",
            got=f"{near:.0f} HU from a slice to the next, {far:.0f} HU to the one after it",
            fix="deliver each acquisition and each reconstruction as a series of its own",
        )


def _means(array: NDArray[Any]) -> NDArray[np.float32]:
    """Means of blocks of each slice: shape (slices, blocks)."""
    columns, rows = (side // _BLOCK for side in array.shape[:2])
    means = np.empty((array.shape[2], columns * rows), np.float32)
    for k in range(array.shape[2]):
        whole = array[: columns * _BLOCK, : rows * _BLOCK, k].astype(np.float32).clip(*_WINDOW_HU)
        means[k] = whole.reshape(columns, _BLOCK, rows, _BLOCK).mean(axis=(1, 3)).ravel()
    return means
