"""Broken and malicious zips of one small sound CT, and links in its folder; the same for the same seed."""

from __future__ import annotations

import io
import random
import stat
import struct
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tests.hostile.damage import flipped
from tests.hostile.deliveries import Delivery, as_files, sound_series

Member = tuple[str | zipfile.ZipInfo, bytes]

OUTSIDE = Path(tempfile.gettempdir(), "retroln-hostile-out")
"""Where some of the archives try to write."""
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_FLAGS, _METHOD, _CRC, _PACKED, _SIZE, _NAME_LENGTH, _OFFSET = 8, 10, 16, 20, 24, 28, 42  # in a central entry
_LOCAL_SHIFT = 2  # fields of a local header up to its name's length lie so much earlier
_TRICKS = (
    "../out", "../" * 9 + str(OUTSIDE)[1:], "a/../../out", str(OUTSIDE), f"/{OUTSIDE}", "C:\\out", "C:out",
    "..\\out", "a\\..\\..\\out", "..", "../", "/", "\\\\server\\share\\out", "dicom/../../out",
)  # fmt: skip
_ODD = (
    "a" * 300, "a/" * 300 + "x", "con", "NUL.dcm", "-rf", "a\nb", "\u202egnp.dcm", "a b", "%2e%2e/out",
    "~/out", "$(id)", "a:b", "...", "\U0001f600", "x" * 60_000,
)  # fmt: skip


def deliveries(seed: int = 900) -> Iterator[Delivery]:
    """All of them, each name once."""
    sound = as_files(sound_series())
    yield Delivery("zip-sound", _as(_zip(sound)), accepted=True)
    yield Delivery("zip-stored", _as(_zip(sound, zipfile.ZIP_STORED)), accepted=True)
    yield from _names(sound)
    yield from _kinds(sound)
    yield from _twice(sound)
    yield from _packed(sound)
    yield from _bombs(sound)
    yield from _lies(sound)
    yield from _damages(_zip(sound), random.Random(seed))
    yield from _contents(sound)
    yield from _links(sound)


def _as(data: bytes) -> dict[str, bytes]:
    return {"ct.zip": data}


