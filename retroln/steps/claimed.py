"""Do cases of one backlog side by side with other workers: each under a claim, each noted in a ledger."""

from __future__ import annotations

import logging
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.catalog.consent import WITHDRAWN
from retroln.catalog.records import ScanRecord
from retroln.errors import ConflictError, LeaseError, RefusedError, UnavailableError, WithdrawnError
from retroln.settings import Settings
from retroln.steps.cases import OnOutcome, guarded, run_cases
from retroln.steps.leases import renewed
from retroln.steps.outages import riding_out
from retroln.steps.workspace import Workspace, open_workspace

CLAIMED = "claimed"
DONE_ELSEWHERE = "done_elsewhere"
LEASE_LOST = "lease_lost"

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Case(Protocol):
    """Whatever is done one by one under a claim."""

    @property
    def case_id(self) -> str: ...


Item = TypeVar("Item", bound=Case)


@dataclass(frozen=True)
class Worker(ABC, Generic[Item]):
    """Who does cases, and for which run; travels to its processes.

    Attributes:
        run_id: the run that it works for.
        owner: the worker's name, the same in all its processes and no other worker's.
    """

    settings: Settings
    run_id: int
    owner: str

    @property
    def catalog(self) -> Catalog:
        """This process's catalog."""
        return open_workspace(self.settings).catalog

    def run(
        self, items: Sequence[Item], *, processes: int = 1, on_outcome: OnOutcome | None = None
    ) -> list[CaseOutcome]:
        """Do the items in `processes` processes, one outcome each, also noted in the run's ledger.

        Raises:
            UnavailableError: the catalog stayed away for longer than patience lasts; what has not begun
                stays as it is.
        """
        item_of = {item.case_id: item for item in items}

        def settle(outcome: CaseOutcome) -> None:
            # a process that died could not do it itself; noting and giving back twice changes nothing
            if outcome.outcome is Outcome.FAILED:
                self.note(outcome)
                self.release(item_of[outcome.case_id])
            if on_outcome:
                on_outcome(outcome)

        return run_cases(
            self.do, items, case_id=lambda item: item.case_id, processes=processes, on_outcome=settle
        )

    def do(self, item: Item) -> CaseOutcome:
        """Claim the item, do it, note what became of it, and give it back.

        The claim is renewed until then. An item whose claim was lost all the same, or whose patient withdrew,
        is skipped.

        Raises:
            UnavailableError: the catalog stayed away, so nothing was begun.
            RefusedError: it cannot do it, so nothing was begun.
        """
        if not self.patiently(lambda: self._claim(item)):
            outcome = CaseOutcome(item.case_id, Outcome.SKIPPED, CLAIMED, "another worker has it")
            self._note_or_warn(outcome)
            return outcome
        try:
            with renewed(lambda: self._renew(item), self.settings.lease_s, self._longest_s):
                outcome = self._unless_lost(item, guarded(self._work, item, item.case_id))
                self._note_or_warn(outcome)
                return outcome
        finally:
            self.release(item)

    def note(self, *outcomes: CaseOutcome) -> None:
        """Write outcomes into the run's ledger; a skip leaves what this run did before."""
        for is_skip in (False, True):
            if some := [one for one in outcomes if (one.outcome is Outcome.SKIPPED) is is_skip]:
                note = partial(self.catalog.note_outcome, self.run_id, *some, replacing=not is_skip)
                self.patiently(note)

    def release(self, item: Item) -> None:
        """Give an item back; if the catalog cannot take it, the lease ends by itself."""
        with suppress(UnavailableError, RefusedError):
            self._release(item)

    def patiently(self, call: Callable[[], Result]) -> Result:
        """Call, and wait for a server that is away as long as the settings say."""
        return riding_out(call, self.settings.patience_s)

    @abstractmethod
    def _claim(self, item: Item) -> bool:
        """Take the item in hand; False if another worker has it."""

    @abstractmethod
    def _renew(self, item: Item) -> bool:
        """Hold the item for another lease; False if it is lost."""

    @abstractmethod
    def _release(self, item: Item) -> None:
        """Undo `_claim`."""

    @abstractmethod
    def _work(self, item: Item) -> CaseOutcome:
        """Do an item that is in hand; errors become a failed outcome."""

    def _unless_lost(self, item: Item, outcome: CaseOutcome) -> CaseOutcome:
        """A failure says nothing of a case that another has by now."""
        if outcome.outcome is Outcome.FAILED:
            with suppress(UnavailableError, RefusedError):
                if not self._renew(item):
                    return CaseOutcome(item.case_id, Outcome.SKIPPED, LEASE_LOST, outcome.detail)
        return outcome

    @property
    def _longest_s(self) -> float:
        """A run that lasts longer is over-age."""
        return self.settings.max_run_h * 3600

    def _note_or_warn(self, outcome: CaseOutcome) -> None:
        """The case itself is recorded; its line in the ledger will say `lost` rather than undo that."""
        try:
            self.note(outcome)
        except (UnavailableError, RefusedError) as error:
            log.warning("%s was %s, which could not be noted: %s", outcome.case_id, outcome.outcome, error)


