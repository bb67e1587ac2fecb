"""What goes into the catalog (drafts) and comes out of it (records): frozen, free of SQLAlchemy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeVar

from retroln.catalog.accounting import Accounting
from retroln.catalog.states import ScanState
from retroln.settings import RoiSpec

Record = TypeVar("Record")
Shape = tuple[int, int, int]
Affine = Sequence[Sequence[float]]


@dataclass(frozen=True, order=True)
class Mark:
    """One thing by which an image or a person is told again, whatever the delivery calls it.

    Attributes:
        kind: "slice" and "object" tell an image; "series", "study" and "person" tell a person.
        value: a hash or keyed pseudonym, the same wherever the same thing is met.
    """

    kind: str
    value: str


@dataclass(frozen=True)
class Alike:
    """Another patient's scan that shows the same image, or the same person.

    Attributes:
        case_id, patient_id: whose it is.
        same_image: slices or objects are the same, not only the person.
        shared: how many marks of each kind both have.
        withdrawn: that patient took back consent.
        told_apart: a person said that these are two people.
    """

    case_id: str
    patient_id: str
    same_image: bool
    shared: Mapping[str, int]
    withdrawn: bool = False
    told_apart: bool = False

    @property
    def what(self) -> str:
        """What is the same, in a word."""
        return "image" if self.same_image else "person"


@dataclass(frozen=True, kw_only=True)
class ScanDraft:
    """A delivered case as ingest found it; without `ct_key` nothing of it was stored.

    Attributes:
        source_uri: key of each delivered part, by part name ("ct", "vertebrae", "mask"), or its pseudonym.
        source_fingerprint: cheap mark of the delivered objects; equal means unchanged.
        source_sha256: hash over the bytes of all parts, None when they were not read.
        imaging_sha256: hash over the bytes that landmarks are said of: CT and vertebrae, without the mask.
        marks: by what the image and the person are told again; also of a case that is held for them.
        series_key: headers of the DICOM series without the patient; None for a CT that came as NIfTI.
        shape, affine: of the stored RAS+ array; `source_*` and `orientation` as delivered.
    """

    case_id: str
    patient_id: str
    source_uri: dict[str, str]
    source_fingerprint: str
    source_sha256: str | None = None
    imaging_sha256: str | None = None
    label_ids: str = "totalseg-v2"
    ct_key: str | None = None
    vertebrae_key: str | None = None
    mask_key: str | None = None
    series_key: str | None = None
    shape: Shape | None = None
    affine: Affine | None = None
    source_shape: Shape | None = None
    source_affine: Affine | None = None
    orientation: str | None = None
    state: ScanState = ScanState.INGESTED
    reason: str | None = None
    detail: str | None = None
    marks: frozenset[Mark] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ScanRecord:
    """One revision of a case; fields as in `ScanDraft`.

    Attributes:
        vertebrae_key: of the delivered labels if "vertebrae" is in `source_uri`, else of those made here.
        predicted_model, predicted_version: whose results are current, "" and 0 for none.
    """

    scan_id: int
    case_id: str
    patient_id: str
    revision: int
    source_uri: dict[str, str]
    source_fingerprint: str
    source_sha256: str
    imaging_sha256: str | None
    label_ids: Any
    ct_key: str | None
    vertebrae_key: str | None
    mask_key: str | None
    series_key: str | None
    shape: Shape
    affine: Affine
    source_shape: Shape
    source_affine: Affine
    orientation: str | None
    state: ScanState
    reason: str | None
    detail: str | None
    predicted_model: str
    predicted_version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class HeldDeliveryRecord:
    """The latest delivery of a case, which cannot be used; the earlier scan `scan_id` stays the case's.

    Attributes:
        source_fingerprint: cheap mark of what was delivered; "" to look at it again.
        reason, detail: why it is held, as of a scan.
    """

    case_id: str
    scan_id: int
    source_fingerprint: str
    reason: str
    detail: str | None
    run_id: int | None
    at: datetime


@dataclass(frozen=True, kw_only=True)
class LandmarksDraft:
    """The vertebrae of a scan.

    Attributes:
        source: where the labels came from: "provided", "totalseg" when they were made here, "reviewer".
        rung: step of the L2 ladder that gave the reference, "none" for landmarks that hold a case back.
        levels: facts of each level (volume, centroid, ...) by level name.
        confidence: 0 to 1, only for sorting; None in catalogs of the first release.
        picture_key: stored picture of the landmarks, for a person; None for none.
    """

    source: str
    label_ids: str
    rung: str
    anchored: bool
    truncated: Sequence[str]
    findings: Sequence[str]
    levels: dict[str, Any]
    confidence: float | None = None
    picture_key: str | None = None


@dataclass(frozen=True, kw_only=True)
class RoiDraft:
    """The region in RAS+ voxels, `stop` exclusive, and its document as written to `<id>_roi.json`.

    Attributes:
        containment: share (0..1) of the labelled node voxels inside; None without a mask.
    """

    start: Shape
    stop: Shape
    clamped_sides: Sequence[str]
    document: dict[str, Any]
    containment: float | None = None


@dataclass(frozen=True, kw_only=True)
class CropDraft:
    """Keys and hashes of a stored crop."""

    ct_key: str
    ct_sha256: str
    roi_key: str
    mask_key: str | None = None
    mask_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class CropRecord:
    """A stored crop with its region; `roi` is the region's document."""

    scan_id: int
    ct_key: str
    ct_sha256: str
    mask_key: str | None
    mask_sha256: str | None
    roi_key: str
    start: Shape
    stop: Shape
    clamped_sides: tuple[str, ...]
    containment: float | None
    roi: dict[str, Any]
    created_at: datetime

    @property
    def spec(self) -> RoiSpec:
        """Sizes of the region that the crop was cut by."""
        return RoiSpec.of_record(self.roi["spec"])


