"""Unpacking a zip from outside: its members under names of our own, within bounds, nothing else.

The names in the archive are never used as paths, so none can lead out of the folder; one that tries is a sign
of bad intent, and the archive is refused.
"""

from __future__ import annotations

import errno
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from retroln.errors import InputError
from retroln.imaging.dicom.bounds import MOST_INFLATED_RATIO
from retroln.imaging.dicom.extras import ending

_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")  # the second: an empty archive
_CHUNK_BYTES = 1 << 20
# what zipfile lets through: of an empty name an IndexError, of a key that is asked for a RuntimeError
_BROKEN = (EOFError, RuntimeError, ValueError, LookupError, ArithmeticError)
_PACKED_BY = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DIRECTORY_BYTES = 8 << 20  # 400 for each of 20,000 members; zipfile makes an object of 500 bytes of 46
_END, _END_BYTES, _LONGEST_COMMENT = b"PK\x05\x06", 22, 65535  # APPNOTE 4.3.16
_LOCATOR, _LOCATOR_BYTES = b"PK\x06\x07", 20  # 4.3.15, in front of the end; in front of it
_END_64_BYTES = 56  # the end of a large archive, 4.3.14
_ENCRYPTED = 0x1  # bit 0 of the general purpose flags (APPNOTE 4.4.4)


@dataclass(frozen=True)
class Bounds:
    """What an archive may become.

    Attributes:
        files: members; a whole-body CT has about 2,000 slices per series.
        size_bytes: of all members unpacked.
        ratio: unpacked size by the archive's; CT slices pack 2 to 4 times, blank ones some 100 times.
    """

    files: int = 20_000
    size_bytes: int = 16 << 30
    ratio: int = MOST_INFLATED_RATIO


def is_zip(path: Path) -> bool:
    """Whether the file begins like a zip archive."""
    with path.open("rb") as stream:
        return stream.read(4) in _MAGIC


def unpack(path: Path, folder: Path, bounds: Bounds | None = None) -> list[Path]:
    """Write every member to `folder` as 000001, 000002, ... (known endings are kept), and return the files.

    Folders, hidden members and those of __MACOSX are left out.

    Raises:
        InputError: `bad_zip` (damaged, cut, unknown compression), `encrypted_zip`, `unsafe_zip` (a path that
            leaves the archive, a link, more than `bounds`).
    """
    bounds = bounds or Bounds()
    try:
        _require_small_directory(path)
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path, bounds)
            return _write(archive, members, folder, path, _limit(path, bounds))
    except (zipfile.BadZipFile, zlib.error, struct.error, *_BROKEN) as error:
        raise _bad(path, type(error).__name__) from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek to a place that the archive invents; else disk or network
            raise
        raise _bad(path, "a place beyond the archive") from None


def _require_small_directory(path: Path) -> None:
    """zipfile reads the whole directory before anything can be asked."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _LONGEST_COMMENT - _END_BYTES - _LOCATOR_BYTES - _END_64_BYTES))
        tail = stream.read()
    at = tail.find(_END)
    while at >= 0:
        said = int.from_bytes(tail[at + 12 : at + 16], "little")
        if tail[max(at - _LOCATOR_BYTES, 0) : at].startswith(_LOCATOR):
            end_64 = tail[max(at - _LOCATOR_BYTES - _END_64_BYTES, 0) :]
            said = int.from_bytes(end_64[40:48], "little")
        if said > _DIRECTORY_BYTES:
            raise _unsafe(path, f"a directory of at most {_DIRECTORY_BYTES} bytes", f"{said}")
        at = tail.find(_END, at + 1)


def _bad(path: Path, got: str) -> InputError:
    return _refusal(
        path,
        "the archive is damaged, cut or packed in an unknown way",
        "bad_zip",
        "a zip by deflate or without compression",
        got,
        "make the archive again",
    )


def _members(archive: zipfile.ZipFile, path: Path, bounds: Bounds) -> list[zipfile.ZipInfo]:
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) > bounds.files:
        raise _unsafe(path, f"at most {bounds.files} files", f"{len(members)}")
    announced, limit = sum(member.file_size for member in members), _limit(path, bounds)
    if announced > limit:
        raise _unsafe(path, f"at most {limit} bytes unpacked", f"{announced}")
    for member in members:
        _require_harmless(member, path)
    return [member for member in members if not _is_hidden(member.filename)]


def _require_harmless(member: zipfile.ZipInfo, path: Path) -> None:
    name = member.filename.replace("\\", "/")
    if name.startswith("/") or ".." in PurePosixPath(name).parts or name[1:2] == ":":
        raise _unsafe(path, "names within the archive", "a path that leads out of it")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise _unsafe(path, "files", "a symbolic link")
    if member.compress_type not in _PACKED_BY:
        raise _bad(path, "another compression")
    if member.flag_bits & _ENCRYPTED:
        raise _refusal(
            path,
            "the archive is encrypted",
            "encrypted_zip",
            "an archive without a password",
            "an encrypted member",
            "deliver it unencrypted over an encrypted line",
        )


def _write(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path, path: Path, limit: int
) -> list[Path]:
    """Copy member by member; what is really read counts, whatever was announced."""
    folder.mkdir(parents=True, exist_ok=True)
    written, left = [], limit
    for number, member in enumerate(members, start=1):
        target = folder / neutral_name(number, member.filename)
        with archive.open(member) as packed, target.open("xb") as copy:
            while chunk := packed.read(_CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise _unsafe(path, f"at most {limit} bytes unpacked", "more")
                copy.write(chunk)
        written.append(target)
    return written


def neutral_name(number: int, name: str) -> str:
    """A file name that says nothing but the number, and what the old one's ending says of its kind."""
    return f"{number:06d}{ending(PurePosixPath(name).name)}"


def _limit(path: Path, bounds: Bounds) -> int:
    return min(bounds.size_bytes, bounds.ratio * path.stat().st_size)


def _is_hidden(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or any(part.startswith(".") for part in parts)


def _unsafe(path: Path, expected: str, got: str) -> InputError:
    fix = "pack the study's files and nothing else"
    return _refusal(path, "the archive is not safe to unpack", "unsafe_zip", expected, got, fix)


def _refusal(path: Path, what: str, reason: str, expected: str, got: str, fix: str) -> InputError:
    return InputError(what, reason=reason, file=path, expected=expected, got=got, fix=fix)
