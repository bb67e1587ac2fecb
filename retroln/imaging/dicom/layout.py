"""How the pixels of a CT object are laid out by its header, and the few ways that the standard allows."""

from __future__ import annotations

from retroln.errors import GeometryError, InputError
from retroln.imaging.dicom.headers import ENHANCED, Instance, texts

LONGEST_SIDE = 4096
"""Pixels; scanners make 512 to 2048. What a damaged codec stream can make of a frame grows with it."""
_ALLOCATED = {16: range(12, 17), 8: (8,)}
"""Bits stored by bits allocated: PS3.3 C.8.2.1 has 16 with 12 to 16; 8 is what lossy JPEG makes of CT."""
_BITS = ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
_LAYOUT = ("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", *_BITS)


def require_layout(instance: Instance) -> None:
    """Refuse a header whose pixels would be read as something that they are not.

    Raises:
        InputError: `not_ct` for colour or an inverted scale, `pixel_layout` for sides, bits or a sign that
            are missing or that no CT object has.
    """
    if missing := [name for name in _LAYOUT if not instance.text(name)]:
        what = "the header does not say how the pixels are laid out"
        raise _unfit(instance, ", ".join(_LAYOUT), f"no {', '.join(missing)}", what)
    _require_one_grey_channel(instance)
    rows, columns = instance.whole("Rows") or 0, instance.whole("Columns") or 0
    if not (0 < rows <= LONGEST_SIDE and 0 < columns <= LONGEST_SIDE):
        expected = f"Rows and Columns from 1 to {LONGEST_SIDE}"
        raise _unfit(instance, expected, f"{columns} x {rows}")
    allocated, stored, high, sign = (instance.whole(name) for name in _BITS)
    if stored not in _ALLOCATED.get(allocated or 0, ()) or high != (stored or 0) - 1 or sign not in (0, 1):
        expected = (
            "12 to 16 of 16 bits (or 8 of 8), HighBit one less than BitsStored, PixelRepresentation 0 or 1"
        )
        raise _unfit(instance, expected, f"{stored} of {allocated}, {high}, {sign}")


def frame_count(instance: Instance) -> int:
    """How many slices an object holds.

    Raises:
        GeometryError: `no_geometry`, unless it is one, or an enhanced object that describes each of them.
    """
    said = texts(instance.header, "NumberOfFrames")
    frames = instance.whole("NumberOfFrames") if said else 1
    if instance.sop_class not in ENHANCED:
        described, expected = 1, "one frame, or an enhanced object with a functional group per frame"
    else:
        described = len(instance.header.get("PerFrameFunctionalGroupsSequence") or [])
        expected = "a functional group per frame"
    if not frames or frames != described:
        raise no_geometry(instance, expected, f"{described} for {'none' if frames is None else frames}")
    return frames


def no_geometry(instance: Instance, expected: str, got: str) -> GeometryError:
    """The error for an object that does not place its pixels."""
    return GeometryError(
        "the object does not say where its pixels lie in the patient",
        reason="no_geometry",
        file=instance.path,
        expected=expected,
        got=got,
        fix="export the original axial series, not pictures of it",
    )


def _require_one_grey_channel(instance: Instance) -> None:
    channels, kind = instance.whole("SamplesPerPixel"), instance.text("PhotometricInterpretation")
    if channels != 1 or kind != "MONOCHROME2":
        raise InputError(
            "the pixels are a picture and no CT values",
            reason="not_ct",
            file=instance.path,
            expected="one channel, MONOCHROME2",
            got=f"{channels} channels" if channels != 1 else "another interpretation",
            fix="export the original series, not pictures of it",
        )


def _unfit(
    instance: Instance, expected: str, got: str, what: str = "the header lays out the pixels as no CT does"
) -> InputError:
    return InputError(
        what,
        reason="pixel_layout",
        file=instance.path,
        expected=expected,
        got=got,
        fix="export the original series again",
    )
