"""DICOM Segmentation objects (PS3.3 A.51): frames of segments, each placed where it says it lies.

Frames without a voxel are usually left out, so places come from the CT's grid and not from the frames' order.
Of a fractional segmentation, voxels of at least half its maximum belong to the segment.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import GeometryError, InputError
from retroln.imaging.dicom.apart import decoded
from retroln.imaging.dicom.headers import numbers, read_dataset, texts, truncated
from retroln.imaging.geometry import SAME_GRID_TOLERANCE_MM, Grid

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", LABEL_MAP)
NEEDED = (
    "FrameOfReferenceUID",
    "ReferencedSeriesSequence",
    "SegmentSequence",
    "SegmentationType",
    "MaximumFractionalValue",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
_PACKED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99")
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def frames_of_reference(header: Any) -> Collection[str]:
    """The one frame of reference it lies in."""
    return texts(header, "FrameOfReferenceUID")


def referenced_series(header: Any) -> Collection[str]:
    """Series that it says it was made from."""
    return [uid for item in header.get("ReferencedSeriesSequence") or [] for uid in _uid(item)]


def named(header: Any) -> Sequence[tuple[int, str]]:
    """Number and name of each segment: its label and the meaning of its property type."""
    found = []
    for item in header.get("SegmentSequence") or []:
        number = numbers(item, "SegmentNumber")
        types = item.get("SegmentedPropertyTypeCodeSequence") or []
        words = [*texts(item, "SegmentLabel"), *(m for one in types for m in texts(one, "CodeMeaning"))]
        if number and number[0] > 0:
            found.append((int(number[0]), " ".join(words)))
    return found


def draw(header: Any, path: Path, labels_of: Mapping[int, int], grid: Grid, labels: NDArray[Any]) -> None:
    """Write each segment's label where it lies and nothing is yet; `labels` has the grid's axes.

    Args:
        labels_of: label by segment number, in the order in which they are drawn.

    Raises:
        GeometryError: `grid_mismatch` for a frame that lies on no slice of the grid.
        InputError: `mask_segments` for a frame of a segment that is not described, and as reading pixels.
    """
    each = list(header.get("PerFrameFunctionalGroupsSequence") or [])
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])
    _require_frames(header, len(each), grid, path)
    is_map, least = texts(header, "SOPClassUID")[0] == LABEL_MAP, _threshold(header, path)
    segments = [0 if is_map else _segment_of(frame, shared) for frame in each]
    if not is_map:
        _require_described(segments, header, path)
    wanted = [i for i, segment in enumerate(segments) if is_map or segment in labels_of]
    wanted.sort(key=lambda i: labels_of.get(segments[i], 0))
    for frame, stored in zip(wanted, _stored(header, path, wanted), strict=True):
        place = _place(_groups(each[frame], shared), stored.shape, grid, path)
        part = labels[:, :, place.slice]
        for number in labels_of if is_map else (segments[frame],):
            inside = stored == number if is_map else stored >= least
            part[(part == 0) & place.turned(inside)] = labels_of[number]


def _require_frames(header: Any, described: int, grid: Grid, path: Path) -> None:
    """As many frames as are described, each of a slice's size, before any is decoded."""
    sides = {(numbers(header, name) or (0.0,))[0] for name in ("Rows", "Columns")}
    if sides != set(grid.shape[:2]):
        raise _off_grid(path, "frames of another size")
    said = numbers(header, "NumberOfFrames") or (1.0,)
    if said != (described,):
        raise _off_grid(path, f"{said[0]:g} frames, of which {described} say where they lie")


def _require_described(segments: Sequence[int], header: Any, path: Path) -> None:
    lost = set(segments) - {number for number, _ in named(header)}
    if lost:
        raise InputError(
            "frames of the mask belong to no segment that it describes",
            reason="mask_segments",
            file=path,
            expected="each frame with the number of a segment",
            got=f"{len(lost)} other numbers",
            fix="export the segmentation again",
        )


