"""Stand-in models with figures of one's choice, for tests of who may become champion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retroln.catalog.records import DatasetDraft, DatasetRecord, MemberDraft, ScanDraft
from retroln.errors import NotFoundError
from retroln.settings import Settings
from retroln.steps import promote, review
from retroln.steps.train import test_hash as hash_of_test_set
from retroln.steps.workspace import open_workspace
from retroln.tracking.runs import training_run

GOOD = {"cases": 6, "patients": 6, "sensitivity_ge10mm": 0.9, "fp_per_volume": 1.0, "dice_mean": 0.7}
POOR = {**GOOD, "sensitivity_ge10mm": 0.5}
_DATASET = "d" * 64


def register(
    settings: Settings, folder: Path, figures: dict[str, Any] = GOOD, *, stand_in: str | None = None
) -> int:
    """A version of its own under the alias `candidate`; its files are made in `folder`."""
    folder.mkdir(parents=True)
    (folder / "stand-in.txt").write_text(folder.name)
    record, registry = _dataset(settings), open_workspace(settings).registry
    with training_run(settings, name="stand-in", params={}) as run:
        tags = {
            promote.SUMMARY_TAG: json.dumps(figures),
            promote.TEST_HASH_TAG: hash_of_test_set(record),
            promote.DATASET_TAG: record.version,
            promote.SPEC_TAG: json.dumps({"stand_in": stand_in} if stand_in else {}),
        }
        version = registry.register(folder, run.run_id, tags)
    registry.set_alias("candidate", version)
    return version


def approve(
    settings: Settings,
    version: int,
    *,
    decision: str | None = "approve",
    reviewer: str | None = "Dr A",
    comment: str | None = "looked at every page",
) -> None:
    """What a reviewer does in MLflow: the tags (None: left as they are), then the alias."""
    registry = open_workspace(settings).registry
    asked = {review.DECISION_TAG: decision, review.REVIEWER_TAG: reviewer, review.COMMENT_TAG: comment}
    for name, value in asked.items():
        if value is not None:
            registry.set_tag(version, name, value)
    registry.set_alias("approved", version)


def _dataset(settings: Settings) -> DatasetRecord:
    """Ten patients, six of them locked away for testing; made once per catalog."""
    catalog = open_workspace(settings).catalog
    try:
        return catalog.dataset(_DATASET)
    except NotFoundError:
        run_id = catalog.begin_run("test", {})
    members = []
    for number in range(10):
        name = f"C{number}"
        scan = catalog.add_scan(scan_without_image(name), run_id)
        role, fold = ("test", None) if number < 6 else ("train", number % 2)
        members.append(
            MemberDraft(scan_id=scan.scan_id, patient_id=scan.patient_id, case_id=name, role=role, fold=fold)
        )
    return catalog.add_dataset(DatasetDraft(version=_DATASET, manifest_key="m", members=tuple(members)))


def scan_without_image(case_id: str) -> ScanDraft:
    """An ingested scan of a patient of its own, of which only the record exists."""
    return ScanDraft(
        case_id=case_id,
        patient_id=f"{case_id}-patient",
        source_uri={"ct": case_id},
        source_fingerprint=case_id,
        source_sha256=case_id,
        ct_key=case_id,
        shape=(1, 1, 1),
        affine=[[1.0]],
        source_shape=(1, 1, 1),
        source_affine=[[1.0]],
        orientation="RAS",
    )
