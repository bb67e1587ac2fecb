"""Normalised surface distance (surface Dice at a tolerance).

Nikolov et al., J Med Internet Res 2021;23:e26151. The surface is made of the voxel faces between
mask and background (the border of the array counts as background), each weighted by its area and
placed at its centre, so anisotropic voxels need no resampling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.metrics.components import occupied
from retroln.metrics.overlap import require_same_shape

Spacing = tuple[float, float, float]
TOLERANCE_MM = 2.0


def nsd(
    truth: NDArray[Any], prediction: NDArray[Any], spacing_mm: Spacing, tolerance_mm: float = TOLERANCE_MM
) -> float | None:
    """Share of both surfaces' area that lies within the tolerance of the other, 0..1.

    Args:
        truth: 3D array, non-zero inside.
        prediction: 3D array of the same shape.
        spacing_mm: voxel size along each array axis.
        tolerance_mm: inclusive.

    Returns:
        None when the truth is empty (a node-free case is scored by its false positives), 0.0 when
        only the prediction is.
    """
    from scipy.spatial import cKDTree

    require_same_shape(truth, prediction)
    centres, areas = _faces(truth, spacing_mm)
    other_centres, other_areas = _faces(prediction, spacing_mm)
    if areas.size == 0 or other_areas.size == 0:
        return None if areas.size == 0 else 0.0
    reach = tolerance_mm * (1 + 1e-9) + 1e-9
    near = np.isfinite(_nearest(cKDTree(other_centres), centres, reach))
    other_near = np.isfinite(_nearest(cKDTree(centres), other_centres, reach))
    return float((areas[near].sum() + other_areas[other_near].sum()) / (areas.sum() + other_areas.sum()))


def _nearest(tree: Any, points: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    distances: NDArray[np.float64] = tree.query(points, distance_upper_bound=reach)[0]
    return distances


def _faces(mask: NDArray[Any], spacing_mm: Spacing) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres (n, 3) in mm from voxel 0's centre, and areas (n,) in mm2, of the surface's faces."""
    box = occupied(mask)
    if box is None:
        return np.empty((0, 3)), np.empty(0)
    inside = np.pad(mask[box] != 0, 1).astype(np.int8)
    spacing = np.asarray(spacing_mm, float)
    first = np.array([part.start - 1 for part in box], float)
    centres, areas = [], []
    for axis in range(3):
        index = np.argwhere(np.diff(inside, axis=axis)).astype(float)
        index[:, axis] += 0.5
        centres.append((index + first) * spacing)
        areas.append(np.full(len(index), spacing.prod() / spacing[axis]))
    return np.concatenate(centres), np.concatenate(areas)
