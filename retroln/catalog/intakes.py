"""Catalog, part intakes: what ingest is about to store of a patient, written down before it does."""

from __future__ import annotations

from sqlalchemy import select

from retroln.catalog.consent import hold_consent
from retroln.catalog.database import Database
from retroln.catalog.models import Intake
from retroln.catalog.upsert import insert_into


class IntakeQueries:
    """Intakes; each method is one transaction.

    `add_scan` takes the row away. One that stays leads to what a worker stored and did not record.
    """

    _database: Database

    def begin_intake(self, case_id: str, patient_id: str, source_sha256: str) -> None:
        """Say whose objects will be stored under which case and source; repeating it changes nothing.

        Raises:
            WithdrawnError: the patient has withdrawn; nothing may be stored.
        """
        values = {"patient_id": patient_id, "case_id": case_id, "source_sha256": source_sha256}
        with self._database.writing() as session:
            hold_consent(session, case_id, patient_id)
            session.execute(insert_into(session, Intake).values(**values).on_conflict_do_nothing())

    def intakes_of(self, patient_id: str) -> list[tuple[str, str]]:
        """(case, source sha256) of what was begun for a patient and never recorded, in case order."""
        statement = select(Intake.case_id, Intake.source_sha256).where(Intake.patient_id == patient_id)
        with self._database.reading() as session:
            rows = session.execute(statement.order_by(Intake.case_id, Intake.source_sha256))
            return list(rows.tuples())
