"""An index, so that what a run inferred is found without reading every prediction."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    op.create_index("ix_predictions_run_id", "predictions", ["run_id"], unique=False)
