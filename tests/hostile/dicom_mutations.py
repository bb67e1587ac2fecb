"""Broken and malicious DICOM series, made from one small sound CT. The same seed makes the same files."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from retroln.imaging.dicom.layout import LONGEST_SIDE
from retroln.imaging.volume import LARGEST_BYTES
from tests.hostile.damage import cut, flipped, longer
from tests.hostile.deliveries import (
    Delivery,
    Element,
    as_files,
    changed,
    elements,
    joined,
    pixels_at,
    sound_series,
    tag_of,
    value_of,
    with_added,
    without,
)

Change = Callable[[bytes], bytes]

_NUMBERS = {"PixelSpacing": 2, "ImageOrientationPatient": 6, "ImagePositionPatient": 3} | {
    "RescaleSlope": 1,
    "RescaleIntercept": 1,
    "SliceThickness": 1,
}
_BAD_NUMBERS = (
    b"", b" ", b"nan", b"inf", b"-inf", b"1e30", b"1e300", b"1e-300", b"0", b"-7", b"abc", b"0_8", b"0,8",
    b"\xc0\x80", b"9" * 40, b"0.80000000000000000000000000001",
)  # fmt: skip
_WHOLE = (
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "SamplesPerPixel",
)
_BAD_WHOLE = (0, 1, 2, 7, 8, 10, 19, 23, 25, 32, 255, 4097, 65535)
_NEEDED = (*_NUMBERS, *_WHOLE, "PhotometricInterpretation", "Modality", "SOPClassUID", "SOPInstanceUID",
           "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "PatientID", "ImageType",
           "PixelData", "TransferSyntaxUID", "MediaStorageSOPClassUID",
           "FileMetaInformationGroupLength")  # fmt: skip
_WORDS = {
    "PhotometricInterpretation": (b"MONOCHROME1", b"RGB", b"PALETTE COLOR", b"YBR_FULL", b"", b"\xff\xfe"),
    "Modality": (b"MR", b"", b"CT\\MR", b"ct", b"SEG"),
    "ImageType": (b"", b"DERIVED\\SECONDARY", b"ORIGINAL\\PRIMARY\\LOCALIZER", b"\\" * 500),
    "RescaleType": (b"Z_EFF", b"", b"HU\\HU", b"OD"),
    "SOPClassUID": (b"1.2.840.10008.5.1.4.1.1.7", b"1.2.840.10008.5.1.4.1.1.2.1", b"1.2.3", b"", b"x" * 200),
    "SpecificCharacterSet": (b"ISO_IR 999", b"ISO 2022 IR 87\\ISO 2022 IR 13", b"", b"\\\\", b"zip"),
    "PatientID": (b"", b"\x00\x1b$B", b"\\\\", b"../../etc/passwd", b"x" * 5000),
    "SeriesNumber": (b"", b"-1", b"abc", b"1e9", b"9" * 60),
    "KVP": (b"", b"9" * 60, b"nan", b"1e400"),
    "StudyDate": (b"20240230", b"99999999", b"", b"00010101", b"2024-02-29"),
    "AcquisitionTime": (b"999999", b"", b"\xd9\xa1" * 3, b"10.20.00"),
    "ConvolutionKernel": (b"", b"Br36f\\3", b"\\", b"x" * 3000),
}  # fmt: skip
_OTHER_TYPES = (b"US", b"LO", b"UN", b"SQ", b"FD", b"OB", b"ZZ", b"\0\0", b"at")
_SYNTAXES = (
    ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless,
    JPEG2000Lossless, JPEGLosslessSV1, JPEGBaseline8Bit, "1.2.840.10008.1.2.4.100", "1.2.3", "", "x" * 300,
)  # fmt: skip
TOO_LARGE = ("too-large", "too-large-in-fractions")
"""Deliveries that announce just more than the largest volume."""
_CODECS = {"rle": RLELossless, "jpegls": JPEGLSLossless, "j2k": JPEG2000Lossless, "jpeg": JPEGLosslessSV1}


def deliveries(seed: int = 700) -> Iterator[Delivery]:
    """All of them, each name once."""
    slices = sound_series()
    yield Delivery("sound", as_files(slices), accepted=True)
    yield Delivery("sound-without-endings", as_files(slices, ""), accepted=True)
    yield from _fields(slices)
    yield from _types(slices)
    yield from _missing(slices)
    yield from _syntaxes(slices)
    yield from _frames(slices)
    yield from _lengths(slices, random.Random(seed))
    yield from _flips(slices, random.Random(seed + 1))
    yield from _structures(slices)
    yield from _deflated(slices)
    yield from _large()
    yield from _companions(slices, random.Random(seed + 2))
    for name, syntax in _CODECS.items():
        yield from _coded(name, sound_series(syntax), random.Random(seed + 3))


def _one(slices: Sequence[bytes], change: Change, place: int = 5) -> dict[str, bytes]:
    return as_files([change(data) if k == place else data for k, data in enumerate(slices)])


def _all(slices: Sequence[bytes], change: Change) -> dict[str, bytes]:
    return as_files([change(data) for data in slices])


def _both(slices: Sequence[bytes], name: str, change: Change, **what: bool) -> Iterator[Delivery]:
    yield Delivery(f"{name}-one", _one(slices, change), **what)
    yield Delivery(f"{name}-all", _all(slices, change), **what)


def _fields(slices: Sequence[bytes]) -> Iterator[Delivery]:
    """Header fields with values that they must not, or may just, have."""
    for keyword, count in _NUMBERS.items():
        for number, bad in enumerate(_BAD_NUMBERS):
            yield from _both(slices, f"{keyword}-{number:02d}", partial(_first_of, keyword, bad), asked=True)
        for wrong in {count - 1, count + 1, 300} - {0}:
            many = partial(_several, keyword, wrong)
            yield Delivery(f"{keyword}-{wrong}-values", _all(slices, many), asked=True)
    for keyword in _WHOLE:
        for value in _BAD_WHOLE:
            packed = partial(changed, keyword=keyword, value=value.to_bytes(2, "little"))
            yield Delivery(f"{keyword}-{value}-all", _all(slices, packed))
        for value in (0, 8, 65535):
            packed = partial(changed, keyword=keyword, value=value.to_bytes(2, "little"))
            yield Delivery(f"{keyword}-{value}-one", _one(slices, packed))
        for size in (0, 1, 4):
            odd = partial(changed, keyword=keyword, value=b"\x10" * size, length=size)
            yield Delivery(f"{keyword}-of-{size}-bytes", _all(slices, odd))
    for keyword, words in _WORDS.items():
        for number, word in enumerate(words):
            yield Delivery(
                f"{keyword}-{number}-all", _all(slices, partial(changed, keyword=keyword, value=word))
            )
    for keyword in ("PatientID", "SOPClassUID", "Modality", "PhotometricInterpretation", "RescaleType"):
        word = partial(changed, keyword=keyword, value=b"OTHER")
        yield Delivery(f"{keyword}-other-one", _one(slices, word))
    for keyword in ("SeriesInstanceUID", "FrameOfReferenceUID", "StudyInstanceUID", "SOPInstanceUID"):
        yield Delivery(
            f"{keyword}-other-one", _one(slices, partial(changed, keyword=keyword, value=b"1.2.3.4.5.6"))
        )


def _first_of(keyword: str, bad: bytes, data: bytes) -> bytes:
    """The first of an element's values replaced."""
    _, *rest = value_of(data, keyword).strip().split(b"\\")
    return changed(data, keyword, b"\\".join([bad, *rest]))


