"""Patients who took back their consent: scans become `withdrawn`; who, when, why and what stays on record."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

APPEND_ONLY = {"withdrawals": "OR patient_id = NEW.patient_id", "withdrawal_items": ""}
STATES = "'ingested', 'prepared', 'quarantined', 'failed', 'requeued', 'superseded'"


def upgrade() -> None:
    """Add both tables, which no statement may change later, and the state."""
    _create_tables()
    dialect = op.get_bind().dialect.name
    for table, clash in APPEND_ONLY.items():
        _keep_append_only(table, clash, dialect)
    if dialect == "postgresql":
        op.drop_constraint(op.f("ck_scans_state"), "scans", type_="check")
        op.create_check_constraint(op.f("ck_scans_state"), "scans", f"state IN ({STATES}, 'withdrawn')")
    else:
        _rebuild_scans()


def _create_tables() -> None:
    op.create_table(
        "withdrawals",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("patient_id", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("by", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_withdrawals")),
        sa.UniqueConstraint("patient_id", name=op.f("uq_withdrawals_patient_id")),
    )
    op.create_table(
        "withdrawal_items",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("withdrawal_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["withdrawal_id"], ["withdrawals.id"], name=op.f("fk_withdrawal_items_withdrawal_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_withdrawal_items")),
        sa.UniqueConstraint(
            "withdrawal_id", "kind", "name", name=op.f("uq_withdrawal_items_withdrawal_id_kind_name")
        ),
    )


def _keep_append_only(table: str, clash: str, dialect: str) -> None:
    message = f"{table} is append-only"
    if dialect == "postgresql":
        op.execute(
            f"CREATE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{message}'; END $$"
        )
        for event, scope in (("UPDATE OR DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
            op.execute(
                f"CREATE TRIGGER {table}_no_{event.split()[0].lower()} BEFORE {event} ON {table} "
                f"FOR EACH {scope} EXECUTE FUNCTION {table}_refuse()"
            )
        return
    # INSERT OR REPLACE deletes without firing delete triggers, hence the third
    replaces = f"WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id {clash}) "
    for event, condition in (("UPDATE", ""), ("DELETE", ""), ("INSERT", replaces)):
        op.execute(
            f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} {condition}"
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        )


def _rebuild_scans() -> None:
    """SQLite has no ALTER for constraints, and other tables refer to the rows of this one.

    So the references are checked at commit, when every row is back under its id.
    """
    connection = op.get_bind()
    made = sa.text(
        "SELECT sql FROM sqlite_master WHERE tbl_name = 'scans' AND sql IS NOT NULL ORDER BY rowid"
    )
    table, *indexes = connection.scalars(made).all()
    changed = table.replace(STATES, f"{STATES}, 'withdrawn'")
    if changed == table:
        raise RuntimeError("the table scans is not the one that earlier migrations made")
    for statement in (
        "PRAGMA defer_foreign_keys = ON",
        "CREATE TABLE scans_kept AS SELECT * FROM scans",
        "DROP TABLE scans",
        changed,
        "INSERT INTO scans SELECT * FROM scans_kept",
        "DROP TABLE scans_kept",
        *indexes,
    ):
        connection.exec_driver_sql(statement)
