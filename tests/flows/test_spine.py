"""The whole way of the data without an orchestrator: delivered CT in, a model and its findings out."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from retroln import files
from retroln.catalog.accounting import Accounting
from retroln.catalog.states import ScanState
from retroln.engine import warm
from retroln.errors import GateError
from retroln.imaging import nifti
from retroln.settings import GateSpec, Settings, TrainSpec
from retroln.steps import audit, infer, promote, training
from retroln.steps.phantom_cohort import CohortSpec, write_cohort
from retroln.steps.workspace import open_workspace
from retroln.storage.open import open_store
from retroln.tracking.registry import MlflowRegistry
from tests.way import embedded, infer_all, ingest_and_prepare

COHORT = CohortSpec(patients=8, spacing_mm=(4.0, 4.0, 5.0))
SPEC = TrainSpec(
    profile="demo",
    epochs=1,
    iterations=2,
    validation_iterations=1,
    n_folds=2,
    test_fraction=0.3,
    device="cpu",
    stand_in="trained for two steps on phantoms",
)
LENIENT = GateSpec(min_test_patients=1, min_sensitivity_ge10mm=0.0, max_fp_per_volume=1e9)


@dataclass(frozen=True)
class Spine:
    """What the one pass over the platform left behind."""

    settings: Settings
    ingested: Accounting
    prepared: Accounting
    candidate: training.Candidate
    epochs: tuple[dict[str, Any], ...]
    inferred: Accounting


@pytest.fixture(scope="module")
def spine(tmp_path_factory: pytest.TempPathFactory) -> Spine:
    """Eight coarse phantoms and a broken file, taken once all the way to a champion's findings."""
    folder = tmp_path_factory.mktemp("spine")
    settings = embedded(folder)
    write_cohort(COHORT, settings)
    ingested, prepared = ingest_and_prepare(settings)
    epochs: list[dict[str, Any]] = []
    candidate = training.train_candidate(settings, SPEC, on_epoch=epochs.append)
    with pytest.raises(GateError, match="fails its gates"):
        promote.promote(settings, candidate.version, reviewer="Dr A", comment="by the standing gates")
    lenient = settings.model_copy(update={"gates": LENIENT})
    promote.promote(lenient, candidate.version, reviewer="Dr B", comment="to test the way")
    return Spine(settings, ingested, prepared, candidate, tuple(epochs), infer_all(settings))


def _members(spine: Spine, role: str) -> list[str]:
    return [m.case_id for m in spine.candidate.dataset.members if m.role == role]


def test_every_case_is_accounted_for_and_the_broken_one_is_held(spine: Spine) -> None:
    assert spine.ingested == Accounting(9, 8, 0, 1, 0)
    assert spine.prepared == Accounting(8, 8, 0, 0, 0)
    broken = open_workspace(spine.settings).catalog.current_scan("PBROKEN-CT1")
    assert broken is not None
    assert (broken.state, broken.reason) == (ScanState.QUARANTINED, "truncated")


def test_stored_crops_lie_where_their_records_say(spine: Spine) -> None:
    assert audit.crops_are_exact(spine.settings)


def test_test_patients_never_reach_the_training_folders(spine: Spine) -> None:
    test, train = _members(spine, "test"), _members(spine, "train")
    assert len(test) >= 2
    raw = spine.settings.work_dir / "nnunet"
    names = {path.name for path in raw.rglob("*") if path.is_file()}
    assert {name for case in test for name in names if case in name} == set()
    assert train and all(any(case in name for name in names) for case in train)


