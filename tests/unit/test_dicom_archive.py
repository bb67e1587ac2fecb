"""A zip from outside can write nothing but numbered files, and not more than the bounds allow."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from retroln.errors import InputError
from retroln.imaging.dicom.archive import Bounds, is_zip, unpack


def _zip(path: Path, members: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _refusal(path: Path, folder: Path, bounds: Bounds | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        unpack(path, folder, bounds)
    assert all((caught.value.expected, caught.value.got, caught.value.fix))
    return caught.value


def test_members_come_out_under_numbers(tmp_path: Path) -> None:
    members = {"SMITH/IM1.DCM": b"one", "SMITH/deep/IM2": b"two", "__MACOSX/._IM1": b"no", ".DS_Store": b"no"}
    path = _zip(tmp_path / "ct.zip", members)
    assert is_zip(path) and not is_zip(unpack(path, tmp_path / "out")[0])
    assert {found.name: found.read_bytes() for found in (tmp_path / "out").iterdir()} == {
        "000001.dcm": b"one",
        "000002": b"two",
    }


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "C:\\evil", "..\\evil"])
def test_a_path_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    error = _refusal(_zip(tmp_path / "a.zip", {"good": b"x", name: b"x"}), tmp_path / "in" / "out")
    assert error.reason == "unsafe_zip"
    assert [found.name for found in tmp_path.rglob("*") if found.is_file()] == ["a.zip"]


def test_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    assert _refusal(path, tmp_path / "out").reason == "unsafe_zip"


def test_bounds_hold(tmp_path: Path) -> None:
    many = _zip(tmp_path / "many.zip", {str(n): b"x" for n in range(5)})
    assert _refusal(many, tmp_path / "out", Bounds(files=4)).reason == "unsafe_zip"
    large = _zip(tmp_path / "large.zip", {"a": bytes(2000), "b": bytes(2000)})
    assert _refusal(large, tmp_path / "out", Bounds(size_bytes=3999)).reason == "unsafe_zip"
    bomb = _zip(tmp_path / "bomb.zip", {"a": bytes(1 << 20)})
    assert _refusal(bomb, tmp_path / "out").reason == "unsafe_zip"
    assert len(unpack(bomb, tmp_path / "wide", Bounds(ratio=2000))) == 1


def test_a_size_that_is_a_lie_is_noticed(tmp_path: Path) -> None:
    """The directory announces 10 bytes for a member that holds a megabyte."""
    path = _zip(tmp_path / "lie.zip", {"a": bytes(1 << 20)})
    data = path.read_bytes()
    size = (1 << 20).to_bytes(4, "little")
    assert data.count(size) == 2
    path.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    error = _refusal(path, tmp_path / "out")
    assert error.reason in ("bad_zip", "unsafe_zip")
    assert sum(found.stat().st_size for found in (tmp_path / "out").iterdir()) <= 10


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"a": b"secret"})
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(magic) + offset] |= 1
    path.write_bytes(bytes(data))
    assert _refusal(path, tmp_path / "out").reason == "encrypted_zip"


@pytest.mark.parametrize("cut", [30, 0.5, -5])
def test_a_cut_archive_is_bad(tmp_path: Path, cut: float) -> None:
    path = _zip(tmp_path / "a.zip", {str(n): bytes(range(256)) * 40 for n in range(9)})
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data)) if 0 < cut < 1 else int(cut)])
    assert _refusal(path, tmp_path / "out").reason == "bad_zip"


def test_damaged_bytes_are_bad(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"a": bytes(range(256)) * 40})
    data = bytearray(path.read_bytes())
    data[60:80] = bytes(20)
    path.write_bytes(bytes(data))
    assert _refusal(path, tmp_path / "out").reason == "bad_zip"


def test_an_unknown_compression_is_bad(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.zip", {"a": b"x" * 100})
    data = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        data[data.index(magic) + offset] = 77
    path.write_bytes(bytes(data))
    assert _refusal(path, tmp_path / "out").reason == "bad_zip"
