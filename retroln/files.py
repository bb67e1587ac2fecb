"""Atomic writes and hashes: every file RetroLN leaves is whole or absent."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retroln.errors import Meaning, RefusedError, UnavailableError, UserError

_CHUNK_BYTES = 1 << 20

_FULL = Meaning(
    RefusedError, "has no room left", "free space, or raise the quota or the limit on the size of files"
)
_READ_ONLY = Meaning(RefusedError, "is read-only", "choose a place that can be written")
_NO_RIGHT = Meaning(RefusedError, "refuses this user", "give the user the right, or choose another place")
_BROKEN = Meaning(RefusedError, "has a fault of its own", "look at the system's log, and check the disk")
_AWAY = Meaning(UnavailableError, "is away", "check the network file system, then try again")
_BY_ERRNO = {
    errno.EACCES: _NO_RIGHT,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EHOSTDOWN: _AWAY,
    errno.EHOSTUNREACH: _AWAY,
    errno.EIO: _BROKEN,
    errno.ENOSPC: _FULL,
    errno.ENOTCONN: _AWAY,
    errno.EPERM: _NO_RIGHT,
    errno.EROFS: _READ_ONLY,
    errno.ESTALE: _AWAY,
    errno.ETIMEDOUT: _AWAY,
    errno.EUCLEAN: _BROKEN,
}


def disk_refusal(error: OSError) -> UserError | None:
    """What the disk cannot do, by name and with the fix; None for an error that says nothing of it."""
    meaning = _BY_ERRNO.get(error.errno or 0)
    return meaning.error("the disk", file=error.filename, got=error.strerror) if meaning else None


@contextmanager
def naming_disk_refusals() -> Iterator[None]:
    """Raise `OSError` that tells of the disk as `RefusedError` or `UnavailableError`; decorates, too."""
    try:
        yield
    except OSError as error:
        if refusal := disk_refusal(error):
            raise refusal from error
        raise


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `target` that replaces it when the block succeeds.

    The sibling keeps the target's extensions, because writers choose a format by name.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(target.suffixes[-2:])
    handle, name = tempfile.mkstemp(prefix=".partial-", suffix=suffix, dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target`, whole or not at all."""
    with atomic_path(target) as partial:
        partial.write_bytes(data)


def write_json(target: Path, content: Any) -> None:
    """Write `content` as sorted, indented JSON, whole or not at all; NaN is refused."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False)
    write_bytes(target, (text + "\n").encode())


def cache_folder() -> Path:
    """Where this user's programs keep what can be made again; perhaps it is not there, or not writable."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "retroln"
    try:
        return Path.home() / ".cache" / "retroln"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"retroln-{os.getuid()}"


def sha256_bytes(data: bytes) -> str:
    """Hex sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(content: Any) -> str:
    """Hex sha256 of the canonical JSON of `content` (sorted keys, no spaces)."""
    return sha256_bytes(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in constant memory."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
