"""Catalog, part identity: by what images and persons are told again, and who is said to be somebody else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import combinations

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session, aliased

from retroln.catalog.consent import WITHDRAWN
from retroln.catalog.database import Database
from retroln.catalog.likeness import (
    IMAGE,
    REASONS,
    add_marks,
    alike,
    counts,
    held_copies,
    held_for_likeness,
    linked,
    lock_identities,
    marks_of,
    replaced_copies,
)
from retroln.catalog.models import DatasetMember, HeldDelivery, IdentityMark, IdentityRuling, Scan
from retroln.catalog.records import Alike, Mark, RulingRecord, ScanRecord, record_of
from retroln.catalog.scans import IDS_AT_ONCE, clean, current_row, move, scan_record, scan_row
from retroln.catalog.states import TRANSITIONS, ScanState
from retroln.errors import ConflictError

_RELEASED = REASONS | {WITHDRAWN}
Owners = dict[Mark, set[str]]


class IdentityQueries:
    """Identity marks and people's word on them; each method is one transaction."""

    _database: Database

    def alike(self, marks: Collection[Mark], patient_id: str) -> Alike | None:
        """The scan of another patient that shows the same image or person; None if nobody's does.

        Of several the one that shares most. Patients whom a person told apart are passed over.
        """
        with self._database.reading() as session:
            return alike(session, marks, patient_id)

    def linked(self, patient_id: str) -> list[Alike]:
        """Other patients of whom a CT is stored that shares an image or a person with this patient's scans.

        One scan for each, in order of patient; those whom a person told apart say so.
        """
        with self._database.reading() as session:
            return linked(session, patient_id)

    def replaced_copies(self, patient_id: str) -> list[ScanRecord]:
        """Scans of other patients that show an image of this one's, and that another took the place of.

        A withdrawal of the patient empties them; those of a dataset version are not among them.
        """
        with self._database.reading() as session:
            return [scan_record(row) for row in replaced_copies(session, patient_id)]

    def held_copies(self, patient_id: str) -> list[ScanRecord]:
        """Cases of other patients, without a CT stored, that are held for showing an image of this one's."""
        with self._database.reading() as session:
            return [scan_record(row) for row in held_copies(session, patient_id)]

    def hold_again(self, scan_id: int, why: Callable[[Alike], tuple[str, str]]) -> None:
        """Say anew why a held case is alike to another patient's; nothing happens if none is any more.

        Args:
            why: reason and detail.

        Raises:
            NotFoundError: no such scan.
        """
        with self._database.writing() as session:
            row = scan_row(session, scan_id, lock=True)
            if found := alike(session, marks_of(session, scan_id), row.patient_id):
                reason, detail = why(found)
                move(session, row, ScanState.QUARANTINED, None, reason=reason, detail=detail)

    def no_longer_alike(self, case_id: str | None = None) -> frozenset[str]:
        """Cases that are held for their likeness, without a CT stored, to what is not in use any more.

        Args:
            case_id: asks for this case alone.
        """
        held = select(Scan).where(held_for_likeness(), Scan.ct_key.is_(None))
        if case_id is not None:
            held = held.where(Scan.case_id == case_id)
        with self._database.reading() as session:
            return frozenset(
                scan.case_id
                for scan in session.scalars(held)
                if alike(session, marks_of(session, scan.id), scan.patient_id) is None
            )

    def unmarked_scans(self) -> list[ScanRecord]:
        """Scans of an older RetroLN that cannot be told again yet, oldest first."""
        statement = select(Scan).where(*_unmarked()).order_by(Scan.id)
        with self._database.reading() as session:
            return [scan_record(row) for row in session.scalars(statement)]

    def count_unmarked(self) -> int:
        """How many these are."""
        with self._database.reading() as session:
            return session.scalars(select(func.count()).select_from(Scan).where(*_unmarked())).one()

    def mark_scan(
        self, scan_id: int, marks: Collection[Mark], why: Callable[[Alike], tuple[str, str]]
    ) -> Alike | None:
        """Note by what a stored scan is told again, and hold it if another patient's is alike.

        Args:
            why: reason and detail to hold it with.

        Returns:
            The other patient's scan, None if there is none.

        Raises:
            NotFoundError: no such scan.
        """
        with self._database.writing() as session:
            lock_identities(session)
            row = scan_row(session, scan_id, lock=True)
            found = alike(session, marks, row.patient_id)
            if not row.identified:
                add_marks(session, scan_id, marks)
                row.identified = True
            if found and ScanState.QUARANTINED in TRANSITIONS[ScanState(row.state)]:
                reason, detail = why(found)
                move(session, row, ScanState.QUARANTINED, None, reason=reason, detail=detail)
            return found

    def rulings_on(self, patient_id: str) -> list[RulingRecord]:
        """Whom people told apart from a patient, oldest first."""
        own = or_(IdentityRuling.patient_id == patient_id, IdentityRuling.other_patient_id == patient_id)
        with self._database.reading() as session:
            rows = session.scalars(select(IdentityRuling).where(own).order_by(IdentityRuling.at))
            return [record_of(RulingRecord, row) for row in rows]

    def rule_different(self, case_ids: Sequence[str], reviewer: str, comment: str) -> list[str]:
        """Write down for good that the patients of these cases are different people, each from each.

        Saying it again changes nothing.

        Returns:
            The cases that were held for it, which wait for ingest, or prepare, now.

        Raises:
            NotFoundError: no such case.
            ConflictError: two of the cases are the same patient's.
        """
        with self._database.writing() as session:
            lock_identities(session)
            rows = [current_row(session, case_id) for case_id in sorted(set(case_ids))]
            patients = sorted({row.patient_id for row in rows})
            if len(patients) < len(rows) or len(rows) < 2:
                raise ConflictError(
                    "these cases are not of different patients",
                    expected="cases of two patients or more, one each",
                    got=", ".join(f"{row.case_id} of {row.patient_id}" for row in rows),
                    fix="name the held case and the case that its message names",
                )
            said = {"reviewer": clean(reviewer), "comment": clean(comment)}
            for one, other in sorted(set(combinations(patients, 2)) - _rulings(session)):
                session.add(IdentityRuling(patient_id=one, other_patient_id=other, **said))
            session.flush()
            return [row.case_id for row in rows if _is_held_for_it(session, row)]

    def members_alike(self, scan_ids: Sequence[int]) -> list[tuple[str, str, bool]]:
        """Pairs of patients, among these scans, that share an image or a person.

        Cases that are held for their likeness are links between others, too.

        Returns:
            (patient, other patient, whether a person told them apart), in order.
        """
        with self._database.reading() as session:
            held = list(session.scalars(select(Scan.id).where(held_for_likeness())))
            members = _owners(session, scan_ids)
            apart = _rulings(session)
            links = _pairs(_merged(members, _owners(session, held))) - apart
        patients = {one for owners in members.values() for one in owners}
        torn = {
            (one, other)
            for group in _groups(links)
            for one, other in combinations(sorted(patients & group), 2)
        }
        return sorted((one, other, (one, other) in apart) for one, other in torn | (_pairs(members) & apart))

    def shown_in_training(self) -> frozenset[str]:
        """Patients of whom a scan shows an image that was trained on, under whatever patient's id."""
        theirs, trained = aliased(IdentityMark), aliased(IdentityMark)
        statement = (
            select(Scan.patient_id)
            .join(theirs, theirs.scan_id == Scan.id)
            .join(trained, (trained.kind == theirs.kind) & (trained.value == theirs.value))
            .join(DatasetMember, DatasetMember.scan_id == trained.scan_id)
            .where(theirs.kind.in_(IMAGE), DatasetMember.role == "train")
            .distinct()
        )
        with self._database.reading() as session:
            return frozenset(session.scalars(statement))

    def count_held_alike(self) -> dict[str, int]:
        """How many cases are held because their image, or person, is another patient's, by reason."""
        statement = select(Scan.reason, func.count()).where(held_for_likeness()).group_by(Scan.reason)
        with self._database.reading() as session:
            return dict.fromkeys(sorted(REASONS), 0) | {
                str(reason): number for reason, number in session.execute(statement).tuples()
            }


