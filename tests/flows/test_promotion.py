"""Gates, the champion's move, refusal, rejection and rollback, against a real (SQLite) MLflow registry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retroln.catalog.records import DatasetDraft, DatasetRecord, MemberDraft, ScanDraft
from retroln.errors import ConflictError, GateError, NotFoundError
from retroln.settings import Settings
from retroln.steps import promote
from retroln.steps.train import test_hash as hash_of_test_set
from retroln.steps.workspace import open_workspace
from retroln.tracking.runs import training_run

GOOD = {"cases": 6, "patients": 6, "sensitivity_ge10mm": 0.9, "fp_per_volume": 1.0, "dice_mean": 0.7}
POOR = {**GOOD, "sensitivity_ge10mm": 0.5}


@pytest.fixture
def dataset(settings: Settings) -> DatasetRecord:
    catalog = open_workspace(settings).catalog
    run_id = catalog.begin_run("test", {})
    members = []
    for number in range(10):
        name = f"C{number}"
        scan = catalog.add_scan(
            ScanDraft(
                case_id=name,
                patient_id=f"P{number}",
                source_uri={"ct": name},
                source_fingerprint=name,
                source_sha256=name,
                ct_key=name,
                shape=(1, 1, 1),
                affine=[[1.0]],
                source_shape=(1, 1, 1),
                source_affine=[[1.0]],
                orientation="RAS",
            ),
            run_id,
        )
        role, fold = ("test", None) if number < 6 else ("train", number % 2)
        members.append(
            MemberDraft(scan_id=scan.scan_id, patient_id=f"P{number}", case_id=name, role=role, fold=fold)
        )
    return catalog.add_dataset(DatasetDraft(version="d" * 64, manifest_key="m", members=tuple(members)))


def _register(settings: Settings, dataset: DatasetRecord, folder: Path, figures: dict[str, Any]) -> int:
    folder.mkdir(parents=True)
    (folder / "stand-in.txt").write_text(folder.name)
    registry = open_workspace(settings).registry
    with training_run(settings, name="stand-in", params={}) as run:
        tags = {
            promote.SUMMARY_TAG: json.dumps(figures),
            promote.TEST_HASH_TAG: hash_of_test_set(dataset),
            promote.DATASET_TAG: dataset.version,
            promote.SPEC_TAG: "{}",
        }
        version = registry.register(folder, run.run_id, tags)
    registry.set_alias("candidate", version)
    return version


def test_promotion_moves_champion_keeps_previous_and_writes_the_audit(
    settings: Settings, dataset: DatasetRecord, tmp_path: Path
) -> None:
    workspace = open_workspace(settings)
    first = _register(settings, dataset, tmp_path / "b1", GOOD)
    promote.promote(settings, first, reviewer="Dr A", comment="first")
    second = _register(settings, dataset, tmp_path / "b2", GOOD)
    promote.promote(settings, second, reviewer="Dr B", comment="better")
    registry = workspace.registry
    assert registry.get_alias("champion") == second
    assert registry.get_alias("previous") == first
    assert registry.get_alias("candidate") is None
    audits = workspace.catalog.audits(settings.model_name)
    assert [(a.action, a.version, a.previous_version, a.reviewer) for a in audits] == [
        ("promote", first, None, "Dr A"),
        ("promote", second, first, "Dr B"),
    ]
    assert audits[1].gate["passed"] is True


def test_version_that_fails_its_gates_is_refused_and_says_why(
    settings: Settings, dataset: DatasetRecord, tmp_path: Path
) -> None:
    workspace = open_workspace(settings)
    version = _register(settings, dataset, tmp_path / "b1", POOR)
    with pytest.raises(GateError, match="sensitivity_ge10mm"):
        promote.promote(settings, version, reviewer="Dr A", comment="hurry")
    assert workspace.registry.get_alias("champion") is None
    assert workspace.registry.tags(version)["review.decision"] == "refused by gates"
    assert [a.action for a in workspace.catalog.audits(settings.model_name)] == ["refuse"]


def test_rollback_restores_previous_and_marks_withdrawn(
    settings: Settings, dataset: DatasetRecord, tmp_path: Path
) -> None:
    registry = open_workspace(settings).registry
    first = _register(settings, dataset, tmp_path / "b1", GOOD)
    promote.promote(settings, first, reviewer="Dr A", comment="first")
    second = _register(settings, dataset, tmp_path / "b2", GOOD)
    promote.promote(settings, second, reviewer="Dr A", comment="second")
    assert promote.rollback(settings, reviewer="Dr C", comment="misses nodes") == first
    assert registry.get_alias("champion") == first
    assert registry.get_alias("previous") is None
    assert registry.tags(second)[promote.WITHDRAWN_TAG] == "true"
    with pytest.raises(NotFoundError, match="no previous champion"):
        promote.rollback(settings, reviewer="Dr C", comment="again")
    promote.promote(settings, second, reviewer="Dr C", comment="it was right after all")
    assert registry.get_alias("champion") == second
    assert registry.tags(second)[promote.WITHDRAWN_TAG] == "false"


def test_champion_is_not_promoted_twice(settings: Settings, dataset: DatasetRecord, tmp_path: Path) -> None:
    version = _register(settings, dataset, tmp_path / "b1", GOOD)
    promote.promote(settings, version, reviewer="Dr A", comment="first")
    with pytest.raises(ConflictError):
        promote.promote(settings, version, reviewer="Dr A", comment="again")
    assert len(open_workspace(settings).catalog.audits(settings.model_name)) == 1


def test_rejected_version_loses_its_aliases(
    settings: Settings, dataset: DatasetRecord, tmp_path: Path
) -> None:
    registry = open_workspace(settings).registry
    version = _register(settings, dataset, tmp_path / "b1", GOOD)
    promote.reject(settings, version, reviewer="Dr A", comment="motion in the test scans")
    assert registry.get_alias("candidate") is None
    assert registry.tags(version)["review.decision"] == "rejected"
