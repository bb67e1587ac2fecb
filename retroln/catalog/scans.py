"""Catalog, part scans: what exists, in which state, and every way from one state to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlalchemy.orm import Session

from retroln.catalog.accounting import CaseOutcome, Outcome
from retroln.catalog.claims import require_claim
from retroln.catalog.consent import WITHDRAWN, hold_consent, require_consent
from retroln.catalog.database import Database
from retroln.catalog.likeness import REASONS, add_marks, lock_identities, marks_of, require_apart
from retroln.catalog.locks import wait_for
from retroln.catalog.models import CaseEvent, Crop, HeldDelivery, Intake, LandmarkReview, Scan
from retroln.catalog.records import ScanDraft, ScanRecord, record_of
from retroln.catalog.states import FIRST_STATES, ScanState, require_transition, state_after_requeue
from retroln.errors import ConflictError, NotFoundError

_MAX_DETAIL = 4000
_CASES = 0x63617365  # "case"; first key of PostgreSQL's advisory locks on case ids
IDS_AT_ONCE = 500  # bound values in one statement; SQLite once allowed 999


class ScanQueries:
    """Scans and their transitions; each method is one transaction."""

    _database: Database
    _owner: str | None

    def current_scan(self, case_id: str) -> ScanRecord | None:
        """The case's revision that is not superseded, None for an unknown case."""
        with self._database.reading() as session:
            row = session.scalars(_current(case_id)).first()
            return scan_record(row) if row else None

    def current_scans(self, case_ids: Sequence[str]) -> dict[str, ScanRecord]:
        """The revisions that are not superseded, by case; unknown cases are left out."""
        found: dict[str, ScanRecord] = {}
        with self._database.reading() as session:
            for start in range(0, len(case_ids), IDS_AT_ONCE):
                some = Scan.case_id.in_(case_ids[start : start + IDS_AT_ONCE])
                rows = session.scalars(select(Scan).where(some, Scan.state != ScanState.SUPERSEDED))
                found |= {row.case_id: scan_record(row) for row in rows}
        return found

    def scan(self, scan_id: int) -> ScanRecord:
        """One revision by id. Raises `NotFoundError`."""
        with self._database.reading() as session:
            return scan_record(scan_row(session, scan_id))

    def scans(
        self,
        state: ScanState | None = None,
        *,
        patient_id: str | None = None,
        limit: int | None = None,
        after_id: int = 0,
    ) -> list[ScanRecord]:
        """Scans in id order, current revisions only unless `state` asks for superseded ones."""
        chosen = Scan.state == state if state else Scan.state != ScanState.SUPERSEDED
        statement = select(Scan).where(chosen, Scan.id > after_id).order_by(Scan.id).limit(limit)
        if patient_id is not None:
            statement = statement.where(Scan.patient_id == patient_id)
        return self._records(statement)

    def count_by_state(self) -> dict[ScanState, int]:
        """How many scans are in each state, every state listed."""
        with self._database.reading() as session:
            found = session.execute(select(Scan.state, func.count()).group_by(Scan.state)).tuples()
            return dict.fromkeys(ScanState, 0) | {ScanState(state): count for state, count in found}

    def add_scan(self, draft: ScanDraft, run_id: int | None, *, follows: int | None = None) -> ScanRecord:
        """Record a delivered case: its first revision, or the next one, which supersedes the present.

        Args:
            draft: what was delivered.
            run_id: the run that took it in.
            follows: the scan that the draft was decided on (0 for none yet); left out, the present one.

        Raises:
            ConflictError: the draft's state is no first state, or another run added the case meanwhile.
            AlikeError: another patient's scan shows the same image or person.
            WithdrawnError: the patient has withdrawn. Only that a delivery was refused for it is recorded.
        """
        if draft.state not in FIRST_STATES:
            raise ConflictError(f"a scan cannot begin as {draft.state}", file=draft.case_id)
        with self._database.writing() as session:
            if draft.reason != WITHDRAWN:
                hold_consent(session, draft.case_id, draft.patient_id)
            if draft.marks:
                lock_identities(session)
            # two new revisions would wait for each other at two unique indexes
            wait_for(session, _CASES, func.hashtext(draft.case_id))
            current = session.scalars(_current(draft.case_id).with_for_update()).first()
            present = current.id if current else 0
            if follows is not None and follows != present:
                raise added_meanwhile(draft.case_id, follows, present)
            if draft.ct_key:
                require_apart(session, draft.case_id, draft.patient_id, draft.marks)
            row = _row_of(draft)
            add_revision(session, row, current, run_id)
            row.vertebrae_key = _labels_seen(session, row) or row.vertebrae_key
            add_marks(session, row.id, draft.marks)
            session.execute(delete(Intake).where(*intake_of(draft)))
            return scan_record(row)

    def superseded_by_bytes(self, case_id: str, *source_sha256: str) -> ScanRecord | None:
        """The superseded scan of the case with one of these hashes of its source, if its CT is stored."""
        statement = select(Scan).where(
            Scan.case_id == case_id,
            Scan.source_sha256.in_(source_sha256),
            Scan.state == ScanState.SUPERSEDED,
            Scan.ct_key.is_not(None),
        )
        with self._database.reading() as session:
            row = session.scalars(statement.order_by(Scan.id.desc())).first()
            return scan_record(row) if row else None

    def bring_back(self, scan_id: int, fingerprint: str, run_id: int | None, *, follows: int) -> ScanRecord:
        """Make a superseded scan the case's current one again: its bytes were delivered again.

        It is `ingested`: region and word on its landmarks may be others since it was prepared.

        Args:
            follows: the scan that this was decided on.

        Raises:
            NotFoundError: no such scan.
            ConflictError: it is not superseded, or another run added the case meanwhile.
            AlikeError: by now another patient's scan shows the same image or person.
            WithdrawnError: the patient has withdrawn.
        """
        with self._database.writing() as session:
            known = scan_row(session, scan_id)
            hold_consent(session, known.case_id, known.patient_id)
            lock_identities(session)
            require_apart(session, known.case_id, known.patient_id, marks_of(session, scan_id))
            current = session.scalars(_current(known.case_id).with_for_update()).first()
            if current is None or current.id != follows:
                raise added_meanwhile(known.case_id, follows, current.id if current else 0)
            row = scan_row(session, scan_id, lock=True)
            _supersede(session, current, run_id)
            move(session, row, ScanState.INGESTED, run_id, reason="same_bytes_again")
            row.source_fingerprint = fingerprint
            row.vertebrae_key = _labels_seen(session, row) or row.vertebrae_key
            row.predicted_model, row.predicted_version = "", 0
            session.flush()
            return scan_record(row)

    def touch_fingerprint(self, scan_id: int, fingerprint: str) -> None:
        """Remember that unchanged bytes now carry another fingerprint; a withdrawn scan keeps none.

        What was held of the case since these bytes were first seen is over.
        """
        with self._database.writing() as session:
            row = scan_row(session, scan_id, lock=True)
            if row.state != ScanState.WITHDRAWN:
                row.source_fingerprint = fingerprint
                session.execute(delete(HeldDelivery).where(HeldDelivery.case_id == row.case_id))

    def quarantine(self, scan_id: int, reason: str, detail: str, run_id: int | None) -> ScanRecord:
        """Hold a scan back for a person.

        Raises `ConflictError` if it was superseded meanwhile, `WithdrawnError` if its patient withdrew.
        """
        return self._hold(scan_id, ScanState.QUARANTINED, reason, detail, run_id)

    def fail(self, scan_id: int, reason: str, detail: str, run_id: int | None) -> ScanRecord:
        """Record that processing broke.

        Raises `ConflictError` if the state forbids it, `WithdrawnError` if the patient withdrew.
        """
        return self._hold(scan_id, ScanState.FAILED, reason, detail, run_id)

    def requeue(self, case_id: str, reason: str | None = None, detail: str | None = None) -> ScanRecord:
        """Release a quarantined or failed case to the step that held it.

        A case of which nothing is stored becomes `requeued` and loses its fingerprint, so ingest
        takes it again although its bytes are the same. So does a delivery that is held beside a scan.

        Args:
            reason, detail: why, for its history.

        Raises:
            NotFoundError: no such case.
            ConflictError: the case is not held back.
            AlikeError: its image or person is still another patient's, and nobody told the two apart.
        """
        with self._database.writing() as session:
            lock_identities(session)
            row = current_row(session, case_id)
            delivery = session.get(HeldDelivery, case_id)
            if delivery is not None:
                delivery.source_fingerprint = ""
            if row.state not in (ScanState.QUARANTINED, ScanState.FAILED):
                if delivery is not None:
                    return scan_record(row)
                raise ConflictError(
                    f"case {case_id} is not held back", expected="quarantined or failed", got=row.state
                )
            after = _after_requeue(session, row)
            if row.reason in (*REASONS, WITHDRAWN) and row.ct_key:
                require_apart(session, row.case_id, row.patient_id, marks_of(session, row.id))
            move(session, row, after, None, reason=reason, detail=detail)
            if after is ScanState.REQUEUED:
                row.source_fingerprint = ""
            session.flush()
            return scan_record(row)

    def requeue_failed(self) -> int:
        """Release every failed scan of which a CT is stored; returns how many.

        Scans that another run releases, or works on, at this moment are left to it.
        """
        statement = select(Scan).where(Scan.state == ScanState.FAILED, Scan.ct_key.is_not(None))
        with self._database.writing() as session:
            rows = session.scalars(statement.order_by(Scan.id).with_for_update(skip_locked=True)).all()
            for row in rows:
                move(session, row, _after_requeue(session, row), None)
            return len(rows)

    def scans_to_prepare(self, limit: int | None = None) -> list[int]:
        """Ids of the ingested scans, oldest first."""
        with self._database.reading() as session:
            return list(session.scalars(to_prepare(limit)))

    def count_prepared(self) -> int:
        """How many scans are prepared."""
        statement = select(func.count()).select_from(Scan).where(Scan.state == ScanState.PREPARED)
        with self._database.reading() as session:
            return session.scalars(statement).one()

    def held_after_ingest(self) -> list[CaseOutcome]:
        """The quarantined scans of which a CT is stored, with what holds them, oldest first."""
        statement = select(Scan.case_id, Scan.reason, Scan.detail).where(
            Scan.state == ScanState.QUARANTINED, Scan.ct_key.is_not(None)
        )
        with self._database.reading() as session:
            rows = session.execute(statement.order_by(Scan.id)).tuples()
            return [CaseOutcome(case, Outcome.QUARANTINED, reason, detail) for case, reason, detail in rows]

    def case_ids(self, scan_ids: Sequence[int]) -> dict[int, str]:
        """Case of each scan, in the order asked for.

        Raises:
            NotFoundError: a scan is not in the catalog.
        """
        found: dict[int, str] = {}
        with self._database.reading() as session:
            for start in range(0, len(scan_ids), IDS_AT_ONCE):
                some = scan_ids[start : start + IDS_AT_ONCE]
                rows = session.execute(select(Scan.id, Scan.case_id).where(Scan.id.in_(some)))
                found |= dict(rows.tuples().all())
        if unknown := [scan_id for scan_id in scan_ids if scan_id not in found]:
            raise NotFoundError(f"no scan {unknown[0]} in the catalog")
        return {scan_id: found[scan_id] for scan_id in scan_ids}

    def _records(self, statement: Select[tuple[Scan]]) -> list[ScanRecord]:
        with self._database.reading() as session:
            return [scan_record(row) for row in session.scalars(statement)]

    def _hold(
        self, scan_id: int, state: ScanState, reason: str, detail: str, run_id: int | None
    ) -> ScanRecord:
        with self._database.writing() as session:
            row = scan_row(session, scan_id, lock=True)
            require_claim(session, scan_id, self._owner)
            require_consent(session, row.case_id, row.patient_id)
            move(session, row, state, run_id, reason=reason, detail=detail)
            session.flush()
            return scan_record(row)


