"""RT Structure Sets (PS3.3 A.19): closed planar contours, rasterised on the slices of the series.

Convention: a voxel belongs to a contour if its centre lies inside by the even-odd rule. Contours of one ROI
in one slice are combined by exclusive or, so a contour within a contour is a hole, and a keyhole works. A
centre exactly on an edge belongs to one of its two sides (that of greater indices), never to both or neither.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import InputError
from retroln.imaging.dicom.headers import numbers, texts
from retroln.imaging.geometry import SAME_GRID_TOLERANCE_MM, Grid

SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.481.3",)
NEEDED = ("ReferencedFrameOfReferenceSequence", "StructureSetROISequence", "ROIContourSequence")
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


def frames_of_reference(header: Any) -> Collection[str]:
    """Frames of reference of the structure set and of its ROIs."""
    found = [*(header.get("ReferencedFrameOfReferenceSequence") or [])]
    rois = header.get("StructureSetROISequence") or []
    return [uid for item in found for uid in texts(item, "FrameOfReferenceUID")] + [
        uid for item in rois for uid in texts(item, "ReferencedFrameOfReferenceUID")
    ]


def referenced_series(header: Any) -> Collection[str]:
    """Series that the contours were drawn on."""
    items = header.get("ReferencedFrameOfReferenceSequence") or []
    for name in ("RTReferencedStudySequence", "RTReferencedSeriesSequence"):
        items = [inner for item in items for inner in item.get(name) or []]
    return [uid for item in items for uid in texts(item, "SeriesInstanceUID")]


def named(header: Any) -> Sequence[tuple[int, str]]:
    """Number and name of each ROI that has contours."""
    drawn = {_roi_number(item) for item in header.get("ROIContourSequence") or [] if _contours(item)}
    rois = header.get("StructureSetROISequence") or []
    found = [(numbers(item, "ROINumber"), " ".join(texts(item, "ROIName"))) for item in rois]
    return [(int(number[0]), name) for number, name in found if number and int(number[0]) in drawn]


def draw(header: Any, path: Path, labels_of: Mapping[int, int], grid: Grid, labels: NDArray[Any]) -> None:
    """Write each ROI's label where it lies and nothing is yet; `labels` has the grid's axes.

    Args:
        labels_of: label by ROI number, in the order in which they are drawn.

    Raises:
        InputError: `mask_contours` for contours that are open, or lie on no slice of the grid.
    """
    items = header.get("ROIContourSequence") or []
    for number, label in labels_of.items():
        contours = [one for item in items if _roi_number(item) == number for one in _contours(item)]
        for k, polygons in _by_slice(contours, grid, path).items():
            part = labels[:, :, k]
            part[(part == 0) & rasterise(polygons, grid.shape[:2])] = label


def _by_slice(contours: Sequence[Any], grid: Grid, path: Path) -> dict[int, list[NDArray[np.float64]]]:
    """Vertices of the contours, in pixel indices, by the slice they lie on."""
    back = np.linalg.inv(grid.affine)
    found: dict[int, list[NDArray[np.float64]]] = {}
    for contour in contours:
        index = _corners(contour, path) @ back[:3, :3].T + back[:3, 3]
        found.setdefault(_slice_of(index, grid, path), []).append(index[:, :2])
    return found


def rasterise(polygons: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels (i, j) whose centre lies inside an odd number of the polygons (vertices (n, 2), in indices).

    For every row j each edge that crosses it flips all pixels from the crossing on. Rows count from the
    edge's lower end up to, and without, its upper end, so a vertex is crossed once.
    """
    width, height = shape
    flips = np.zeros((width + 1, height), np.uint8)
    for polygon in polygons:
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            if y0 == y1:
                continue
            low, high = sorted((y0, y1))
            rows = np.arange(max(int(np.ceil(low)), 0), min(int(np.ceil(high)), height))
            crossing = x0 + (rows - y0) * (x1 - x0) / (y1 - y0)
            flips[np.clip(np.ceil(crossing), 0, width).astype(int), rows] ^= 1
    return np.bitwise_xor.accumulate(flips, axis=0)[:width].astype(bool)


def _roi_number(item: Any) -> int:
    return int((numbers(item, "ReferencedROINumber") or (-1.0,))[0])


def _contours(item: Any) -> list[Any]:
    return list(item.get("ContourSequence") or [])


def _corners(contour: Any, path: Path) -> NDArray[np.float64]:
    """Vertices in world RAS+ mm, shape (n, 3)."""
    kind = (texts(contour, "ContourGeometricType") or ("",))[0].upper()
    data = numbers(contour, "ContourData")
    if kind not in _CLOSED or len(data) < 9 or len(data) % 3:
        got = f"{len(data)} numbers of another type" if kind not in _CLOSED else f"{len(data)} numbers"
        raise _unusable(path, "closed planar contours of three points or more", got)
    return np.array(data, float).reshape(-1, 3) * (-1.0, -1.0, 1.0)


def _slice_of(index: NDArray[np.float64], grid: Grid, path: Path) -> int:
    """The slice that a contour lies on, all of it."""
    k = int(np.rint(index[:, 2].mean()))
    off_mm = float(np.abs(index[:, 2] - k).max() * grid.spacing_mm[2])
    if off_mm > SAME_GRID_TOLERANCE_MM or not 0 <= k < grid.shape[2]:
        raise _unusable(
            path,
            f"contours on the slices of the series, within {SAME_GRID_TOLERANCE_MM} mm",
            f"one {off_mm:.2f} mm beside slice {k} of {grid.shape[2]}",
        )
    return k


def _unusable(path: Path, expected: str, got: str) -> InputError:
    return InputError(
        "the contours cannot be drawn on the CT series",
        reason="mask_contours",
        file=path,
        expected=expected,
        got=got,
        fix="export the structure set on the slices of the series it was drawn on",
    )
