"""Catalog, part landmark reviews: cases held for their landmarks, and what people said of them."""

from __future__ import annotations

from sqlalchemy import Select, delete, or_, select

from retroln.catalog.claims import require_claim
from retroln.catalog.consent import require_consent
from retroln.catalog.database import Database
from retroln.catalog.models import LandmarkReview, Landmarks, Scan
from retroln.catalog.preparation import landmarks_row
from retroln.catalog.records import (
    LandmarkReviewDraft,
    LandmarkReviewRecord,
    LandmarksDraft,
    LandmarksRecord,
    ScanRecord,
    record_of,
)
from retroln.catalog.scans import clean, move, note, of_same_imaging, scan_record, scan_row
from retroln.catalog.states import ScanState
from retroln.errors import ConflictError

LANDMARK_REASONS = frozenset(
    {
        "landmarks_missing",
        "landmarks_cut",
        "no_lumbar_level",
        "landmarks_implausible",
        "off_bone",
        "not_hu",
        "numbering_doubtful",
        "l2_unresolved",
        "unanchored",
    }
)
"""Reasons for which a person's word can send a case on (docs/howto/quarantine.md)."""
REVIEWED = "landmarks_reviewed"
"""Reason of the event that sends a case on."""

Held = tuple[ScanRecord, LandmarksRecord | None]


class LandmarkReviewQueries:
    """The queue of cases that wait for a look at their landmarks; each method is one transaction."""

    _database: Database
    _owner: str | None

    def hold_landmarks(
        self,
        scan_id: int,
        reason: str,
        detail: str,
        landmarks: LandmarksDraft,
        run_id: int | None,
        *,
        vertebrae_key: str | None = None,
    ) -> None:
        """Quarantine a scan for its landmarks and keep their numbers, all or nothing.

        Args:
            vertebrae_key: of a label map that was made for the scan; None leaves the present one.

        Raises:
            ConflictError: the scan was superseded meanwhile.
            WithdrawnError: the patient withdrew.
        """
        with self._database.writing() as session:
            scan = scan_row(session, scan_id, lock=True)
            require_claim(session, scan_id, self._owner)
            require_consent(session, scan.case_id, scan.patient_id)
            move(session, scan, ScanState.QUARANTINED, run_id, reason=reason, detail=detail)
            scan.vertebrae_key = vertebrae_key or scan.vertebrae_key
            session.execute(delete(Landmarks).where(Landmarks.scan_id == scan_id))
            session.add(landmarks_row(scan_id, landmarks))

    def landmark_queue(self) -> list[Held]:
        """Every stored scan that is held for its landmarks, the least trusted first."""
        statement = (
            select(Scan, Landmarks)
            .outerjoin(Landmarks, Landmarks.scan_id == Scan.id)
            .where(
                Scan.state == ScanState.QUARANTINED,
                Scan.reason.in_(LANDMARK_REASONS),
                Scan.ct_key.is_not(None),
            )
        )
        with self._database.reading() as session:
            rows = session.execute(statement).tuples()
            held = [(scan_record(scan), _landmarks_record(found)) for scan, found in rows]
        return sorted(held, key=_least_trusted_first)

    def review_landmarks(self, draft: LandmarkReviewDraft) -> LandmarkReviewRecord:
        """Write down a person's word for good and send the scan back to prepare, all or nothing.

        The same word as the last one on this revision is written once; if the case was held again
        under it, it is sent back once more. A stored label map takes the place of the scan's.

        Raises:
            NotFoundError: no such scan.
            ConflictError: the scan is not held for its landmarks, nor waits for prepare under an earlier
                word of the same reviewer (nor, for a correction, is prepared).
            WithdrawnError: the patient withdrew.
        """
        with self._database.writing() as session:
            scan = scan_row(session, draft.scan_id, lock=True)
            require_consent(session, scan.case_id, scan.patient_id)
            row = session.scalars(_latest(scan)).first()
            repeated = row is not None and _says_the_same(row, draft)
            if row is None or not repeated or scan.state == ScanState.QUARANTINED:
                _require_reviewable(scan, draft, row)
            if row is None or not repeated:
                row = _row_of(scan, draft)
                session.add(row)
            elif scan.state != ScanState.QUARANTINED:
                return _record(row)
            scan.vertebrae_key = draft.vertebrae_key or scan.vertebrae_key
            scan.predicted_model, scan.predicted_version = "", 0
            detail = f"{draft.action} by {draft.reviewer}: {draft.comment}"
            if scan.state == ScanState.INGESTED:
                note(session, scan, ScanState.INGESTED, None, reason=REVIEWED, detail=detail)
            else:
                move(session, scan, ScanState.INGESTED, None, reason=REVIEWED, detail=detail)
            session.flush()
            return _record(row)

    def landmark_review_of(self, scan_id: int) -> LandmarkReviewRecord | None:
        """The word that holds for a scan: the latest on its CT and vertebrae, byte for byte; None for none.

        Raises:
            NotFoundError: no such scan.
        """
        with self._database.reading() as session:
            row = session.scalars(_latest(scan_row(session, scan_id))).first()
            return _record(row) if row else None

    def landmark_reviews(self, case_id: str) -> list[LandmarkReviewRecord]:
        """Everything that people said of a case's landmarks, every revision, oldest first."""
        statement = (
            select(LandmarkReview).where(LandmarkReview.case_id == case_id).order_by(LandmarkReview.id)
        )
        with self._database.reading() as session:
            return [_record(row) for row in session.scalars(statement)]


