"""Stored pixels to a volume in Hounsfield units, slice by slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from retroln.imaging.dicom.apart import decoded
from retroln.imaging.dicom.planes import Plane, is_tissue
from retroln.imaging.dicom.stack import Stack
from retroln.imaging.volume import Volume, require_possible_size

AIR_HU = -1024
"""What padding becomes: the lowest value of most scanners, below any tissue."""


def read_volume(made: Stack) -> Volume:
    """The stack in HU on its grid: int16 if every value is whole and fits, else float32.

    Stored values in the padding range become -1024 HU; those that tissue has, only around the image.

    Raises:
        InputError: `too_large`, `no_pixel_data`, `truncated`, `size_mismatch`, `undecodable`.
    """
    whole = all(plane.slope.is_integer() and plane.intercept.is_integer() for plane in made.planes)
    dtype = np.dtype(np.int16 if whole else np.float32)
    require_possible_size(made.grid.shape, dtype.itemsize)
    array: NDArray[Any] = np.empty(made.grid.shape, dtype, order="F")
    for k, stored in _stored(made.planes):
        values = _hounsfield(stored, made.planes[k], whole)
        if array.dtype == np.int16 and not _fits_int16(values):
            require_possible_size(made.grid.shape, np.dtype(np.float32).itemsize)
            array = array.astype(np.float32)
        array[:, :, k] = values.T
    return Volume.from_source(array, made.grid)


def _stored(planes: Sequence[Plane]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Each slice's place in the stack and its stored values; each file is opened once."""
    in_files = sorted(
        range(len(planes)), key=lambda k: (planes[k].transfer_syntax, planes[k].path, planes[k].frame)
    )
    for syntax, group in groupby(in_files, key=lambda k: planes[k].transfer_syntax):
        places = list(group)
        files = groupby(places, key=lambda k: planes[k].path)
        wanted = [(path, [planes[k].frame for k in inside]) for path, inside in files]
        yield from zip(places, decoded(wanted, syntax), strict=True)


def _hounsfield(stored: NDArray[Any], plane: Plane, whole: bool) -> NDArray[Any]:
    if whole:
        values: NDArray[Any] = stored.astype(np.int64) * int(plane.slope) + int(plane.intercept)
    else:
        values = stored.astype(np.float32) * np.float32(plane.slope) + np.float32(plane.intercept)
    if plane.padding:
        values[_padded(stored, values, *plane.padding)] = AIR_HU
    return values


def _padded(stored: NDArray[Any], hounsfield: NDArray[Any], low: int, high: int) -> NDArray[np.bool_]:
    """Which pixels are padding.

    Some writers name 0 as padding beside pixels that are HU already, where 0 is water. A value that tissue
    has is padding where its area reaches a corner of the image, outside of the field of view; of a range of
    values, those of tissue are padding nowhere.
    """
    marked = (stored >= low) & (stored <= high)
    doubtful = marked & is_tissue(hounsfield)
    padded: NDArray[np.bool_] = marked & ~doubtful
    if low == high and doubtful.any():
        areas = ndimage.label(doubtful)[0]
        corners = areas[[0, 0, -1, -1], [0, -1, 0, -1]]
        padded |= np.isin(areas, corners[corners > 0])
    return padded


def _fits_int16(values: NDArray[Any]) -> bool:
    limits = np.iinfo(np.int16)
    return bool(values.min() >= limits.min and values.max() <= limits.max)
