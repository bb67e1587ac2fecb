"""Catalog, part deliveries: one that cannot be used never unseats a scan of the case that can."""

from __future__ import annotations

from sqlalchemy import delete, select

from retroln.catalog.consent import require_consent
from retroln.catalog.database import Database
from retroln.catalog.models import CaseEvent, HeldDelivery, Intake, utc_now
from retroln.catalog.records import HeldDeliveryRecord, ScanDraft, record_of
from retroln.catalog.scans import added_meanwhile, clean, intake_of, scan_row
from retroln.catalog.states import ScanState

DELIVERY_HELD = "delivery_held"
"""Reason of the event of a scan that stays the case's while a later delivery is held."""


class DeliveryQueries:
    """Held deliveries of cases that have a scan; each method is one transaction.

    One is over when the case's bytes are the scan's again, or others that can be used.
    """

    _database: Database

    def hold_delivery(self, draft: ScanDraft, run_id: int | None, *, follows: int) -> None:
        """Say why the case's latest delivery is held; the scan `follows` stays as it is.

        Saying the same of the same delivery again changes nothing.

        Raises:
            ConflictError: another run added the case meanwhile.
            WithdrawnError: the patient of the scan has withdrawn.
        """
        with self._database.writing() as session:
            scan = scan_row(session, follows, lock=True)
            require_consent(session, scan.case_id, scan.patient_id)
            if scan.state == ScanState.SUPERSEDED:
                raise added_meanwhile(scan.case_id, follows)
            session.execute(delete(Intake).where(*intake_of(draft)))
            known = session.get(HeldDelivery, scan.case_id)
            same = (draft.source_fingerprint, draft.reason)
            if known is not None and (known.source_fingerprint, known.reason) == same:
                return
            session.merge(
                HeldDelivery(
                    case_id=scan.case_id,
                    scan_id=scan.id,
                    source_fingerprint=draft.source_fingerprint,
                    reason=draft.reason,
                    detail=clean(draft.detail),
                    run_id=run_id,
                    at=utc_now(),
                )
            )
            session.add(
                CaseEvent(
                    case_id=scan.case_id,
                    scan_id=scan.id,
                    run_id=run_id,
                    from_state=scan.state,
                    to_state=scan.state,
                    reason=DELIVERY_HELD,
                    detail=clean(f"{draft.reason}: {draft.detail}"),
                )
            )

    def held_delivery(self, case_id: str) -> HeldDeliveryRecord | None:
        """What is held of a case beside its scan."""
        with self._database.reading() as session:
            row = session.get(HeldDelivery, case_id)
            return record_of(HeldDeliveryRecord, row) if row else None

    def held_deliveries(self) -> list[HeldDeliveryRecord]:
        """Every held delivery of a case that has a scan, in case order."""
        with self._database.reading() as session:
            rows = session.scalars(select(HeldDelivery).order_by(HeldDelivery.case_id))
            return [record_of(HeldDeliveryRecord, row) for row in rows]