@dataclass(frozen=True, kw_only=True)
class LandmarksRecord:
    """Stored landmarks; fields as in `LandmarksDraft`."""

    scan_id: int
    source: str
    label_ids: str
    rung: str
    anchored: bool
    truncated: tuple[str, ...]
    findings: tuple[str, ...]
    levels: dict[str, Any]
    confidence: float | None
    picture_key: str | None
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class LandmarkReviewDraft:
    """A person's word on the landmarks of a scan.

    Attributes:
        action: "accept" (as labelled) or "correct".
        vertebrae_key: stored label map that takes the place of the scan's, if one was given.
        l2_world_mm: the middle of L2's front surface, if it was placed by hand.
        extent_world_mm: heights of the lower end of L5 and the upper end of T12, if given by hand.
    """

    scan_id: int
    action: str
    reviewer: str
    comment: str
    vertebrae_key: str | None = None
    l2_world_mm: tuple[float, float, float] | None = None
    extent_world_mm: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class LandmarkReviewRecord:
    """A stored word on landmarks; fields as in the draft, `replaced_key` is the label map before it."""

    review_id: int
    case_id: str
    scan_id: int
    action: str
    reviewer: str
    comment: str
    vertebrae_key: str | None
    replaced_key: str | None
    l2_world_mm: tuple[float, float, float] | None
    extent_world_mm: tuple[float, float] | None
    at: datetime


