"""Stored pixels to a volume in Hounsfield units, slice by slice.

Which codec decodes what is fixed, so that every machine gives the same values: pydicom itself the plain and
RLE encodings, pyjpegls JPEG-LS, GDCM the other JPEG family.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import InputError, MissingExtraError, RetroLNError
from retroln.imaging.dicom.headers import load_pydicom, quietly, read_dataset, truncated
from retroln.imaging.dicom.planes import Plane
from retroln.imaging.dicom.stack import Stack
from retroln.imaging.volume import Volume

AIR_HU = -1024
"""What padding becomes: the lowest value of most scanners, below any tissue."""
_LARGEST_BYTES = 8 << 30
_IMAGE_PIXEL = (
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)
_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_JPEG = "1.2.840.10008.1.2.4."
_DECODERS = {
    **dict.fromkeys(_PLAIN, ""),
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
    _JPEG + "50": "gdcm",  # baseline, 8 bit
    _JPEG + "51": "gdcm",  # extended; GDCM takes 8 bit only
    _JPEG + "57": "gdcm",  # lossless
    _JPEG + "70": "gdcm",  # lossless, first-order prediction
    _JPEG + "80": "pyjpegls",
    _JPEG + "81": "pyjpegls",  # near-lossless
    _JPEG + "90": "gdcm",  # JPEG 2000 lossless
    _JPEG + "91": "gdcm",  # JPEG 2000
}


def require_decodable(transfer_syntax: str, file: Path) -> None:
    """Raise `InputError` (`undecodable`) unless a codec for the encoding is known here."""
    if transfer_syntax not in _DECODERS:
        known = transfer_syntax.startswith("1.2.840.10008.")
        raise _undecodable(file, f"transfer syntax {transfer_syntax if known else 'of a vendor, or none'}")


def read_volume(made: Stack) -> Volume:
    """The stack in HU on its grid: int16 if every value is whole and fits, else float32.

    Stored values in the padding range become -1024 HU.

    Raises:
        InputError: `too_large`, `no_pixel_data`, `truncated`, `undecodable`.
    """
    whole = all(plane.slope.is_integer() and plane.intercept.is_integer() for plane in made.planes)
    _require_possible_size(made)
    array: NDArray[Any] = np.empty(made.grid.shape, np.int16 if whole else np.float32, order="F")
    for k, stored in _stored(made.planes):
        values = _hounsfield(stored, made.planes[k], whole)
        if array.dtype == np.int16 and not _fits_int16(values):
            array = array.astype(np.float32)
        array[:, :, k] = values.T
    return Volume.from_source(array, made.grid)


def frames(path: Path, wanted: Sequence[int], transfer_syntax: str) -> Iterator[NDArray[Any]]:
    """Stored values of the wanted frames of one file, shape (rows, columns), in the order wanted.

    Raises: as `read_volume`.
    """
    require_decodable(transfer_syntax, path)
    plugin = _DECODERS[transfer_syntax]
    _require_installed(plugin)
    header = read_dataset(path, _IMAGE_PIXEL)
    _require_pixels(header, path, transfer_syntax)
    decoded = load_pydicom().pixels.iter_pixels(
        header, indices=list(wanted), raw=True, decoding_plugin=plugin
    )
    for _ in wanted:
        try:
            with quietly():
                stored: NDArray[Any] = next(decoded)
        except (RetroLNError, OSError, MemoryError):
            raise
        except Exception as error:  # codecs raise what they like, and quote what they like
            raise _undecodable(path, f"the codec gave up ({type(error).__name__})") from None
        yield stored


def _stored(planes: Sequence[Plane]) -> Iterator[tuple[int, NDArray[Any]]]:
    """Each slice's place in the stack and its stored values; each file is opened once."""
    by_file = sorted(range(len(planes)), key=lambda k: (str(planes[k].path), planes[k].frame))
    for path, group in groupby(by_file, key=lambda k: planes[k].path):
        places = list(group)
        wanted = [planes[k].frame for k in places]
        yield from zip(places, frames(path, wanted, planes[places[0]].transfer_syntax), strict=True)


def _hounsfield(stored: NDArray[Any], plane: Plane, whole: bool) -> NDArray[Any]:
    if whole:
        values: NDArray[Any] = stored.astype(np.int64) * int(plane.slope) + int(plane.intercept)
    else:
        values = stored.astype(np.float32) * np.float32(plane.slope) + np.float32(plane.intercept)
    if plane.padding:
        low, high = plane.padding
        values[(stored >= low) & (stored <= high)] = AIR_HU
    return values


def _fits_int16(values: NDArray[Any]) -> bool:
    limits = np.iinfo(np.int16)
    return bool(values.min() >= limits.min and values.max() <= limits.max)


def _require_possible_size(made: Stack) -> None:
    wanted = int(np.prod(made.grid.shape, dtype=np.int64)) * 4
    if wanted > _LARGEST_BYTES:
        raise InputError(
            "announces more voxels than any CT has",
            reason="too_large",
            expected=f"at most {_LARGEST_BYTES >> 30} GiB",
            got=f"shape {made.grid.shape}",
            fix="check the study's origin",
        )


def _require_pixels(header: Any, path: Path, transfer_syntax: str) -> None:
    if "PixelData" not in header:
        raise InputError(
            "the object has no pixel data",
            reason="no_pixel_data",
            file=path,
            expected="an image with its pixels",
            got="a header alone",
            fix="export the series with its pixels",
        )
    if transfer_syntax in _PLAIN:
        expected = int(header.Rows) * int(header.Columns) * int(header.get("NumberOfFrames") or 1)
        expected = (expected * int(header.BitsAllocated) + 7) // 8
        if len(header.PixelData) < expected:
            raise truncated(path, f"{len(header.PixelData)} of {expected} bytes of pixels")


def _require_installed(plugin: str) -> None:
    """Import the codec, and keep GDCM's warnings from the terminal."""
    try:
        if plugin == "gdcm":
            import gdcm

            gdcm.Trace.WarningOff()
            gdcm.Trace.ErrorOff()
        elif plugin == "pyjpegls":
            import jpeg_ls  # noqa: F401
    except ImportError as error:
        fix = "pip install 'retroln[dicom]'"
        raise MissingExtraError(f"this encoding needs {plugin}", fix=fix) from error


def _undecodable(file: Path, got: str) -> InputError:
    return InputError(
        "the pixels cannot be decoded",
        reason="undecodable",
        file=file,
        expected="plain, deflated, RLE, JPEG lossless, 8-bit JPEG, JPEG-LS or JPEG 2000 pixels",
        got=got,
        fix="export the study again, uncompressed",
    )
