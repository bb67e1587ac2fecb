"""Catalog, part crops and datasets: what prepare made and what training froze."""

from __future__ import annotations

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from retroln.catalog.claims import require_claim
from retroln.catalog.consent import require_consent
from retroln.catalog.database import Database
from retroln.catalog.likeness import REASONS
from retroln.catalog.models import CaseEvent, Crop, Dataset, DatasetMember, Landmarks, Roi, Scan
from retroln.catalog.records import (
    CropDraft,
    CropRecord,
    DatasetDraft,
    DatasetRecord,
    LandmarksDraft,
    LandmarksRecord,
    MemberDraft,
    RoiDraft,
    ScanRecord,
    record_of,
)
from retroln.catalog.scans import move, scan_record, scan_row
from retroln.catalog.states import ScanState
from retroln.errors import ConflictError, NotFoundError
from retroln.settings import RoiSpec


class PreparationQueries:
    """Landmarks, regions, crops and dataset versions; each method is one transaction."""

    _database: Database
    _owner: str | None

    def record_prepared(
        self,
        scan_id: int,
        landmarks: LandmarksDraft,
        roi: RoiDraft,
        crop: CropDraft,
        run_id: int | None,
        *,
        vertebrae_key: str | None = None,
    ) -> None:
        """Record what prepare found and stored; the scan becomes `prepared`, all or nothing.

        Saying the same again is no error, so a step whose answer got lost may be repeated.

        Args:
            vertebrae_key: of the label map that was made for the scan; None leaves the delivered one.

        Raises:
            ConflictError: the scan was superseded or quarantined meanwhile.
            WithdrawnError: the patient withdrew.
        """
        with self._database.writing() as session:
            scan = scan_row(session, scan_id, lock=True)
            require_claim(session, scan_id, self._owner)
            require_consent(session, scan.case_id, scan.patient_id)
            stored = session.scalars(select(Crop).where(Crop.scan_id == scan_id)).first()
            if scan.state == ScanState.PREPARED and stored and stored.ct_sha256 == crop.ct_sha256:
                return
            if scan.state == ScanState.QUARANTINED and scan.reason in REASONS:
                raise ConflictError(f"case {scan.case_id} was held meanwhile", got=scan.reason)
            move(session, scan, ScanState.PREPARED, run_id)
            scan.vertebrae_key = vertebrae_key or scan.vertebrae_key
            for table in (Landmarks, Roi, Crop):
                session.execute(delete(table).where(table.scan_id == scan_id))
            session.add_all(
                [
                    landmarks_row(scan_id, landmarks),
                    Roi(scan_id=scan_id, **{**vars(roi), "clamped_sides": [*roi.clamped_sides]}),
                    Crop(scan_id=scan_id, **vars(crop)),
                ]
            )

    def reopen_prepared(self, spec: RoiSpec) -> int:
        """Prepared scans whose region has another `spec` become `ingested`; returns how many."""
        statement = (
            select(Scan, Roi).join(Roi, Roi.scan_id == Scan.id).where(Scan.state == ScanState.PREPARED)
        )
        with self._database.writing() as session:
            rows = session.execute(statement.with_for_update(of=Scan)).tuples()
            other = [scan for scan, region in rows if region.document["spec"] != spec.recorded()]
            for scan in other:
                move(session, scan, ScanState.INGESTED, None, reason="region_changed")
                scan.predicted_model, scan.predicted_version = "", 0
            return len(other)

    def crop_of(self, scan_id: int) -> CropRecord:
        """The scan's crop and region. Raises `NotFoundError` before prepare."""
        with self._database.reading() as session:
            if found := crop_or_none(session, scan_id):
                return found
        raise NotFoundError(f"scan {scan_id} has no crop", fix="run `retroln prepare`")

    def landmarks_of(self, scan_id: int) -> LandmarksRecord:
        """The scan's landmarks, used or held. Raises `NotFoundError` before prepare."""
        with self._database.reading() as session:
            if found := landmarks_or_none(session, scan_id):
                return found
        raise NotFoundError(f"scan {scan_id} has no landmarks", fix="run `retroln prepare`")

    def prepared_by(self, run_id: int) -> list[tuple[str, LandmarksRecord, tuple[str, ...]]]:
        """Case id, landmarks and clamped sides of every scan that a run prepared, in case order."""
        statement = (
            select(Scan.case_id, Landmarks, Roi.clamped_sides)
            .join(Landmarks, Landmarks.scan_id == Scan.id)
            .join(Roi, Roi.scan_id == Scan.id)
            .where(
                Scan.state == ScanState.PREPARED,
                Scan.id.in_(
                    select(CaseEvent.scan_id).where(
                        CaseEvent.run_id == run_id, CaseEvent.to_state == ScanState.PREPARED
                    )
                ),
            )
            .order_by(Scan.case_id)
        )
        with self._database.reading() as session:
            rows = session.execute(statement).tuples()
            return [
                (case_id, record_of(LandmarksRecord, found), tuple(sides)) for case_id, found, sides in rows
            ]

    def labelled_prepared(self) -> list[tuple[ScanRecord, CropRecord]]:
        """Prepared scans whose crop has a node mask, in case order."""
        statement = (
            select(Scan, Crop, Roi)
            .join(Crop, Crop.scan_id == Scan.id)
            .join(Roi, Roi.scan_id == Scan.id)
            .where(Scan.state == ScanState.PREPARED, Crop.mask_key.is_not(None))
        )
        with self._database.reading() as session:
            rows = session.execute(statement).tuples()
            pairs = [(scan_record(scan), _crop_record(crop, roi)) for scan, crop, roi in rows]
        return sorted(pairs, key=lambda pair: pair[0].case_id)

    def add_dataset(self, draft: DatasetDraft) -> DatasetRecord:
        """Store a dataset version once; the same version again returns what is stored.

        Raises:
            ConflictError: a patient would be in training and test at once, or the stored version has
                other members.
        """
        _require_patients_apart(draft)
        try:
            self._insert_dataset(draft)
        except ConflictError:  # unless another run stored this version between look and insert
            if not self._has_dataset(draft.version):
                raise
        stored = self.dataset(draft.version)
        if set(stored.members) != set(draft.members):
            raise ConflictError(f"dataset {draft.version} exists with other members")
        return stored

    def dataset(self, version: str) -> DatasetRecord:
        """A dataset version with its members. Raises `NotFoundError`."""
        with self._database.reading() as session:
            row = session.scalars(select(Dataset).where(Dataset.version == version)).first()
            if row is None:
                raise NotFoundError(f"no dataset {version} in the catalog")
            chosen = select(DatasetMember).where(DatasetMember.dataset_id == row.id)
            members = session.scalars(chosen.order_by(DatasetMember.case_id, DatasetMember.scan_id))
            listed = tuple(record_of(MemberDraft, member) for member in members)
            return record_of(DatasetRecord, row, dataset_id=row.id, members=listed)

    def train_patients(self) -> frozenset[str]:
        """Patients that any dataset version ever trained on."""
        return self._patients("train")

    def test_patients(self) -> frozenset[str]:
        """Patients that any dataset version ever locked away for testing."""
        return self._patients("test")

    def _patients(self, role: str) -> frozenset[str]:
        statement = select(DatasetMember.patient_id).where(DatasetMember.role == role).distinct()
        with self._database.reading() as session:
            return frozenset(session.scalars(statement))

    def _has_dataset(self, version: str) -> bool:
        with self._database.reading() as session:
            return session.scalars(_dataset_id(version)).first() is not None

    def _insert_dataset(self, draft: DatasetDraft) -> None:
        with self._database.writing() as session:
            if session.scalars(_dataset_id(draft.version)).first():
                return
            row = Dataset(version=draft.version, manifest_key=draft.manifest_key)
            session.add(row)
            session.flush()
            session.add_all(DatasetMember(dataset_id=row.id, **vars(member)) for member in draft.members)


