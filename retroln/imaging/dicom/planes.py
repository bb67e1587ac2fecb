"""The slices of an object: where each lies in the patient and how its stored values become HU.

An enhanced (multi-frame) object says in functional groups what others say at their top (PS3.3 C.7.6.16).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import InputError
from retroln.imaging.dicom.headers import ENHANCED, Instance, numbers, texts
from retroln.imaging.dicom.layout import frame_count, no_geometry, require_layout
from retroln.imaging.hounsfield import FARTHEST_HU

_HU = ("", "HU", "US")  # US: unspecified; that it is HU is checked on the values
_FARTHEST_MM = 1e5  # a hundred metres from the scanner's origin lies no patient
_SLOPES = (1e-3, 100.0)  # with 16 bits, less spans no 300 HU; more is coarser than any tissue contrast
_AIR_HU = -900  # and below: air, and lung that holds little else
_BRIGHTEST_HU = (
    30_710  # end of the extended CT scale, to which metal is recorded; the common one ends at 3071
)


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice.

    Attributes:
        transfer_syntax: UID of the encoding of the file's pixels.
        frame: its place in the file, from 0.
        position_mm: centre of the first pixel, LPS (DICOM's frame).
        directions: unit vectors along a row (to the next column) and along a column, LPS.
        spacing_mm: distance of neighbouring rows, of neighbouring columns.
        shape: rows, columns.
        slope, intercept: stored value x slope + intercept is HU.
        padding: lowest and highest stored value that marks "no image", None without padding.
    """

    path: Path
    transfer_syntax: str
    frame: int
    position_mm: tuple[float, float, float]
    directions: tuple[float, float, float, float, float, float]
    spacing_mm: tuple[float, float]
    shape: tuple[int, int]
    slope: float
    intercept: float
    padding: tuple[int, int] | None

    @property
    def is_padded_with_tissue(self) -> bool:
        """Whether the padding's value, or an end of its range, is one that tissue has."""
        ends = [self.slope * end + self.intercept for end in self.padding or ()]
        return bool(is_tissue(np.array(ends)).any())


def is_tissue(hounsfield: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether values in HU may be of a patient's body, or of metal in it, and of no air."""
    return (hounsfield > _AIR_HU) & (hounsfield <= _BRIGHTEST_HU)


def planes_of(instance: Instance) -> list[Plane]:
    """Every slice of an object, in the order of its frames.

    Raises:
        GeometryError: `no_geometry`.
        InputError: `no_rescale`, `not_hu`, `not_ct`, `pixel_layout`.
    """
    require_layout(instance)
    return [_plane(instance, frame, groups_of(instance, frame)) for frame in range(frame_count(instance))]


def groups_of(instance: Instance, frame: int = 0) -> tuple[Any, ...]:
    """Data sets that describe a frame, the more special first; of a plain object its header.

    Raises:
        GeometryError: `no_geometry`, when a multi-frame object does not describe each of its frames.
    """
    if instance.sop_class not in ENHANCED:
        return (instance.header,)
    each = list(instance.header.get("PerFrameFunctionalGroupsSequence") or [])
    if frame >= len(each):
        raise no_geometry(instance, "a functional group per frame", f"{len(each)} of them")
    shared = list(instance.header.get("SharedFunctionalGroupsSequence") or [])
    return tuple(
        item for holder in (each[frame], *shared) for part in holder if part.VR == "SQ" for item in part.value
    )


def thickness_mm(instance: Instance) -> float | None:
    """SliceThickness, mm; None if it is not said."""
    return next(
        (found[0] for group in groups_of(instance) if (found := numbers(group, "SliceThickness"))), None
    )


def kernel(instance: Instance) -> str:
    """ConvolutionKernel, its first value, "" for none."""
    return next(
        (found[0] for group in groups_of(instance) if (found := texts(group, "ConvolutionKernel"))), ""
    )


def _plane(instance: Instance, frame: int, groups: tuple[Any, ...]) -> Plane:
    position = _required(instance, groups, "ImagePositionPatient", 3)
    directions = _required(instance, groups, "ImageOrientationPatient", 6)
    spacing = _required(instance, groups, "PixelSpacing", 2)
    if min(spacing) <= 0:
        raise no_geometry(instance, "PixelSpacing above 0", "a distance that is none")
    slope, intercept = _rescale(instance, groups)
    return Plane(
        path=instance.path,
        transfer_syntax=instance.transfer_syntax,
        frame=frame,
        position_mm=position,  # type: ignore[arg-type]
        directions=directions,  # type: ignore[arg-type]
        spacing_mm=spacing,  # type: ignore[arg-type]
        shape=(instance.whole("Rows") or 0, instance.whole("Columns") or 0),
        slope=slope,
        intercept=intercept,
        padding=_padding(instance),
    )


def _required(instance: Instance, groups: tuple[Any, ...], keyword: str, count: int) -> tuple[float, ...]:
    found = next((value for group in groups if (value := numbers(group, keyword))), ())
    if len(found) != count:
        raise no_geometry(instance, f"{keyword} with {count} numbers", f"{len(found)} of them")
    if max(abs(value) for value in found) > _FARTHEST_MM:
        raise no_geometry(instance, f"{keyword} within {_FARTHEST_MM:g} mm", "a number beyond")
    return found


def _rescale(instance: Instance, groups: tuple[Any, ...]) -> tuple[float, float]:
    slope, intercept = (
        next((value[0] for group in groups if len(value := numbers(group, keyword)) == 1), None)
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    kind = next((said[0] for group in groups if (said := texts(group, "RescaleType"))), "")
    least, most = _SLOPES
    if slope is None or intercept is None or not least <= abs(slope) <= most or abs(intercept) > FARTHEST_HU:
        raise InputError(
            "nothing says how stored values become HU",
            reason="no_rescale",
            file=instance.path,
            expected=f"RescaleSlope of {least:g} to {most:g}, and RescaleIntercept within {FARTHEST_HU} HU",
            got=f"slope {slope}, intercept {intercept}",
            fix="export the original series",
        )
    if kind.upper() not in _HU:
        raise InputError(
            "the values are no Hounsfield units",
            reason="not_hu",
            file=instance.path,
            expected="RescaleType HU",
            got="another unit (effective Z, electron density, ...)",
            fix="deliver the series in HU; of a dual-energy scan the mixed or 70 keV images",
        )
    return slope, intercept


def _padding(instance: Instance) -> tuple[int, int] | None:
    """The range of PixelPaddingValue and PixelPaddingRangeLimit (PS3.3 C.7.5.1.1.2) as stored values."""
    ends = [instance.whole(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return None
    values = sorted(_as_stored(instance, end) for end in ends if end is not None)
    return values[0], values[-1]


def _as_stored(instance: Instance, value: int) -> int:
    """The value in the bits that are stored, as the pixels are read.

    Some writers give -2000 as the unsigned 63536 beside signed pixels, or the other way about.
    """
    bits, signed = instance.whole("BitsStored") or 16, instance.whole("PixelRepresentation") == 1
    value %= 1 << bits
    return value - (1 << bits) if signed and value >= 1 << (bits - 1) else value