def to_prepare(limit: int | None = None) -> Select[tuple[int]]:
    """Ids of what prepare has left; reads the index ix_scans_waiting alone."""
    return select(Scan.id).where(Scan.state == ScanState.INGESTED).order_by(Scan.id).limit(limit)


def scan_record(row: Scan) -> ScanRecord:
    """The row as a frozen record."""
    return record_of(ScanRecord, row, scan_id=row.id, state=ScanState(row.state))


def scan_row(session: Session, scan_id: int, *, lock: bool = False) -> Scan:
    """The row by id, locked until the transaction ends on request. Raises `NotFoundError`."""
    row = session.get(Scan, scan_id, with_for_update=lock)
    if row is None:
        raise NotFoundError(f"no scan {scan_id} in the catalog")
    return row


def current_row(session: Session, case_id: str) -> Scan:
    """The row of the case's current scan, locked until the transaction ends. Raises `NotFoundError`."""
    row = session.scalars(_current(case_id).with_for_update()).first()
    if row is None:
        raise NotFoundError(f"no case {case_id} in the catalog", fix="look at `retroln status`")
    return row


def move(
    session: Session,
    row: Scan,
    after: ScanState,
    run_id: int | None,
    *,
    reason: str | None = None,
    detail: str | None = None,
) -> None:
    """Take a locked row to another state and write the event; `ConflictError` if forbidden."""
    before = ScanState(row.state)
    require_transition(row.case_id, before, after)
    row.state = after
    if after is not ScanState.SUPERSEDED:  # a superseded row keeps why it was held back
        row.reason, row.detail = reason, clean(detail)
    note(session, row, before, run_id, reason=reason, detail=detail)


