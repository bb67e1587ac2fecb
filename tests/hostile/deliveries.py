"""Deliveries of one case each, and a sound CT series as bytes whose elements can be changed one by one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from tests.dicom_series import Made, ct_array, lps_grid, save, series

SHAPE = (24, 20, 12)  # ten slices are the fewest that are taken
_LONG = (b"OB", b"OW", b"OF", b"SQ", b"UN", b"UT", b"UC", b"UR")
_PIXELS = 0x7FE00010


@dataclass(frozen=True)
class Delivery:
    """What is delivered as one case.

    Attributes:
        name: what was done to it, usable as a case id.
        files: content by path below the case's folder.
        accepted: it must be taken in.
        asked: what it says is another volume than the sound one, so that this is what must be stored; else
            what is taken in must be the sound volume.
        links: symbolic links below the case's folder, by path, and where they lead.
    """

    name: str
    files: Mapping[str, bytes]
    accepted: bool = False
    asked: bool = False
    links: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Element:
    """One element as it is written; `length` lies when it is not None."""

    tag: int
    vr: bytes
    value: bytes
    length: int | None = None

    def written(self) -> bytes:
        """Explicit VR, little endian."""
        length = len(self.value) if self.length is None else self.length
        head = (self.tag >> 16).to_bytes(2, "little") + (self.tag & 0xFFFF).to_bytes(2, "little") + self.vr
        if self.vr in _LONG:
            return head + bytes(2) + length.to_bytes(4, "little") + self.value
        return head + (length & 0xFFFF).to_bytes(2, "little") + self.value


@cache
def sound_series(transfer_syntax: str = ExplicitVRLittleEndian, slices: int = SHAPE[2]) -> tuple[bytes, ...]:
    """The files of the sound series, from the lowest slice to the highest."""
    shape = (*SHAPE[:2], slices)
    datasets = series(ct_array(shape), lps_grid(shape), Made(transfer_syntax=transfer_syntax))
    return tuple(as_bytes(dataset) for dataset in datasets)


def as_bytes(dataset: Dataset) -> bytes:
    """The file that a data set becomes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "one")
        save(path, dataset)
        return path.read_bytes()


def as_files(slices: list[bytes] | tuple[bytes, ...], ending: str = ".dcm") -> dict[str, bytes]:
    """The slices under names that do not follow their order."""
    return {f"dicom/IM{7 * number % 101:03d}{ending}": data for number, data in enumerate(slices)}


def elements(data: bytes) -> tuple[bytes, list[Element]]:
    """Preamble and elements of a file without sequences, in explicit little endian."""
    found, at = [], 132
    while at < len(data):
        tag = int.from_bytes(data[at : at + 2], "little") << 16 | int.from_bytes(
            data[at + 2 : at + 4], "little"
        )
        vr = data[at + 4 : at + 6]
        start, size = (at + 12, 4) if vr in _LONG else (at + 8, 2)
        length = int.from_bytes(data[start - size : start], "little")
        if length == 0xFFFFFFFF:  # encapsulated pixels, which come last
            found.append(Element(tag, vr, data[start:], length))
            break
        found.append(Element(tag, vr, data[start : start + length]))
        at = start + length
    return data[:132], found


def joined(head: bytes, parts: list[Element]) -> bytes:
    """The file again."""
    return head + b"".join(part.written() for part in parts)


def tag_of(keyword: str) -> int:
    """A keyword's tag."""
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


def changed(
    data: bytes,
    keyword: str,
    value: bytes | None = None,
    *,
    vr: bytes | None = None,
    length: int | None = None,
) -> bytes:
    """The file with another value (padded to even), VR or length of one element."""
    head, parts = elements(data)
    tag = tag_of(keyword)
    assert any(part.tag == tag for part in parts), keyword

    def other(part: Element) -> Element:
        return Element(
            tag,
            part.vr if vr is None else vr,
            part.value if value is None else value + b" " * (len(value) % 2),
            part.length if length is None else length,
        )

    return joined(head, [other(part) if part.tag == tag else part for part in parts])


def without(data: bytes, keyword: str) -> bytes:
    """The file without one element."""
    head, parts = elements(data)
    return joined(head, [part for part in parts if part.tag != tag_of(keyword)])


def with_added(data: bytes, *added: Element) -> bytes:
    """The file with elements put where they belong, in front of the pixels at the latest."""
    head, parts = elements(data)
    meta = [part for part in parts if part.tag >> 16 == 2]
    rest = sorted([*(part for part in parts if part.tag >> 16 != 2), *added], key=lambda part: part.tag)
    return joined(head, [*meta, *rest])


def value_of(data: bytes, keyword: str) -> bytes:
    """An element's value."""
    return next(part.value for part in elements(data)[1] if part.tag == tag_of(keyword))


def pixels_at(data: bytes) -> int:
    """Where the pixels' element begins."""
    return data.index(b"\xe0\x7f\x10\x00")


def write(folder: Path, deliveries: Iterator[Delivery]) -> dict[str, Delivery]:
    """Write each as a case below `folder/source`; all of them by name, each name once.

    All are one patient's, since many show one CT.
    """
    written: dict[str, Delivery] = {}
    for delivery in deliveries:
        assert delivery.name not in written, delivery.name
        written[delivery.name] = delivery
        for name, data in delivery.files.items():
            path = folder / "source" / "PAT" / delivery.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        for name, target in delivery.links.items():
            path = folder / "source" / "PAT" / delivery.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
    return written
