"""Catalog, part withdrawals: which patients took back consent, what holds them, and emptying it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, Select, delete, func, select
from sqlalchemy.orm import Session

from retroln.catalog.consent import WITHDRAWN, lock_patient, require_consent
from retroln.catalog.database import Database
from retroln.catalog.likeness import RETIRED, give_up, is_given_up
from retroln.catalog.models import (
    CaseEvent,
    Crop,
    Dataset,
    DatasetMember,
    HeldDelivery,
    Intake,
    LandmarkReview,
    Landmarks,
    Node,
    Prediction,
    Roi,
    RunOutcome,
    Scan,
    Withdrawal,
    WithdrawalItem,
)
from retroln.catalog.records import (
    PatientDataset,
    ScanRecord,
    WithdrawalRecord,
    WithdrawnItem,
    record_of,
)
from retroln.catalog.scans import (
    add_revision,
    added_meanwhile,
    clean,
    move,
    scan_record,
    scan_row,
)
from retroln.catalog.states import TRANSITIONS, ScanState
from retroln.errors import ConflictError, NotFoundError

_EMPTIED = (
    "source_sha256",
    "imaging_sha256",
    "ct_key",
    "vertebrae_key",
    "mask_key",
    "series_key",
    "shape",
    "affine",
    "source_shape",
    "source_affine",
    "orientation",
    "detail",
)


_OF_THE_DELIVERY = (
    "case_id",
    "patient_id",
    "source_uri",
    "source_fingerprint",
    "source_sha256",
    "label_ids",
)


class WithdrawalQueries:
    """Withdrawals; each method is one transaction."""

    _database: Database

    def withdrawal_of(self, patient_id: str) -> WithdrawalRecord | None:
        """The patient's withdrawal; None for a patient who has not taken back consent."""
        with self._database.reading() as session:
            row = session.scalars(_withdrawal(patient_id)).first()
            return _record(row) if row else None

    def withdrawn_patients(self) -> frozenset[str]:
        """Every patient who has taken back consent."""
        with self._database.reading() as session:
            return frozenset(session.scalars(select(Withdrawal.patient_id)))

    def withdrawals(self) -> list[WithdrawalRecord]:
        """Every withdrawal, oldest first."""
        with self._database.reading() as session:
            return [_record(row) for row in session.scalars(select(Withdrawal).order_by(Withdrawal.id))]

    def withdrawn_items(self, patient_id: str) -> list[WithdrawnItem]:
        """What held a withdrawn patient, in the order it was noted."""
        statement = (
            select(WithdrawalItem)
            .join(Withdrawal, Withdrawal.id == WithdrawalItem.withdrawal_id)
            .where(Withdrawal.patient_id == patient_id)
            .order_by(WithdrawalItem.id)
        )
        with self._database.reading() as session:
            return [record_of(WithdrawnItem, row) for row in session.scalars(statement)]

    def begin_withdrawal(self, patient_id: str, reason: str, by: str) -> WithdrawalRecord:
        """Record the withdrawal and take every current scan of the patient out of work, all or nothing.

        From then on no step finds these scans, and none records another one. A withdrawal that was recorded
        before keeps its words.
        """
        with self._database.writing() as session:
            lock_patient(session, patient_id)
            row = session.scalars(_withdrawal(patient_id)).first()
            if row is None:
                row = Withdrawal(patient_id=patient_id, reason=reason, by=by)
                session.add(row)
                session.flush()
            for scan in session.scalars(_scans(patient_id).with_for_update()):
                if ScanState.WITHDRAWN in TRANSITIONS[ScanState(scan.state)]:
                    move(session, scan, ScanState.WITHDRAWN, None, reason=WITHDRAWN)
            return _record(row)

    def note_withdrawn(self, patient_id: str, items: Iterable[WithdrawnItem]) -> None:
        """Add what is not noted yet to the withdrawal's record.

        Raises:
            NotFoundError: the patient has no withdrawal.
        """
        with self._database.writing() as session:
            row = session.scalars(_withdrawal(patient_id).with_for_update()).first()
            if row is None:
                raise NotFoundError(f"no withdrawal of patient {patient_id} in the catalog")
            said = select(WithdrawalItem.kind, WithdrawalItem.name)
            noted = {
                tuple(one) for one in session.execute(said.where(WithdrawalItem.withdrawal_id == row.id))
            }
            fresh = {(item.kind, item.name): item for item in items if (item.kind, item.name) not in noted}
            session.add_all(WithdrawalItem(withdrawal_id=row.id, **vars(item)) for item in fresh.values())

    def empty_withdrawn(self, patient_id: str) -> None:
        """Delete what was derived from the patient's scans and leave the scans as tombstones.

        A tombstone says case, patient, revision, state and times. Repeating it changes nothing.

        Raises:
            ConflictError: the patient has not been withdrawn.
        """
        with self._database.writing() as session:
            if session.scalars(_withdrawal(patient_id)).first() is None:
                raise ConflictError(f"patient {patient_id} has not been withdrawn")
            for table, which in _derived(_ids(patient_id)):
                session.execute(delete(table).where(which))
            for scan in session.scalars(_scans(patient_id).with_for_update()):
                _empty(session, scan, WITHDRAWN)

    def retire(self, scan_id: int, detail: str) -> ScanRecord:
        """Hold a case for good as it stands, and give up every revision of it that its patient has.

        Those that no dataset version holds cannot be brought back from here on; `given_up` names them.

        Returns:
            What the case is now, held as `retired`.

        Raises:
            NotFoundError: no such scan.
            ConflictError: it is superseded.
            WithdrawnError: the patient has withdrawn.
        """
        with self._database.writing() as session:
            row = scan_row(session, scan_id, lock=True)
            require_consent(session, row.case_id, row.patient_id)
            if row.state == ScanState.SUPERSEDED:
                raise added_meanwhile(row.case_id, scan_id)
            if row.ct_key is None:
                move(session, row, ScanState.QUARANTINED, None, reason=RETIRED, detail=detail)
                session.flush()
                return scan_record(row)
            delivered = {name: getattr(row, name) for name in _OF_THE_DELIVERY}
            after = Scan(**delivered, state=ScanState.QUARANTINED, reason=RETIRED, detail=clean(detail))
            add_revision(session, after, row, None)
            for one in session.scalars(_scans(row.patient_id).where(Scan.case_id == row.case_id)):
                give_up(session, one, RETIRED)
            return scan_record(after)

    def give_up(self, scan_id: int, reason: str) -> None:
        """Let a superseded scan never come back, since its objects are going to be deleted."""
        with self._database.writing() as session:
            give_up(session, scan_row(session, scan_id, lock=True), reason)

    def given_up(self, case_id: str, patient_id: str) -> list[ScanRecord]:
        """Revisions of a patient's case that were given up and whose objects may still be there."""
        chosen = _scans(patient_id).where(Scan.case_id == case_id, is_given_up())
        with self._database.reading() as session:
            return [scan_record(row) for row in session.scalars(chosen)]

    def keys_in_use(self, case_id: str) -> frozenset[str]:
        """CTs and label maps that stored scans of a case go by, be they an earlier revision's."""
        stored = (Scan.case_id == case_id, Scan.ct_key.is_not(None))
        with self._database.reading() as session:
            rows = session.execute(select(Scan.ct_key, Scan.vertebrae_key).where(*stored)).tuples()
            return frozenset(key for row in rows for key in row if key)

    def empty_revision(self, scan_id: int, reason: str) -> None:
        """Delete what was derived from a superseded scan and leave it as a tombstone; `reason` says why.

        Raises:
            NotFoundError: no such scan.
            ConflictError: it is not superseded.
        """
        with self._database.writing() as session:
            scan = scan_row(session, scan_id, lock=True)
            if scan.state != ScanState.SUPERSEDED:
                raise ConflictError(
                    f"scan {scan_id} of case {scan.case_id} is in use", expected="superseded", got=scan.state
                )
            for table, which in _derived(select(Scan.id).where(Scan.id == scan_id)):
                session.execute(delete(table).where(which))
            _empty(session, scan, reason)

    def scans_of_patient(self, patient_id: str) -> list[ScanRecord]:
        """Every revision of every case of a patient, oldest first."""
        with self._database.reading() as session:
            return [scan_record(row) for row in session.scalars(_scans(patient_id))]

    def rows_to_withdraw(self, patient_id: str) -> tuple[WithdrawnItem, ...]:
        """How many rows of each table hold the patient, and what a withdrawal does with them."""
        full = (Scan.patient_id == patient_id, Scan.source_fingerprint != "")
        ids, cases = _ids(patient_id), _scans(patient_id).with_only_columns(Scan.case_id)
        kept = (
            (DatasetMember, DatasetMember.patient_id == patient_id),
            (CaseEvent, CaseEvent.scan_id.in_(ids)),
            (RunOutcome, RunOutcome.case_id.in_(cases)),
            (Intake, Intake.patient_id == patient_id),
            (LandmarkReview, LandmarkReview.scan_id.in_(ids)),
        )
        with self._database.reading() as session:
            counted = [
                *((table, "deleted", _count(session, table, which)) for table, which in _derived(ids)),
                (Scan, "emptied", _count(session, Scan, *full)),
                *((table, "kept", _count(session, table, which)) for table, which in kept),
            ]
        return tuple(
            WithdrawnItem("row", str(table.__tablename__), action, str(number))
            for table, action, number in counted
            if number
        )

    def sources_of_others(self, patient_id: str, case_ids: Sequence[str]) -> frozenset[tuple[str, str]]:
        """(case, source sha256) of what came, or is coming, under these case ids for other patients."""
        rows: set[tuple[str, str]] = set()
        with self._database.reading() as session:
            for table in (Scan, Intake):
                others = select(table.case_id, table.source_sha256).where(
                    table.case_id.in_(case_ids), table.patient_id != patient_id
                )
                rows |= {(case, sha) for case, sha in session.execute(others).tuples() if sha is not None}
        return frozenset(rows)

    def shared_cases(self, patient_id: str, case_ids: Sequence[str]) -> frozenset[str]:
        """Those of the case ids that also are, or were, another patient's who has not withdrawn."""
        cases: set[str] = set()
        with self._database.reading() as session:
            for table in (Scan, Intake):
                others = select(table.case_id).where(
                    table.case_id.in_(case_ids),
                    table.patient_id != patient_id,
                    table.patient_id.not_in(select(Withdrawal.patient_id)),
                )
                cases |= set(session.scalars(others))
        return frozenset(cases)

    def datasets_of_patient(self, patient_id: str) -> list[PatientDataset]:
        """Dataset versions that the patient is in, oldest first."""
        statement = (
            select(Dataset.version, DatasetMember.role, Dataset.id)
            .join(DatasetMember, DatasetMember.dataset_id == Dataset.id)
            .where(DatasetMember.patient_id == patient_id)
            .distinct()
            .order_by(Dataset.id)
        )
        with self._database.reading() as session:
            return [PatientDataset(version, role) for version, role, _ in session.execute(statement).tuples()]

    def withdrawn_from(self, version: str) -> int:
        """How many patients of a dataset version took back consent; above 0 it is tombstoned."""
        statement = (
            select(func.count(Withdrawal.patient_id.distinct()))
            .join(DatasetMember, DatasetMember.patient_id == Withdrawal.patient_id)
            .join(Dataset, Dataset.id == DatasetMember.dataset_id)
            .where(Dataset.version == version)
        )
        with self._database.reading() as session:
            return session.scalars(statement).one()

    def require_trainable(self, version: str) -> None:
        """Raise `ConflictError` for a tombstoned dataset version: nothing is trained or scored on it."""
        if number := self.withdrawn_from(version):
            raise ConflictError(
                f"dataset version {version[:16]} is tombstoned",
                expected="a version whose patients all consent",
                got=f"{number} of its patients withdrew",
                fix="start the training again: it freezes a new version without them",
            )


