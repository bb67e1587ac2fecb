"""Digests by which a CT is told again, whatever file, encoding or patient's name it comes under.

A slice is reduced to how often each Hounsfield unit occurs in it. That stays the same when the slice is
stored in another format or orientation, mirrored by a wrong header, moved in space, or padded with other
values outside the field of view. It changes with the first voxel of tissue. Resampled or filtered copies are
other images here.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from retroln.imaging.volume import Volume

SKETCH = 16
"""How many digests stand for a set: the least ones, so that of two sets that overlap they overlap too."""
_AIR_HU, _METAL_HU = -900, 3000  # beyond these an exporter clips and pads as it likes
_LEAST_KINDS = 16  # a slice with fewer values shows nothing: air, padding, a mask


def slice_digests(ct: Volume) -> tuple[str, ...]:
    """Digests of up to `SKETCH` axial slices, in order; none of a CT without texture.

    Two CTs that share slices (one is cut shorter, say) share digests, unless these are few of many: of CTs
    that have a third of all their different slices in common one pair in 650 is missed, with a tenth 1 in 5.

    Args:
        ct: RAS+ array (x, y, z) in HU.
    """
    found = {digest for k in range(ct.grid.shape[2]) if (digest := _slice_digest(ct.array[:, :, k]))}
    return sketch(found)


def sketch(digests: set[str]) -> tuple[str, ...]:
    """The least `SKETCH` of a set of digests (bottom-k sketch: Broder 1997), in order."""
    return tuple(sorted(digests)[:SKETCH])


def _slice_digest(hu: NDArray[np.generic]) -> str | None:
    whole = hu if np.issubdtype(hu.dtype, np.integer) else np.rint(hu)
    bounded = np.clip(whole, _AIR_HU, _METAL_HU).astype(np.int64) - _AIR_HU
    counts = np.bincount(bounded.ravel(), minlength=_METAL_HU - _AIR_HU + 1)
    if np.count_nonzero(counts) < _LEAST_KINDS:
        return None
    return hashlib.sha256(counts.astype("<u4").tobytes()).hexdigest()[:32]
