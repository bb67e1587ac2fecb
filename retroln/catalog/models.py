"""The catalog's tables. What may never change is kept by triggers (migrations), not by good will."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
NOT_SUPERSEDED = text("state <> 'superseded'")


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC, timezone-aware in Python whatever the database keeps."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC; a naive moment is a bug."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a moment in the catalog needs a time zone")
        return value.astimezone(UTC) if value else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """From the database, where SQLite drops the zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def utc_now() -> datetime:
    """This moment, timezone-aware."""
    return datetime.now(UTC)


class Base(DeclarativeBase):
    """Base of every table."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {  # noqa: RUF012
        dict[str, Any]: JSON(none_as_null=True),
        list[Any]: JSON(none_as_null=True),
        datetime: UtcDateTime(),
        str: String(),
    }


class Run(Base):
    """One pass of a flow or a command, with its accounting."""

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint("n_in = n_done + n_skipped + n_quarantined + n_failed", name="balanced"),
        Index("ix_runs_external_id", "external_id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    flow: Mapped[str]
    external_id: Mapped[str | None]
    parameters: Mapped[dict[str, Any]]
    state: Mapped[str]
    started_at: Mapped[datetime] = mapped_column(default=utc_now)
    finished_at: Mapped[datetime | None]
    n_in: Mapped[int | None]
    n_done: Mapped[int | None]
    n_skipped: Mapped[int | None]
    n_quarantined: Mapped[int | None]
    n_failed: Mapped[int | None]


class RunOutcome(Base):
    """What one run did with one case: the ledger that its accounting is counted from."""

    __tablename__ = "run_outcomes"
    __table_args__ = (
        CheckConstraint("outcome IN ('done', 'skipped', 'quarantined', 'failed')", name="outcome"),
    )
    run_id: Mapped[int] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    case_id: Mapped[str] = mapped_column(primary_key=True)
    outcome: Mapped[str]
    reason: Mapped[str | None]
    detail: Mapped[str | None] = mapped_column(Text)


class Scan(Base):
    """One revision of a case: what was delivered and where it stands."""

    __tablename__ = "scans"
    __table_args__ = (
        UniqueConstraint("case_id", "revision"),
        CheckConstraint("revision >= 1", name="revision"),
        CheckConstraint(
            "state IN ('ingested', 'prepared', 'quarantined', 'failed', 'requeued', 'superseded', "
            "'withdrawn')",
            name="state",
        ),
        CheckConstraint("state NOT IN ('ingested', 'prepared') OR ct_key IS NOT NULL", name="ct"),
        CheckConstraint("state NOT IN ('quarantined', 'failed') OR reason IS NOT NULL", name="reason"),
        Index(
            "uq_scans_current",
            "case_id",
            unique=True,
            sqlite_where=NOT_SUPERSEDED,
            postgresql_where=NOT_SUPERSEDED,
        ),
        Index("ix_scans_waiting", "state", "id"),
        Index("ix_scans_predicted", "state", "predicted_model", "predicted_version", "id"),
        Index("ix_scans_patient_id", "patient_id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str]
    patient_id: Mapped[str]
    revision: Mapped[int]
    source_uri: Mapped[dict[str, Any]]
    source_fingerprint: Mapped[str]
    source_sha256: Mapped[str | None]
    imaging_sha256: Mapped[str | None]
    identified: Mapped[bool] = mapped_column(default=True, server_default=false())
    label_ids: Mapped[str]
    ct_key: Mapped[str | None]
    vertebrae_key: Mapped[str | None]
    mask_key: Mapped[str | None]
    series_key: Mapped[str | None]
    shape: Mapped[list[Any] | None]
    affine: Mapped[list[Any] | None]
    source_shape: Mapped[list[Any] | None]
    source_affine: Mapped[list[Any] | None]
    orientation: Mapped[str | None]
    state: Mapped[str]
    reason: Mapped[str | None]
    detail: Mapped[str | None] = mapped_column(Text)
    predicted_model: Mapped[str] = mapped_column(default="", server_default=text("''"))
    predicted_version: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    updated_at: Mapped[datetime] = mapped_column(default=utc_now, onupdate=utc_now)


class HeldDelivery(Base):
    """The latest delivery of a case, where it cannot be used and an earlier scan of the case stays."""

    __tablename__ = "held_deliveries"
    case_id: Mapped[str] = mapped_column(primary_key=True)
    scan_id: Mapped[int] = mapped_column(ForeignKey("scans.id"))
    source_fingerprint: Mapped[str]
    reason: Mapped[str]
    detail: Mapped[str | None] = mapped_column(Text)
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    at: Mapped[datetime] = mapped_column(default=utc_now, onupdate=utc_now)


class IdentityMark(Base):
    """One thing by which a scan's image or person is told again, whatever the delivery calls it."""

    __tablename__ = "identity_marks"
    __table_args__ = (
        CheckConstraint("kind IN ('slice', 'object', 'series', 'study', 'person')", name="kind"),
        Index("ix_identity_marks_value", "value"),
    )
    scan_id: Mapped[int] = mapped_column(ForeignKey("scans.id"), primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(primary_key=True)


class IdentityRuling(Base):
    """A person's word that two patients are two people, whatever their scans share; append-only."""

    __tablename__ = "identity_rulings"
    __table_args__ = (
        UniqueConstraint("patient_id", "other_patient_id"),
        CheckConstraint("patient_id < other_patient_id", name="order"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[str]
    other_patient_id: Mapped[str]
    reviewer: Mapped[str]
    comment: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(default=utc_now)


class Claim(Base):
    """A scan in a worker's hands, until the worker gives it back or falls silent for too long."""

    __tablename__ = "claims"
    scan_id: Mapped[int] = mapped_column(ForeignKey("scans.id"), primary_key=True, autoincrement=False)
    owner: Mapped[str]
    expires_at: Mapped[datetime]


class CaseClaim(Base):
    """A case of the source in the hands of a worker that ingests; it may have no scan yet."""

    __tablename__ = "case_claims"
    case_id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    expires_at: Mapped[datetime]


class Intake(Base):
    """Objects of a patient that ingest stores and has not recorded; the patient is named before the first."""

    __tablename__ = "intakes"
    patient_id: Mapped[str] = mapped_column(primary_key=True)
    case_id: Mapped[str] = mapped_column(primary_key=True)
    source_sha256: Mapped[str] = mapped_column(primary_key=True)


class Landmarks(Base):
    """The vertebrae of a scan that was prepared, or held for them, and how far they can be trusted."""

    __tablename__ = "landmarks"
    id: Mapped[int] = mapped_column(primary_key=True)
    scan_id: Mapped[int] = mapped_column(ForeignKey("scans.id"), unique=True)
    source: Mapped[str]
    label_ids: Mapped[str]
    rung: Mapped[str]
    anchored: Mapped[bool]
    truncated: Mapped[list[Any]]
    findings: Mapped[list[Any]]
    levels: Mapped[dict[str, Any]]
    confidence: Mapped[float | None]
    picture_key: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class LandmarkReview(Base):
    """A person's word on the landmarks of one revision of a case; append-only, the latest one holds."""

    __tablename__ = "landmark_reviews"
    __table_args__ = (
        CheckConstraint("action IN ('accept', 'correct')", name="action"),
        CheckConstraint(
            "action <> 'accept' OR (vertebrae_key IS NULL AND l2_world_mm IS NULL)", name="accept"
        ),
        Index("ix_landmark_reviews_scan_id", "scan_id", "id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str]
    scan_id: Mapped[int] = mapped_column(ForeignKey("scans.id"))
    action: Mapped[str]
    reviewer: Mapped[str]
    comment: Mapped[str] = mapped_column(Text)
    vertebrae_key: Mapped[str | None]
    replaced_key: Mapped[str | None]
    l2_world_mm: Mapped[list[Any] | None]
    extent_world_mm: Mapped[list[Any] | None]
    at: Mapped[datetime] = mapped_column(default=utc_now)


class Roi(Base):
    """The region of a prepared scan, in voxels of the RAS+ array."""

    __tablename__ = "rois"
    __table_args__ = (CheckConstraint("containment BETWEEN 0 AND 1", name="containment"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    scan_id: Mapped[int] = mapped_column(ForeignKey("scans.id"), unique=True)
    start: Mapped[list[Any]]
    stop: Mapped[list[Any]]
    clamped_sides: Mapped[list[Any]]
    containment: Mapped[float | None]
    document: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Crop(Base):
    """The stored crop of a prepared scan."""

    __tablename__ = "crops"
    id: Mapped[int] = mapped_column(primary_key=True)
    scan_id: Mapped[int] = mapped_column(ForeignKey("scans.id"), unique=True)
    ct_key: Mapped[str]
    ct_sha256: Mapped[str]
    mask_key: Mapped[str | None]
    mask_sha256: Mapped[str | None]
    roi_key: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Dataset(Base):
    """A frozen choice of labelled crops, named by the hash of its content."""

    __tablename__ = "datasets"
    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(unique=True)
    manifest_key: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class DatasetMember(Base):
    """One scan in one dataset version."""

    __tablename__ = "dataset_members"
    __table_args__ = (
        CheckConstraint("role IN ('train', 'test')", name="role"),
        CheckConstraint("role = 'train' OR fold IS NULL", name="fold"),
        Index("ix_dataset_members_patient", "dataset_id", "patient_id", "role"),
        Index("ix_dataset_members_role", "role", "patient_id"),
        Index("ix_dataset_members_scan_id", "scan_id"),
    )
    dataset_id: Mapped[int] = mapped_column(ForeignKey("datasets.id"), primary_key=True)
    scan_id: Mapped[int] = mapped_column(ForeignKey("scans.id"), primary_key=True)
    case_id: Mapped[str]
    patient_id: Mapped[str]
    role: Mapped[str]
    fold: Mapped[int | None]


class CaseEvent(Base):
    """One transition of one scan; append-only."""

    __tablename__ = "case_events"
    __table_args__ = (
        Index("ix_case_events_case_id", "case_id", "id"),
        Index("ix_case_events_run_id", "run_id", "to_state"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    case_id: Mapped[str]
    scan_id: Mapped[int] = mapped_column(ForeignKey("scans.id"))
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    from_state: Mapped[str | None]
    to_state: Mapped[str]
    reason: Mapped[str | None]
    detail: Mapped[str | None] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(default=utc_now)


class ModelAudit(Base):
    """One decision about a model version, and who took it; append-only.

    Rows that move the champion (promote, rollback) form one chain per model: each `follows` the one
    before it, the first follows 0, and none has two successors. Other rows follow nothing.
    """

    __tablename__ = "model_audit"
    __table_args__ = (
        UniqueConstraint("model_name", "follows"),
        CheckConstraint("(action IN ('promote', 'rollback')) = (follows IS NOT NULL)", name="chain"),
        Index("ix_model_audit_model_name", "model_name", "id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    action: Mapped[str]
    model_name: Mapped[str]
    version: Mapped[int]
    previous_version: Mapped[int | None]
    reviewer: Mapped[str]
    comment: Mapped[str] = mapped_column(Text)
    gate: Mapped[dict[str, Any]]
    at: Mapped[datetime] = mapped_column(default=utc_now)
    follows: Mapped[int | None]


class Prediction(Base):
    """What one model version found in one scan."""

    __tablename__ = "predictions"
    __table_args__ = (
        UniqueConstraint("scan_id", "model_name", "version"),
        Index("ix_predictions_run_id", "run_id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    scan_id: Mapped[int] = mapped_column(ForeignKey("scans.id"))
    run_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    model_name: Mapped[str]
    version: Mapped[int]
    label_key: Mapped[str]
    page_key: Mapped[str | None]
    sha256: Mapped[str | None]
    n_nodes: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class Node(Base):
    """One lymph node of one prediction; lengths in mm, world frame RAS+."""

    __tablename__ = "nodes"
    __table_args__ = (
        UniqueConstraint("prediction_id", "label"),
        CheckConstraint("recist IN ('normal', 'non_target', 'target')", name="recist"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    prediction_id: Mapped[int] = mapped_column(ForeignKey("predictions.id"))
    label: Mapped[int]
    volume_mm3: Mapped[float]
    short_axis_mm: Mapped[float]
    long_axis_mm: Mapped[float]
    centroid_world_mm: Mapped[list[Any]]
    recist: Mapped[str]
    stratum: Mapped[str | None]
    station: Mapped[str | None]
    level: Mapped[str | None]


class Withdrawal(Base):
    """A patient who took back consent; append-only, so that no later delivery is taken in."""

    __tablename__ = "withdrawals"
    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[str] = mapped_column(unique=True)
    reason: Mapped[str] = mapped_column(Text)
    by: Mapped[str]
    at: Mapped[datetime] = mapped_column(default=utc_now)


class WithdrawalItem(Base):
    """One thing that held the patient, and what a withdrawal does with it; append-only."""

    __tablename__ = "withdrawal_items"
    __table_args__ = (UniqueConstraint("withdrawal_id", "kind", "name"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    withdrawal_id: Mapped[int] = mapped_column(ForeignKey("withdrawals.id"))
    kind: Mapped[str]
    name: Mapped[str]
    action: Mapped[str]
    detail: Mapped[str | None] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(default=utc_now)