def test_training_reports_its_epoch_and_the_registry_names_the_data(spine: Spine) -> None:
    assert [(e["fold"], e["epoch"], e["epochs"]) for e in spine.epochs] == [(0, 0, 1)]
    assert np.isfinite(spine.epochs[0]["train_loss"])
    registry = open_workspace(spine.settings).registry
    tags = registry.tags(spine.candidate.version)
    assert tags[promote.DATASET_TAG] == spine.candidate.dataset.version
    assert json.loads(tags[promote.SUMMARY_TAG])["cases"] == len(_members(spine, "test"))
    assert registry.get_alias("champion") == spine.candidate.version
    audits = open_workspace(spine.settings).catalog.audits(spine.settings.model_name)
    assert [(a.action, a.reviewer) for a in audits] == [("refuse", "Dr A"), ("promote", "Dr B")]


def test_findings_lie_on_the_delivered_grid(spine: Spine, tmp_path: Path) -> None:
    workspace = open_workspace(spine.settings)
    test = _members(spine, "test")
    assert test
    for case_id in test:
        scan = workspace.catalog.current_scan(case_id)
        assert scan is not None
        (prediction,) = workspace.catalog.predictions_of(scan.scan_id)
        workspace.store.get_file(prediction.label_key, tmp_path / "labels.nii.gz")
        workspace.source.get_file(scan.source_uri["ct"], tmp_path / "ct.nii.gz")
        labels, delivered = (
            nifti.read_labels(tmp_path / "labels.nii.gz"),
            nifti.read_grid(tmp_path / "ct.nii.gz"),
        )
        assert labels.source.shape == delivered.shape
        np.testing.assert_allclose(labels.source.affine, delivered.affine, atol=1e-4)
        found = sorted(set(np.unique(labels.array)) - {0})
        assert found == sorted(node.label for node in workspace.catalog.nodes_of(scan.scan_id))
        page = workspace.store.get_bytes(str(prediction.page_key)).decode()
        assert case_id in page
        assert str(SPEC.stand_in) in page


def test_scans_trained_on_are_skipped_and_counted(spine: Spine) -> None:
    catalog = open_workspace(spine.settings).catalog
    n_test, n_train = len(_members(spine, "test")), len(_members(spine, "train"))
    assert spine.inferred == Accounting(n_test + n_train, n_test, n_train, 0, 0)
    assert infer.backlog(spine.settings, infer.find_champion(spine.settings)).notes == {"trained_on": n_train}
    for case_id in _members(spine, "train"):
        scan = catalog.current_scan(case_id)
        assert scan is not None
        assert catalog.predictions_of(scan.scan_id) == []


