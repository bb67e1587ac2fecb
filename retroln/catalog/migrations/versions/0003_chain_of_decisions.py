"""Decisions that move the champion follow one another: `model_audit.follows`, one successor each."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TABLE = "model_audit"
MOVES = "action IN ('promote', 'rollback')"


def upgrade() -> None:
    """Add the column, fill it for the rows that exist, then let the database keep the rule."""
    op.add_column(TABLE, sa.Column("follows", sa.Integer(), nullable=True))
    with _open_to_change():
        _link_existing_rows()
        # SQLite has no ALTER for constraints: alembic copies the table there, without its triggers
        with op.batch_alter_table(TABLE) as table:
            table.create_unique_constraint(
                op.f("uq_model_audit_model_name_follows"), ["model_name", "follows"]
            )
            table.create_check_constraint(op.f("ck_model_audit_chain"), f"({MOVES}) = (follows IS NOT NULL)")


def _link_existing_rows() -> None:
    connection = op.get_bind()
    rows = connection.execute(sa.text(f"SELECT id, model_name FROM {TABLE} WHERE {MOVES} ORDER BY id"))
    latest: dict[str, int] = {}
    for number, model in rows.all():
        connection.execute(
            sa.text(f"UPDATE {TABLE} SET follows = :follows WHERE id = :id"),
            {"follows": latest.get(model, 0), "id": number},
        )
        latest[model] = number


@contextmanager
def _open_to_change() -> Iterator[None]:
    """Lift the append-only rule inside this migration's transaction, and put it back."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE {TABLE} DISABLE TRIGGER {TABLE}_no_update")
        yield
        op.execute(f"ALTER TABLE {TABLE} ENABLE TRIGGER {TABLE}_no_update")
        return
    for event in ("update", "delete", "insert"):
        op.execute(f"DROP TRIGGER {TABLE}_no_{event}")
    yield
    # INSERT OR REPLACE deletes without firing delete triggers, on a clash of the chain too
    replaces = (
        f"WHEN EXISTS (SELECT 1 FROM {TABLE} WHERE id = NEW.id "
        "OR (model_name = NEW.model_name AND follows = NEW.follows)) "
    )
    for event, condition in (("UPDATE", ""), ("DELETE", ""), ("INSERT", replaces)):
        op.execute(
            f"CREATE TRIGGER {TABLE}_no_{event.lower()} BEFORE {event} ON {TABLE} {condition}"
            f"BEGIN SELECT RAISE(ABORT, '{TABLE} is append-only'); END"
        )