def _zip(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    return _zip_of(files.items(), method)


def _zip_of(members: Iterable[Member], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # names that are there twice
        with zipfile.ZipFile(made, "w", method) as archive:
            for name, data in members:
                archive.writestr(name, data, method)
    return made.getvalue()


def _beside(files: Mapping[str, bytes], name: str | zipfile.ZipInfo, data: bytes) -> bytes:
    """The sound files, and one member more."""
    return _zip_of([*files.items(), (name, data)])


def _names(sound: Mapping[str, bytes]) -> Iterator[Delivery]:
    for number, name in enumerate(_TRICKS):
        yield Delivery(f"zip-path-{number:02d}", _as(_beside(sound, name, b"out")))
        moved = {name + key.rsplit("/", 1)[-1]: data for key, data in sound.items()}
        yield Delivery(f"zip-paths-{number:02d}", _as(_zip(moved)))
    for number, name in enumerate(_ODD):
        yield Delivery(f"zip-name-{number:02d}", _as(_beside(sound, name, b"text")))
    for number, raw in enumerate((b"\xff\xfe", b"a\0b", b"\0\0", b"..", b"/t", b"\x80/")):
        data = _zip({**sound, "Q" * len(raw): b"text"}).replace(b"Q" * len(raw), raw)
        yield Delivery(f"zip-raw-name-{number}", _as(data))
    # one name in the directory, another one at the member
    data = _zip({**sound, "qqqqqq": b"text"})
    yield Delivery("zip-two-names", _as(data.replace(b"qqqqqq", b"../out", 1)))


def _kinds(sound: Mapping[str, bytes]) -> Iterator[Delivery]:
    """Members that are no files, by the mode that Unix programs store."""
    modes = {"link": stat.S_IFLNK, "pipe": stat.S_IFIFO, "device": stat.S_IFCHR, "disk": stat.S_IFBLK}
    modes |= {"socket": stat.S_IFSOCK, "folder": stat.S_IFDIR, "setuid": stat.S_IFREG | stat.S_ISUID}
    for name, mode in modes.items():
        for target in ("/etc/passwd", "../../../store"):
            member = zipfile.ZipInfo("odd")
            member.create_system, member.external_attr = 3, (mode | 0o777) << 16
            data = _beside(sound, member, target.encode())
            yield Delivery(f"zip-{name}-{len(target)}", _as(data))
    link = zipfile.ZipInfo("dicom")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    yield Delivery("zip-only-a-link", _as(_zip_of([(link, b"/tmp")])))
    yield Delivery("zip-a-file-behind-a-link", _as(_zip_of([(link, b".."), ("dicom/x", b"text")])))


def _twice(sound: Mapping[str, bytes]) -> Iterator[Delivery]:
    """Members that are there twice."""
    first, other = list(sound.items())[:2]
    yield Delivery("zip-member-twice", _as(_beside(sound, *first)))
    yield Delivery("zip-name-twice", _as(_beside(sound, first[0], other[1])))
    yield Delivery("zip-name-twice-text", _as(_beside(sound, first[0], b"text")))
    yield Delivery("zip-name-twice-empty", _as(_beside(sound, first[0], b"")))
    yield Delivery("zip-content-under-two-names", _as(_beside(sound, "again.dcm", first[1])))
    yield Delivery("zip-every-member-twice", _as(_zip_of([*sound.items(), *sound.items()])))


def _packed(sound: Mapping[str, bytes]) -> Iterator[Delivery]:
    """Encrypted members and compressions that are not taken."""
    for name, method in {"bzip2": zipfile.ZIP_BZIP2, "lzma": zipfile.ZIP_LZMA}.items():
        yield Delivery(f"zip-by-{name}", _as(_zip(sound, method)))
    data = _zip(sound)
    for method in (1, 6, 9, 10, 93, 95, 98, 99, 0, 77, 0xFFFF):
        for name, places in {"one": 1, "all": 99}.items():
            yield Delivery(f"zip-method-{method}-{name}", _as(_field(data, _METHOD, "<H", method, places)))
    for bit in (0, 5, 6, 13, 3, 11):
        for name, places in {"one": 1, "all": 99}.items():
            yield Delivery(f"zip-flag-{bit}-{name}", _as(_field(data, _FLAGS, "<H", 1 << bit, places)))
        yield Delivery(f"zip-flag-{bit}-within", _as(_field(data, _FLAGS, "<H", 1 << bit, 99, central=False)))


def _field(
    data: bytes, at: int, kind: str, value: int, places: int, *, central: bool = True, local: bool = True
) -> bytes:
    """The archive with a field of the first `places` members changed, in the directory and at the member."""
    changed = bytearray(data)
    for magic, shift, wanted in ((_CENTRAL, 0, central), (_LOCAL, _LOCAL_SHIFT, local)):
        found = -1
        for _ in range(places if wanted else 0):
            found = changed.find(magic, found + 1)
            if found < 0:
                break
            struct.pack_into(kind, changed, found + at - shift, value)
    return bytes(changed)


def _bombs(sound: Mapping[str, bytes]) -> Iterator[Delivery]:
    """Small archives that become large, in bytes or in files."""
    for mib in (1, 40, 300):
        yield Delivery(f"zip-bomb-{mib}", _as(_beside(sound, "bomb", bytes(mib << 20))))
    yield Delivery("zip-bomb-hidden", _as(_beside(sound, ".bomb", bytes(64 << 20))))
    yield Delivery("zip-bomb-as-slice", _as(_beside(sound, "bomb.dcm", bytes(64 << 20))))
    bomb = _beside(sound, "bomb", bytes(64 << 20))
    said = struct.pack("<I", 64 << 20)
    yield Delivery("zip-bomb-said-small", _as(bomb.replace(said, struct.pack("<I", 100))))
    yield Delivery("zip-bomb-said-empty", _as(bomb.replace(said, bytes(4))))
    inner = _zip({"bomb": bytes(64 << 20)})
    yield Delivery("zip-in-zip", _as(_zip({f"{n}.zip": inner for n in range(20)})))
    yield Delivery("zip-in-zip-beside", _as(_beside(sound, "inner.zip", inner)))
    yield Delivery("zip-sound-in-zip", _as(_zip({"ct.zip": _zip(sound)})))
    slice_ = next(iter(sound.values()))
    blank = slice_[:-200] + bytes(32 << 20)
    yield Delivery("zip-slice-of-32-mib", _as(_zip({**sound, "dicom/large.dcm": blank}, zipfile.ZIP_STORED)))
    for count in (20_001, 70_000):
        yield Delivery(f"zip-of-{count}-files", _as(_zip({str(number): b"" for number in range(count)})))
    yield Delivery("zip-of-texts", _as(_zip({f"{number}.txt": b"nothing" for number in range(5000)})))
    yield Delivery("zip-overlap", _as(_overlapping(2000)))
    yield Delivery("zip-overlap-few", _as(_overlapping(20)))


def _overlapping(count: int) -> bytes:
    """A directory of many members that are all one: what Fifield's bombs do (WOOT 2019)."""
    data = _zip({"x": bytes(1 << 20)})
    start, end = data.index(_CENTRAL), data.index(_END)
    directory = data[start:end] * count
    return data[:start] + directory + _ending(data[end:], count, len(directory), start)


def _ending(end: bytes, count: int, size: int, offset: int) -> bytes:
    return end[:8] + struct.pack("<HHII", count & 0xFFFF, count & 0xFFFF, size, offset) + end[20:]


def _lies(sound: Mapping[str, bytes]) -> Iterator[Delivery]:
    """Sizes, places, sums and counts that are not those of the archive."""
    data = _zip(sound)
    start, end, count = data.index(_CENTRAL), data.index(_END), len(sound)
    for value in (0, 1, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF):
        for name, at in {"packed": _PACKED, "size": _SIZE, "crc": _CRC}.items():
            yield Delivery(f"zip-{name}-{value:x}", _as(_field(data, at, "<I", value, 1)))
            yield Delivery(f"zip-{name}-{value:x}-said", _as(_field(data, at, "<I", value, 1, local=False)))
        moved = _field(data, _OFFSET, "<I", value, 1, local=False)
        yield Delivery(f"zip-offset-{value:x}", _as(moved))
        ended = data[:end] + _ending(data[end:], count, value, start)
        yield Delivery(f"zip-directory-of-{value:x}", _as(ended))
        ended = data[:end] + _ending(data[end:], count, end - start, value)
        yield Delivery(f"zip-directory-at-{value:x}", _as(ended))
    for value in (0, 1, 11, 13, 0xFFFF):
        ended = data[:end] + _ending(data[end:], value, end - start, start)
        yield Delivery(f"zip-count-{value}", _as(ended))
        yield Delivery(f"zip-name-of-{value}", _as(_field(data, _NAME_LENGTH, "<H", value, 1)))
    large = struct.pack("<QIIQQQQ", 44, 0x2D002D, 0, 0, count, count, 1 << 62) + struct.pack("<Q", start)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, end, 1)
    yield Delivery("zip64-directory", _as(data[:end] + b"PK\x06\x06" + large + locator + data[end:]))
    far = b"PK\x06\x07" + struct.pack("<IQI", 0, 1 << 62, 1)
    yield Delivery("zip64-far", _as(data[:end] + far + data[end:]))


def _damages(data: bytes, chance: random.Random) -> Iterator[Delivery]:
    """Cut, longer, turned over."""
    start, end, size = data.index(_CENTRAL), data.index(_END), len(data)
    for cut in sorted({0, 1, 3, 4, 30, start, start + 46, end, end + 4, size - 1, chance.randrange(size)}):
        yield Delivery(f"zip-cut-{cut}", _as(data[:cut]))
    for number in range(30):
        bit = chance.randrange(size * 8)
        yield Delivery(f"zip-flip-{number:02d}", _as(flipped(data, bit)))
    for number in range(30):
        bit = chance.randrange(start * 8, size * 8)
        yield Delivery(f"zip-flip-directory-{number:02d}", _as(flipped(data, bit)))
    yield Delivery("zip-with-comment", _as(data[:-2] + struct.pack("<H", 5) + b"hello"), accepted=True)
    yield Delivery("zip-longer", _as(data + bytes(100)))
    yield Delivery("zip-behind-a-program", _as(b"MZ" + bytes(500) + data))
    yield Delivery("zip-twice", _as(data + data))
    yield Delivery("zip-end-alone", _as(data[end:]))
    yield Delivery("zip-of-noise", _as(_LOCAL + chance.randbytes(5000)))


def _contents(sound: Mapping[str, bytes]) -> Iterator[Delivery]:
    """Archives of something else."""
    first = next(iter(sound.values()))
    yield Delivery("zip-empty", _as(_zip({})))
    yield Delivery("zip-of-folders", _as(_zip({"a/": b"", "a/b/": b""})))
    yield Delivery("zip-of-one-slice", _as(_zip({"IM1": first})))
    yield Delivery("zip-of-an-empty-slice", _as(_beside(sound, "dicom/new.dcm", b"")))
    yield Delivery("zip-of-text", _as(_zip({"readme.txt": b"nothing"})))
    yield Delivery("zip-of-nifti", _as(_zip({"ct.nii": bytes(400)})))
    hidden = {f"__MACOSX/{name}": data for name, data in sound.items()}
    yield Delivery("zip-all-hidden", _as(_zip(hidden)))
    yield Delivery("zip-with-hidden", _as(_zip({**sound, "__MACOSX/._x.dcm": b"", ".DS_Store": b"x"})), True)
    yield Delivery("zip-as-object", {"ct.dcm": _zip(sound)}, accepted=True)
    yield Delivery("zip-as-nifti", {"ct.nii.gz": _zip(sound)}, accepted=True)
    yield Delivery("gzip-as-zip", _as(zlib.compress(first)))
    yield Delivery("folder-with-zip", {"dicom/study.zip": _zip(sound)})
    yield Delivery("zip-beside-folder", {**sound, "ct.zip": _zip(sound)}, accepted=True)


def _links(sound: Mapping[str, bytes]) -> Iterator[Delivery]:
    """Symbolic links in the folder of a sound series; `links` maps a path to where it leads."""
    first = next(iter(sound))
    for name, target in {
        "out": "/etc/passwd", "device": "/dev/zero", "nowhere": "nowhere", "itself": "odd.dcm", "up": "..",
        "root": "/", "to-a-slice": first.removeprefix("dicom/"), "relative-out": "../../../../../cwd",
    }.items():  # fmt: skip
        yield Delivery(f"link-{name}", sound, links={"dicom/odd.dcm": target})
    yield Delivery("link-zip-out", {}, links={"ct.zip": "/etc/passwd"})
    yield Delivery("link-zip-device", {}, links={"ct.zip": "/dev/zero"})
    yield Delivery("link-folder-out", {}, links={"dicom": "/etc"})
    inside = {f"real/{name.removeprefix('dicom/')}": data for name, data in sound.items()}
    yield Delivery("link-folder-within", inside, links={"dicom": "real"})