def _several(keyword: str, count: int, data: bytes) -> bytes:
    values = value_of(data, keyword).strip().split(b"\\")
    return changed(data, keyword, b"\\".join((values * count)[:count]))


def _types(slices: Sequence[bytes]) -> Iterator[Delivery]:
    """Elements of another type than the dictionary's."""
    for keyword in ("ImagePositionPatient", "PixelSpacing", "RescaleSlope", "Rows", "PatientID", "PixelData"):
        for number, vr in enumerate(_OTHER_TYPES):
            yield Delivery(
                f"{keyword}-type-{number}", _all(slices, partial(changed, keyword=keyword, vr=vr)), asked=True
            )


def _missing(slices: Sequence[bytes]) -> Iterator[Delivery]:
    for keyword in _NEEDED:
        yield from _both(slices, f"without-{keyword}", partial(without, keyword=keyword))


def _syntaxes(slices: Sequence[bytes]) -> Iterator[Delivery]:
    """A transfer syntax that is not the one the file is written in."""
    for number, syntax in enumerate(_SYNTAXES):
        lie = partial(changed, keyword="TransferSyntaxUID", value=str(syntax).encode())
        yield from _both(slices, f"said-to-be-{number:02d}", lie)
    for name, codec in _CODECS.items():
        for number, syntax in enumerate((ExplicitVRLittleEndian, *_CODECS.values())):
            if syntax != codec:
                lie = partial(changed, keyword="TransferSyntaxUID", value=str(syntax).encode())
                yield Delivery(f"{name}-said-to-be-{number}", _all(sound_series(codec), lie))


