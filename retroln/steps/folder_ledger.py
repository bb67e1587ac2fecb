"""What a folder tool did, kept beside its results: stamps of files, a journal, and `summary.json`.

The journal takes one line per case as it ends, so that a killed run loses only the cases in hand; the
summary takes its place when a run ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from retroln.catalog.accounting import Outcome
from retroln.errors import ConflictError
from retroln.files import make_folder, naming_full, sha256_file, write_json

SUMMARY = "summary.json"
JOURNAL = ".retroln-journal.jsonl"
FORMAT = 1


@dataclass(frozen=True)
class Stamp:
    """A file as it was.

    Attributes:
        path: absolute for what was read, relative to the output folder for what was written.
        size_bytes, mtime_ns: where both are as before under the same path, so are the bytes (the rule of
            make and rsync); where one is not, the hash decides.
    """

    path: str
    size_bytes: int
    mtime_ns: int
    sha256: str

    @classmethod
    def of(cls, file: Path, path: str, known: Stamp | None = None) -> Stamp:
        """The stamp of `file` under the name `path`; it is read unless it is as `known` says."""
        facts = file.stat()
        found = (path, facts.st_size, facts.st_mtime_ns)
        if known and found == (known.path, known.size_bytes, known.mtime_ns):
            return known
        return cls(*found, sha256_file(file))

    def again(self, folder: Path) -> Stamp | None:
        """The present stamp of a file that was written to `folder`; None if it has other bytes now."""
        file = folder / self.path
        try:
            if file.stat().st_size != self.size_bytes:
                return None
            now = Stamp.of(file, self.path, self)
        except OSError:
            return None
        return now if now.sha256 == self.sha256 else None


@dataclass(frozen=True)
class Entry:
    """What became of one case and of which files.

    Attributes:
        options_sha256: hash of all that decides the result beside the files; "" where nothing was tried.
        inputs: stamps by part (`ct`, `vertebrae`, `mask`).
        outputs: what was written.
        facts: what the tool found, for people and for later steps.
        error: file, expected, got and fix of a case that is held.
        seconds: time of the work, not counting the wait for it.
    """

    case_id: str
    outcome: Outcome
    reason: str | None = None
    detail: str | None = None
    options_sha256: str = ""
    inputs: Mapping[str, tuple[Stamp, ...]] = field(default_factory=dict)
    outputs: tuple[Stamp, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON content."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Entry:
        """The entry that `to_dict` made."""
        stamps = {part: tuple(Stamp(**one) for one in found) for part, found in content["inputs"].items()}
        outputs = tuple(Stamp(**one) for one in content["outputs"])
        outcome = Outcome(content["outcome"])
        return cls(**{**content, "outcome": outcome, "inputs": stamps, "outputs": outputs})

    def is_about(self, inputs: Mapping[str, tuple[Stamp, ...]], options_sha256: str) -> bool:
        """True if it was these bytes under these names, and the same options."""
        return self.options_sha256 == options_sha256 and _content(self.inputs) == _content(inputs)


class FolderLedger:
    """The ledger of one output folder, for one run at a time; a context manager."""

    def __init__(self, folder: Path, command: str) -> None:
        self._folder, self._command = folder, command
        self._journal: TextIO | None = None
        self.entries: dict[str, Entry] = {}

    def __enter__(self) -> FolderLedger:
        """Lock the folder, clear what a killed run left half written, and read what was done.

        Raises:
            ConflictError: another run is at work here, or the folder belongs to another command.
        """
        make_folder(self._folder)
        self._journal = self._locked()
        try:
            self.entries = {**self._from_summary(), **self._from_journal()}
        except BaseException:
            self._close()
            raise
        for left in self._folder.glob(".partial-*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return self

    def note(self, entry: Entry) -> None:
        """Remember a case that ended; from here on a crash does not undo it."""
        self.entries[entry.case_id] = entry
        self._append(entry.to_dict())

    def finish(self, summary: Mapping[str, Any]) -> Path:
        """Write the summary, which holds every entry; the journal is not needed any more."""
        assert self._journal is not None
        path = self._folder / SUMMARY
        write_json(path, {**self._header(), **summary})
        self._journal.truncate(0)
        return path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the folder free."""
        self._close()

    def _header(self) -> dict[str, Any]:
        return {"format": FORMAT, "command": self._command}

    def _append(self, content: Mapping[str, Any]) -> None:
        assert self._journal is not None
        with naming_full(self._folder / JOURNAL):
            if os.fstat(self._journal.fileno()).st_size == 0:
                self._journal.write(json.dumps(self._header()) + "\n")
            self._journal.write(json.dumps(content) + "\n")
            self._journal.flush()

    def _locked(self) -> TextIO:
        path = self._folder / JOURNAL
        stream = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # a run that ended just now took the file away: the lock on it would be worth nothing
            if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return stream
        except BlockingIOError:
            pass
        stream.close()
        raise ConflictError(
            "another run writes to this folder", file=self._folder, fix="wait for it, or name another folder"
        )

    def _close(self) -> None:
        """Free the lock; an empty journal goes."""
        assert self._journal is not None
        if os.fstat(self._journal.fileno()).st_size == 0:
            (self._folder / JOURNAL).unlink(missing_ok=True)
        with naming_full(self._folder / JOURNAL):
            self._journal.close()

    def _from_summary(self) -> dict[str, Entry]:
        path = self._folder / SUMMARY
        if not path.exists():
            return {}
        try:
            content = json.loads(path.read_bytes())
            self._require_own(content, path)
            found = [Entry.from_dict(one) for one in (*content["cases"], *content["other_cases"])]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._foreign(path) from error
        return {entry.case_id: entry for entry in found}

    def _from_journal(self) -> dict[str, Entry]:
        """What a run that did not end noted; a line that it did not finish is cut off."""
        assert self._journal is not None
        self._journal.seek(0)
        text = self._journal.read()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._journal.truncate(len(whole.encode()))
        path = self._folder / JOURNAL
        try:
            header, *lines = [json.loads(line) for line in whole.splitlines()] or [self._header()]
            self._require_own(header, path)
            return {line["case_id"]: Entry.from_dict(line) for line in lines}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._foreign(path) from error

    def _require_own(self, content: Mapping[str, Any], path: Path) -> None:
        if {name: content.get(name) for name in self._header()} != self._header():
            raise self._foreign(path)

    def _foreign(self, path: Path) -> ConflictError:
        return ConflictError(
            "the output folder belongs to something else",
            file=path,
            expected=f"no such file, or one by this version of `retroln {self._command}`",
            got="another content",
            fix="name another --output-dir",
        )


def _content(inputs: Mapping[str, tuple[Stamp, ...]]) -> dict[str, list[tuple[str, str]]]:
    return {part: [(Path(one.path).name, one.sha256) for one in found] for part, found in inputs.items()}
