"""Catalog, part likeness: whether an image or a person is known already, under another patient's id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session

from retroln.catalog.consent import WITHDRAWN
from retroln.catalog.locks import wait_for
from retroln.catalog.models import DatasetMember, HeldDelivery, IdentityMark, IdentityRuling, Scan, Withdrawal
from retroln.catalog.records import Alike, Mark
from retroln.catalog.states import ScanState
from retroln.errors import ConflictError

SAME_IMAGE, SAME_PERSON = "same_image", "same_person"
"""Reasons of a case that is held because its CT, or its person, is another patient's already."""
RETIRED = "retired"
"""Reason of a case that a person retired, and of its given up scans; they tell nothing of their patient."""
REASONS = frozenset({SAME_IMAGE, SAME_PERSON})
IMAGE = frozenset({"slice", "object"})
"""Kinds of marks that tell an image; the others tell a person."""
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
    """Let nobody else record marks before the transaction ends."""
    wait_for(session, _LOCK)


def alike(session: Session, marks: Collection[Mark], patient_id: str) -> Alike | None:
    """The other patient's scan that shares most with these marks; an image counts more than a person.

    A pair of patients of whom a person said that they are different is passed over.
    """
    matches = _shared(session, marks, Scan.patient_id != patient_id, counts())
    apart = told_apart(session, patient_id)
    withdrawn = set(session.scalars(select(Withdrawal.patient_id)))
    found = [
        _alike(scan, shared, withdrawn=scan.patient_id in withdrawn)
        for scan, shared in matches
        if scan.patient_id not in apart
    ]
    return max(found, key=_weight, default=None)


def require_apart(session: Session, case_id: str, patient_id: str, marks: Collection[Mark]) -> None:
    """Raise `AlikeError` if another patient's scan shows the same image or person."""
    if found := alike(session, marks, patient_id):
        raise AlikeError(case_id, found)


def linked(session: Session, patient_id: str) -> list[Alike]:
    """For each other patient who has not withdrawn the stored scan that shares most with this patient's.

    The patient's side are scans of which a CT is stored, superseded ones too, and cases that are held now.
    A pair that a person told apart is in it and says so, unless all that they share are `replaced_copies`.
    """
    apart = told_apart(session, patient_id)
    found: dict[str, Alike] = {}
    for scan, shared in _of_others(session, patient_id, ~(Scan.patient_id.in_(apart) & _is_replaced())):
        one = _alike(scan, shared, told_apart=scan.patient_id in apart)
        found[scan.patient_id] = max(found.get(scan.patient_id, one), one, key=_weight)
    return [found[other] for other in sorted(found)]


def give_up(session: Session, scan: Scan, reason: str) -> None:
    """Let a superseded scan that no dataset version holds never come back; `reason` says why."""
    if scan.state != ScanState.SUPERSEDED:
        return
    scan.reason = reason
    if session.scalars(select(Scan.id).where(Scan.id == scan.id, _is_replaced())).first():
        scan.ct_key = None


def is_given_up() -> ColumnElement[bool]:
    """What singles out scans that were given up and not emptied yet."""
    superseded = (Scan.state == ScanState.SUPERSEDED) & Scan.ct_key.is_(None)
    return superseded & Scan.source_sha256.is_not(None) & Scan.reason.in_((RETIRED, WITHDRAWN))


def _is_retired() -> ColumnElement[bool]:
    return func.coalesce(Scan.reason, "") == RETIRED


def replaced_copies(session: Session, patient_id: str) -> list[Scan]:
    """Scans of other patients that show an image of this one's, and whose place another took.

    Not those of a patient of whom a scan in use shows it still: then the image is that patient's, too.
    """
    return [
        scan
        for scan, shared in _of_others(session, patient_id, _is_replaced())
        if IMAGE & shared.keys() and not _is_shown_still(session, scan)
    ]


def _is_shown_still(session: Session, scan: Scan) -> bool:
    """Whether a scan in use of the same patient shows the image of a replaced one."""
    image = {mark for mark in marks_of(session, scan.id) if mark.kind in IMAGE}
    in_use = (Scan.ct_key.is_not(None), Scan.state != ScanState.SUPERSEDED)
    return bool(_shared(session, image, Scan.patient_id == scan.patient_id, *in_use))