def _latest(scan: Scan) -> Select[tuple[LandmarkReview]]:
    alike = select(Scan.id).where(*of_same_imaging(scan))
    return (
        select(LandmarkReview)
        .where(or_(LandmarkReview.scan_id == scan.id, LandmarkReview.scan_id.in_(alike)))
        .order_by(LandmarkReview.id.desc())
        .limit(1)
    )


def _least_trusted_first(held: Held) -> tuple[float, str]:
    scan, found = held
    return (found.confidence if found and found.confidence is not None else 0.0), scan.case_id


def _require_reviewable(scan: Scan, draft: LandmarkReviewDraft, spoken: LandmarkReview | None) -> None:
    if spoken and scan.state == ScanState.INGESTED:
        _require_own(scan, draft, spoken)
        return
    held = scan.state == ScanState.QUARANTINED and scan.reason in LANDMARK_REASONS
    if scan.ct_key and (held or (draft.action == "correct" and scan.state == ScanState.PREPARED)):
        return
    expected = "quarantined for its landmarks" + (", or prepared" if draft.action == "correct" else "")
    raise ConflictError(
        f"case {scan.case_id} does not wait for a word on its landmarks",
        expected=expected,
        got=f"{scan.state}" + (f" ({scan.reason})" if scan.reason else ""),
        fix=_WHAT_THEN.get(ScanState(scan.state), f"look at `retroln status {scan.case_id}`"),
    )


_WHAT_THEN = {
    ScanState.INGESTED: "run `retroln prepare`: it holds the case, or cuts a region that can be corrected",
    ScanState.PREPARED: "nothing holds it; `retroln review correct` if its levels or L2 are wrong",
}


def _require_own(scan: Scan, draft: LandmarkReviewDraft, spoken: LandmarkReview) -> None:
    """Let nobody but who spoke last replace a word that waits for prepare still."""
    if spoken.reviewer != clean(draft.reviewer):
        raise ConflictError(
            f"somebody else spoke of case {scan.case_id} already",
            expected=f"a second word from {spoken.reviewer}, or none before prepare has gone by the first",
            got=f"one from {draft.reviewer}",
            fix="talk to each other; after the next `retroln prepare` anybody may correct the case",
        )


def _row_of(scan: Scan, draft: LandmarkReviewDraft) -> LandmarkReview:
    return LandmarkReview(
        case_id=scan.case_id,
        scan_id=scan.id,
        action=draft.action,
        reviewer=clean(draft.reviewer),
        comment=clean(draft.comment),
        vertebrae_key=draft.vertebrae_key,
        replaced_key=scan.vertebrae_key if draft.vertebrae_key else None,
        l2_world_mm=_listed(draft.l2_world_mm),
        extent_world_mm=_listed(draft.extent_world_mm),
    )


def _says_the_same(row: LandmarkReview, draft: LandmarkReviewDraft) -> bool:
    said = (row.action, row.reviewer, row.comment, row.vertebrae_key, row.l2_world_mm, row.extent_world_mm)
    return said == (
        draft.action,
        clean(draft.reviewer),
        clean(draft.comment),
        draft.vertebrae_key,
        _listed(draft.l2_world_mm),
        _listed(draft.extent_world_mm),
    )


def _listed(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else [*values]


def _record(row: LandmarkReview) -> LandmarkReviewRecord:
    return record_of(LandmarkReviewRecord, row, review_id=row.id)


def _landmarks_record(row: Landmarks | None) -> LandmarksRecord | None:
    return record_of(LandmarksRecord, row) if row else None
