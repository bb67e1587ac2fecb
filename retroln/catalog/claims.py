"""Catalog, part claims: which worker has which scan, or which case of the source, in hand, for how long."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Interval, delete, func, literal, or_, select, update
from sqlalchemy.orm import Session

from retroln.catalog.database import Database
from retroln.catalog.models import CaseClaim, Claim, Scan, UtcDateTime, utc_now
from retroln.catalog.records import ClaimRecord, record_of
from retroln.catalog.upsert import insert_into
from retroln.errors import LeaseError


class ClaimQueries:
    """Claims with a lease; each method is one transaction.

    A worker that dies gives nothing back, so a claim ends by itself when its lease has run out. Leases
    are measured by the database's clock (SQLite's is the machine's): the workers' clocks do not matter.
    """

    _database: Database

    def claim(self, scan_id: int, owner: str, lease_s: float) -> bool:
        """Take a scan in hand for `lease_s` seconds from now, or hold it so much longer.

        Returns:
            True if `owner` has it now: it was free, its own already, or the other's lease has run out.
            Of many who ask at once, on any machine, exactly one hears True.

        Raises:
            ConflictError: no such scan.
        """
        with self._database.writing() as session:
            return _take(session, Claim, {"scan_id": scan_id}, owner, lease_s)

    def renew(self, scan_id: int, owner: str, lease_s: float) -> bool:
        """Hold a scan that is in hand for `lease_s` seconds from now.

        Returns:
            True if `owner` still has it, also when its lease had run out and nobody took the scan. False
            if another has it or it was given back; nothing is taken then.
        """
        with self._database.writing() as session:
            return _hold(session, Claim, Claim.scan_id == scan_id, owner, lease_s)

    def release(self, scan_id: int, owner: str) -> None:
        """Give a scan back; nothing happens if `owner` has it no longer."""
        with self._database.writing() as session:
            session.execute(delete(Claim).where(Claim.scan_id == scan_id, Claim.owner == owner))

    def claim_case(self, case_id: str, owner: str, lease_s: float) -> bool:
        """As `claim`, for a case of the source, which may have no scan yet."""
        with self._database.writing() as session:
            return _take(session, CaseClaim, {"case_id": case_id}, owner, lease_s)

    def renew_case(self, case_id: str, owner: str, lease_s: float) -> bool:
        """As `renew`, for a case of the source."""
        with self._database.writing() as session:
            return _hold(session, CaseClaim, CaseClaim.case_id == case_id, owner, lease_s)

    def release_case(self, case_id: str, owner: str) -> None:
        """As `release`, for a case of the source."""
        with self._database.writing() as session:
            session.execute(delete(CaseClaim).where(CaseClaim.case_id == case_id, CaseClaim.owner == owner))

    def release_all(self, owner: str) -> int:
        """Give back whatever a worker has, which is known to be dead; returns how many scans and cases."""
        with self._database.writing() as session:
            scans = session.scalars(delete(Claim).where(Claim.owner == owner).returning(Claim.scan_id)).all()
            of_source = delete(CaseClaim).where(CaseClaim.owner == owner).returning(CaseClaim.case_id)
            return len(scans) + len(session.scalars(of_source).all())

    def claims(self) -> list[ClaimRecord]:
        """Every claim, also those whose lease has run out and that nobody took over.

        Those on scans come first, in scan order, then those on cases of the source, in case order.
        """
        statement = select(Claim, Scan).join(Scan, Scan.id == Claim.scan_id).order_by(Claim.scan_id)
        of_source = select(CaseClaim).order_by(CaseClaim.case_id)
        with self._database.reading() as session:
            scans = [record_of(ClaimRecord, *row) for row in session.execute(statement).tuples()]
            return scans + [record_of(ClaimRecord, row, scan_id=None) for row in session.scalars(of_source)]


def _take(
    session: Session, table: type[Claim] | type[CaseClaim], key: dict[str, Any], owner: str, lease_s: float
) -> bool:
    now, expires_at = _now_and_in(lease_s, session)
    asked = insert_into(session, table).values(**key, owner=owner, expires_at=expires_at)
    taken = asked.on_conflict_do_update(
        index_elements=list(key),
        set_={"owner": asked.excluded.owner, "expires_at": asked.excluded.expires_at},
        where=or_(table.owner == owner, table.expires_at <= now),
    )
    return session.scalar(taken.returning(table.owner)) is not None


def _hold(
    session: Session,
    table: type[Claim] | type[CaseClaim],
    which: ColumnElement[bool],
    owner: str,
    lease_s: float,
) -> bool:
    _, expires_at = _now_and_in(lease_s, session)
    held = update(table).where(which, table.owner == owner).values(expires_at=expires_at)
    return session.scalar(held.returning(table.owner)) is not None


def require_claim(session: Session, scan_id: int, owner: str | None) -> None:
    """Let nobody take a claim before the transaction ends; without an owner nothing is asked.

    Raises:
        LeaseError: `owner` has the scan no longer.
    """
    if owner is None:
        return
    own = select(Claim).where(Claim.scan_id == scan_id, Claim.owner == owner).with_for_update()
    if session.scalars(own).first() is None:
        raise LeaseError(f"the case is no longer in the hands of {owner}, so nothing of it is recorded")


def _now_and_in(lease_s: float, session: Session) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """This moment and the one `lease_s` later, by the database's clock.

    It is read after waiting for a lock, unlike `now()`, which says when the waiting began.
    """
    lease = timedelta(seconds=lease_s)
    if session.get_bind().dialect.name == "postgresql":
        now = func.clock_timestamp(type_=DateTime(timezone=True))
        return now, now + literal(lease, Interval())
    return literal(utc_now(), UtcDateTime()), literal(utc_now() + lease, UtcDateTime())
