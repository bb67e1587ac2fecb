"""Claims, so that several workers share one backlog, and the ledger of what each run did."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both tables; nothing that is stored changes."""
    op.create_table(
        "claims",
        sa.Column("scan_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_claims_scan_id")),
        sa.PrimaryKeyConstraint("scan_id", name=op.f("pk_claims")),
    )
    op.create_table(
        "run_outcomes",
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("case_id", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "outcome IN ('done', 'skipped', 'quarantined', 'failed')", name=op.f("ck_run_outcomes_outcome")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_outcomes_run_id")),
        sa.PrimaryKeyConstraint("run_id", "case_id", name=op.f("pk_run_outcomes")),
    )