def test_a_bundle_is_hashed_once_whatever_the_number_of_cases(
    spine: Spine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    of_stream, of_bytes = files._sha256_stream, files.sha256_bytes
    monkeypatch.setattr(files, "SETTLED_NS", 0)
    monkeypatch.setattr(files, "_hashes", {})
    monkeypatch.setattr(files, "_sha256_stream", lambda s: hashed.append(Path(s.name).name) or of_stream(s))
    monkeypatch.setattr(files, "sha256_bytes", lambda data: hashed.append(f"{len(data)} B") or of_bytes(data))
    warm._predictor.cache_clear()
    model = infer.fetch(spine.settings, infer.find_champion(spine.settings))
    sizes = {path.name: path.stat().st_size for path in model.bundle_dir.rglob("*") if path.is_file()}
    of_the_bundle = {*sizes, *(f"{size} B" for size in sizes.values())}
    counted = []
    for case_id in _members(spine, "test")[:2]:
        _predict_and_show(spine.settings, model, case_id)
        counted.append(sorted(name for name in hashed if name in of_the_bundle))
        hashed.clear()
    assert counted == [sorted(sizes), []]


def _predict_and_show(settings: Settings, model: infer.Model, case_id: str) -> None:
    """What inference does with a model, without recording it once more."""
    workspace = open_workspace(settings)
    scan = workspace.catalog.current_scan(case_id)
    assert scan is not None
    crop = workspace.catalog.crop_of(scan.scan_id)
    with workspace.scratch() as folder:
        workspace.store.get_file(crop.ct_key, folder / "ct.nii.gz")
        ct = nifti.read(folder / "ct.nii.gz")
    predictor = infer._predictor(settings, model)
    labels = infer._predict(predictor, ct, crop)
    assert case_id in infer._page(workspace, model, predictor, scan, crop, ct, labels, [])


def test_a_night_with_nothing_to_do_downloads_no_model(spine: Spine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MlflowRegistry, "fetch", lambda *_: pytest.fail("the bundle was fetched"))
    backlog = infer.backlog(spine.settings, infer.find_champion(spine.settings))
    assert (backlog.left, backlog.skipped) == ((), spine.inferred.n_in)


def test_second_pass_does_nothing(spine: Spine) -> None:
    ingested, prepared = ingest_and_prepare(spine.settings)
    assert ingested == Accounting(9, 0, 8, 1, 0)
    assert prepared == Accounting(8, 0, 8, 0, 0)
    epochs: list[dict[str, Any]] = []
    again = training.train_candidate(spine.settings, SPEC, on_epoch=epochs.append)
    assert (again.version, again.skipped, epochs) == (spine.candidate.version, True, [])
    everything = spine.inferred.n_in
    assert infer_all(spine.settings) == Accounting(everything, 0, everything, 0, 0)


def test_registered_model_predicts_through_mlflow(spine: Spine, tmp_path: Path) -> None:
    import mlflow

    workspace = open_workspace(spine.settings)
    scan = workspace.catalog.current_scan(_members(spine, "test")[0])
    assert scan is not None
    crop, output = tmp_path / "crop.nii.gz", tmp_path / "labels.nii.gz"
    workspace.store.get_file(workspace.catalog.crop_of(scan.scan_id).ct_key, crop)
    mlflow.set_tracking_uri(spine.settings.mlflow_uri)
    model = mlflow.pyfunc.load_model(f"models:/{spine.settings.model_name}@champion")
    answer = model.predict(pd.DataFrame({"ct": [str(crop)], "output": [str(output)]}))
    labels = nifti.read_labels(output)
    assert labels.grid.shape == nifti.read(crop).grid.shape
    assert set(np.unique(labels.array)) <= {0, 1}
    assert list(answer.columns) == ["output", "n_nodes"]
    assert answer["output"][0] == str(output)
    assert (answer["n_nodes"][0] > 0) == bool(labels.array.any())


def test_later_scan_of_a_trained_patient_is_inferred_with_cautions(spine: Spine, tmp_path: Path) -> None:
    """Last in this file: it adds a case, whose label map lacks S1, to the module's platform."""
    workspace = open_workspace(spine.settings)
    member = next(m for m in spine.candidate.dataset.members if m.role == "train")
    base = f"{member.patient_id}/{member.case_id}/"
    source = open_store(spine.settings.source_uri, spine.settings)
    for name in ("ct.nii.gz", "vertebrae.nii.gz"):
        source.get_file(base + name, tmp_path / name)
    labels = nifti.read_labels(tmp_path / "vertebrae.nii.gz")
    without_s1 = np.where(labels.array == 26, 0, labels.array)
    nifti.write_source(tmp_path / "vertebrae.nii.gz", labels.with_array(without_s1))
    for name in ("ct.nii.gz", "vertebrae.nii.gz"):
        source.put_file(tmp_path / name, f"{member.patient_id}/LATER/{name}")

    ingested, _ = ingest_and_prepare(spine.settings.model_copy(update={"unanchored": "accept"}))
    assert ingested.done == 1
    assert infer_all(spine.settings).done == 1
    scan = workspace.catalog.current_scan("LATER")
    assert scan is not None
    (prediction,) = workspace.catalog.predictions_of(scan.scan_id)
    page = workspace.store.get_bytes(str(prediction.page_key)).decode()
    assert "trained on another scan of this patient" in page
    assert "confirm the numbering" in page
    assert re.search(r"ingest, run \d+: <b>10 cases in</b> = 1 done \+ 8 skipped \+ 1 quarantined", page)