def _frames(slices: Sequence[bytes]) -> Iterator[Delivery]:
    """Numbers of frames that one slice does not have."""
    for said in (b"", b"1", b"0", b"-1", b"2", b"12", b"abc", b"1e9", b"2147483647", b"9" * 50, b"1\\2"):
        add = partial(_with, "NumberOfFrames", b"IS", said)
        yield from _both(slices, f"frames-{said.decode().replace(chr(92), '-') or 'empty'}", add)


def _with(keyword: str, vr: bytes, value: bytes, data: bytes) -> bytes:
    return with_added(data, Element(tag_of(keyword), vr, value + b" " * (len(value) % 2)))


def _lengths(slices: Sequence[bytes], chance: random.Random) -> Iterator[Delivery]:
    """Too short, too long, at every kind of place."""
    size, start = len(slices[5]), pixels_at(slices[5])
    places = {0, 1, 100, 127, 128, 131, 132, 140, 300, start, start + 8, start + 12, size - 1, size - 2}
    for left in sorted(places | {chance.randrange(size) for _ in range(20)}):
        yield Delivery(f"cut-{left}", _one(slices, partial(cut, size=left)))
    yield Delivery("cut-all", _all(slices, partial(cut, size=start + 100)))
    for extra in (1, 2, 8, 100, 100_000):
        yield Delivery(f"longer-by-zeros-{extra}", _one(slices, partial(longer, more=bytes(extra))))
        noise = chance.randbytes(extra)
        yield Delivery(f"longer-by-noise-{extra}", _one(slices, partial(longer, more=noise)))
    for extra in (2, 38, 40, 48, 960, 100_000):
        padded = partial(_padded, extra)
        yield from _both(slices, f"more-pixels-{extra}", padded, accepted=extra == 2)
    for ending in (".dcm", ""):
        for name, change in {
            "without-preamble": lambda data: data[132:],
            "without-meta": lambda data: data[data.index(b"\x08\x00\x05\x00") :],
            "without-magic": lambda data: data[:128] + b"DICN" + data[132:],
            "with-a-byte-in-front": lambda data: b"\0" + data,
        }.items():
            last = [change(data) if k == 11 else data for k, data in enumerate(slices)]
            yield Delivery(f"{name}{ending}", as_files(last, ending))
            yield Delivery(f"{name}-all{ending}", as_files([change(data) for data in slices], ending))
    yield Delivery("another-preamble", _all(slices, lambda data: b"\xff" * 128 + data[128:]), accepted=True)


def _padded(extra: int, data: bytes) -> bytes:
    return changed(data, "PixelData", value_of(data, "PixelData") + bytes(extra))


def _flips(slices: Sequence[bytes], chance: random.Random) -> Iterator[Delivery]:
    """Single bits turned over."""
    start = pixels_at(slices[5])
    for number in range(80):
        bit = chance.randrange(128 * 8, start * 8)
        yield Delivery(f"flip-header-{number:03}", _one(slices, partial(flipped, bit=bit)), asked=True)
    for number in range(20):
        bit = chance.randrange((start + 12) * 8, len(slices[5]) * 8)
        turned = _one(slices, partial(flipped, bit=bit))
        yield Delivery(f"flip-pixels-{number:03}", turned, accepted=True, asked=True)
    for number in range(20):
        bits = [chance.randrange(128 * 8, start * 8) for _ in range(12)]
        turned = as_files([flipped(data, bit) for bit, data in zip(bits, slices, strict=True)])
        yield Delivery(f"flip-every-header-{number:03}", turned, asked=True)


