"""What one file may make of a machine, checked before pydicom reads it.

pydicom inflates a deflated data set whole, and makes an object of some kilobytes of each item of a sequence,
for which eight bytes in the file are enough.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

from retroln.errors import InputError
from retroln.imaging.volume import LARGEST_BYTES

LARGEST_FILE_BYTES = LARGEST_BYTES // 2 + (64 << 20)
"""Half the largest volume, and a header of 64 MiB: pydicom holds the file beside the volume made of it.

An enhanced object can be a whole series; 2,048 slices of 512 x 512 fit.
"""
LARGEST_INFLATED_BYTES = 512 << 20
"""A deflated object, unpacked. pydicom holds it two or three times; 1,000 slices of 512 x 512 fit."""
MOST_INFLATED_RATIO = 200
"""Of a deflated object, as of a zip: CT packs 2 to 4 times, blank slices some 100 times."""
MOST_ITEMS = 250_000
"""Of all sequences, and fragments of pixels: a SEG of 20,000 frames has some 160,000."""

_DEFLATED = "1.2.840.10008.1.2.1.99"
_META, _COMMANDS = 2, 0  # groups ahead of the data set, as pydicom reads them
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")  # an item's tag in either byte order
_ITEM_BYTES = 8  # tag and length
_CHUNK_BYTES = 1 << 20


def require_bounded(path: Path) -> None:
    """Raise `InputError` (`too_large`) for a file that pydicom had better not read.

    What is not deflated, and too small to hold too many items, is not read here beyond its meta information.
    """
    size = path.stat().st_size
    if size > LARGEST_FILE_BYTES:
        raise _too_large(path, f"at most {LARGEST_FILE_BYTES >> 20} MiB", f"{size >> 20} MiB")
    with path.open("rb") as stream:
        if _is_deflated(path, stream):
            most = min(LARGEST_INFLATED_BYTES, MOST_INFLATED_RATIO * size)
            _require_few_items(path, _bounded(path, _inflated(stream), most))
        elif size >= MOST_ITEMS * _ITEM_BYTES:
            stream.seek(0)
            _require_few_items(path, iter(lambda: stream.read(_CHUNK_BYTES), b""))


def _is_deflated(path: Path, stream: IO[bytes]) -> bool:
    """Whether pydicom will take it for deflated; the stream is then where the data set begins.

    By pydicom's own functions: another reading of the meta information could be led to another answer.
    """
    from pydicom import filereader

    meta = filereader.read_file_meta_info(path)
    if str(meta.get("TransferSyntaxUID")) != _DEFLATED:
        return False
    filereader.read_preamble(stream, force=False)
    for group, is_implicit in ((_META, bool(meta.original_encoding[0])), (_COMMANDS, True)):
        filereader.read_dataset(stream, is_implicit, True, stop_when=partial(_is_beyond, group))
    return True


def _is_beyond(group: int, tag: int, vr: str | None, length: int) -> bool:
    return tag >> 16 != group


def _inflated(stream: IO[bytes]) -> Iterator[bytes]:
    inflate, packed = zlib.decompressobj(-zlib.MAX_WBITS), b""
    while not inflate.eof and (packed or (packed := stream.read(_CHUNK_BYTES))):
        yield inflate.decompress(packed, _CHUNK_BYTES)
        packed = inflate.unconsumed_tail


def _bounded(path: Path, pieces: Iterable[bytes], most: int) -> Iterator[bytes]:
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > most:
            raise _too_large(path, f"at most {most} bytes when it is inflated", "more")
        yield piece


def _require_few_items(path: Path, pieces: Iterable[bytes]) -> None:
    found, end = 0, b""
    for piece in pieces:
        joined = end + piece
        found += sum(joined.count(item) for item in _ITEMS)
        end = joined[-3:]
        if found > MOST_ITEMS:
            raise _too_large(path, f"at most {MOST_ITEMS} items in sequences", "more")


def _too_large(path: Path, expected: str, got: str) -> InputError:
    return InputError(
        "the file would take more memory than a CT object needs",
        reason="too_large",
        file=path,
        expected=expected,
        got=got,
        fix="check the file's origin; deliver a series as one file per slice, uncompressed",
    )
