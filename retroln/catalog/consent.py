"""Catalog, part consent: of a patient who took it back nothing is recorded, however close the race."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from retroln.catalog.locks import wait_for
from retroln.catalog.models import Withdrawal
from retroln.errors import WithdrawnError

WITHDRAWN = "withdrawn"
"""Reason of whatever a withdrawal does and of every refused delivery."""


def require_consent(session: Session, case_id: str, patient_id: str) -> None:
    """Refuse to record anything of a patient who has withdrawn.

    For a scan whose row this transaction has locked: a withdrawal needs that row as well, so it comes wholly
    before or wholly after. For what has no row yet see `hold_consent`.

    Raises:
        WithdrawnError: the patient has withdrawn.
    """
    withdrawal = select(Withdrawal.id).where(Withdrawal.patient_id == patient_id)
    if session.scalars(withdrawal).first() is not None:
        raise WithdrawnError(
            f"the patient of case {case_id} took back consent", fix="nothing of it is recorded"
        )


def hold_consent(session: Session, case_id: str, patient_id: str) -> None:
    """As `require_consent`, and let no withdrawal of the patient begin before the transaction ends."""
    lock_patient(session, patient_id, shared=True)
    require_consent(session, case_id, patient_id)


def lock_patient(session: Session, patient_id: str, *, shared: bool = False) -> None:
    """Wait for transactions that hold the patient otherwise.

    Taken before any row, so that two transactions never wait for each other.
    """
    wait_for(session, func.hashtextextended(patient_id, 0), shared=shared)
