"""An index, so that what a run did to cases is found without reading every event."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    op.create_index("ix_case_events_run_id", "case_events", ["run_id", "to_state"], unique=False)
