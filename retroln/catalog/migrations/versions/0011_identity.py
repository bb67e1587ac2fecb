"""By what images and persons are told again; deliveries held beside a scan; the bytes a word is about."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

RULINGS = "identity_rulings"


def upgrade() -> None:
    """Add three tables and two columns; nothing that is stored changes."""
    op.add_column("scans", sa.Column("imaging_sha256", sa.String(), nullable=True))
    op.add_column("scans", sa.Column("identified", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_table(
        "held_deliveries",
        sa.Column("case_id", sa.String(), nullable=False),
        sa.Column("scan_id", sa.Integer(), nullable=False),
        sa.Column("source_fingerprint", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_held_deliveries_run_id")),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_held_deliveries_scan_id")),
        sa.PrimaryKeyConstraint("case_id", name=op.f("pk_held_deliveries")),
    )
    op.create_table(
        "identity_marks",
        sa.Column("scan_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("value", sa.String(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('slice', 'object', 'series', 'study', 'person')", name=op.f("ck_identity_marks_kind")
        ),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_identity_marks_scan_id")),
        sa.PrimaryKeyConstraint("scan_id", "kind", "value", name=op.f("pk_identity_marks")),
    )
    op.create_index("ix_identity_marks_value", "identity_marks", ["value"], unique=False)
    op.create_table(
        RULINGS,
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("patient_id", sa.String(), nullable=False),
        sa.Column("other_patient_id", sa.String(), nullable=False),
        sa.Column("reviewer", sa.String(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("patient_id < other_patient_id", name=op.f("ck_identity_rulings_order")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identity_rulings")),
        sa.UniqueConstraint(
            "patient_id",
            "other_patient_id",
            name=op.f("uq_identity_rulings_patient_id_other_patient_id"),
        ),
    )
    _keep_append_only(op.get_bind().dialect.name)


def _keep_append_only(dialect: str) -> None:
    message = f"{RULINGS} is append-only"
    if dialect == "postgresql":
        op.execute(
            f"CREATE FUNCTION {RULINGS}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{message}'; END $$"
        )
        for event, scope in (("UPDATE OR DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
            op.execute(
                f"CREATE TRIGGER {RULINGS}_no_{event.split()[0].lower()} BEFORE {event} ON {RULINGS} "
                f"FOR EACH {scope} EXECUTE FUNCTION {RULINGS}_refuse()"
            )
        return
    # INSERT OR REPLACE deletes without firing delete triggers, hence the third
    replaces = (
        f"WHEN EXISTS (SELECT 1 FROM {RULINGS} WHERE id = NEW.id"
        " OR (patient_id = NEW.patient_id AND other_patient_id = NEW.other_patient_id)) "
    )
    for event, condition in (("UPDATE", ""), ("DELETE", ""), ("INSERT", replaces)):
        op.execute(
            f"CREATE TRIGGER {RULINGS}_no_{event.lower()} BEFORE {event} ON {RULINGS} {condition}"
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        )