def _dataset_id(version: str) -> Select[tuple[int]]:
    return select(Dataset.id).where(Dataset.version == version)


def crop_or_none(session: Session, scan_id: int) -> CropRecord | None:
    """The scan's crop and region, if it has been prepared."""
    joined = select(Crop, Roi).join(Roi, Roi.scan_id == Crop.scan_id).where(Crop.scan_id == scan_id)
    row = session.execute(joined).tuples().first()
    return _crop_record(*row) if row else None


def landmarks_or_none(session: Session, scan_id: int) -> LandmarksRecord | None:
    """The scan's landmarks, if prepare has judged them."""
    row = session.scalars(select(Landmarks).where(Landmarks.scan_id == scan_id)).first()
    return record_of(LandmarksRecord, row) if row else None


def landmarks_row(scan_id: int, draft: LandmarksDraft) -> Landmarks:
    """A new row for a scan's landmarks."""
    listed = {"truncated": [*draft.truncated], "findings": [*draft.findings]}
    return Landmarks(scan_id=scan_id, **(vars(draft) | listed))


def _crop_record(crop: Crop, roi: Roi) -> CropRecord:
    return record_of(CropRecord, crop, roi, roi=roi.document)


def _require_patients_apart(draft: DatasetDraft) -> None:
    patients = {
        role: {member.patient_id for member in draft.members if member.role == role}
        for role in ("train", "test")
    }
    if both := patients["train"] & patients["test"]:
        raise ConflictError("patients in training and test at once", got=", ".join(sorted(both)[:10]))
