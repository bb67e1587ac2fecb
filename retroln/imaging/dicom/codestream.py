"""What a JPEG, JPEG-LS or JPEG 2000 stream says of itself: a codec believes the stream, not the DICOM header.

Where the two differ in size, pixels would be put in other rows than they came from, or a small file would
make a codec take gigabytes.
"""

from __future__ import annotations

from dataclasses import dataclass

_SOI = b"\xff\xd8"
_SOC_SIZ = b"\xff\x4f\xff\x51"
_JP2 = b"\0\0\0\x0cjP"  # some writers leave the file format's boxes around a JPEG 2000 stream
_JP2_HEADER_BYTES = 4096
# Start of frame of every JPEG process (T.81 table B.1) and of JPEG-LS (T.87).
_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


@dataclass(frozen=True)
class Image:
    """Size of one coded image."""

    rows: int
    columns: int
    channels: int


def image_of(stream: bytes) -> Image | None:
    """What the first frame header says, None if there is none."""
    if stream.startswith(_SOI):
        return _jpeg(stream)
    start = stream.find(_SOC_SIZ, 0, _JP2_HEADER_BYTES) if stream.startswith(_JP2) else 0
    return _jpeg_2000(stream[start : start + 42]) if start >= 0 else None


def _jpeg(stream: bytes) -> Image | None:
    at = len(_SOI)
    while at + 10 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker in _FRAME:
            return Image(_whole(stream, at + 5, 2), _whole(stream, at + 7, 2), stream[at + 9])
        if marker == 0xFF:
            at += 1  # a fill byte
        else:
            at += 2 if marker in _WITHOUT_LENGTH else 2 + _whole(stream, at + 2, 2)
    return None


def _jpeg_2000(head: bytes) -> Image | None:
    """The SIZ segment (T.800 A.5.1): reference grid less its offset."""
    if len(head) < 42 or not head.startswith(_SOC_SIZ):
        return None
    right, bottom, left, top = (_whole(head, at, 4) for at in (8, 12, 16, 20))
    return Image(bottom - top, right - left, _whole(head, 40, 2))


def _whole(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")
