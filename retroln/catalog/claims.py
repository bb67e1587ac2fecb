"""Catalog, part claims: which worker has which scan in hand, for how long."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, DateTime, Interval, delete, func, literal, or_, select, update
from sqlalchemy.orm import Session

from retroln.catalog.database import Database
from retroln.catalog.models import Claim, Scan, UtcDateTime, utc_now
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
            (now, expires_at), table = _now_and_in(lease_s, session), Claim.__table__
            asked = insert_into(session, Claim).values(scan_id=scan_id, owner=owner, expires_at=expires_at)
            taken = asked.on_conflict_do_update(
                index_elements=[table.c.scan_id],
                set_={"owner": asked.excluded.owner, "expires_at": asked.excluded.expires_at},
                where=or_(table.c.owner == owner, table.c.expires_at <= now),
            )
            return session.scalar(taken.returning(table.c.scan_id)) is not None

    def renew(self, scan_id: int, owner: str, lease_s: float) -> bool:
        """Hold a scan that is in hand for `lease_s` seconds from now.

        Returns:
            True if `owner` still has it, also when its lease had run out and nobody took the scan. False
            if another has it or it was given back; nothing is taken then.
        """
        with self._database.writing() as session:
            _, expires_at = _now_and_in(lease_s, session)
            own = update(Claim).where(Claim.scan_id == scan_id, Claim.owner == owner)
            renewed = own.values(expires_at=expires_at).returning(Claim.scan_id)
            return session.scalar(renewed) is not None

    def release(self, scan_id: int, owner: str) -> None:
        """Give a scan back; nothing happens if `owner` has it no longer."""
        with self._database.writing() as session:
            session.execute(delete(Claim).where(Claim.scan_id == scan_id, Claim.owner == owner))

    def release_all(self, owner: str) -> int:
        """Give back whatever a worker has, which is known to be dead; returns how many scans."""
        with self._database.writing() as session:
            freed = session.scalars(delete(Claim).where(Claim.owner == owner).returning(Claim.scan_id))
            return len(freed.all())

    def claims(self) -> list[ClaimRecord]:
        """Every claim in scan order, also those whose lease has run out and that nobody took over."""
        statement = select(Claim, Scan).join(Scan, Scan.id == Claim.scan_id).order_by(Claim.scan_id)
        with self._database.reading() as session:
            return [record_of(ClaimRecord, *row) for row in session.execute(statement).tuples()]


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
