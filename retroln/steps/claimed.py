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
from retroln.catalog.withdrawals import WITHDRAWN
from retroln.errors import LeaseError, UnavailableError, WithdrawnError
from retroln.settings import Settings
from retroln.steps.cases import OnOutcome, guarded, run_cases
from retroln.steps.leases import renewed
from retroln.steps.outages import riding_out
from retroln.steps.workspace import open_workspace

CLAIMED = "claimed"
DONE_ELSEWHERE = "done_elsewhere"
LEASE_LOST = "lease_lost"

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
        work: does one scan; must bear repetition. What it records, it records as `owner` (see
            `Catalog.of_worker`).
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

        The claim is renewed until then. A scan whose claim was lost all the same, or whose patient withdrew,
        is skipped.

        Raises:
            UnavailableError: the catalog stayed away, so nothing was begun.
        """
        scan_id, lease_s = item.scan_id, self.settings.lease_s
        if not self._patiently(lambda: self.catalog.claim(scan_id, self.owner, lease_s)):
            outcome = CaseOutcome(item.case_id, Outcome.SKIPPED, CLAIMED, "another worker has it")
            self._note_or_warn(outcome)
            return outcome
        try:
            with renewed(lambda: self.catalog.renew(scan_id, self.owner, lease_s), lease_s, self._longest_s):
                outcome = self._unless_lost(item, guarded(self._if_waiting, item, item.case_id))
                self._note_or_warn(outcome)
                return outcome
        finally:
            self.release(scan_id)

    def note(self, outcome: CaseOutcome) -> None:
        """Write the outcome into the run's ledger; a skip leaves what this run did before."""
        replacing = outcome.outcome is not Outcome.SKIPPED
        self._patiently(lambda: self.catalog.note_outcome(self.run_id, outcome, replacing=replacing))

    def release(self, scan_id: int) -> None:
        """Give a scan back; if the catalog is away, the lease ends by itself."""
        with suppress(UnavailableError):
            self.catalog.release(scan_id, self.owner)

    def _if_waiting(self, item: Waiting) -> CaseOutcome:
        scan = self._patiently(lambda: self.catalog.scan(item.scan_id))
        if not self.waits(scan):
            # a worker of this run may have died between recording the case and noting it
            if own := self._patiently(lambda: self.catalog.outcome_by(item.scan_id, self.run_id)):
                return own
            detail = f"it was done meanwhile and is {scan.state} now"
            return CaseOutcome(item.case_id, Outcome.SKIPPED, DONE_ELSEWHERE, detail)
        try:
            return self._patiently(lambda: self.work(scan))
        except LeaseError as error:
            return CaseOutcome(item.case_id, Outcome.SKIPPED, LEASE_LOST, str(error))
        except WithdrawnError as error:
            return CaseOutcome(item.case_id, Outcome.SKIPPED, WITHDRAWN, str(error))

    def _unless_lost(self, item: Waiting, outcome: CaseOutcome) -> CaseOutcome:
        """A failure says nothing of a case that another has by now."""
        if outcome.outcome is Outcome.FAILED:
            with suppress(UnavailableError):
                if not self.catalog.renew(item.scan_id, self.owner, self.settings.lease_s):
                    return CaseOutcome(item.case_id, Outcome.SKIPPED, LEASE_LOST, outcome.detail)
        return outcome

    def _note_or_warn(self, outcome: CaseOutcome) -> None:
        """The case itself is recorded; its line in the ledger will say `lost` rather than undo that."""
        try:
            self.note(outcome)
        except UnavailableError as error:
            log.warning("%s was %s, which could not be noted: %s", outcome.case_id, outcome.outcome, error)

    @property
    def _longest_s(self) -> float:
        """A run that lasts longer is over-age."""
        return self.settings.max_run_h * 3600

    def _patiently(self, call: Callable[[], Result]) -> Result:
        return riding_out(call, self.settings.patience_s)


def run_claimed(
    job: Job, scan_ids: Sequence[int], *, processes: int = 1, on_outcome: OnOutcome | None = None
) -> list[CaseOutcome]:
    """Do the scans in `processes` processes, one outcome each, also noted in the ledger of the job's run.

    What another worker has, or has done meanwhile, is skipped with reason `claimed` or `done_elsewhere`;
    what was taken from this one, or withdrawn, with reason `lease_lost` or `withdrawn`.

    Raises:
        NotFoundError: a scan is not in the catalog.
        UnavailableError: the catalog stayed away for longer than patience lasts; scans not yet begun
            stay as they are.
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
