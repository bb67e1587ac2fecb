"""Two acquisitions or reconstructions in one series, slice between slice: told by whatever takes turns.

Phases, kernels or energies half a step apart lie on one even grid. As a volume they would be a CT that never
was. Slices of one acquisition agree in some attributes, and follow each other in others. Where neither
headers nor order tell two kinds apart, nothing here can; see `retroln.imaging.turns` for their voxels.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import InputError
from retroln.imaging.dicom.headers import ENHANCED, Instance, numbers, texts
from retroln.imaging.dicom.planes import Plane, groups_of

KINDS = (
    "StudyInstanceUID", "SeriesNumber", "SeriesDescription", "SeriesDate", "SeriesTime", "ProtocolName",
    "ImageType", "FrameType", "AcquisitionNumber", "FrameAcquisitionNumber", "AcquisitionUID",
    "AcquisitionDate", "IrradiationEventUID", "ScanOptions", "AcquisitionType", "GantryDetectorTilt",
    "SpiralPitchFactor", "KVP", "FilterType", "ConvolutionKernel", "ConvolutionKernelGroup",
    "ReconstructionAlgorithm", "SliceThickness", "DataCollectionDiameter", "ReconstructionDiameter",
    "ContrastBolusAgent", "ContrastBolusAgentNumber", "ContrastBolusStartTime", "StackID",
    "TemporalPositionIdentifier", "TemporalPositionIndex", "NominalPercentageOfCardiacPhase",
    "NominalPercentageOfRespiratoryPhase",
)  # fmt: skip
"""What one acquisition or reconstruction has in common, so that no value comes back after another one.

Nothing that a scanner adapts from slice to slice, such as the tube current, is among them.
"""
ORDERS = (
    "InstanceNumber", "AcquisitionTime", "AcquisitionDateTime", "ContentTime",
    "FrameAcquisitionDateTime", "FrameReferenceDateTime",
)  # fmt: skip
"""What goes up or down along one acquisition."""

_ROUNDING = 0.11  # mm, kV, ...: less is how a number was rounded, as 1.25 mm to 1.2 and 1.3
_MOST_KINDS = 8
_FEWEST_OF_A_KIND = 4


def require_one_acquisition(planes: Sequence[Plane], instances: Sequence[Instance]) -> None:
    """Refuse slices that take turns between two or more kinds; ranges that follow each other may differ.

    Args:
        planes: in the order of their position.
        instances: the objects that hold them.

    Raises:
        InputError: `mixed_series`.
    """
    by_path = {instance.path: instance for instance in instances}
    slices = [_described(by_path[plane.path], plane.frame) for plane in planes]
    telling = [name for name in _present(KINDS, slices) if _comes_back(_kinds(slices, name))]
    telling += [name for name in _present(ORDERS, slices) if _is_woven(_numbers(slices, name))]
    telling += [name for name, values in _geometry(planes) if _is_woven(values)]
    if telling:
        raise InputError(
            "neighbouring slices take turns between several acquisitions or reconstructions",
            reason="mixed_series",
            expected="one of them, or ranges of slices that follow each other",
            got=f"slices that take turns by {', '.join(telling)}",
            fix="deliver each acquisition and each reconstruction as a series of its own",
        )


def _described(instance: Instance, frame: int) -> tuple[Any, ...]:
    """Data sets that describe a slice, the more special first."""
    groups = groups_of(instance, frame)
    return (*groups, instance.header) if instance.sop_class in ENHANCED else groups


def _present(keywords: Sequence[str], slices: Sequence[tuple[Any, ...]]) -> list[str]:
    """Those that any slice has."""
    from pydicom.datadict import tag_for_keyword

    tags = {int(tag) for groups in slices for one in groups for tag in one.keys()}  # noqa: SIM118 - no dict
    return [keyword for keyword in keywords if tag_for_keyword(keyword) in tags]


def _kinds(slices: Sequence[tuple[Any, ...]], keyword: str) -> Sequence[Hashable]:
    """The attribute of each slice; numbers that differ by rounding alone are one kind."""
    values = _numbers(slices, keyword)
    if np.isnan(values).any():
        written = [next((found for one in groups if (found := texts(one, keyword))), ()) for groups in slices]
        return [tuple(word.upper() for word in words) for words in written]
    levels, place = np.unique(values, return_inverse=True)
    kinds: list[int] = np.cumsum(np.diff(levels, prepend=levels[0]) > _ROUNDING)[place].tolist()
    return kinds


def _numbers(slices: Sequence[tuple[Any, ...]], keyword: str) -> NDArray[np.float64]:
    """The attribute of each slice as one number, NaN where it is none, or several."""
    found = [next((value for one in groups if (value := numbers(one, keyword))), ()) for groups in slices]
    return np.array([value[0] if len(value) == 1 else np.nan for value in found])


def _geometry(planes: Sequence[Plane]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """What another reconstruction rounds or centres otherwise by too little to be refused, and the order."""
    yield "ImageOrientationPatient", np.array([plane.directions for plane in planes])
    yield "ImagePositionPatient", np.array([plane.position_mm for plane in planes])
    yield "PixelSpacing", np.array([plane.spacing_mm for plane in planes])
    if len({plane.path for plane in planes}) == 1:
        yield "the order of frames", np.array([plane.frame for plane in planes], float)


def _comes_back(kinds: Sequence[Hashable]) -> bool:
    """Whether a kind is left and taken up again."""
    runs = 1 + sum(one != other for one, other in pairwise(kinds))
    return runs > len(set(kinds))


def _is_woven(values: NDArray[np.float64]) -> bool:
    """Whether in a column every second value (third, ...) lies in a range apart from the others'.

    Args:
        values: one row per slice, one or more columns; a NaN tells nothing.
    """
    rows = values.reshape(len(values), -1)
    return any(
        _are_apart([column[first::kinds] for first in range(kinds)])
        for column in rows.T
        for kinds in range(2, min(_MOST_KINDS, len(rows) // _FEWEST_OF_A_KIND) + 1)
    )


def _are_apart(parts: Sequence[NDArray[np.float64]]) -> bool:
    ranges = sorted((part.min(), part.max()) for part in parts)
    return all(below[1] < above[0] for below, above in pairwise(ranges))
