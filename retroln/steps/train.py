"""Freeze a dataset version: who trains, in which fold, and who is locked away for testing."""

from __future__ import annotations

import json
from typing import Any

from retroln.catalog.records import CropRecord, DatasetDraft, DatasetRecord, MemberDraft, ScanRecord
from retroln.errors import ConflictError, GateError
from retroln.files import sha256_json
from retroln.nnunet import environment, splits
from retroln.settings import RoiSpec, Settings, TrainSpec
from retroln.steps.likeness import require_identified
from retroln.steps.workspace import Workspace, open_workspace

Labelled = list[tuple[ScanRecord, CropRecord]]


def publish_dataset(settings: Settings, spec: TrainSpec) -> DatasetRecord:
    """Freeze every labelled, prepared case into a dataset version named by its content.

    Patients once locked for testing stay there; patients once trained on never get there.

    Raises:
        GateError: too few patients, crops cut by another region, or labelled nodes outside the region.
        ConflictError: a patient of the version withdrew meanwhile; its manifest is not kept.
    """
    workspace = open_workspace(settings)
    require_identified(settings)
    labelled = workspace.catalog.labelled_prepared()
    told_apart = _require_apart(workspace, labelled)
    _require_enough(labelled, spec)
    _require_region(labelled, settings.roi)
    _require_containment(labelled, spec)
    members = _members(workspace, labelled, spec)
    content = [
        [m.case_id, m.patient_id, m.role, m.fold, crop.ct_sha256, crop.mask_sha256]
        for m, (_, crop) in zip(members, labelled, strict=True)
    ]
    version = sha256_json({"members": content, "n_folds": spec.n_folds, "hu": settings.hu.recorded()})
    manifest_key = f"datasets/{version[:16]}/manifest.json"
    manifest = {
        "version": version,
        "columns": "case patient role fold ct_sha256 mask_sha256",
        "members": content,
        "said_to_be_different_people": told_apart,
    }
    # the row first: it leads a withdrawal to the manifest, which names patients
    record = workspace.catalog.add_dataset(
        DatasetDraft(version=version, manifest_key=manifest_key, members=tuple(members))
    )
    workspace.store.put_bytes(json.dumps(manifest, indent=1).encode(), manifest_key)
    try:
        workspace.catalog.require_trainable(version)
    except ConflictError:
        workspace.store.delete(manifest_key)
        raise
    return record


def _require_enough(labelled: Labelled, spec: TrainSpec) -> None:
    patients = {scan.patient_id for scan, _ in labelled}
    needed = spec.n_folds + 1
    if len(patients) < needed:
        raise GateError(
            "too few labelled patients to train",
            expected=f"at least {needed} patients with a node mask, prepared",
            got=str(len(patients)),
            fix="deliver masks, or look with `retroln status` at what is in quarantine",
        )


def _require_apart(workspace: Workspace, labelled: Labelled) -> list[tuple[str, str]]:
    """Pairs of patients that share an image or a person and of whom somebody said that they are two people.

    Raises:
        GateError: nobody said so of a pair, which may come to lie on both sides of the split.
    """
    pairs = workspace.catalog.members_alike([scan.scan_id for scan, _ in labelled])
    if torn := [f"{one} and {other}" for one, other, told_apart in pairs if not told_apart]:
        raise GateError(
            "patients share an image or a person",
            expected="every image and every person under one patient id",
            got="; ".join(torn[:10]),
            fix="deliver one person's cases under one patient id, or `retroln review different CASE OTHER`",
        )
    return [(one, other) for one, other, _ in pairs]


def _require_region(labelled: Labelled, region: RoiSpec) -> None:
    other = sorted(scan.case_id for scan, crop in labelled if crop.roi["spec"] != region.recorded())
    if other:
        raise GateError(
            "crops were cut by another region than the present one",
            expected=str(region),
            got=", ".join(other),
            fix="`retroln prepare --again` cuts them anew, or set RETROLN_ROI__... back",
        )


def _require_containment(labelled: Labelled, spec: TrainSpec) -> None:
    outside = {s.case_id: c.containment for s, c in labelled if (c.containment or 0) < spec.containment_min}
    if outside and not spec.override_containment:
        listed = ", ".join(f"{case} {share:.3f}" for case, share in sorted(outside.items()))
        raise GateError(
            "labelled nodes lie outside the region",
            expected=f"at least {spec.containment_min} of the node voxels inside",
            got=listed,
            fix="look at these cases; enlarge RETROLN_ROI__... and `retroln prepare --again`, or take"
            " responsibility with --override-containment",
        )


def _members(workspace: Workspace, labelled: Labelled, spec: TrainSpec) -> list[MemberDraft]:
    catalog = workspace.catalog
    patients, locked = {scan.patient_id for scan, _ in labelled}, catalog.test_patients()
    test = splits.assign_test(
        patients,
        fraction=spec.test_fraction,
        seed=spec.seed,
        locked_test=locked,
        ever_trained=catalog.train_patients() | (catalog.shown_in_training() - locked),
    )
    training = {scan.case_id: scan.patient_id for scan, _ in labelled if scan.patient_id not in test}
    folds = splits.folds(training, spec.n_folds, spec.seed)
    return [
        MemberDraft(
            scan_id=scan.scan_id,
            patient_id=scan.patient_id,
            case_id=scan.case_id,
            role="test" if scan.patient_id in test else "train",
            fold=folds.get(scan.case_id),
        )
        for scan, _ in labelled
    ]


def test_hash(record: DatasetRecord) -> str:
    """Hash of the locked test set: its cases, patients and revisions, whatever else the version holds."""
    return sha256_json(
        sorted([m.case_id, m.patient_id, m.scan_id] for m in record.members if m.role == "test")
    )


def parameters(settings: Settings, spec: TrainSpec, record: DatasetRecord) -> dict[str, Any]:
    """What the MLflow run states as its parameters."""
    roles = [member.role for member in record.members]
    return {
        **spec.model_dump(mode="json"),
        **{f"roi.{name}": value for name, value in settings.roi.model_dump().items()},
        **{f"hu.{name}": value for name, value in settings.hu.model_dump().items()},
        **environment.versions(),
        "dataset.version": record.version,
        "dataset.train_cases": roles.count("train"),
        "dataset.test_cases": roles.count("test"),
        **{f"dataset.held_{why}": number for why, number in _held_alike(settings).items()},
    }


def _held_alike(settings: Settings) -> dict[str, int]:
    """How many cases are not in the dataset because their image, or person, is another patient's already."""
    return open_workspace(settings).catalog.count_held_alike()
