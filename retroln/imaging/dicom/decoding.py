"""Pixel data of one file to stored values.

Which codec decodes what is fixed, so that every machine gives the same values: pydicom itself the plain and
RLE encodings, pyjpegls JPEG-LS, GDCM the other JPEG family.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from retroln.errors import InputError, MissingExtraError, RetroLNError
from retroln.imaging.dicom.headers import load_pydicom, quietly, read_dataset, truncated

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
_OF_THE_STANDARD = re.compile(r"1\.2\.840\.10008\.[\d.]{1,30}")


def require_decodable(transfer_syntax: str, file: Path) -> None:
    """Raise `InputError` (`undecodable`) unless a codec for the encoding is known here."""
    if transfer_syntax not in _DECODERS:
        known = _OF_THE_STANDARD.fullmatch(transfer_syntax)
        raise undecodable(file, f"transfer syntax {transfer_syntax if known else 'of a vendor, or none'}")


def is_native(transfer_syntax: str) -> bool:
    """Whether compiled code outside numpy decodes it, which damaged data can bring down with its process."""
    return _DECODERS.get(transfer_syntax) in ("gdcm", "pyjpegls")


def require_codec(transfer_syntax: str) -> None:
    """Raise `MissingExtraError` unless the codec for a known encoding is installed."""
    plugin = _DECODERS[transfer_syntax]
    module = {"gdcm": "gdcm", "pyjpegls": "jpeg_ls"}.get(plugin)
    if module and find_spec(module) is None:
        raise MissingExtraError(f"this encoding needs {plugin}", fix="pip install 'retroln[dicom]'")


def frames(path: Path, wanted: Sequence[int], transfer_syntax: str) -> Iterator[NDArray[Any]]:
    """Stored values of the wanted frames of one file, shape (rows, columns), in the order wanted.

    Raises:
        InputError: `undecodable`, `no_pixel_data`, `truncated`.
    """
    require_decodable(transfer_syntax, path)
    plugin = _DECODERS[transfer_syntax]
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
            raise undecodable(path, f"the codec gave up ({type(error).__name__})") from None
        yield stored


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


def undecodable(file: Path, got: str) -> InputError:
    """The error for pixels that no codec here makes sense of."""
    return InputError(
        "the pixels cannot be decoded",
        reason="undecodable",
        file=file,
        expected="plain, deflated, RLE, JPEG lossless, 8-bit JPEG, JPEG-LS or JPEG 2000 pixels",
        got=got,
        fix="export the study again, uncompressed",
    )
