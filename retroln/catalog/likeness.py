"""Catalog, part likeness: whether an image or a person is known already, under another patient's id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session

from retroln.catalog.models import DatasetMember, IdentityMark, IdentityRuling, Scan, Withdrawal
from retroln.catalog.records import Alike, Mark
from retroln.catalog.states import ScanState
from retroln.errors import ConflictError

SAME_IMAGE, SAME_PERSON = "same_image", "same_person"
"""Reasons of a case that is held because its CT, or its person, is another patient's already."""
REASONS = frozenset({SAME_IMAGE, SAME_PERSON})
_IMAGE = frozenset({"slice", "object"})
_LOCK = 0x616C696B65  # "alike"; PostgreSQL advisory lock


class AlikeError(ConflictError):
    """A scan cannot be recorded: another patient's shows the same image or person.

    Attributes:
        found: that scan.
    """

    def __init__(self, case_id: str, found: Alike) -> None:
        super().__init__(
            f"case {case_id} shows the same {found.what} as case {found.case_id}",
            expected="every person under one patient id",
            got=f"patients of both cases: {found.patient_id} and another",
            fix="`retroln status CASE` says what to do",
        )
        self.found = found


def lock_identities(session: Session) -> None:
    """Let nobody else record marks before the transaction ends; on SQLite a writer is alone anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def alike(session: Session, marks: Collection[Mark], patient_id: str) -> Alike | None:
    """The other patient's scan that shares most with these marks; an image counts more than a person.

    A pair of patients of whom a person said that they are different is passed over.
    """
    matches = _shared(session, marks, Scan.patient_id != patient_id, counts())
    apart = told_apart(session, patient_id)
    withdrawn = set(session.scalars(select(Withdrawal.patient_id)))
    found = [
        Alike(
            scan.case_id,
            scan.patient_id,
            scan.patient_id in withdrawn,
            bool(_IMAGE & shared.keys()),
            dict(shared),
        )
        for scan, shared in matches
        if scan.patient_id not in apart
    ]
    return max(found, key=_weight, default=None)


def require_apart(session: Session, case_id: str, patient_id: str, marks: Collection[Mark]) -> None:
    """Raise `AlikeError` if another patient's scan shows the same image or person."""
    if found := alike(session, marks, patient_id):
        raise AlikeError(case_id, found)


def same_person(session: Session, patient_id: str) -> list[str]:
    """Every other patient id whose scans, superseded ones too, lead here by what they share, in order."""
    known, todo = {patient_id}, [patient_id]
    while todo:
        asked = todo.pop()
        rows = session.execute(
            select(IdentityMark.kind, IdentityMark.value)
            .join(Scan, Scan.id == IdentityMark.scan_id)
            .where(Scan.patient_id == asked)
        )
        marks = {Mark(*row) for row in rows.tuples()}
        others = {scan.patient_id for scan, _ in _shared(session, marks, Scan.patient_id != asked)}
        fresh = others - known - told_apart(session, asked)
        known |= fresh
        todo += fresh
    return sorted(known - {patient_id})


def told_apart(session: Session, patient_id: str) -> frozenset[str]:
    """Patients of whom a person said that they are other people than this one."""
    pairs = select(IdentityRuling.patient_id, IdentityRuling.other_patient_id).where(
        or_(IdentityRuling.patient_id == patient_id, IdentityRuling.other_patient_id == patient_id)
    )
    return frozenset({one for pair in session.execute(pairs).tuples() for one in pair} - {patient_id})


def counts() -> ColumnElement[bool]:
    """What singles out scans whose image is in use, was trained or tested on, or was withdrawn."""
    in_dataset = select(DatasetMember.scan_id).where(DatasetMember.scan_id == Scan.id).exists()
    withdrawn = Scan.patient_id.in_(select(Withdrawal.patient_id))
    stored = Scan.ct_key.is_not(None) & (Scan.state != ScanState.SUPERSEDED)
    held_for_it = (Scan.state == ScanState.QUARANTINED) & func.coalesce(Scan.reason, "").in_(REASONS)
    return or_(withdrawn, in_dataset, stored) & ~held_for_it


def add_marks(session: Session, scan_id: int, marks: Iterable[Mark]) -> None:
    """Note by what a scan is told again."""
    session.add_all(IdentityMark(scan_id=scan_id, kind=one.kind, value=one.value) for one in sorted(marks))


def marks_of(session: Session, scan_id: int) -> frozenset[Mark]:
    """What is noted of a scan."""
    rows = session.execute(_marks().where(IdentityMark.scan_id == scan_id))
    return frozenset(Mark(kind, value) for kind, value in rows.tuples())


def _marks() -> Select[tuple[str, str]]:
    return select(IdentityMark.kind, IdentityMark.value)


def _shared(
    session: Session, marks: Collection[Mark], *which: ColumnElement[bool]
) -> list[tuple[Scan, Counter[str]]]:
    """Scans that have some of the marks, and how many of each kind."""
    values = {mark.value for mark in marks}
    rows = session.execute(
        select(Scan, IdentityMark.kind, IdentityMark.value)
        .join(IdentityMark, IdentityMark.scan_id == Scan.id)
        .where(IdentityMark.value.in_(values), *which)
        .order_by(Scan.id)
    ).tuples()
    found: dict[int, tuple[Scan, Counter[str]]] = {}
    for scan, kind, value in rows:
        if Mark(kind, value) in marks:
            found.setdefault(scan.id, (scan, Counter()))[1][kind] += 1
    return list(found.values())


def _weight(found: Alike) -> tuple[bool, bool, int]:
    return found.withdrawn, found.same_image, sum(found.shared.values())
