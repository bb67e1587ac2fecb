"""A plain threshold-and-size node detector: the honest yardstick beside every trained network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retroln.imaging.volume import Volume
from retroln.metrics.components import connected


@dataclass(frozen=True)
class BaselineSpec:
    """Limits of the detector: textbook sizes and densities, not tuned on any data set.

    Attributes:
        low_hu: soft tissue from here, after smoothing.
        high_hu: to here; above is contrast medium or bone.
        smooth_mm: standard deviation of the Gaussian.
        bone_hu: denser is bone (or calcified).
        bone_margin_mm: cleared around bone, where partial volume reads like soft tissue.
        neck_mm: bridges up to about this wide to muscle, vessel and bowel are cut.
        min_diameter_mm: of the sphere of the component's volume.
        max_diameter_mm: likewise.
        min_fill: share of the ellipsoid with the component's second moments that it fills; 1 is round.
        max_elongation: longest to shortest axis of that ellipsoid.
    """

    low_hu: float = 0.0
    high_hu: float = 120.0
    smooth_mm: float = 0.8
    bone_hu: float = 250.0
    bone_margin_mm: float = 3.0
    neck_mm: float = 4.0
    min_diameter_mm: float = 5.0
    max_diameter_mm: float = 40.0
    min_fill: float = 0.7
    max_elongation: float = 2.5


_DEFAULT = BaselineSpec()


def detect(ct: Volume, spec: BaselineSpec = _DEFAULT) -> NDArray[np.uint8]:
    """Mask (1 node, 0 else) of the round soft-tissue lumps in a crop of HU.

    Args:
        ct: HU, not scaled.
        spec: the limits.
    """
    spacing = np.asarray(ct.grid.spacing_mm)
    lumps = connected(_open(_soft_tissue(ct, spacing, spec), spacing, spec.neck_mm / 2))
    index = np.argwhere(lumps)
    label = lumps[tuple(index.T)]
    keep = _round_lumps(label, index * spacing, float(spacing.prod()), spec)
    return keep[lumps].astype(np.uint8)


def _soft_tissue(ct: Volume, spacing: NDArray[np.float64], spec: BaselineSpec) -> NDArray[np.bool_]:
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(ct.array.astype(np.float32), spec.smooth_mm / spacing, mode="nearest")
    away = _farther(ct.array <= spec.bone_hu, spacing, spec.bone_margin_mm)
    soft: NDArray[np.bool_] = (smooth >= spec.low_hu) & (smooth <= spec.high_hu) & away
    return soft


def _open(mask: NDArray[np.bool_], spacing: NDArray[np.float64], radius_mm: float) -> NDArray[np.bool_]:
    """Morphological opening with a ball; what lies beyond the crop counts as outside the mask.

    A lump that runs out of the crop is thereby rounded off at the border, not favoured.
    """
    core = _farther(np.pad(mask, 1), spacing, radius_mm)[1:-1, 1:-1, 1:-1]
    return ~_farther(~core, spacing, radius_mm) & mask


def _farther(mask: NDArray[np.bool_], spacing: NDArray[np.float64], distance_mm: float) -> NDArray[np.bool_]:
    """Voxels of the mask farther than `distance_mm` from everything outside it."""
    from scipy import ndimage

    if mask.all():
        return mask
    far: NDArray[np.bool_] = ndimage.distance_transform_edt(mask, spacing) > distance_mm
    return far


def _round_lumps(
    label: NDArray[np.int32], points_mm: NDArray[np.float64], voxel_mm3: float, spec: BaselineSpec
) -> NDArray[np.bool_]:
    """For each label from 0: True if size and shape are a node's; label 0 never is."""
    counts = np.bincount(label, minlength=1)
    size = np.maximum(counts, 1)
    mean = np.stack([np.bincount(label, points_mm[:, a], counts.size) for a in range(3)], 1) / size[:, None]
    offset = points_mm - mean[label]
    moments = np.zeros((counts.size, 3, 3))
    for a in range(3):
        for b in range(3):
            moments[:, a, b] = np.bincount(label, offset[:, a] * offset[:, b], counts.size) / size
    # A solid ellipsoid with semi-axis r has variance r^2 / 5 along it.
    semi_mm = np.sqrt(5 * np.maximum(np.linalg.eigvalsh(moments), 1e-6))
    volume = counts * voxel_mm3
    diameter = np.cbrt(6 * volume / np.pi)
    sized = (diameter >= spec.min_diameter_mm) & (diameter <= spec.max_diameter_mm)
    filled = volume >= spec.min_fill * 4 / 3 * np.pi * semi_mm.prod(axis=1)
    compact = semi_mm[:, 2] <= spec.max_elongation * semi_mm[:, 0]
    keep: NDArray[np.bool_] = sized & filled & compact & (counts > 0)
    keep[0] = False
    return keep
