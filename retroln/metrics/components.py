"""Connected components: what counts as one node, everywhere in RetroLN."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Slices = tuple[slice, slice, slice]


def connected(labels: NDArray[Any]) -> NDArray[np.int32]:
    """Number the 26-connected components of a 3D mask or label map from 1.

    Voxels belong together when they hold the same value and touch by face, edge or corner, so
    touching instances that already have different values stay apart. Numbers follow the C order of
    each component's first voxel, whatever the memory order; an all-zero map gives all zeros.

    Raises:
        ValueError: the array is not 3D, or holds a negative or fractional value.
    """
    import cc3d

    numbered = np.zeros(labels.shape, np.int32)
    box = occupied(labels)
    if box is not None:
        part = np.ascontiguousarray(as_labels(labels[box]))
        numbered[box] = cc3d.connected_components(part, connectivity=26, out_dtype=np.uint32)
    return numbered


def occupied(array: NDArray[Any]) -> Slices | None:
    """The smallest box around the non-zero voxels of a 3D array; None when there are none."""
    if array.ndim != 3:
        raise ValueError(f"label map must have 3 axes, got {array.ndim}")
    box = [slice(0, n) for n in array.shape]
    for axis in (2, 1, 0):
        others = tuple(other for other in range(3) if other != axis)
        filled = np.flatnonzero(array[tuple(box)].any(axis=others))
        if filled.size == 0:
            return None
        box[axis] = slice(int(filled[0]), int(filled[-1]) + 1)
    return box[0], box[1], box[2]


def as_labels(array: NDArray[Any]) -> NDArray[Any]:
    """The array as unsigned integers; `ValueError` for a negative, fractional or non-finite value."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.size and array.min() < 0:
        raise ValueError(f"labels must not be negative, got {array.min()}")
    if array.dtype.kind == "f":
        whole = np.isfinite(array).all() and bool((array == np.rint(array)).all())
        if not whole or array.max(initial=0) >= 2**32:
            raise ValueError("labels must be whole numbers below 2**32, got fractions or non-finite values")
        return array.astype(np.uint32)
    return array.astype(f"u{array.dtype.itemsize}", copy=False)
