"""Catalog, part identity: by what images and persons are told again, and who is said to be somebody else."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import combinations

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from retroln.catalog.consent import WITHDRAWN
from retroln.catalog.database import Database
from retroln.catalog.likeness import (
    REASONS,
    add_marks,
    alike,
    counts,
    lock_identities,
    same_person,
    told_apart,
)
from retroln.catalog.models import HeldDelivery, IdentityMark, IdentityRuling, Scan
from retroln.catalog.records import Alike, Mark, ScanRecord
from retroln.catalog.scans import clean, current_row, scan_record, scan_row
from retroln.errors import ConflictError

_RELEASED = REASONS | {WITHDRAWN}
_IDS_AT_ONCE = 500


class IdentityQueries:
    """Identity marks and people's word on them; each method is one transaction."""

    _database: Database

    def alike(self, marks: Collection[Mark], patient_id: str) -> Alike | None:
        """The scan of another patient that shows the same image or person; None if nobody's does.

        Of several the one that shares most. Patients whom a person told apart are passed over.
        """
        with self._database.reading() as session:
            return alike(session, marks, patient_id)

    def same_person(self, patient_id: str) -> list[str]:
        """Other patient ids under which the same person, or an image of this patient, is or was here."""
        with self._database.reading() as session:
            return same_person(session, patient_id)

    def unmarked_scans(self) -> list[ScanRecord]:
        """Scans of an older RetroLN that cannot be told again yet, oldest first."""
        statement = select(Scan).where(*_unmarked()).order_by(Scan.id)
        with self._database.reading() as session:
            return [scan_record(row) for row in session.scalars(statement)]

    def count_unmarked(self) -> int:
        """How many these are."""
        with self._database.reading() as session:
            return session.scalars(select(func.count()).select_from(Scan).where(*_unmarked())).one()

    def mark_scan(self, scan_id: int, marks: Collection[Mark]) -> Alike | None:
        """Note by what a stored scan is told again; returns the other patient's that is alike, if any.

        Raises:
            NotFoundError: no such scan.
        """
        with self._database.writing() as session:
            lock_identities(session)
            row = scan_row(session, scan_id, lock=True)
            found = alike(session, marks, row.patient_id)
            add_marks(session, scan_id, marks)
            return found

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
            rows = [current_row(session, case_id) for case_id in dict.fromkeys(case_ids)]
            patients = sorted({row.patient_id for row in rows})
            if len(patients) < len(rows) or len(rows) < 2:
                raise ConflictError(
                    "these cases are not of different patients",
                    expected="cases of two patients or more, one each",
                    got=", ".join(f"{row.case_id} of {row.patient_id}" for row in rows),
                    fix="name the held case and the case that its message names",
                )
            for pair in combinations(patients, 2):
                if pair[1] not in told_apart(session, pair[0]):
                    session.add(
                        IdentityRuling(
                            patient_id=pair[0],
                            other_patient_id=pair[1],
                            reviewer=clean(reviewer),
                            comment=clean(comment),
                        )
                    )
            session.flush()
            return [row.case_id for row in rows if _is_held_for_it(session, row)]

    def members_alike(self, scan_ids: Sequence[int]) -> list[tuple[str, str, bool]]:
        """Pairs of patients, among these scans, that share an image or a person.

        Returns:
            (patient, other patient, whether a person told them apart), in order.
        """
        owners: dict[tuple[str, str], set[str]] = defaultdict(set)
        with self._database.reading() as session:
            for start in range(0, len(scan_ids), _IDS_AT_ONCE):
                rows = session.execute(
                    select(IdentityMark.kind, IdentityMark.value, Scan.patient_id)
                    .join(Scan, Scan.id == IdentityMark.scan_id)
                    .where(Scan.id.in_(scan_ids[start : start + _IDS_AT_ONCE]))
                )
                for kind, value, patient_id in rows.tuples():
                    owners[kind, value].add(patient_id)
            pairs = {pair for shared in owners.values() for pair in combinations(sorted(shared), 2)}
            return [(one, other, other in told_apart(session, one)) for one, other in sorted(pairs)]

    def count_held_alike(self) -> dict[str, int]:
        """How many cases are held because their image, or person, is another patient's, by reason."""
        statement = (
            select(Scan.reason, func.count())
            .where(Scan.state == "quarantined", Scan.reason.in_(REASONS))
            .group_by(Scan.reason)
        )
        with self._database.reading() as session:
            return dict.fromkeys(sorted(REASONS), 0) | {
                str(reason): number for reason, number in session.execute(statement).tuples()
            }


def _unmarked() -> tuple[ColumnElement[bool], ...]:
    marked = select(IdentityMark.scan_id).where(IdentityMark.scan_id == Scan.id).exists()
    return Scan.ct_key.is_not(None), counts(), ~marked


def _is_held_for_it(session: Session, row: Scan) -> bool:
    delivery = session.get(HeldDelivery, row.case_id)
    return row.reason in _RELEASED or (delivery is not None and delivery.reason in _RELEASED)
