"""What people said of landmarks, for good; and a confidence and a picture for landmarks themselves."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

TABLE = "landmark_reviews"


def upgrade() -> None:
    """Add the table, which no statement may change later, and two columns; nothing that is stored changes."""
    op.add_column("landmarks", sa.Column("confidence", sa.Float(), nullable=True))
    op.add_column("landmarks", sa.Column("picture_key", sa.String(), nullable=True))
    op.create_table(
        TABLE,
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("case_id", sa.String(), nullable=False),
        sa.Column("scan_id", sa.Integer(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("reviewer", sa.String(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("vertebrae_key", sa.String(), nullable=True),
        sa.Column("replaced_key", sa.String(), nullable=True),
        sa.Column("l2_world_mm", sa.JSON(), nullable=True),
        sa.Column("extent_world_mm", sa.JSON(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("action IN ('accept', 'correct')", name=op.f("ck_landmark_reviews_action")),
        sa.CheckConstraint(
            "action <> 'accept' OR (vertebrae_key IS NULL AND l2_world_mm IS NULL)",
            name=op.f("ck_landmark_reviews_accept"),
        ),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_landmark_reviews_scan_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_landmark_reviews")),
    )
    op.create_index("ix_landmark_reviews_scan_id", TABLE, ["scan_id", "id"], unique=False)
    _keep_append_only(op.get_bind().dialect.name)


def _keep_append_only(dialect: str) -> None:
    message = f"{TABLE} is append-only"
    if dialect == "postgresql":
        op.execute(
            f"CREATE FUNCTION {TABLE}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{message}'; END $$"
        )
        for event, scope in (("UPDATE OR DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
            op.execute(
                f"CREATE TRIGGER {TABLE}_no_{event.split()[0].lower()} BEFORE {event} ON {TABLE} "
                f"FOR EACH {scope} EXECUTE FUNCTION {TABLE}_refuse()"
            )
        return
    # INSERT OR REPLACE deletes without firing delete triggers, hence the third
    replaces = f"WHEN EXISTS (SELECT 1 FROM {TABLE} WHERE id = NEW.id) "
    for event, condition in (("UPDATE", ""), ("DELETE", ""), ("INSERT", replaces)):
        op.execute(
            f"CREATE TRIGGER {TABLE}_no_{event.lower()} BEFORE {event} ON {TABLE} {condition}"
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        )