def _withdrawal(patient_id: str) -> Select[tuple[Withdrawal]]:
    return select(Withdrawal).where(Withdrawal.patient_id == patient_id)


def _scans(patient_id: str) -> Select[tuple[Scan]]:
    return select(Scan).where(Scan.patient_id == patient_id).order_by(Scan.id)


def _ids(patient_id: str) -> Select[tuple[int]]:
    return select(Scan.id).where(Scan.patient_id == patient_id)


def _derived(
    ids: Select[tuple[int]],
) -> list[tuple[type[Node | Prediction | Crop | Roi | Landmarks | HeldDelivery], ColumnElement[bool]]]:
    """Tables whose rows of these scans go, in an order that no reference forbids, and which rows."""
    predictions = select(Prediction.id).where(Prediction.scan_id.in_(ids))
    return [
        (Node, Node.prediction_id.in_(predictions)),
        (Prediction, Prediction.scan_id.in_(ids)),
        (Crop, Crop.scan_id.in_(ids)),
        (Roi, Roi.scan_id.in_(ids)),
        (Landmarks, Landmarks.scan_id.in_(ids)),
        (HeldDelivery, HeldDelivery.scan_id.in_(ids)),
    ]


def _count(session: Session, table: type, *which: ColumnElement[bool]) -> int:
    return session.scalars(select(func.count()).select_from(table).where(*which)).one()


def _empty(session: Session, scan: Scan, reason: str) -> None:
    """Leave a tombstone; a superseded one gets an event of its own, since its state stays."""
    if scan.state == ScanState.SUPERSEDED and scan.source_fingerprint:
        session.add(
            CaseEvent(
                case_id=scan.case_id,
                scan_id=scan.id,
                from_state=scan.state,
                to_state=scan.state,
                reason=reason,
            )
        )
    for name in _EMPTIED:
        setattr(scan, name, None)
    scan.source_uri, scan.source_fingerprint = {}, ""
    scan.predicted_model, scan.predicted_version = "", 0


def _record(row: Withdrawal) -> WithdrawalRecord:
    return record_of(WithdrawalRecord, row, withdrawal_id=row.id)
