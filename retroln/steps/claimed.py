"""Do scans of one backlog side by side with other workers: each under a claim, each noted in a ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.catalog.records import ScanRecord
from retroln.errors import RefusedError, UnavailableError
from retroln.settings import Settings
from retroln.steps.cases import OnOutcome, guarded, run_cases
from retroln.steps.outages import riding_out
from retroln.steps.workspace import open_workspace

CLAIMED = "claimed"
DONE_ELSEWHERE = "done_elsewhere"

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """A scan that a worker is to do."""

    scan_id: int
    case_id: str


@dataclass(frozen=True)
class Job:
    """What a worker does with scans; travels to its processes.

    Attributes:
        run_id: the run that it works for.
        owner: the worker's name, the same in all its processes and no other worker's.
        work: does one scan; must bear repetition.
        waits: whether a scan still is in the state that the work is for.
    """

    settings: Settings
    run_id: int
    owner: str
    work: Callable[[ScanRecord], CaseOutcome]
    waits: Callable[[ScanRecord], bool]

    @property
    def catalog(self) -> Catalog:
        """This process's catalog."""
        return open_workspace(self.settings).catalog

    def do(self, item: Waiting) -> CaseOutcome:
        """Claim the scan, do it if it still waits, note what became of it, and give it back.

        Raises:
            UnavailableError: the catalog stayed away, so nothing was begun.
            RefusedError: it cannot do it, so nothing was begun.
        """
        scan_id, lease_s = item.scan_id, self.settings.lease_s
        if not self._patiently(lambda: self.catalog.claim(scan_id, self.owner, lease_s)):
            outcome = CaseOutcome(item.case_id, Outcome.SKIPPED, CLAIMED, "another worker has it")
            self._note_or_warn(outcome)
            return outcome
        try:
            outcome = guarded(self._if_waiting, item, item.case_id)
            self._note_or_warn(outcome)
            return outcome
        finally:
            self.release(scan_id)

    def note(self, outcome: CaseOutcome) -> None:
        """Write the outcome into the run's ledger; a skip leaves what this run did before."""
        replacing = outcome.outcome is not Outcome.SKIPPED
        self._patiently(lambda: self.catalog.note_outcome(self.run_id, outcome, replacing=replacing))

    def release(self, scan_id: int) -> None:
        """Give a scan back; if the catalog cannot take it, the lease ends by itself."""
        with suppress(UnavailableError, RefusedError):
            self.catalog.release(scan_id, self.owner)

    def _if_waiting(self, item: Waiting) -> CaseOutcome:
        scan = self._patiently(lambda: self.catalog.scan(item.scan_id))
        if not self.waits(scan):
            # a worker of this run may have died between recording the case and noting it
            if own := self._patiently(lambda: self.catalog.outcome_by(item.scan_id, self.run_id)):
                return own
            detail = f"it was done meanwhile and is {scan.state} now"
            return CaseOutcome(item.case_id, Outcome.SKIPPED, DONE_ELSEWHERE, detail)
        return self._patiently(lambda: self.work(scan))

    def _note_or_warn(self, outcome: CaseOutcome) -> None:
        """The case itself is recorded; its line in the ledger will say `lost` rather than undo that."""
        try:
            self.note(outcome)
        except (UnavailableError, RefusedError) as error:
            log.warning("%s was %s, which could not be noted: %s", outcome.case_id, outcome.outcome, error)

    def _patiently(self, call: Callable[[], Result]) -> Result:
        return riding_out(call, self.settings.patience_s)


def run_claimed(
    job: Job, scan_ids: Sequence[int], *, processes: int = 1, on_outcome: OnOutcome | None = None
) -> list[CaseOutcome]:
    """Do the scans in `processes` processes, one outcome each, also noted in the ledger of the job's run.

    What another worker has, or has done meanwhile, is skipped with reason `claimed` or
    `done_elsewhere`.

    Raises:
        NotFoundError: a scan is not in the catalog.
        UnavailableError: the catalog stayed away for longer than patience lasts; scans not yet begun
            stay as they are.
        RefusedError: it cannot do it (no room, read-only); the same holds.
    """
    waiting = riding_out(lambda: job.catalog.case_ids(scan_ids), job.settings.patience_s)
    scan_of = {case_id: scan_id for scan_id, case_id in waiting.items()}

    def settle(outcome: CaseOutcome) -> None:
        # a process that died could not do it itself; noting and giving back twice changes nothing
        if outcome.outcome is Outcome.FAILED:
            job.note(outcome)
            job.release(scan_of[outcome.case_id])
        if on_outcome:
            on_outcome(outcome)

    return run_cases(
        job.do,
        [Waiting(scan_id, case_id) for scan_id, case_id in waiting.items()],
        case_id=lambda item: item.case_id,
        processes=processes,
        on_outcome=settle,
    )
