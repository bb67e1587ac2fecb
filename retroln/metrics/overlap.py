"""Volume overlap of two masks on one grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def dice(truth: NDArray[Any], prediction: NDArray[Any]) -> float | None:
    """Dice coefficient of the non-zero voxels, 0..1; None when the truth is empty.

    A node-free case has no defined Dice (nnU-Net issue 1428): score it by its false positives.
    """
    require_same_shape(truth, prediction)
    a, b = truth != 0, prediction != 0
    in_truth = int(np.count_nonzero(a))
    if in_truth == 0:
        return None
    return 2 * int(np.count_nonzero(a & b)) / (in_truth + int(np.count_nonzero(b)))


def require_same_shape(truth: NDArray[Any], prediction: NDArray[Any]) -> None:
    """Raise `ValueError` unless both arrays have the same shape (no broadcasting by accident)."""
    if truth.shape != prediction.shape:
        raise ValueError(f"prediction must have the truth's shape {truth.shape}, got {prediction.shape}")
