"""What the source delivers beside what the catalog knows, before a byte is read; unchanged cases end here."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from posixpath import commonpath, dirname
from typing import Self

from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.catalog import Catalog
from retroln.catalog.consent import WITHDRAWN
from retroln.catalog.likeness import REASONS
from retroln.catalog.records import HeldDeliveryRecord, ScanRecord
from retroln.catalog.states import ScanState
from retroln.errors import InputError
from retroln.files import sha256_json
from retroln.settings import Settings
from retroln.steps.cohort import Listing, Parts, parts_of
from retroln.steps.entry import CaseEntry
from retroln.steps.identity import NO_KEY, Policy
from retroln.steps.workspace import Workspace
from retroln.storage.base import ObjectInfo, ObjectStore
from retroln.storage.keys import is_safe

_CASES_AT_ONCE = 500  # whose records are in memory together
_LISTED_PER_KEY = 50  # S3 lists so many objects at the cost of asking for one

_DECIDED_BY = {"mask_segments": "mask_names"}  # reasons that go by a setting, too, and which one

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listed:
    """A source whose single objects were listed at once; folders, and what the list lacks, are asked for.

    So 10,000 cases cost a listing and no request each. Memory follows the number of cases, not that of the
    slices in their folders, and cases that lie in a large archive do not cost a listing of all of it.
    """

    source: ObjectStore
    infos: Mapping[str, ObjectInfo]

    @classmethod
    def of(cls, source: ObjectStore, entries: Sequence[CaseEntry]) -> Self:
        """List the objects that the entries name."""
        wanted = {key for entry in entries for key in entry.keys.values() if not key.endswith("/")}
        wanted = {key for key in wanted if is_safe(key)}
        listing = source.list(_common_folder(wanted)) if wanted else iter(())
        met = islice(listing, _LISTED_PER_KEY * len(wanted))
        return cls(source, {info.key: info for info in met if info.key in wanted})

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """As `ObjectStore.list`."""
        return self.source.list(prefix)

    def stat(self, key: str) -> ObjectInfo:
        """As `ObjectStore.stat`, of the moment when the source was listed."""
        return self.infos.get(key) or self.source.stat(key)


def _common_folder(keys: Collection[str]) -> str:
    """Prefix of the folder that all the objects lie below."""
    folder = commonpath([dirname(min(keys)), dirname(max(keys))])
    return f"{folder}/" if folder else ""


@dataclass(frozen=True)
class Known:
    """What the catalog knows of some cases.

    Attributes:
        scans: the current scan of each known case.
        held: deliveries that are held beside a scan, by case.
        withdrawn: patients who took back consent.
        freed: cases that are held for their likeness to what is not in use any more.
    """

    scans: Mapping[str, ScanRecord]
    held: Mapping[str, HeldDeliveryRecord]
    withdrawn: Collection[str]
    freed: Collection[str] = frozenset()

    @classmethod
    def of_case(cls, catalog: Catalog, case_id: str) -> Self:
        """Of one case, as it is at this moment."""
        held = catalog.held_delivery(case_id)
        return cls(
            catalog.current_scans([case_id]),
            {case_id: held} if held else {},
            catalog.withdrawn_patients(),
            catalog.no_longer_alike(case_id),
        )


@dataclass(frozen=True)
class Arrival:
    """A listed case beside the current scan of its case id.

    Attributes:
        current: None for a case that is new.
        held: what is held of the case beside `current`; None for nothing.
        parts: the objects behind the case; none where there is a `problem`.
        fingerprint: cheap mark of what is delivered; equal to the current scan's, it is unchanged.
        problem: why nothing of the case can, or may, be read.
        is_free: it was held for its likeness to what is not in use any more.
    """

    entry: CaseEntry
    current: ScanRecord | None
    held: HeldDeliveryRecord | None
    parts: Parts
    fingerprint: str
    problem: InputError | None = None
    is_free: bool = False

    @classmethod
    def of(cls, entry: CaseEntry, known: Known, source: Listing, policy: Policy) -> Self:
        """Look at what is delivered."""
        current, held = known.scans.get(entry.case_id), known.held.get(entry.case_id)
        try:
            if entry.patient_id in known.withdrawn:
                raise withdrawn_error(entry, entry.patient_id)
            if entry.problem:
                raise entry.problem
            parts = parts_of(entry, source)
        except InputError as error:
            unread = sha256_json([entry.case_id, entry.patient_id, str(entry.problem)])
            return cls(entry, current, held, {}, unread, error)
        is_free = entry.case_id in known.freed
        return cls(entry, current, held, parts, _fingerprint(entry, parts, policy), is_free=is_free)

    def mark(self, reason: str | None, settings: Settings) -> str:
        """The fingerprint under which the delivery is held for a reason; with the setting that decides it."""
        name = _DECIDED_BY.get(reason or "")
        return sha256_json([self.fingerprint, getattr(settings, name)]) if name else self.fingerprint

    def known_outcome(self, policy: Policy, settings: Settings) -> CaseOutcome | None:
        """What becomes of a case that needs no look; None for one that is new, changed or wanted again."""
        if self.current is None:
            return None
        if self.current.state is ScanState.WITHDRAWN:
            return refused(policy, self.entry, withdrawn_error(self.entry, self.current.patient_id))
        if self.held is not None:
            return self._known_delivery(self.held, policy, settings)
        if self.is_free:
            return None
        mark = self.mark(self.current.reason if self.current.ct_key is None else None, settings)
        if self.current.source_fingerprint != mark or is_wanted_again(self.current, policy):
            return None
        return outcome_of_unchanged(self.current)

    def _known_delivery(
        self, held: HeldDeliveryRecord, policy: Policy, settings: Settings
    ) -> CaseOutcome | None:
        mark = self.mark(held.reason, settings)
        if held.source_fingerprint != mark or _waited_for_key(held.reason, policy):
            return None
        if held.reason in REASONS:  # whether that still holds, its voxels must say
            return None
        return CaseOutcome(held.case_id, Outcome.QUARANTINED, held.reason, held.detail)


def unchanged(
    workspace: Workspace, policy: Policy, run_id: int, entries: Sequence[CaseEntry]
) -> dict[str, CaseOutcome]:
    """Outcome of every case that needs no look, by case id; what the run itself took in before is its own."""
    catalog = workspace.catalog
    source, withdrawn = Listed.of(workspace.source, entries), catalog.withdrawn_patients()
    held = {one.case_id: one for one in catalog.held_deliveries()}
    own, outcomes, freed = catalog.taken_in_by(run_id), {}, catalog.no_longer_alike()
    for start in range(0, len(entries), _CASES_AT_ONCE):
        some = entries[start : start + _CASES_AT_ONCE]
        known = Known(catalog.current_scans([entry.case_id for entry in some]), held, withdrawn, freed)
        for entry in some:
            if scan := known.scans.get(entry.case_id):
                outcome = _if_unchanged(entry, known, source, policy, workspace.settings)
                if outcome and outcome.outcome is Outcome.SKIPPED:
                    outcome = own.get(scan.scan_id, outcome)
                if outcome:
                    outcomes[entry.case_id] = outcome
    return outcomes


def _if_unchanged(
    entry: CaseEntry, known: Known, source: Listing, policy: Policy, settings: Settings
) -> CaseOutcome | None:
    try:
        return Arrival.of(entry, known, source, policy).known_outcome(policy, settings)
    except Exception:  # ingest looks at the case itself, with patience, and says what is wrong with it
        log.debug("case %s cannot be compared", entry.case_id, exc_info=True)
        return None


def outcome_of_unchanged(current: ScanRecord) -> CaseOutcome:
    """Held as before if it was held before anything of it was stored, else skipped."""
    if current.state is ScanState.QUARANTINED and current.ct_key is None:
        return CaseOutcome(current.case_id, Outcome.QUARANTINED, current.reason, current.detail)
    return CaseOutcome(current.case_id, Outcome.SKIPPED)


def is_wanted_again(current: ScanRecord, policy: Policy) -> bool:
    """True for a case that a person requeued before anything of it was stored, or that waited for a key."""
    has_key_now = _waited_for_key(current.reason, policy)
    return current.ct_key is None and (has_key_now or current.state is not ScanState.QUARANTINED)


def may_do_now(current: ScanRecord) -> bool:
    """Whether the same bytes, held before anything of them was stored, may do by now.

    Under another setting, or because what they were alike to is not in use any more.
    """
    return current.ct_key is None and (current.reason in _DECIDED_BY or current.reason in REASONS)


def _waited_for_key(reason: str | None, policy: Policy) -> bool:
    return reason == NO_KEY and policy.known is not None


def withdrawn_error(entry: CaseEntry, patient_id: str) -> InputError:
    """Why nothing of a patient who took back consent, or under such a patient's case id, is taken in."""
    return InputError(
        f"patient {patient_id} took back consent",
        reason=WITHDRAWN,
        file=entry.ct,
        expected="no delivery of this patient",
        got=f"case {entry.case_id}",
        fix="delete it from the source; a case of somebody else needs a case id of its own",
    )


def refused(policy: Policy, entry: CaseEntry, error: InputError) -> CaseOutcome:
    """The outcome of a case of which not even a record is kept."""
    return CaseOutcome(entry.case_id, Outcome.QUARANTINED, error.reason, str(policy.conceal(error, entry)))


def asked_series(entry: CaseEntry) -> list[str]:
    """Part of what a case is, where a series is named; absent else, so that known cases stay known."""
    return [entry.series] if entry.series else []


def _fingerprint(entry: CaseEntry, parts: Parts, policy: Policy) -> str:
    objects = {
        name: [(policy.key(info.key), info.fingerprint) for info in infos] for name, infos in parts.items()
    }
    return sha256_json([entry.patient_id, entry.label_ids, objects, *asked_series(entry)])
