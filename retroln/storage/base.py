"""What every object store offers: whole objects under safe keys, hashed, never half written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from retroln.errors import ConflictError, IntegrityError, NotFoundError


@dataclass(frozen=True)
class ObjectInfo:
    """One stored object.

    Attributes:
        key: its name below the store's root, parts joined by "/".
        size_bytes: its length.
        fingerprint: changes whenever the bytes were written again (S3: ETag; files: mtime and size).
        sha256: hex sha256 as recorded when RetroLN stored it; None when unknown, and in listings.
    """

    key: str
    size_bytes: int
    fingerprint: str
    sha256: str | None = None


class ObjectStore(Protocol):
    """A flat name space of immutable-while-read objects. Keys pass `keys.safe_key` first.

    Every method may raise `InputError` (reason `unsafe_key`), `UnavailableError` (away), `RefusedError` (no
    room, read-only, a fault) and `SettingsError` (keys, address, certificate).
    A store opened read-only answers `ConflictError` to put and delete.
    """

    @property
    def uri(self) -> str:
        """Where the store's root is, in the form `open_store` takes."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`; hidden names are left out.

        Folders and S3 itself list in key order; some S3 servers sort folder by folder.
        """
        ...

    def stat(self, key: str) -> ObjectInfo:
        """Describe one object, its recorded sha256 included. Raises `NotFoundError`."""
        ...

    def get_file(self, key: str, path: Path) -> str:
        """Copy an object to `path` (whole or not at all, constant memory); return its sha256.

        Raises:
            NotFoundError: no such object.
            IntegrityError: the bytes do not match the recorded sha256.
        """
        ...

    def put_file(self, path: Path, key: str, *, if_absent: bool = False) -> ObjectInfo:
        """Store a file under `key`, replacing what is there unless `if_absent`.

        Raises:
            NotFoundError: `path` is not a file.
            ConflictError: `if_absent` and the key exists, also when another writer wins a race.
            IntegrityError: the server kept other bytes, which are removed.
        """
        ...

    def get_bytes(self, key: str) -> bytes:
        """Read a small object; errors as `get_file`."""
        ...

    def put_bytes(self, data: bytes, key: str, *, if_absent: bool = False) -> ObjectInfo:
        """Store a small object; errors as `put_file`."""
        ...

    def link(self, key: str, seconds: float) -> str:
        """An address at which a browser can open the object, on S3 for `seconds` (7 days at most)."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; removing what is not there is no error."""
        ...


def not_found(uri: str, key: str) -> NotFoundError:
    """The error for an object that is not there."""
    return NotFoundError("no such object", file=f"{uri}/{key}", fix="check the key, or deliver it again")


def already_there(uri: str, key: str) -> ConflictError:
    """The error for a conditional put that lost."""
    return ConflictError("the object exists already", file=f"{uri}/{key}", fix="choose another key")


def refused_write(uri: str, key: str) -> ConflictError:
    """The error for a write to a store opened read-only."""
    return ConflictError("this store is read-only", file=f"{uri}/{key}", fix="write to RETROLN_STORE_URI")


def require_sha256(uri: str, key: str, *, recorded: str | None, found: str) -> str:
    """Return `found`, or raise `IntegrityError` when another sha256 was recorded."""
    if recorded is not None and recorded != found:
        raise IntegrityError(
            "stored bytes have changed",
            file=f"{uri}/{key}",
            expected=f"sha256 {recorded}",
            got=found,
            fix="restore the object from a backup, or make it again",
        )
    return found