def held_copies(session: Session, patient_id: str) -> list[Scan]:
    """Cases of other patients that are held, with no CT stored, since they show an image of this one's."""
    held = (Scan.patient_id != patient_id, Scan.ct_key.is_(None), held_for_likeness())
    current = _own_marks(session, patient_id, Scan.state != ScanState.SUPERSEDED)
    apart = told_apart(session, patient_id)
    return [
        scan
        for scan, shared in _shared(session, current, *held)
        if IMAGE & shared.keys() and scan.patient_id not in apart
    ]


def _is_replaced() -> ColumnElement[bool]:
    """What singles out scans whose place another took, and that no dataset version holds."""
    return (Scan.state == ScanState.SUPERSEDED) & ~_in_dataset()


def _in_dataset() -> ColumnElement[bool]:
    return select(DatasetMember.scan_id).where(DatasetMember.scan_id == Scan.id).exists()


def _of_others(
    session: Session, patient_id: str, *which: ColumnElement[bool]
) -> list[tuple[Scan, Counter[str]]]:
    """Stored scans of others who have not withdrawn that share marks with a patient's, and how many."""
    withdrawn = select(Withdrawal.patient_id)
    stored = Scan.ct_key.is_not(None) | (is_given_up() & (Scan.reason == WITHDRAWN))
    others = (Scan.patient_id != patient_id, stored, Scan.patient_id.not_in(withdrawn))
    return _shared(session, _own_marks(session, patient_id), *others, *which)


def _own_marks(session: Session, patient_id: str, *which: ColumnElement[bool]) -> set[Mark]:
    """Of the patient's scans that are stored or current, but for what was retired."""
    own = _marks().join(Scan, Scan.id == IdentityMark.scan_id)
    counted = or_(Scan.ct_key.is_not(None), Scan.state != ScanState.SUPERSEDED) & ~_is_retired()
    own = own.where(Scan.patient_id == patient_id, counted, *which)
    return {Mark(kind, value) for kind, value in session.execute(own).tuples()}


def told_apart(session: Session, patient_id: str) -> frozenset[str]:
    """Patients of whom a person said that they are other people than this one."""
    pairs = select(IdentityRuling.patient_id, IdentityRuling.other_patient_id).where(
        or_(IdentityRuling.patient_id == patient_id, IdentityRuling.other_patient_id == patient_id)
    )
    return frozenset({one for pair in session.execute(pairs).tuples() for one in pair} - {patient_id})


def counts() -> ColumnElement[bool]:
    """What singles out scans whose image is in use, was trained or tested on, or was withdrawn.

    Not in use is a scan whose case has another CT by now that is held for its likeness, as when two patients'
    files were swapped: the first of the two that is mended would wait for the second, and this for the first.
    """
    withdrawn = Scan.patient_id.in_(select(Withdrawal.patient_id)) & ~_is_retired()
    stored = Scan.ct_key.is_not(None) & (Scan.state != ScanState.SUPERSEDED)
    swapped = select(HeldDelivery.case_id).where(
        HeldDelivery.case_id == Scan.case_id, HeldDelivery.reason.in_(REASONS)
    )
    in_use = stored & ~swapped.exists()
    return or_(withdrawn, _in_dataset(), in_use) & ~held_for_likeness()


def held_for_likeness() -> ColumnElement[bool]:
    """What singles out cases that are held because their image, or person, is another patient's."""
    return (Scan.state == ScanState.QUARANTINED) & func.coalesce(Scan.reason, "").in_(REASONS)


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


def _alike(scan: Scan, shared: Counter[str], **flags: bool) -> Alike:
    return Alike(scan.case_id, scan.patient_id, bool(IMAGE & shared.keys()), dict(shared), **flags)


def _weight(found: Alike) -> tuple[bool, bool, int]:
    return found.withdrawn, found.same_image, sum(found.shared.values())