def _owners(session: Session, scan_ids: Sequence[int]) -> Owners:
    """Patients of these scans by mark."""
    owners: Owners = defaultdict(set)
    for start in range(0, len(scan_ids), IDS_AT_ONCE):
        rows = session.execute(
            select(IdentityMark.kind, IdentityMark.value, Scan.patient_id)
            .join(Scan, Scan.id == IdentityMark.scan_id)
            .where(Scan.id.in_(scan_ids[start : start + IDS_AT_ONCE]))
        )
        for kind, value, patient_id in rows.tuples():
            owners[Mark(kind, value)].add(patient_id)
    return owners


def _merged(*found: Owners) -> Owners:
    merged: Owners = defaultdict(set)
    for owners in found:
        for mark, patients in owners.items():
            merged[mark] |= patients
    return merged


def _pairs(owners: Owners) -> set[tuple[str, str]]:
    return {pair for patients in owners.values() for pair in combinations(sorted(patients), 2)}


def _groups(pairs: Iterable[tuple[str, str]]) -> list[set[str]]:
    """What hangs together by the pairs."""
    groups: list[set[str]] = []
    for pair in pairs:
        met = [group for group in groups if not group.isdisjoint(pair)]
        groups = [group for group in groups if group.isdisjoint(pair)] + [set(pair).union(*met)]
    return groups


def _rulings(session: Session) -> set[tuple[str, str]]:
    return set(session.execute(select(IdentityRuling.patient_id, IdentityRuling.other_patient_id)).tuples())


def _unmarked() -> tuple[ColumnElement[bool], ...]:
    return Scan.ct_key.is_not(None), counts(), ~Scan.identified


def _is_held_for_it(session: Session, row: Scan) -> bool:
    delivery = session.get(HeldDelivery, row.case_id)
    held = row.state == ScanState.QUARANTINED and row.reason in _RELEASED
    return held or (delivery is not None and delivery.reason in _RELEASED)
