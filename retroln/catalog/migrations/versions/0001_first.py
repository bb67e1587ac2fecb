"""The first tables, and the triggers that keep decisions and events append-only."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


APPEND_ONLY = ("case_events", "model_audit")


def upgrade() -> None:
    """Create everything."""
    _create_tables()
    for table in APPEND_ONLY:
        _keep_append_only(table, op.get_bind().dialect.name)


def _keep_append_only(table: str, dialect: str) -> None:
    message = f"{table} is append-only"
    if dialect == "postgresql":
        op.execute(
            f"CREATE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{message}'; END $$"
        )
        for event, scope in (("UPDATE OR DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
            name = f"{table}_no_{event.split()[0].lower()}"
            op.execute(
                f"CREATE TRIGGER {name} BEFORE {event} ON {table} "
                f"FOR EACH {scope} EXECUTE FUNCTION {table}_refuse()"
            )
        return
    # INSERT OR REPLACE deletes without firing delete triggers, hence the third
    replaces = f"WHEN EXISTS (SELECT 1 FROM {table} WHERE id = NEW.id) "
    for event, condition in (("UPDATE", ""), ("DELETE", ""), ("INSERT", replaces)):
        op.execute(
            f"CREATE TRIGGER {table}_no_{event.lower()} BEFORE {event} ON {table} {condition}"
            f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
        )


def _create_tables() -> None:
    op.create_table(
        "datasets",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("manifest_key", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_datasets")),
        sa.UniqueConstraint("version", name=op.f("uq_datasets_version")),
    )
    op.create_table(
        "model_audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("previous_version", sa.Integer(), nullable=True),
        sa.Column("reviewer", sa.String(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("gate", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_audit")),
    )
    op.create_index("ix_model_audit_model_name", "model_audit", ["model_name", "id"], unique=False)

    op.create_table(
        "runs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("flow", sa.String(), nullable=False),
        sa.Column("external_id", sa.String(), nullable=True),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("n_in", sa.Integer(), nullable=True),
        sa.Column("n_done", sa.Integer(), nullable=True),
        sa.Column("n_skipped", sa.Integer(), nullable=True),
        sa.Column("n_quarantined", sa.Integer(), nullable=True),
        sa.Column("n_failed", sa.Integer(), nullable=True),
        sa.CheckConstraint(
            "n_in = n_done + n_skipped + n_quarantined + n_failed", name=op.f("ck_runs_balanced")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index("ix_runs_external_id", "runs", ["external_id"], unique=False)

    op.create_table(
        "scans",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("case_id", sa.String(), nullable=False),
        sa.Column("patient_id", sa.String(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("source_uri", sa.JSON(), nullable=False),
        sa.Column("source_fingerprint", sa.String(), nullable=False),
        sa.Column("source_sha256", sa.String(), nullable=True),
        sa.Column("label_ids", sa.String(), nullable=False),
        sa.Column("ct_key", sa.String(), nullable=True),
        sa.Column("vertebrae_key", sa.String(), nullable=True),
        sa.Column("mask_key", sa.String(), nullable=True),
        sa.Column("shape", sa.JSON(), nullable=True),
        sa.Column("affine", sa.JSON(), nullable=True),
        sa.Column("source_shape", sa.JSON(), nullable=True),
        sa.Column("source_affine", sa.JSON(), nullable=True),
        sa.Column("orientation", sa.String(), nullable=True),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("predicted_model", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("predicted_version", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('ingested', 'prepared', 'quarantined', 'failed', 'requeued', 'superseded')",
            name=op.f("ck_scans_state"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('ingested', 'prepared') OR ct_key IS NOT NULL", name=op.f("ck_scans_ct")
        ),
        sa.CheckConstraint(
            "state NOT IN ('quarantined', 'failed') OR reason IS NOT NULL", name=op.f("ck_scans_reason")
        ),
        sa.CheckConstraint("revision >= 1", name=op.f("ck_scans_revision")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scans")),
        sa.UniqueConstraint("case_id", "revision", name=op.f("uq_scans_case_id_revision")),
    )
    op.create_index("ix_scans_patient_id", "scans", ["patient_id"], unique=False)
    op.create_index(
        "ix_scans_predicted", "scans", ["state", "predicted_model", "predicted_version", "id"], unique=False
    )
    op.create_index("ix_scans_waiting", "scans", ["state", "id"], unique=False)
    op.create_index(
        "uq_scans_current",
        "scans",
        ["case_id"],
        unique=True,
        sqlite_where=sa.text("state <> 'superseded'"),
        postgresql_where=sa.text("state <> 'superseded'"),
    )

    op.create_table(
        "case_events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("case_id", sa.String(), nullable=False),
        sa.Column("scan_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("from_state", sa.String(), nullable=True),
        sa.Column("to_state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_case_events_run_id")),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_case_events_scan_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_case_events")),
    )
    op.create_index("ix_case_events_case_id", "case_events", ["case_id", "id"], unique=False)

    op.create_table(
        "crops",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("scan_id", sa.Integer(), nullable=False),
        sa.Column("ct_key", sa.String(), nullable=False),
        sa.Column("ct_sha256", sa.String(), nullable=False),
        sa.Column("mask_key", sa.String(), nullable=True),
        sa.Column("mask_sha256", sa.String(), nullable=True),
        sa.Column("roi_key", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_crops_scan_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_crops")),
        sa.UniqueConstraint("scan_id", name=op.f("uq_crops_scan_id")),
    )
    op.create_table(
        "dataset_members",
        sa.Column("dataset_id", sa.Integer(), nullable=False),
        sa.Column("scan_id", sa.Integer(), nullable=False),
        sa.Column("case_id", sa.String(), nullable=False),
        sa.Column("patient_id", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("fold", sa.Integer(), nullable=True),
        sa.CheckConstraint("role = 'train' OR fold IS NULL", name=op.f("ck_dataset_members_fold")),
        sa.CheckConstraint("role IN ('train', 'test')", name=op.f("ck_dataset_members_role")),
        sa.ForeignKeyConstraint(["dataset_id"], ["datasets.id"], name=op.f("fk_dataset_members_dataset_id")),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_dataset_members_scan_id")),
        sa.PrimaryKeyConstraint("dataset_id", "scan_id", name=op.f("pk_dataset_members")),
    )
    op.create_index(
        "ix_dataset_members_patient", "dataset_members", ["dataset_id", "patient_id", "role"], unique=False
    )
    op.create_index("ix_dataset_members_scan_id", "dataset_members", ["scan_id"], unique=False)
    op.create_index("ix_dataset_members_role", "dataset_members", ["role", "patient_id"], unique=False)

    op.create_table(
        "landmarks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("scan_id", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("label_ids", sa.String(), nullable=False),
        sa.Column("rung", sa.String(), nullable=False),
        sa.Column("anchored", sa.Boolean(), nullable=False),
        sa.Column("truncated", sa.JSON(), nullable=False),
        sa.Column("findings", sa.JSON(), nullable=False),
        sa.Column("levels", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_landmarks_scan_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_landmarks")),
        sa.UniqueConstraint("scan_id", name=op.f("uq_landmarks_scan_id")),
    )
    op.create_table(
        "predictions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("scan_id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=True),
        sa.Column("model_name", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("label_key", sa.String(), nullable=False),
        sa.Column("page_key", sa.String(), nullable=True),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("n_nodes", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_predictions_run_id")),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_predictions_scan_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_predictions")),
        sa.UniqueConstraint(
            "scan_id", "model_name", "version", name=op.f("uq_predictions_scan_id_model_name_version")
        ),
    )
    op.create_table(
        "rois",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("scan_id", sa.Integer(), nullable=False),
        sa.Column("start", sa.JSON(), nullable=False),
        sa.Column("stop", sa.JSON(), nullable=False),
        sa.Column("clamped_sides", sa.JSON(), nullable=False),
        sa.Column("containment", sa.Float(), nullable=True),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("containment BETWEEN 0 AND 1", name=op.f("ck_rois_containment")),
        sa.ForeignKeyConstraint(["scan_id"], ["scans.id"], name=op.f("fk_rois_scan_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rois")),
        sa.UniqueConstraint("scan_id", name=op.f("uq_rois_scan_id")),
    )
    op.create_table(
        "nodes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("prediction_id", sa.Integer(), nullable=False),
        sa.Column("label", sa.Integer(), nullable=False),
        sa.Column("volume_mm3", sa.Float(), nullable=False),
        sa.Column("short_axis_mm", sa.Float(), nullable=False),
        sa.Column("long_axis_mm", sa.Float(), nullable=False),
        sa.Column("centroid_world_mm", sa.JSON(), nullable=False),
        sa.Column("recist", sa.String(), nullable=False),
        sa.Column("stratum", sa.String(), nullable=True),
        sa.Column("station", sa.String(), nullable=True),
        sa.Column("level", sa.String(), nullable=True),
        sa.CheckConstraint("recist IN ('normal', 'non_target', 'target')", name=op.f("ck_nodes_recist")),
        sa.ForeignKeyConstraint(["prediction_id"], ["predictions.id"], name=op.f("fk_nodes_prediction_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_nodes")),
        sa.UniqueConstraint("prediction_id", "label", name=op.f("uq_nodes_prediction_id_label")),
    )
