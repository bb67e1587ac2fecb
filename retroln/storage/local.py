"""An object store in a folder, for one machine.

`<root>/.retroln/sha256/` records the hash of what was put, one file per key. While an object is replaced its
record holds the old and the new hash, so a crash at any point leaves a readable object.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

from retroln.errors import InputError, NotFoundError
from retroln.files import (
    atomic_path,
    naming_disk_refusals,
    partial_beside,
    sha256_bytes,
    sha256_file,
    write_bytes,
)
from retroln.storage.base import ObjectInfo, already_there, not_found, refused_write, require_sha256
from retroln.storage.keys import is_hidden, safe_key, safe_prefix

_CHUNK_BYTES = 1 << 20
_READ_ATTEMPTS = 5


class LocalStore:
    """Objects as files under `root`; safe for several processes on one machine."""

    def __init__(self, root: Path, *, uri: str | None = None, read_only: bool = False) -> None:
        self._root = Path(os.path.realpath(root))
        self._uri = (uri or self._root.as_uri()).rstrip("/")
        self._read_only = read_only
        self._records = self._root / ".retroln" / "sha256"

    @property
    def uri(self) -> str:
        """The address given at opening."""
        return self._uri

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """As `ObjectStore.list`. A link that leaves the root is listed but cannot be read."""
        safe_prefix(prefix)
        if self._root.is_dir():
            folder = prefix.rpartition("/")[0]
            yield from self._walk(self._root / folder, folder, prefix, ())
        elif self._read_only:
            raise NotFoundError("no such folder", file=self._uri, fix="create it, or mend the address")

    @naming_disk_refusals()
    def stat(self, key: str) -> ObjectInfo:
        """As `ObjectStore.stat`."""
        status = self._existing(key).stat()
        recorded = self._recorded(key)
        return _info(key, status, recorded[0] if len(recorded) == 1 else None)

    @naming_disk_refusals()
    def get_file(self, key: str, path: Path) -> str:
        """As `ObjectStore.get_file`."""

        def copy() -> str:
            with self._existing(key).open("rb") as stream, partial.open("wb") as target:
                return _copy(stream, target)

        with atomic_path(path) as partial:
            return self._verified(key, copy)

    @naming_disk_refusals()
    def put_file(self, path: Path, key: str, *, if_absent: bool = False) -> ObjectInfo:
        """As `ObjectStore.put_file`."""
        if not path.is_file():
            raise NotFoundError("no such file", file=path)
        with path.open("rb") as stream:
            return self._put(stream, key, if_absent)

    @naming_disk_refusals()
    def get_bytes(self, key: str) -> bytes:
        """As `ObjectStore.get_bytes`."""
        data = b""

        def read() -> str:
            nonlocal data
            data = self._existing(key).read_bytes()
            return hashlib.sha256(data).hexdigest()

        self._verified(key, read)
        return data

    @naming_disk_refusals()
    def put_bytes(self, data: bytes, key: str, *, if_absent: bool = False) -> ObjectInfo:
        """As `ObjectStore.put_bytes`."""
        return self._put(BytesIO(data), key, if_absent)

    def link(self, key: str, seconds: float) -> str:
        """As `ObjectStore.link`: the file itself."""
        return self._existing(key).as_uri()

    @naming_disk_refusals()
    def delete(self, key: str) -> None:
        """As `ObjectStore.delete`."""
        path = self._path(key)
        if self._read_only:
            raise refused_write(self._uri, key)
        if path.is_file() or path.is_symlink():
            with self._locked():
                self._record(key).unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        path = self._root / safe_key(key)
        if not self._is_inside(path):
            raise InputError(
                "the object lies outside its store",
                reason="unsafe_key",
                file=f"{self._uri}/{key}",
                expected="a file below it",
                got="a symbolic link to another place",
                fix="copy the file in, or point the address at the folder it lies in",
            )
        return path

    def _folders_of(self, path: Path) -> Iterator[Path]:
        """The folders between the root and an object."""
        return (folder for folder in path.parents if self._root in folder.parents)

    def _is_inside(self, path: Path) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self._root)

    def _existing(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise not_found(self._uri, key)
        return path

    def _recorded(self, key: str) -> tuple[str, ...]:
        """Hashes the object may have; none known, or none asked for, gives ()."""
        try:
            return () if self._read_only else tuple(self._record(key).read_text("utf-8").split())
        except FileNotFoundError:
            return ()

    def _record(self, key: str) -> Path:
        """Named by the key's hash: what is a folder today may be an object tomorrow."""
        name = sha256_bytes(key.encode())
        return self._records / name[:2] / name

    def _verified(self, key: str, read: Callable[[], str]) -> str:
        """Run `read` until the bytes fit their record; a replacement meanwhile is no damage."""
        for _ in range(_READ_ATTEMPTS):
            before = self._recorded(key)
            found = read()
            recorded = self._recorded(key)
            if found in (*before, *recorded) or (not recorded and not before):
                return found
            if recorded == before:
                break
        return require_sha256(self._uri, key, recorded=" or ".join(recorded) or None, found=found)

    def _put(self, stream: IO[bytes], key: str, if_absent: bool) -> ObjectInfo:
        target = self._path(key)
        if self._read_only:
            raise refused_write(self._uri, key)
        if target.is_dir() or any(parent.is_file() for parent in self._folders_of(target)):
            raise already_there(self._uri, key)
        with partial_beside(target) as partial:
            with partial.open("wb") as copy:
                sha256 = _copy(stream, copy)
                copy.flush()
                os.fsync(copy.fileno())
            self._publish(partial, target, key, sha256, if_absent)
        return _info(key, target.stat(), sha256)

    def _publish(self, partial: Path, target: Path, key: str, sha256: str, if_absent: bool) -> None:
        with self._locked():
            if if_absent and target.exists():
                raise already_there(self._uri, key)
            record = self._record(key)
            if target.exists():
                before = self._recorded(key) or (sha256_file(target),)
                write_bytes(record, " ".join(dict.fromkeys((*before, sha256))).encode())
            else:
                write_bytes(record, sha256.encode())
            partial.replace(target)
            write_bytes(record, sha256.encode())

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time decides; copying happens before, outside the lock."""
        self._records.mkdir(parents=True, exist_ok=True)
        with (self._records.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _walk(self, folder: Path, key: str, prefix: str, above: tuple[str, ...]) -> Iterator[ObjectInfo]:
        real = os.path.realpath(folder)
        if real in above or not folder.is_dir() or not self._is_inside(folder):
            return
        for name, entry in _sorted_entries(folder, key):
            if is_hidden(name) or not (name.startswith(prefix) or prefix.startswith(name)):
                continue
            if _is_folder(entry) and self._is_inside(Path(entry.path)):
                yield from self._walk(Path(entry.path), name.rstrip("/"), prefix, (*above, real))
            elif name.startswith(prefix) and (info := self._listed(name.rstrip("/"), entry)):
                yield info

    def _listed(self, key: str, entry: os.DirEntry[str]) -> ObjectInfo | None:
        try:
            return _info(key, entry.stat(follow_symlinks=self._is_followed(entry)), None)
        except FileNotFoundError:  # removed meanwhile, or a link to nothing
            return None

    def _is_followed(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry's own link, if it is one, leads to something inside the root."""
        return not entry.is_symlink() or (self._is_inside(Path(entry.path)) and not _is_circle(entry))


@naming_disk_refusals()
def _sorted_entries(folder: Path, key: str) -> list[tuple[str, os.DirEntry[str]]]:
    """Entries with their keys in S3's order: folders sort with their trailing slash."""
    start = f"{key}/" if key else ""
    with os.scandir(folder) as entries:
        named = [(f"{start}{entry.name}{'/' if _is_folder(entry) else ''}", entry) for entry in entries]
    return sorted(named, key=lambda pair: os.fsencode(pair[0]))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return not _is_circle(entry) and entry.is_dir()


def _is_circle(entry: os.DirEntry[str]) -> bool:
    """A link that leads back to itself, directly or by others; asking for what it leads to is an error."""
    try:
        entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return True
    return False


def _info(key: str, status: os.stat_result, sha256: str | None) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, f"{status.st_mtime_ns}-{status.st_size}", sha256)


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
    return digest.hexdigest()
