"""The list of a backup's files with their sha256; without it, or with one that differs, no backup is used."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

from infra.postgres import write_secret

MANIFEST = "manifest.json"
_FORMAT = 1


def write_manifest(folder: Path) -> None:
    """Seal the backup: what is in `folder` now is all of it."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): _sha256(path) for path in found}
    made = {"format": _FORMAT, "made_at": datetime.now(UTC).isoformat(timespec="seconds"), "sha256": files}
    write_secret(folder / MANIFEST, json.dumps(made, indent=1))


def verify(folder: Path) -> None:
    """Check every file against the manifest.

    Raises:
        RuntimeError: there is no manifest, or a file is missing or differs.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except OSError as error:
        raise RuntimeError(f"{folder} holds no whole backup: there is no {MANIFEST}") from error
    if manifest["format"] != _FORMAT:
        raise RuntimeError(f"{folder} was written in format {manifest['format']}, expected {_FORMAT}")
    for name, expected in manifest["sha256"].items():
        path = folder / name
        if not path.is_file() or _sha256(path) != expected:
            raise RuntimeError(f"{path} is missing or damaged; use another backup")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
