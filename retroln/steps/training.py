"""From labelled crops to a candidate: the train, evaluate and register steps in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retroln.catalog.records import DatasetRecord
from retroln.settings import Settings, TrainSpec
from retroln.steps import evaluate, promote, train
from retroln.steps.workspace import open_workspace


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
    trained = train.train_dataset(settings, spec, record, on_epoch)
    scored = evaluate.evaluate_bundle(settings, trained.bundle_dir, record)
    return Candidate(promote.register(settings, spec, record, trained, scored), record, skipped=False)


def evaluate_version(settings: Settings, version: int) -> dict[str, Any]:
    """Score a registered version on its own locked test set again."""
    workspace = open_workspace(settings)
    folder = settings.work_dir / "models" / f"{settings.model_name}-v{version}"
    bundle_dir = workspace.registry.fetch(version, folder)
    record = workspace.catalog.dataset(workspace.registry.tags(version)[promote.DATASET_TAG])
    return evaluate.figures(evaluate.evaluate_bundle(settings, bundle_dir, record))