def _structures(slices: Sequence[bytes]) -> Iterator[Delivery]:
    """Elements that are nested, endless, enormous, many, twice there or in a wrong order."""
    endless, item = b"\xff\xff\xff\xff", b"\xfe\xff\x00\xe0"
    private, groups = 0x00091010, tag_of("PerFrameFunctionalGroupsSequence")
    for name, tag in (("private", private), ("groups", groups)):
        for depth in (30, 3000):
            head = struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, b"SQ", 0, 0xFFFFFFFF) + item + endless
            value = item + endless + head * depth
            add = partial(with_added_element, Element(tag, b"SQ", value, 0xFFFFFFFF))
            yield Delivery(f"nested-{depth}-{name}", _one(slices, add))
        for count in (1000, 300_000):
            empty = Element(tag, b"SQ", (item + bytes(4)) * count)
            add = partial(with_added_element, empty)
            yield Delivery(f"items-{count}-{name}", _one(slices, add))
        for length in (0x7FFFFFF0, 0xFFFFFFF0, 0xFFFFFFFF):
            for vr in (b"UN", b"OB", b"SQ"):
                add = partial(with_added_element, Element(tag, vr, b"ab", length))
                yield Delivery(f"length-{length:x}-{vr.decode()}-{name}", _one(slices, add))
    for keyword in ("ImagePositionPatient", "RescaleSlope", "PatientID", "Rows"):
        lie = partial(changed, keyword=keyword, length=0xFFF0)
        yield Delivery(f"length-of-{keyword}", _one(slices, lie))
        many = partial(changed, keyword=keyword, vr=b"UC", value=b"1\\" * 600_000)
        yield Delivery(f"values-of-{keyword}", _one(slices, many))
    tiny = b"".join(Element(0x00090000 + n % 0xFFFF, b"LO", b"").written() for n in range(100_000))
    yield Delivery("tiny-elements", _one(slices, lambda data: _before_pixels(data, tiny)))
    for length in (0, 100, 0x7FFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF):
        lie = partial(changed, keyword="PixelData", length=length)
        yield from _both(slices, f"pixels-of-length-{length:x}", lie)
    yield Delivery("pixels-first", _all(slices, _pixels_first))
    twice = partial(_twice, "PixelSpacing", b"5\\5")
    yield from _both(slices, "spacing-twice", twice, asked=True)
    yield Delivery("pixels-twice", _one(slices, partial(_twice, "PixelData", bytes(960))), asked=True)


def with_added_element(element: Element, data: bytes) -> bytes:
    """As `with_added`, for `partial`."""
    return with_added(data, element)


def _before_pixels(data: bytes, more: bytes) -> bytes:
    start = pixels_at(data)
    return data[:start] + more + data[start:]


def _pixels_first(data: bytes) -> bytes:
    head, parts = elements(data)
    meta = [part for part in parts if part.tag >> 16 == 2]
    return joined(head, [*meta, parts[-1], *parts[len(meta) : -1]])


def _twice(keyword: str, value: bytes, data: bytes) -> bytes:
    head, parts = elements(data)
    place = next(k for k, part in enumerate(parts) if part.tag == tag_of(keyword))
    again = Element(parts[place].tag, parts[place].vr, value + b" " * (len(value) % 2))
    return joined(head, [*parts[: place + 1], again, *parts[place + 1 :]])


def _deflated(slices: Sequence[bytes]) -> Iterator[Delivery]:
    """The deflated transfer syntax: small files that become large."""
    yield Delivery("deflated", _all(slices, _deflate), accepted=True)
    yield Delivery("deflated-cut", _one(slices, lambda data: _deflate(data)[:-100]))
    yield Delivery("deflated-longer", _one(slices, lambda data: _deflate(data) + b"x" * 50))
    yield Delivery("deflated-damaged", _one(slices, lambda data: flipped(_deflate(data), 8000)), asked=True)
    yield Delivery("deflated-bomb", _one(slices, partial(_deflate, more=1 << 28)))
    yield Delivery("deflated-bomb-of-pixels", _one(slices, partial(_deflate, pixels=1 << 28)))
    items = Element(0x00091010, b"SQ", b"\xfe\xff\x00\xe0\0\0\0\0" * 300_000)
    yield Delivery("deflated-items", _one(slices, lambda data: _deflate(with_added(data, items))))


