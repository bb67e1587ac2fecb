"""One pass of a tool over a folder of cases, without a catalog: it can be repeated, and it balances.

A pass skips a case whose files and options are as before and whose results are whole; every other case
is done anew. What a case had before is removed first, so that no result stays beside a verdict that it has
nothing to do with.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from retroln.anatomy.vertebrae import level_files
from retroln.catalog.accounting import Accounting, CaseOutcome, Outcome
from retroln.errors import InputError, NotFoundError, RetroLNError, UserError
from retroln.files import sha256_json
from retroln.steps.cases import OnOutcome, run_cases
from retroln.steps.folder_ledger import Entry, FolderLedger, Stamp
from retroln.steps.folder_listing import FolderCase, Listing


@dataclass(frozen=True)
class Result:
    """What the work on one case gave.

    Attributes:
        outputs: files written, all of them in the output folder.
        facts: plain JSON for the summary.
        held: what was written is kept, but a person must look at it.
    """

    outputs: tuple[Path, ...]
    facts: dict[str, Any]
    held: InputError | None = None


class Tool(Protocol):
    """What is done with each case. Picklable, with everything it needs: every process gets its own."""

    @property
    def command(self) -> str:
        """Name of the command."""
        ...

    @property
    def output_dir(self) -> Path:
        """Where the results go."""
        ...

    def options(self) -> dict[str, Any]:
        """All that decides a result beside the case's files, as plain JSON."""
        ...

    def work(self, case: FolderCase) -> Result:
        """Do one case.

        Raises:
            InputError: it cannot be used; nothing was written.
            ToolError: no case can be done.
        """
        ...


class ToolError(RetroLNError):
    """What every case needs does not work: the pass ends instead of failing case by case."""

    def __init__(self, cause: UserError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True)
class FolderOutcome(CaseOutcome):
    """An outcome with its entry in the ledger; `stop` ends the pass."""

    entry: Entry | None = None
    stop: UserError | None = None


@dataclass(frozen=True)
class Report:
    """What a pass came to; `entries` are this pass's cases in the order of their ids."""

    accounting: Accounting
    entries: tuple[Entry, ...]
    left_out: int
    summary: Path


@dataclass(frozen=True)
class _Todo:
    case: FolderCase
    known: Entry | None


def run_folder(
    tool: Tool,
    listing: Listing,
    *,
    processes: int = 1,
    limit: int | None = None,
    on_outcome: OnOutcome | None = None,
) -> Report:
    """Do every case of the listing, or its first `limit`, and leave a balanced `summary.json`.

    Raises:
        ConflictError: the output folder is in use, or belongs to another command.
        UserError: what every case needs does not work; cases done until then are remembered.
    """
    cases = listing.cases[:limit]
    with FolderLedger(tool.output_dir, tool.command) as ledger:

        def note(outcome: CaseOutcome) -> None:
            if isinstance(outcome, FolderOutcome) and outcome.stop:
                raise outcome.stop
            ledger.note(_entry(outcome))
            if on_outcome:
                on_outcome(outcome)

        outcomes = run_cases(
            partial(_take, tool),
            [_Todo(case, ledger.entries.get(case.case_id)) for case in cases],
            case_id=lambda todo: todo.case.case_id,
            processes=processes,
            on_outcome=note,
        )
        accounting = Accounting.of(outcomes, len(cases))
        entries = tuple(ledger.entries[case.case_id] for case in cases)
        left_out = len(listing.cases) - len(cases)
        summary = ledger.finish(_summary(tool, listing, accounting, left_out, ledger.entries))
    return Report(accounting, entries, left_out, summary)


def _take(tool: Tool, todo: _Todo) -> FolderOutcome:
    """One case: as before, done, or held with the reason. Runs in a process of the pool."""
    case, known = todo.case, todo.known
    entry = Entry(case.case_id, Outcome.DONE, options_sha256=sha256_json([tool.command, tool.options()]))
    try:
        if case.problem:
            raise case.problem
        entry = replace(entry, inputs=_stamps(case, known))
        if before := _as_before(known, entry, tool.output_dir):
            return _outcome(before)
        _clear(tool.output_dir, known)
        return _outcome(_worked(tool, case, entry))
    except InputError as error:
        _clear(tool.output_dir, known)
        return _outcome(_held(entry, error))
    except ToolError as error:
        return FolderOutcome(case.case_id, Outcome.FAILED, stop=error.cause)


