"""What ingest is about to store, so that what a dead worker left of a new case is found."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; nothing that is stored changes."""
    op.create_table(
        "intakes",
        sa.Column("patient_id", sa.String(), nullable=False),
        sa.Column("case_id", sa.String(), nullable=False),
        sa.Column("source_sha256", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("patient_id", "case_id", "source_sha256", name=op.f("pk_intakes")),
    )
