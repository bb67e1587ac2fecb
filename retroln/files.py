"""Atomic writes and hashes: every file RetroLN leaves is whole or absent."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20


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