def add_revision(session: Session, row: Scan, current: Scan | None, run_id: int | None) -> None:
    """Record the next revision of a case in the place of its current one, if there is one."""
    if current is not None:
        _supersede(session, current, run_id)
    row.revision = _last_revision(session, row.case_id) + 1
    session.add(row)
    session.flush()
    note(session, row, None, run_id)


def _supersede(session: Session, current: Scan, run_id: int | None) -> None:
    """Give up the case's current scan, and what was held of the case beside it, for another revision."""
    move(session, current, ScanState.SUPERSEDED, run_id, reason="new_revision")
    session.execute(delete(HeldDelivery).where(HeldDelivery.case_id == current.case_id))
    session.flush()


def _last_revision(session: Session, case_id: str) -> int:
    statement = select(func.coalesce(func.max(Scan.revision), 0)).where(Scan.case_id == case_id)
    return session.scalars(statement).one()


def _labels_seen(session: Session, row: Scan) -> str | None:
    """The label map that a person saw who spoke last of the same CT and vertebrae, if anybody did."""
    spoken_of = (
        select(Scan.vertebrae_key)
        .join(LandmarkReview, LandmarkReview.scan_id == Scan.id)
        .where(Scan.ct_key.is_not(None), *of_same_imaging(row))
    )
    return session.scalars(spoken_of.order_by(LandmarkReview.id.desc())).first()


