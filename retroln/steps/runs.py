"""A run and its accounting: cases in = done + skipped + quarantined + failed, stored and asserted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from retroln.catalog.accounting import Accounting, CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.errors import ConflictError, RetroLNError
from retroln.settings import Settings
from retroln.steps.workspace import open_workspace

LOST = "lost"

_LOST_DETAIL = "no worker reported what became of it; its state is unchanged and the next run takes it up"


@dataclass(frozen=True)
class Backlog:
    """What a step has to do, and what else it answers for without touching it.

    Attributes:
        left: ids of the scans that wait, oldest first.
        skipped: how many scans there is nothing to do for.
        held: scans that wait for a person.
        notes: why some of the skipped are skipped, counted by reason.
    """

    left: tuple[int, ...]
    skipped: int
    held: tuple[CaseOutcome, ...] = ()
    notes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One pass of a step, from its beginning to its balanced end.

    As a context manager it records a pass that an error cut short as failed, without counts.
    """

    settings: Settings
    run_id: int

    @classmethod
    def begin(
        cls, settings: Settings, flow: str, parameters: dict[str, Any], external_id: str | None = None
    ) -> Run:
        """Record that a run began; `external_id` is the orchestrator's own id, if there is one."""
        catalog = open_workspace(settings).catalog
        return cls(settings, catalog.begin_run(flow, parameters, external_id=external_id))

    def finish(self, outcomes: Sequence[CaseOutcome], n_in: int | None = None) -> Accounting:
        """Store the accounting; raises if it does not balance against `n_in` (default: all outcomes).

        For a step that one process does; what several workers noted in the ledger is settled.
        """
        accounting = Accounting.of(outcomes, len(outcomes) if n_in is None else n_in)
        self._store(accounting)
        return accounting

    def settle(self, backlog: Backlog, limit: int | None = None) -> tuple[Accounting, list[CaseOutcome]]:
        """Count what the workers noted of the scans that were left, and store the accounting.

        A scan of which no worker said anything is noted as failed, reason `lost`; its state stays, so
        the next run takes it up. A run that went on after a crash counts what it did before as its own.
        Settling again, say by a flow that was started again, gives the same.

        Args:
            backlog: what the run found when it began, or when it went on.
            limit: how many scans of `backlog.left` were given out; None for all.

        Returns:
            The accounting, and what a person should see: the scans held before, then those that the run
            quarantined or failed.

        Raises:
            AccountingError: the ledger does not add up to what went in.
        """
        catalog = open_workspace(self.settings).catalog
        return self._settle(set(catalog.case_ids(backlog.left[:limit]).values()), backlog)

    def settle_cases(self, case_ids: Iterable[str]) -> tuple[Accounting, list[CaseOutcome]]:
        """As `settle`, for a step that answers for cases of the source and leaves none out."""
        return self._settle(set(case_ids), Backlog(left=(), skipped=0))

    def _settle(self, left: set[str], backlog: Backlog) -> tuple[Accounting, list[CaseOutcome]]:
        catalog = open_workspace(self.settings).catalog
        accounting = catalog.run(self.run_id).accounting
        if accounting is None:
            accounting = _count(catalog, self.run_id, backlog, left)
            self._store(accounting)
        shown = catalog.outcomes_of(self.run_id, Outcome.QUARANTINED, Outcome.FAILED)
        again = {outcome.case_id for outcome in shown}
        return accounting, [one for one in backlog.held if one.case_id not in again] + shown

    def unreported(self, scan_ids: Sequence[int]) -> tuple[int, ...]:
        """Those of the scans of which no worker of this run has said anything yet, in the given order."""
        catalog = open_workspace(self.settings).catalog
        noted = {outcome.case_id for outcome in catalog.outcomes_of(self.run_id)}
        names = catalog.case_ids(scan_ids)
        return tuple(scan_id for scan_id in scan_ids if names[scan_id] not in noted)

    def reported(self) -> int:
        """How many cases this run's workers have said something of."""
        return sum(open_workspace(self.settings).catalog.count_outcomes(self.run_id).values())

    def quarantined(self) -> dict[str, int]:
        """How many cases this run itself put into quarantine, by reason."""
        return open_workspace(self.settings).catalog.quarantined_by(self.run_id)

    def cut_short(self) -> bool:
        """Record that the run ended without counting itself; False if it has counted itself, which stays."""
        try:
            open_workspace(self.settings).catalog.finish_run(self.run_id, None, "failed")
        except ConflictError:
            return False
        return True

    def _store(self, accounting: Accounting) -> None:
        state = "failed" if accounting.failed else "completed"
        open_workspace(self.settings).catalog.finish_run(self.run_id, accounting, state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is not None:
            # a catalog that is gone hides no error
            with suppress(RetroLNError):
                self.cut_short()


def _count(catalog: Catalog, run_id: int, backlog: Backlog, left: set[str]) -> Accounting:
    """The ledger's counts and the untouched, against the number of cases in: left, skipped and held."""
    noted = {outcome.case_id: outcome.outcome for outcome in catalog.outcomes_of(run_id)}
    lost = sorted(left - noted.keys())
    catalog.note_outcome(
        run_id,
        *(CaseOutcome(case_id, Outcome.FAILED, LOST, _LOST_DETAIL) for case_id in lost),
        replacing=False,
    )
    # what the run did before it went on is no longer left: the backlog has it among skipped and held
    settled = (Outcome.DONE, Outcome.SKIPPED)
    before = sum(outcome in settled for case_id, outcome in noted.items() if case_id not in left)
    skipped = max(0, backlog.skipped - before)
    held = sum(outcome.case_id not in noted for outcome in backlog.held)
    counts = catalog.count_outcomes(run_id)
    return Accounting(
        len(left | noted.keys()) + skipped + held,
        done=counts[Outcome.DONE],
        skipped=counts[Outcome.SKIPPED] + skipped,
        quarantined=counts[Outcome.QUARANTINED] + held,
        failed=counts[Outcome.FAILED],
    )
