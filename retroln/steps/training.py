"""From labelled crops to a candidate: the train, evaluate and register steps in one call."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import Any

from retroln.catalog.records import DatasetRecord
from retroln.report import figures
from retroln.settings import Settings, TrainSpec
from retroln.steps import evaluate, promote, train
from retroln.steps.workspace import open_workspace
from retroln.tracking.runs import TrainingRun, training_run


@dataclass(frozen=True)
class Candidate:
    """A registered version and the dataset it comes from; `skipped` when it existed already."""

    version: int
    dataset: DatasetRecord
    skipped: bool


def train_candidate(settings: Settings, spec: TrainSpec, on_epoch: train.OnEpoch | None = None) -> Candidate:
    """Publish the dataset and train it, unless this very dataset and spec were trained before."""
    record = train.publish_dataset(settings, spec)
    version = promote.find_trained(settings, spec, record)
    if version is not None:
        return Candidate(version, record, skipped=True)
    parameters = train.parameters(settings, spec, record)
    with training_run(settings, name=f"train {record.version[:8]}", params=parameters) as run:
        _log_manifest(settings, record, run)
        epochs: list[dict[str, Any]] = []
        bundle_dir = train.train_dataset(settings, spec, record, run, partial(_note, epochs, on_epoch))
        scored = evaluate.evaluate_bundle(settings, bundle_dir, record)
        _log_scores(run, scored, epochs)
        version = promote.register(settings, spec, record, bundle_dir, run.run_id, scored)
    return Candidate(version, record, skipped=False)


def _log_manifest(settings: Settings, record: DatasetRecord, run: TrainingRun) -> None:
    manifest = json.loads(open_workspace(settings).store.get_bytes(record.manifest_key))
    run.log_dataset(manifest, name="RetroLN", version=record.version)


def _note(epochs: list[dict[str, Any]], then: train.OnEpoch | None, epoch: dict[str, Any]) -> None:
    epochs.append(epoch)
    if then:
        then(epoch)


def _log_scores(run: TrainingRun, scored: evaluate.Evaluation, epochs: list[dict[str, Any]]) -> None:
    summary = evaluate.figures(scored)
    run.log_metrics({f"test.{name}": value for name, value in summary.items()})
    run.log_json(
        {"cases": [score.to_dict() for score in scored.scores], "summary": summary}, "test/scores.json"
    )
    strata = {name: (found["hits"], found["nodes"]) for name, found in summary["strata"].items()}
    drawn = {"sensitivity_by_stratum": figures.sensitivity_by_stratum(strata)}
    for fold in sorted({epoch["fold"] for epoch in epochs}):
        drawn[f"training_fold{fold}"] = figures.training_curve([e for e in epochs if e["fold"] == fold])
    run.log_figures(drawn)


def evaluate_version(settings: Settings, version: int) -> dict[str, Any]:
    """Score a registered version on its own locked test set again."""
    workspace = open_workspace(settings)
    bundle_dir = workspace.registry.fetch(version, settings.work_dir / "models")
    record = workspace.catalog.dataset(workspace.registry.tags(version)[promote.DATASET_TAG])
    return evaluate.figures(evaluate.evaluate_bundle(settings, bundle_dir, record))