def of_same_imaging(row: Scan) -> tuple[ColumnElement[bool], ...]:
    """What singles out the revisions of a case that have the scan's CT and vertebrae, byte for byte."""
    return (
        Scan.case_id == row.case_id,
        Scan.patient_id == row.patient_id,
        Scan.imaging_sha256.is_not(None),  # of older records it is not known, which makes none of them alike
        Scan.imaging_sha256 == row.imaging_sha256,
    )


def _after_requeue(session: Session, row: Scan) -> ScanState:
    has_crop = session.scalars(select(Crop.id).where(Crop.scan_id == row.id)).first() is not None
    return state_after_requeue(has_ct=row.ct_key is not None, has_crop=has_crop)


def note(
    session: Session,
    row: Scan,
    before: ScanState | None,
    run_id: int | None,
    **why: str | None,
) -> None:
    """Write the event of a row that is in its state; without `why` the row's own reason and detail."""
    session.add(
        CaseEvent(
            case_id=row.case_id,
            scan_id=row.id,
            run_id=run_id,
            from_state=before,
            to_state=row.state,
            reason=why.get("reason", row.reason),
            detail=clean(why.get("detail", row.detail)),
        )
    )


def added_meanwhile(case_id: str, follows: int, present: int | str = "another") -> ConflictError:
    """What a run hears that decided on a scan which is not the case's current one any more."""
    return ConflictError(
        f"another run added case {case_id} meanwhile",
        expected=f"scan {follows} to be the case's current one",
        got=f"scan {present}",
        fix="ingest again: it compares the source with what is there now",
    )


def _row_of(draft: ScanDraft) -> Scan:
    values: dict[str, Any] = {**vars(draft), "detail": clean(draft.detail)}
    del values["marks"]
    return Scan(**values)


def intake_of(draft: ScanDraft) -> tuple[ColumnElement[bool], ...]:
    """What singles out the intake that the draft records."""
    return (
        Intake.patient_id == draft.patient_id,
        Intake.case_id == draft.case_id,
        Intake.source_sha256 == draft.source_sha256,
    )


def clean(detail: str | None) -> str | None:
    """PostgreSQL keeps no NUL, no database what is no text; a message need not be longer than a page."""
    if detail is None:
        return None
    return detail.encode(errors="backslashreplace").decode().replace("\x00", "")[:_MAX_DETAIL]


def _current(case_id: str) -> Select[tuple[Scan]]:
    return select(Scan).where(Scan.case_id == case_id, Scan.state != ScanState.SUPERSEDED)