@dataclass(frozen=True, kw_only=True)
class MemberDraft:
    """One scan of a dataset version; `role` is "train" or "test", `fold` only for "train"."""

    scan_id: int
    patient_id: str
    case_id: str
    role: str
    fold: int | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetDraft:
    """A dataset version, named by the hash of its content."""

    version: str
    manifest_key: str
    members: tuple[MemberDraft, ...]


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """A stored dataset version with its members in case order."""

    dataset_id: int
    version: str
    manifest_key: str
    members: tuple[MemberDraft, ...]
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One pass of a flow or command; counts are None until it finished."""

    run_id: int
    flow: str
    external_id: str | None
    parameters: dict[str, Any]
    state: str
    started_at: datetime
    finished_at: datetime | None
    n_in: int | None
    n_done: int | None
    n_skipped: int | None
    n_quarantined: int | None
    n_failed: int | None

    @property
    def accounting(self) -> Accounting | None:
        """The balanced counts; None while the run goes on, or when it was cut short."""
        counts = (self.n_in, self.n_done, self.n_skipped, self.n_quarantined, self.n_failed)
        known = [count for count in counts if count is not None]
        return Accounting(*known) if len(known) == len(counts) else None


@dataclass(frozen=True, kw_only=True)
class ClaimRecord:
    """A scan in a worker's hands until `expires_at`, by the database's clock.

    Attributes:
        scan_id: None for a case of the source that is being ingested.
    """

    scan_id: int | None
    case_id: str
    owner: str
    expires_at: datetime


@dataclass(frozen=True, kw_only=True)
class EventRecord:
    """One transition of a scan."""

    event_id: int
    case_id: str
    scan_id: int
    run_id: int | None
    from_state: str | None
    to_state: str
    reason: str | None
    detail: str | None
    at: datetime


@dataclass(frozen=True, kw_only=True)
class AuditRecord:
    """One decision about a model version.

    Attributes:
        action: promote, rollback (these move the champion); refuse, reject, restore (these do not).
        version: whom it is about; for a rollback and a restore, who is champion again (0 for nobody).
        previous_version: the champion before it; for a restore, where the alias had been put by hand.
        follows: id of the champion-moving row before this one, 0 for the first; None for other rows.
    """

    audit_id: int
    action: str
    model_name: str
    version: int
    previous_version: int | None
    reviewer: str
    comment: str
    gate: dict[str, Any]
    at: datetime
    follows: int | None

    @property
    def moves_champion(self) -> bool:
        """Whether the champion is another one since this decision."""
        return self.follows is not None


@dataclass(frozen=True, kw_only=True)
class NodeRecord:
    """One lymph node of a prediction."""

    node_id: int
    prediction_id: int
    label: int
    volume_mm3: float
    short_axis_mm: float
    long_axis_mm: float
    centroid_world_mm: tuple[float, float, float]
    recist: str
    stratum: str | None
    station: str | None
    level: str | None


@dataclass(frozen=True, kw_only=True)
class PredictionRecord:
    """What one model version found in one scan."""

    prediction_id: int
    scan_id: int
    run_id: int | None
    model_name: str
    version: int
    label_key: str
    page_key: str | None
    sha256: str | None
    n_nodes: int
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class WithdrawalRecord:
    """A patient who took back consent: who recorded it, when, and why."""

    withdrawal_id: int
    patient_id: str
    reason: str
    by: str
    at: datetime


@dataclass(frozen=True)
class WithdrawnItem:
    """One thing that held a withdrawn patient.

    Attributes:
        kind: object, row, dataset, source, artifact, version or cache.
        action: deleted, emptied, tombstoned, kept, redacted, marked, or named (left to a person).
    """

    kind: str
    name: str
    action: str
    detail: str | None = None


@dataclass(frozen=True)
class PatientDataset:
    """A dataset version that a patient is in, as "train" or as "test"."""

    version: str
    role: str


@dataclass(frozen=True, kw_only=True)
class RulingRecord:
    """A person's word that two patients are two people."""

    patient_id: str
    other_patient_id: str
    reviewer: str
    comment: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class CaseHistory:
    """Everything known about a case, oldest first; landmarks and crop of the current revision."""

    case_id: str
    scans: tuple[ScanRecord, ...]
    events: tuple[EventRecord, ...]
    landmarks: LandmarksRecord | None
    crop: CropRecord | None
    predictions: tuple[PredictionRecord, ...]
    nodes: tuple[NodeRecord, ...]
    datasets: tuple[str, ...]

    @property
    def current(self) -> ScanRecord:
        """The revision that is not superseded; the same bytes may have brought back an earlier one."""
        return next(scan for scan in self.scans if scan.state is not ScanState.SUPERSEDED)

    @property
    def clamped_sides(self) -> tuple[str, ...]:
        """Sides where the field of view ends before the region; () for landmarks that hold the case back."""
        used = self.landmarks is not None and self.landmarks.rung != "none"
        return self.crop.clamped_sides if self.crop and used else ()


def record_of(kind: type[Record], *rows: Any, **named: Any) -> Record:
    """A record filled from `named`, else from the first row that has the field; lists become tuples."""
    values = {field.name: named.get(field.name, _MISSING) for field in fields(kind)}  # type: ignore[arg-type]
    for name, given in values.items():
        if given is _MISSING:
            values[name] = next(getattr(row, name) for row in rows if hasattr(row, name))
    return kind(**{name: _frozen(value) for name, value in values.items()})


_MISSING: Any = object()


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