def _deflate(data: bytes, more: int = 0, pixels: int = 0) -> bytes:
    data = changed(data, "TransferSyntaxUID", DeflatedExplicitVRLittleEndian.encode())
    head, parts = elements(data)
    meta = [part for part in parts if part.tag >> 16 == 2]
    rest = parts[len(meta) :]
    if pixels:
        rest[-1] = Element(rest[-1].tag, rest[-1].vr, b"", pixels)
    packing = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    packed = [packing.compress(joined(b"", rest))]
    packed += [packing.compress(bytes(1 << 24)) for _ in range((more or pixels) >> 24)]
    return joined(head, meta) + b"".join(packed) + packing.flush()


def _large() -> Iterator[Delivery]:
    """Headers that announce as much as a volume may take, and one slice more."""
    side = partial(_sides, LONGEST_SIDE, LONGEST_SIDE)
    half = partial(changed, keyword="RescaleSlope", value=b"0.5")
    most = LARGEST_BYTES // (2 * LONGEST_SIDE**2)
    for name, count in {"largest": most, TOO_LARGE[0]: most + 1}.items():
        yield Delivery(name, _all(sound_series(slices=count), side))
    for name, count in {"largest-in-fractions": most // 2, TOO_LARGE[1]: most // 2 + 1}.items():
        yield Delivery(name, _all(sound_series(slices=count), lambda data: half(side(data))))


def _companions(slices: Sequence[bytes], chance: random.Random) -> Iterator[Delivery]:
    """Slices of something else, and files that are no slices."""
    sound = as_files(slices)
    position = value_of(slices[5], "ImagePositionPatient")
    yield Delivery("slice-missing", as_files([*slices[:5], *slices[6:]]))
    yield Delivery("slice-twice", sound | {"dicom/again.dcm": slices[5]}, accepted=True)
    yield Delivery("empty-thumbs", sound | {"dicom/Thumbs.db": b""}, accepted=True)
    moved = partial(changed, keyword="ImagePositionPatient", value=position)
    yield Delivery("position-twice", _one(slices, moved, place=6))
    tilted = partial(changed, keyword="ImageOrientationPatient", value=b"1\\0\\0\\0\\0.97814760\\-0.20791169")
    yield Delivery("tilted", _all(slices, tilted))
    yield Delivery("mirrored-one", _one(slices, partial(_turned, b"-1\\0\\0\\0\\1\\0")))
    yield Delivery(
        "mirrored-all", _all(slices, partial(_turned, b"-1\\0\\0\\0\\1\\0")), accepted=True, asked=True
    )
    alike = partial(changed, keyword="InstanceNumber", value=b"1")
    yield Delivery("instance-numbers-alike", _all(slices, alike), accepted=True)
    yield Delivery("negative-slope-all", _all(slices, partial(changed, keyword="RescaleSlope", value=b"-1")))
    for name, data in {
        "notes.txt": b"nothing", "viewer.exe": b"MZ" + bytes(300), "picture.jpg": b"\xff\xd8\xff\xe0" * 9,
        "DICOMDIR": chance.randbytes(500), "noise": chance.randbytes(700), "link.html": b"<html>",
    }.items():  # fmt: skip
        yield Delivery(f"beside-{name}", sound | {f"dicom/{name}": data}, accepted=True)
    for name, data in {"empty": b"", "empty.dcm": b"", "noise.dcm": chance.randbytes(700)}.items():
        yield Delivery(f"beside-{name}", sound | {f"dicom/{name}": data})
    deep = "/".join("d" * 20 for _ in range(40))
    below = {f"dicom/{deep}/{name[6:]}": data for name, data in sound.items()}
    yield Delivery("deep-folders", below, accepted=True)
    yield Delivery("only-text", {"dicom/notes.txt": b"nothing"})
    yield Delivery("one-slice", as_files(slices[:1]))
    yield Delivery("one-slice-as-object", {"ct.dcm": slices[0]})


def _turned(directions: bytes, data: bytes) -> bytes:
    return changed(data, "ImageOrientationPatient", directions)


def _coded(name: str, slices: Sequence[bytes], chance: random.Random) -> Iterator[Delivery]:
    """Compressed pixels, damaged; and headers that say another size than the coded image's."""
    yield Delivery(f"{name}-sound", as_files(slices), accepted=True)
    data = slices[5]
    start = pixels_at(data) + 12
    for number in range(8):
        bit = chance.randrange((start + 16) * 8, len(data) * 8)
        yield Delivery(f"{name}-flip-{number}", _one(slices, partial(flipped, bit=bit)), asked=True)
    for left in (start, start + 8, start + 20, (start + len(data)) // 2, len(data) - 9):
        yield Delivery(f"{name}-cut-{left}", _one(slices, partial(cut, size=left)))
    swap = partial(_sides, 24, 20)
    yield Delivery(f"{name}-sides-swapped", _all(slices, swap), asked=name == "rle")  # which says no size
    yield Delivery(f"{name}-a-row-less", _all(slices, partial(_sides, 19, 24)))
    yield Delivery(f"{name}-a-row-more", _all(slices, partial(_sides, 21, 24)))
    empty = b"\xfe\xff\x00\xe0\0\0\0\0" * 2 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    yield Delivery(f"{name}-no-fragment", _one(slices, partial(changed, keyword="PixelData", value=empty)))
    for size in (0xFFFFFFFF, 0x7FFFFFFF, 1, 0):
        lie = partial(_fragment_length, size)
        yield Delivery(f"{name}-fragment-of-{size:x}", _one(slices, lie))
    for number, offsets in enumerate((b"\xff\xff\xff\x7f", b"\0\0\0\0\x10\0\0\0", b"\x01\0")):
        yield Delivery(f"{name}-offsets-{number}", _one(slices, partial(_offsets, offsets)))
    yield Delivery(f"{name}-no-delimiter", _one(slices, partial(cut, size=-8)))
    for old, new in _SIZES.get(name, ()):
        yield Delivery(f"{name}-stream-{new.hex()[:24]}", _one(slices, partial(_replaced, old, new)))


_JPEG_SIZE, _JPEGLS_SIZE = (marker + b"\x00\x0b\x10\x00\x14\x00\x18" for marker in (b"\xff\xc3", b"\xff\xf7"))
_SIZ = struct.pack(">II", 24, 20)
_SIZES = {
    "jpeg": [(_JPEG_SIZE, _JPEG_SIZE[:5] + size) for size in (b"\xff\xff\xff\xff", bytes(4))],
    "jpegls": [(_JPEGLS_SIZE, _JPEGLS_SIZE[:5] + size) for size in (b"\xff\xff\xff\xff", bytes(4))],
    "j2k": [(_SIZ, struct.pack(">II", side, side)) for side in (0x7FFFFFFF, 60_000, 0)],
}


def _replaced(old: bytes, new: bytes, data: bytes) -> bytes:
    start = pixels_at(data)
    assert old in data[start:]
    return data[:start] + data[start:].replace(old, new, 1)


def _sides(rows: int, columns: int, data: bytes) -> bytes:
    return changed(changed(data, "Rows", struct.pack("<H", rows)), "Columns", struct.pack("<H", columns))


def _offsets(offsets: bytes, data: bytes) -> bytes:
    """Another table of offsets in front of the fragments."""
    start = data.index(b"\xfe\xff\x00\xe0", pixels_at(data)) + 4
    end = start + 4 + int.from_bytes(data[start : start + 4], "little")
    return data[:start] + struct.pack("<I", len(offsets)) + offsets + data[end:]


def _fragment_length(size: int, data: bytes) -> bytes:
    """The length of the fragment behind the offset table."""
    start = data.index(b"\xfe\xff\x00\xe0", pixels_at(data))
    start += 8 + int.from_bytes(data[start + 4 : start + 8], "little") + 4
    return data[:start] + struct.pack("<I", size) + data[start + 4 :]
