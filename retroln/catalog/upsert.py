"""INSERT ... ON CONFLICT, which both databases have and SQLAlchemy spells once per database."""

from __future__ import annotations

from typing import Any

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from retroln.catalog.models import Base


def insert_into(session: Session, table: type[Base]) -> Any:
    """The database's own INSERT, with `on_conflict_do_update` and `on_conflict_do_nothing`."""
    dialect = {"postgresql": postgresql, "sqlite": sqlite}[session.get_bind().dialect.name]
    return dialect.insert(table.__table__)
