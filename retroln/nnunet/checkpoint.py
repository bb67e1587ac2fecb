"""What a fold goes on from: its last checkpoint, the recorded hash and epoch of it, its journal of epochs.

Nothing here needs torch: who starts a training, or carries its state to another machine, reads it too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroln.errors import IntegrityError
from retroln.files import sha256_file, write_bytes

LATEST = "checkpoint_latest.pth"
EPOCHS_FILE = "epochs.jsonl"
INTERRUPTED = 75
"""Exit status of a training that was told to stop and saved what it had (EX_TEMPFAIL)."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint whose bytes are recorded, and the number of whole epochs behind it."""

    path: Path
    sha256: str
    epochs: int


def record(checkpoint: Path, sha256: str, epochs: int) -> None:
    """Note the coming hash before the last one: a crash in between leaves both valid."""
    lines = [f"{sha256} {epochs}", *_record_lines(checkpoint)[:1]]
    write_bytes(_record_file(checkpoint), "\n".join(lines).encode())


def recorded(checkpoint: Path) -> dict[str, int]:
    """Epochs behind each hash that the checkpoint may have; empty when nothing is recorded."""
    return {words[0]: int(words[1]) for words in map(str.split, _record_lines(checkpoint)) if len(words) == 2}


def check(checkpoint: Path, *, copy_of: Path | None = None) -> Saved:
    """The checkpoint, if training wrote exactly these bytes. A checkpoint is a pickle: check before loading.

    Args:
        copy_of: the checkpoint in whose record to look, when `checkpoint` is a copy.

    Raises:
        IntegrityError: its hash is not recorded.
    """
    got, known = sha256_file(checkpoint), recorded(copy_of or checkpoint)
    if got not in known:
        raise IntegrityError(
            "checkpoint is not the one that training wrote",
            file=checkpoint,
            expected=" or ".join(known) or "a recorded sha256",
            got=got,
            fix="delete the fold's folder to train it from the start",
        )
    return Saved(checkpoint, got, known[got])


def saved(folder: Path) -> Saved | None:
    """What a fold's folder can go on from, checked; None without a checkpoint."""
    latest = folder / LATEST
    return check(latest) if latest.is_file() else None


def read_epochs(journal: Path) -> list[dict[str, Any]]:
    """Whole lines only; the last may still be being written. Empty without a file."""
    if not journal.is_file():
        return []
    text = journal.read_text("utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def write_epochs(journal: Path, epochs: Iterable[Mapping[str, Any]]) -> None:
    """Replace the journal, whole or not at all."""
    write_bytes(journal, "".join(json.dumps(epoch) + "\n" for epoch in epochs).encode())


def _record_file(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".sha256")


def _record_lines(checkpoint: Path) -> list[str]:
    file = _record_file(checkpoint)
    return file.read_text("utf-8").splitlines() if file.is_file() else []
