"""Locks on what has no row yet; on SQLite a writer is alone anyway."""

from __future__ import annotations

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session


def wait_for(session: Session, *key: int | ColumnElement[int], shared: bool = False) -> None:
    """Wait until no other transaction holds the key, and hold it until this one ends.

    Args:
        key: one or two numbers; keys of two never meet those of one.
        shared: wait for those alone that do not share it.
    """
    if session.get_bind().dialect.name == "postgresql":
        lock = func.pg_advisory_xact_lock_shared if shared else func.pg_advisory_xact_lock
        session.execute(select(lock(*key)))
