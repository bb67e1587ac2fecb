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

import numpy as np
from numpy.typing import NDArray

from retroln.errors import InputError, MissingExtraError, install_from_checkout
from retroln.imaging.dicom.codestream import Image, image_of
from retroln.imaging.dicom.headers import (
    is_no_fault_of_the_file,
    load_pydicom,
    own_words,
    quietly,
    read_dataset,
    truncated,
)

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
_MOST_CODED = 2  # times the pixels: what is coded larger than they are, but for a bad codec, is no image
_CODED_HEADER_BYTES = 1 << 16
_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2")
_JPEG = "1.2.840.10008.1.2.4."
_RLE = "1.2.840.10008.1.2.5"
_DECODERS = {
    **dict.fromkeys(_PLAIN, ""),
    _RLE: "pydicom",
    _JPEG + "50": "gdcm",  # baseline, 8 bit
    _JPEG + "51": "gdcm",  # extended; GDCM takes 8 bit only
    _JPEG + "57": "gdcm",  # lossless
    _JPEG + "70": "gdcm",  # lossless, first-order prediction
    _JPEG + "80": "pyjpegls",
    _JPEG + "81": "pyjpegls",  # near-lossless
    _JPEG + "90": "gdcm",  # JPEG 2000 lossless
    _JPEG + "91": "gdcm",  # JPEG 2000
}
_LOSSY = (_JPEG + "81", _JPEG + "91")  # of those that hold more than 8 bits
_LOSSY_ERROR = 8  # stored values; near-lossless coding of metal at the end of the range goes so far beyond it
_RLE_LENGTHS = re.compile(r"RLE segment.*?(\d+) vs\. (\d+) bytes")
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
        raise MissingExtraError(f"this encoding needs {plugin}", fix=install_from_checkout("dicom"))


def frames(path: Path, wanted: Sequence[int], transfer_syntax: str) -> Iterator[NDArray[Any]]:
    """Stored values of the wanted frames of one file, shape (rows, columns), in the order wanted.

    Raises:
        InputError: `undecodable`, `no_pixel_data`, `truncated`, `size_mismatch`, `not_dicom`.
    """
    require_decodable(transfer_syntax, path)
    plugin = _DECODERS[transfer_syntax]
    header = read_dataset(path, _IMAGE_PIXEL)
    with own_words(path):
        _require_pixels(header, path, transfer_syntax)
    decoded = load_pydicom().pixels.iter_pixels(
        header, indices=list(wanted), raw=True, decoding_plugin=plugin
    )
    for _ in wanted:
        try:
            with quietly() as said:
                stored: NDArray[Any] = next(decoded)
        except Exception as error:  # codecs raise what they like, and quote what they like
            if is_no_fault_of_the_file(error):
                raise
            raise undecodable(path, f"the codec gave up ({type(error).__name__})") from None
        _require_rows(stored, [str(warning.message) for warning in said], header, path)
        yield _in_stored_bits(stored, header, path, transfer_syntax)


def _in_stored_bits(stored: NDArray[Any], header: Any, path: Path, transfer_syntax: str) -> NDArray[Any]:
    """The values by their stored bits alone, extended by their sign.

    Nothing may be assumed of the bits above BitsStored (PS3.5 8.1.1): they held graphics once, or no
    sign. An encoder may put all 16 into its stream, and the codec gives them back. In a lossy stream they
    cannot be told from errors of the coding.
    """
    bits, signed = int(header.BitsStored), int(header.PixelRepresentation) == 1
    low = -(1 << bits - 1) if signed else 0
    high = low + (1 << bits) - 1
    beyond = max(low - int(stored.min()), int(stored.max()) - high)
    if beyond <= 0:
        return stored
    if transfer_syntax not in _LOSSY:
        return (stored.astype(np.int32) - low) % (1 << bits) + low
    if beyond > _LOSSY_ERROR:
        raise undecodable(path, f"lossy pixels {beyond} beyond what {bits} bits hold")
    return stored


def _require_rows(stored: NDArray[Any], said: Sequence[str], header: Any, path: Path) -> None:
    """The frame has the header's shape, and an RLE segment does not hold more rows than are read of it."""
    shape = (int(header.Rows), int(header.Columns))
    if stored.shape != shape:
        raise undecodable(path, f"a frame of {stored.shape} where the header says {shape}")
    for found in (_RLE_LENGTHS.search(warning) for warning in said):
        if found and int(found[1]) - int(found[2]) >= min(shape):
            raise undecodable(path, f"{found[1]} pixels where the header says {found[2]}")


def _require_pixels(header: Any, path: Path, transfer_syntax: str) -> None:
    if not header.get("PixelData"):
        raise InputError(
            "the object has no pixel data",
            reason="no_pixel_data",
            file=path,
            expected="an image with its pixels",
            got="a header alone",
            fix="export the series with its pixels",
        )
    is_plain = transfer_syntax in _PLAIN
    if header["PixelData"].is_undefined_length == is_plain:
        raise undecodable(path, "pixels of another encoding than the file names")
    if is_plain:
        _require_size(header, path)
    else:
        _require_frames(header, path, transfer_syntax)


def _require_size(header: Any, path: Path) -> None:
    """As many bytes as the header lays out; padding that is less than a row or column is harmless."""
    rows, columns, bits = int(header.Rows), int(header.Columns), int(header.BitsAllocated)
    expected = (rows * columns * int(header.get("NumberOfFrames") or 1) * bits + 7) // 8
    got = len(header.PixelData)
    if got < expected:
        raise truncated(path, f"{got} of {expected} bytes of pixels")
    if got - expected >= max(min(rows, columns) * bits // 8, 2):
        raise InputError(
            "the object holds more pixels than its header lays out",
            reason="size_mismatch",
            file=path,
            expected=f"{expected} bytes",
            got=f"{got} bytes",
            fix="export the series again",
        )


def _require_frames(header: Any, path: Path, transfer_syntax: str) -> None:
    """Each frame is what the header lays out, as far as that can be seen before it is decoded."""
    announced = Image(int(header.Rows), int(header.Columns), int(header.SamplesPerPixel))
    decoded_bytes = announced.rows * announced.columns * int(header.BitsAllocated) // 8
    for frame in _coded(header, path):
        if len(frame) > _MOST_CODED * decoded_bytes + _CODED_HEADER_BYTES:
            raise undecodable(path, f"{len(frame)} bytes for {decoded_bytes} of pixels")
        if transfer_syntax != _RLE and image_of(frame) != announced:
            raise undecodable(
                path, f"a coded image that is not the header's {announced.columns} x {announced.rows}"
            )


def _coded(header: Any, path: Path) -> Iterator[bytes]:
    """Frame by frame: all of them would be the file once more."""
    from pydicom.encaps import generate_frames

    offsets = None
    if header.get("ExtendedOffsetTable") and header.get("ExtendedOffsetTableLengths"):
        offsets = (header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths)
    try:
        yield from generate_frames(
            header.PixelData,
            number_of_frames=int(header.get("NumberOfFrames") or 1),
            extended_offsets=offsets,
        )
    except Exception as error:  # of damaged fragments
        if is_no_fault_of_the_file(error):
            raise
        raise undecodable(path, f"fragments that are no frames ({type(error).__name__})") from None


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