class Waiting(NamedTuple):
    """A scan that a worker is to do."""

    scan_id: int
    case_id: str


@dataclass(frozen=True)
class Job(Worker[Waiting]):
    """What a worker does with scans.

    Attributes:
        work: does one scan; must bear repetition. What it records, it records as `owner` (see
            `Catalog.of_worker`).
        waits: whether a scan still is in the state that the work is for.
    """

    work: Callable[[ScanRecord], CaseOutcome]
    waits: Callable[[ScanRecord], bool]

    def _claim(self, item: Waiting) -> bool:
        return self.catalog.claim(item.scan_id, self.owner, self.settings.lease_s)

    def _renew(self, item: Waiting) -> bool:
        return self.catalog.renew(item.scan_id, self.owner, self.settings.lease_s)

    def _release(self, item: Waiting) -> None:
        self.catalog.release(item.scan_id, self.owner)

    def _work(self, item: Waiting) -> CaseOutcome:
        """The scan's outcome: a skip if it waits no longer, before the work or when it is recorded."""
        scan = self.patiently(lambda: self.catalog.scan(item.scan_id))
        if not self.waits(scan):
            return self._done_meanwhile(scan)
        try:
            return self.patiently(lambda: self.work(scan))
        except LeaseError as error:
            return CaseOutcome(item.case_id, Outcome.SKIPPED, LEASE_LOST, str(error))
        except WithdrawnError as error:
            return CaseOutcome(item.case_id, Outcome.SKIPPED, WITHDRAWN, str(error))
        except ConflictError:
            present = self.patiently(lambda: self.catalog.scan(item.scan_id))
            if self.waits(present):
                raise
            return self._done_meanwhile(present)

    def _done_meanwhile(self, scan: ScanRecord) -> CaseOutcome:
        # a worker of this run may have died between recording the case and noting it
        if own := self.patiently(lambda: self.catalog.outcome_by(scan.scan_id, self.run_id)):
            return own
        detail = f"it was done meanwhile and is {scan.state} now"
        return CaseOutcome(scan.case_id, Outcome.SKIPPED, DONE_ELSEWHERE, detail)


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
        RefusedError: it cannot do it (no room, read-only); the same holds.
    """
    names = job.patiently(lambda: job.catalog.case_ids(scan_ids))
    waiting = [Waiting(scan_id, case_id) for scan_id, case_id in names.items()]
    return job.run(waiting, processes=processes, on_outcome=on_outcome)


def this_process() -> str:
    """This process's name among the workers."""
    return f"{socket.gethostname()}:{os.getpid()}"


@contextmanager
def in_hand(workspace: Workspace, owner: str, scans: Sequence[ScanRecord]) -> Iterator[None]:
    """Have scans in hand, so that no worker takes one, until the block ends; one's own claims are in no way.

    Raises:
        ConflictError: a worker has one of them.
    """
    catalog = workspace.catalog
    try:
        for scan in scans:
            if not catalog.claim(scan.scan_id, owner, workspace.settings.lease_s):
                raise _worked_on(catalog, scan)
        yield
    finally:
        for scan in scans:
            catalog.release(scan.scan_id, owner)


def _worked_on(catalog: Catalog, scan: ScanRecord) -> ConflictError:
    claim = next((one for one in catalog.claims() if one.scan_id == scan.scan_id), None)
    return ConflictError(
        f"a worker has case {scan.case_id} in hand",
        expected="no live claim on the scan",
        got=f"{claim.owner} until {claim.expires_at:%Y-%m-%d %H:%M:%S} UTC" if claim else "a claim",
        fix="nothing was changed; try again when the worker is done or its lease has ended",
    )
