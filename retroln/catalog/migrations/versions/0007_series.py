"""Where the headers of a DICOM series are stored, beside the scan that was made of it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; scans that are there came as NIfTI and have none."""
    op.add_column("scans", sa.Column("series_key", sa.String(), nullable=True))
