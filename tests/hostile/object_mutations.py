"""Multi-frame CT objects and DICOM masks whose headers lie, or that are cut; made from small sound ones."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from tests.dicom_masks import rectangle, segmentation, structure_set
from tests.dicom_series import Made, ct_array, enhanced, lps_grid, series
from tests.hostile.damage import flipped
from tests.hostile.deliveries import SHAPE, Delivery, as_bytes, as_files, sound_series

Change = Callable[[Dataset], object]

_FRAMES = SHAPE[2]
_COUNTS = (0, 1, _FRAMES - 1, _FRAMES + 1, 1_000_000, 2**31 - 1, -1)
_SIDES = (0, 1, 19, 25, 4096, 4097, 65535)


def deliveries(seed: int = 800) -> Iterator[Delivery]:
    """All of them, each name once."""
    chance = random.Random(seed)
    made = enhanced(ct_array(SHAPE), lps_grid(SHAPE))
    yield Delivery("enhanced-sound", {"ct.dcm": as_bytes(made)}, accepted=True)
    yield Delivery("enhanced-in-folder", {"dicom/one": as_bytes(made)}, accepted=True)
    coded = enhanced(ct_array(SHAPE), lps_grid(SHAPE), Made(transfer_syntax=RLELossless))
    yield Delivery("enhanced-rle", {"ct.dcm": as_bytes(coded)}, accepted=True)
    for name, change in _enhanced_changes():
        yield Delivery(f"enhanced-{name}", {"ct.dcm": _changed(made, change)})
    for name, data in {"enhanced": as_bytes(made), "enhanced-rle": as_bytes(coded)}.items():
        for cut in sorted({chance.randrange(132, len(data)) for _ in range(10)} | {len(data) - 1}):
            yield Delivery(f"{name}-cut-{cut}", {"ct.dcm": data[:cut]})
    yield from _segmentations(chance)
    yield from _structure_sets(chance)


def _enhanced_changes() -> Iterator[tuple[str, Change]]:
    for count in _COUNTS:
        yield f"frames-{count}", _set("NumberOfFrames", count)
    for side in _SIDES:
        yield f"rows-{side}", _set("Rows", side)
        yield f"columns-{side}", _set("Columns", side)
    for keyword in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence", "NumberOfFrames"):
        yield f"without-{keyword}", partial(_drop, keyword)
        if keyword != "NumberOfFrames":
            yield f"empty-{keyword}", _set(keyword, [])
            yield f"blank-{keyword}", _set(keyword, [Dataset() for _ in range(_FRAMES)])
    yield "a-group-less", lambda one: one.PerFrameFunctionalGroupsSequence.pop()
    yield "a-group-more", lambda one: one.PerFrameFunctionalGroupsSequence.append(Dataset())
    yield "a-place-twice", _place_twice
    yield "no-place", lambda one: one.PerFrameFunctionalGroupsSequence[5].__delattr__("PlanePositionSequence")
    yield "no-pixels", _set("PixelData", b"")
    yield "half-the-pixels", lambda one: setattr(one, "PixelData", one.PixelData[: len(one.PixelData) // 2])
    yield "twice-the-pixels", lambda one: setattr(one, "PixelData", one.PixelData * 2)
    yield "eight-bits", _set("BitsAllocated", 8)
    yield "three-channels", _set("SamplesPerPixel", 3)


def _place_twice(one: Dataset) -> None:
    groups = one.PerFrameFunctionalGroupsSequence
    groups[5].PlanePositionSequence = deepcopy(groups[6].PlanePositionSequence)


def _segmentations(chance: random.Random) -> Iterator[Delivery]:
    """The CT is sound, so it is what is stored if the mask is taken."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:7, 4:9, 2:5] = 1
    for kind in ("BINARY", "FRACTIONAL"):
        made = segmentation(series(ct_array(SHAPE), lps_grid(SHAPE)), labels, kind=kind)
        name = f"seg-{kind.lower()}"
        yield _masked(f"{name}-sound", as_bytes(made), accepted=True)
        for count in _COUNTS:
            yield _masked(f"{name}-frames-{count}", _changed(made, _set("NumberOfFrames", count)))
        for side in _SIDES:
            yield _masked(f"{name}-rows-{side}", _changed(made, _set("Rows", side)))
        for value in (0, 1, 65535):
            yield _masked(f"{name}-maximum-{value}", _changed(made, _set("MaximumFractionalValue", value)))
        for number in (0, 2, 65535):
            yield _masked(f"{name}-segment-{number}", _changed(made, _renumbered(number)))
        yield _masked(f"{name}-short", _changed(made, _set("PixelData", made.PixelData[:2])))
        yield _masked(f"{name}-no-pixels", _changed(made, _set("PixelData", b"")))
        data = as_bytes(made)
        for cut in sorted({chance.randrange(132, len(data)) for _ in range(8)}):
            yield _masked(f"{name}-cut-{cut}", data[:cut])
        for number in range(15):
            yield _masked(f"{name}-flip-{number}", flipped(data, chance.randrange(132 * 8, len(data) * 8)))


def _structure_sets(chance: random.Random) -> Iterator[Delivery]:
    made = structure_set([("Node", [rectangle((3, 7), (4, 9), 3)])], lps_grid(SHAPE))
    yield _masked("structures-sound", as_bytes(made), accepted=True)
    contours = {
        "none": [], "one-number": ["1"], "two-points": ["1"] * 6, "odd": ["1"] * 10, "far": ["1e15"] * 12,
        "beside": ["1000"] * 12, "many": ["1.5"] * 12_000, "empty": [""] * 12,
    }  # fmt: skip
    for name, values in contours.items():
        yield _masked(f"structures-{name}", _changed(made, _drawn(values)))
    data = as_bytes(made)
    for cut in sorted({chance.randrange(132, len(data)) for _ in range(8)}):
        yield _masked(f"structures-cut-{cut}", data[:cut])
    for number in range(15):
        yield _masked(f"structures-flip-{number}", flipped(data, chance.randrange(132 * 8, len(data) * 8)))
    yield _masked("mask-is-a-slice", sound_series()[3])
    yield _masked("mask-is-noise", bytes(128) + b"DICM" + chance.randbytes(500))


def _masked(name: str, mask: bytes, *, accepted: bool = False) -> Delivery:
    return Delivery(name, {**as_files(sound_series()), "mask.dcm": mask}, accepted=accepted)


def _set(keyword: str, value: Any) -> Change:
    return lambda one: setattr(one, keyword, value)


def _drop(keyword: str, one: Dataset) -> None:
    delattr(one, keyword)


def _renumbered(number: int) -> Change:
    def change(one: Dataset) -> None:
        for frame in (*one.PerFrameFunctionalGroupsSequence, *one.SharedFunctionalGroupsSequence):
            for item in frame.get("SegmentIdentificationSequence", []):
                item.ReferencedSegmentNumber = number

    return change


def _drawn(values: list[str]) -> Change:
    def change(one: Dataset) -> None:
        contour = one.ROIContourSequence[0].ContourSequence[0]
        contour.ContourData, contour.NumberOfContourPoints = values, len(values) // 3

    return change


def _changed(made: Dataset, change: Change) -> bytes:
    other = deepcopy(made)
    change(other)
    return as_bytes(other)