class _Place:
    """Which slice of the grid a frame covers, and how its pixels must be turned to lie as the grid's."""

    def __init__(self, slice_: int, swap: bool, flip: tuple[bool, bool]) -> None:
        self.slice = slice_
        self._swap, self._flip = swap, flip

    def turned(self, inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """From (row, column) to the grid's (column, row) axes."""
        axes = inside if self._swap else inside.T
        return axes[tuple(slice(None, None, -1 if flipped else 1) for flipped in self._flip)]


def _place(groups: Sequence[Any], shape: tuple[int, ...], grid: Grid, path: Path) -> _Place:
    """Where a frame's corners fall in the grid's voxel indices; they must be corners of one slice."""
    position, directions, spacing = (
        next((np.array(found) for group in groups if (found := numbers(group, name))), np.empty(0))
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    if (position.size, directions.size, spacing.size) != (3, 6, 2):
        raise _off_grid(path, "a frame that does not say where it lies")
    across = directions[:3] * spacing[1] * (shape[1] - 1)
    down = directions[3:] * spacing[0] * (shape[0] - 1)
    world = np.array([position, position + across, position + down, position + across + down]) * _LPS_TO_RAS
    back = np.linalg.inv(grid.affine)
    index = world @ back[:3, :3].T + back[:3, 3]
    nearest = np.rint(index).astype(int)
    off_mm = float(np.linalg.norm(world - grid.world_mm(nearest), axis=1).max())
    width, height, depth = grid.shape
    k = int(nearest[0, 2])
    corners = {tuple(corner) for corner in nearest}
    whole = {(i, j, k) for i in (0, width - 1) for j in (0, height - 1)}
    if off_mm > SAME_GRID_TOLERANCE_MM or corners != whole or not 0 <= k < depth:
        raise _off_grid(path, f"a frame {off_mm:.2f} mm off, or of another size")
    swap = nearest[1, 0] == nearest[0, 0]  # going along a row changes the grid's row axis
    return _Place(k, bool(swap), (bool(nearest[0, 0] > 0), bool(nearest[0, 1] > 0)))


def _off_grid(path: Path, got: str) -> GeometryError:
    return GeometryError(
        "the segmentation does not lie on the CT series",
        reason="grid_mismatch",
        file=path,
        expected=f"each frame on a slice of the series, within {SAME_GRID_TOLERANCE_MM} mm",
        got=got,
        fix="export the segmentation on the grid of the series it was drawn on",
    )


def _stored(header: Any, path: Path, wanted: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Values of the wanted frames; bits packed across frame borders are unpacked here, pydicom cannot."""
    syntax = texts(header.file_meta, "TransferSyntaxUID")[0]
    if int(header.BitsAllocated) != 1 or syntax not in _PACKED:
        yield from decoded([(path, wanted)], syntax)
        return
    rows, columns = int(header.Rows), int(header.Columns)
    data = read_dataset(path, ("Rows",)).get("PixelData") or b""
    size = rows * columns
    packed = np.frombuffer(data, np.uint8)
    if wanted and 8 * packed.size < (max(wanted) + 1) * size:
        raise truncated(path, f"{packed.size} bytes of segments")
    for frame in wanted:
        first, last = frame * size, (frame + 1) * size
        bits = np.unpackbits(packed[first // 8 : -(-last // 8)], bitorder="little")
        yield bits[first % 8 : first % 8 + size].reshape(rows, columns)


def _threshold(header: Any, path: Path) -> float:
    if (texts(header, "SegmentationType") or ("",))[0].upper() != "FRACTIONAL":
        return 1.0
    highest = (numbers(header, "MaximumFractionalValue") or (255.0,))[0]
    if highest < 1:
        raise InputError(
            "nothing says which values of the fractional mask mean the whole voxel",
            reason="mask_segments",
            file=path,
            expected="MaximumFractionalValue from 1 to 255",
            got=f"{highest:g}",
            fix="export the segmentation again, binary",
        )
    return highest / 2


def _segment_of(frame: Any, shared: Sequence[Any]) -> int:
    found = [numbers(group, "ReferencedSegmentNumber") for group in _groups(frame, shared)]
    return next((int(value[0]) for value in found if value), 0)


def _groups(frame: Any, shared: Sequence[Any]) -> list[Any]:
    """The items of every functional group, the frame's own first."""
    return [item for holder in (frame, *shared) for part in holder if part.VR == "SQ" for item in part.value]


def _uid(item: Any) -> tuple[str, ...]:
    return texts(item, "SeriesInstanceUID")