def _worked(tool: Tool, case: FolderCase, entry: Entry) -> Entry:
    start = time.perf_counter()
    result = tool.work(case)
    seconds = round(time.perf_counter() - start, 3)
    written = tuple(Stamp.of(path, str(path.relative_to(tool.output_dir))) for path in result.outputs)
    entry = replace(entry, outputs=written, facts=result.facts, seconds=seconds)
    return _held(entry, result.held) if result.held else entry


def _clear(output_dir: Path, known: Entry | None) -> None:
    """Remove what this tool wrote for a case before; what it does not know to be its own stays."""
    for stamp in known.outputs if known else ():
        path = output_dir / stamp.path
        path.unlink(missing_ok=True)
        if path.parent != output_dir:
            with suppress(OSError):  # not empty yet, or gone already
                path.parent.rmdir()


def _stamps(case: FolderCase, known: Entry | None) -> dict[str, tuple[Stamp, ...]]:
    """Stamps of every file of a case, taken before it is worked on."""
    before = {stamp.path: stamp for part in known.inputs.values() for stamp in part} if known else {}
    try:
        return {
            part: tuple(Stamp.of(file, name, before.get(name)) for file, name in _named_files(path))
            for part, path in case.parts.items()
        }
    except (FileNotFoundError, NotFoundError) as error:
        missing = getattr(error, "filename", None) or getattr(error, "file", None)
        raise InputError(
            "the file is not there", reason="missing_object", file=missing, fix="deliver it, or mend the link"
        ) from error


def _named_files(path: Path) -> list[tuple[Path, str]]:
    files = level_files(path).values() if path.is_dir() else (path,)
    return [(file, str(file.absolute())) for file in files]


def _as_before(known: Entry | None, now: Entry, output_dir: Path) -> Entry | None:
    """The entry of a case that came to an end before, of the same files, and of which nothing is missing.

    A held case stays held; a done one is skipped. The stamps are the present ones.
    """
    if known is None or known.outcome is Outcome.FAILED or not known.is_about(now.inputs, now.options_sha256):
        return None
    outputs = [stamp.again(output_dir) for stamp in known.outputs]
    whole = tuple(stamp for stamp in outputs if stamp)
    if len(whole) < len(outputs):
        return None
    outcome = Outcome.QUARANTINED if known.outcome is Outcome.QUARANTINED else Outcome.SKIPPED
    return replace(known, outcome=outcome, inputs=now.inputs, outputs=whole)


def _held(entry: Entry, error: InputError) -> Entry:
    named = {name: getattr(error, name) for name in ("file", "expected", "got", "fix")}
    return replace(
        entry,
        outcome=Outcome.QUARANTINED,
        reason=error.reason,
        detail=str(error),
        error={name: str(value) for name, value in named.items() if value},
    )


def _outcome(entry: Entry) -> FolderOutcome:
    return FolderOutcome(entry.case_id, entry.outcome, entry.reason, entry.detail, entry)


def _entry(outcome: CaseOutcome) -> Entry:
    """The entry of an outcome; a case that escaped its work as failed has only the reason."""
    if isinstance(outcome, FolderOutcome) and outcome.entry:
        return outcome.entry
    return Entry(outcome.case_id, outcome.outcome, outcome.reason, outcome.detail)


def _summary(
    tool: Tool, listing: Listing, accounting: Accounting, left_out: int, entries: Mapping[str, Entry]
) -> dict[str, Any]:
    taken = [case.case_id for case in listing.cases[: accounting.n_in]]
    others = sorted(set(entries) - set(taken))
    return {
        "retroln": version("retroln"),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "input_dir": str(listing.source.absolute()),
        "options": tool.options(),
        **accounting.to_dict(),
        "left_out": left_out,
        "ignored": list(listing.ignored),
        "unmatched": {part: list(names) for part, names in listing.unmatched.items()},
        "cases": [entries[case_id].to_dict() for case_id in taken],
        "other_cases": [entries[case_id].to_dict() for case_id in others],
    }
