"""From labelled crops to a candidate, in parts that different machines can do.

A coordinator calls `begin`, workers `train_fold`, one of them `score`, the coordinator `register`. Each
part can be called again after a crash and then does what is left. What they hand each other lies in the
object store (`fold_store`); all share one catalog and one MLflow.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from retroln.catalog.records import DatasetRecord
from retroln.errors import ConflictError
from retroln.files import write_json
from retroln.nnunet import bundle, environment, plans
from retroln.report import figures
from retroln.settings import Settings, TrainSpec
from retroln.steps import evaluate, folds, promote, train, withdraw
from retroln.steps.fold_store import FoldStore, Ticket, spec_sha256
from retroln.steps.folds import FoldSummary, OnEpoch, train_fold
from retroln.steps.workspace import open_workspace
from retroln.tracking import runs
from retroln.tracking.runs import TrainingRun

__all__ = [
    "Candidate",
    "FoldSummary",
    "Ticket",
    "abandon",
    "begin",
    "evaluate_version",
    "register",
    "score",
    "train_candidate",
    "train_fold",
]

ARITHMETIC_TAG = "train.arithmetic"
_BUNDLE, _SCORES = "bundle", "scores.json"


@dataclass(frozen=True)
class Candidate:
    """A registered version and the dataset it comes from; `skipped` when it existed already."""

    version: int
    dataset: DatasetRecord
    skipped: bool


def train_candidate(settings: Settings, spec: TrainSpec, on_epoch: OnEpoch | None = None) -> Candidate:
    """All parts in one process, unless this very dataset and spec were trained before."""
    begun = begin(settings, spec)
    if isinstance(begun, Candidate):
        return begun
    try:
        for fold in spec.folds:
            train_fold(settings, begun, fold, on_epoch)
        score(settings, begun)
        return register(settings, begun)
    except BaseException as error:
        abandon(settings, begun, error)
        raise


def begin(settings: Settings, spec: TrainSpec) -> Candidate | Ticket:
    """Freeze the dataset and open the MLflow run, or go on with the run of a training that stopped.

    Returns:
        The known version if this dataset and spec were trained before, else what the other parts need.

    Raises:
        GateError: the labelled cases are not fit to train on (`train.publish_dataset`).
        ConflictError: a patient of the dataset version withdrew, maybe meanwhile; the run, if it was opened,
            has failed and does not name the patient.
        UserError: MLflow cannot be reached.
    """
    record = train.publish_dataset(settings, spec)
    version = promote.find_trained(settings, spec, record)
    tags = {promote.DATASET_TAG: record.version, promote.SPEC_TAG: spec_sha256(spec)}
    open_run = runs.find_unfinished(settings, tags)
    if version is not None and not _left_open(settings, version, open_run):
        return Candidate(version, record, skipped=True)
    params = train.parameters(settings, spec, record)
    name = f"train {record.version[:8]}"
    run = runs.start(settings, name=name, params=params, tags=tags, run_id=open_run)
    manifest = json.loads(open_workspace(settings).store.get_bytes(record.manifest_key))
    run.log_dataset(manifest, name="RetroLN", version=record.version)
    runs.replay_waiting(settings, run.run_id)
    ticket = Ticket(dataset_version=record.version, spec=spec, mlflow_run_id=run.run_id)
    try:
        _require_still_trainable(settings, record)
    except ConflictError as error:
        abandon(settings, ticket, error)
        raise
    return ticket


def _require_still_trainable(settings: Settings, record: DatasetRecord) -> None:
    """Refuse to go on if a patient withdrew while MLflow was written to, and take the patient out of it."""
    withdraw.put_mlflow_right(settings, record.version)
    open_workspace(settings).catalog.require_trainable(record.version)


def _left_open(settings: Settings, version: int, open_run: str | None) -> bool:
    """Whether a version was registered by a training that stopped before its end."""
    registry = open_workspace(settings).registry
    return open_run is not None and registry.version(version).run_id == open_run


def score(settings: Settings, ticket: Ticket) -> None:
    """Make the bundle of the folds in the store, score it on the locked test set, and store both.

    Raises:
        NotFoundError: a fold is not in the store yet.
        ConflictError: a patient of the dataset version withdrew.
    """
    open_workspace(settings).catalog.require_trainable(ticket.dataset_version)
    shared = FoldStore.of(settings, ticket)
    with _scratch(settings) as folder:
        made = _bundle(settings, ticket, shared, Path(folder))
        known = shared.sealed(_BUNDLE)
        if known and known.facts == {"bundle_sha256": made.sha256}:
            return
        record = open_workspace(settings).catalog.dataset(ticket.dataset_version)
        scored = evaluate.evaluate_bundle(settings, made.path, record)
        write_json(Path(folder) / _SCORES, evaluate.to_json(scored))
        files = {name: made.path / name for name in (*made.files, bundle.MANIFEST)}
        files[_SCORES] = Path(folder) / _SCORES
        shared.put(_BUNDLE, files, {"bundle_sha256": made.sha256})


def register(settings: Settings, ticket: Ticket) -> Candidate:
    """Log the scores, register the bundle as a candidate, end the run; a finished one is only reported.

    Raises:
        NotFoundError: nothing was scored yet.
        IntegrityError: the bundle is not the one that was scored.
        ConflictError: a patient of the dataset version withdrew, maybe meanwhile: nothing is registered, and
            the run does not name the patient.
    """
    workspace, shared = open_workspace(settings), FoldStore.of(settings, ticket)
    workspace.catalog.require_trainable(ticket.dataset_version)
    record = workspace.catalog.dataset(ticket.dataset_version)
    version = promote.find_trained(settings, ticket.spec, record)
    if version is not None and runs.is_finished(settings, ticket.mlflow_run_id):
        return Candidate(version, record, skipped=False)
    with _scratch(settings) as folder, runs.attached(settings, ticket.mlflow_run_id) as run:
        bundle_dir = Path(folder) / "bundle"
        facts = shared.fetch(_BUNDLE, bundle_dir).facts
        content = (bundle_dir / _SCORES).read_bytes()
        (bundle_dir / _SCORES).unlink()
        bundle.load(bundle_dir, facts["bundle_sha256"])
        scored = evaluate.from_json(json.loads(content))
        epochs = {fold: folds.epochs_of(shared, fold) for fold in ticket.spec.folds}
        _log_scores(run, scored, epochs)
        _require_still_trainable(settings, record)
        run.set_tag(ARITHMETIC_TAG, ", ".join(folds.arithmetic_of(chain(*epochs.values()))))
        version = promote.register(settings, ticket.spec, record, bundle_dir, ticket.mlflow_run_id, scored)
        run.end("FINISHED")
    withdraw.put_mlflow_right(settings, record.version)  # of a patient who withdrew since
    return Candidate(version, record, skipped=False)


def abandon(settings: Settings, ticket: Ticket, error: BaseException | str) -> None:
    """End the MLflow run FAILED (KILLED for a signal) and say why; `begin` can go on with it later."""
    runs.fail(runs.attach(settings, ticket.mlflow_run_id), error)


def evaluate_version(settings: Settings, version: int) -> dict[str, Any]:
    """Score a registered version on its own locked test set again."""
    workspace = open_workspace(settings)
    bundle_dir = workspace.registry.fetch(version, settings.work_dir / "models")
    record = workspace.catalog.dataset(workspace.registry.tags(version)[promote.DATASET_TAG])
    workspace.catalog.require_trainable(record.version)
    return evaluate.figures(evaluate.evaluate_bundle(settings, bundle_dir, record))


def _scratch(settings: Settings) -> tempfile.TemporaryDirectory[str]:
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix="bundle-", dir=settings.work_dir)


def _bundle(settings: Settings, ticket: Ticket, shared: FoldStore, folder: Path) -> bundle.Bundle:
    """The same folds make the same bundle, byte for byte, on any machine."""
    plans_id = plans.PLANS_ID[ticket.spec.profile]
    folders = environment.Folders(folder / "raw", folder / "preprocessed", folder / "results")
    model = bundle.model_folder(folders, plans_id)
    sealed = [shared.fetch(folds.place_of(n), model / f"fold_{n}") for n in ticket.spec.folds]
    for name in ("plans.json", "dataset.json"):
        if len({found.files[name] for found in sealed}) > 1:
            raise ConflictError(
                f"folds were trained with different {name}",
                file=f"{shared.store.uri}/{shared.prefix}",
                fix="delete the training's part of the store and train again",
            )
        (model / f"fold_{ticket.spec.folds[0]}" / name).rename(model / name)
    contract = bundle.Contract(
        hu=settings.hu,
        roi=settings.roi,
        versions=dict(sealed[0].facts["versions"]),
        arithmetic=tuple(sorted({name for found in sealed for name in found.facts.get("arithmetic", ())})),
        dataset_version=ticket.dataset_version,
        min_probability=ticket.spec.min_probability,
        min_finding_mm3=ticket.spec.min_finding_mm3,
        stand_in=ticket.spec.stand_in,
    )
    return bundle.make(folder / "bundle", folders, plans_id, ticket.spec.folds, contract)


def _log_scores(
    run: TrainingRun, scored: evaluate.Evaluation, epochs: dict[int, list[dict[str, Any]]]
) -> None:
    summary = evaluate.figures(scored)
    run.log_metrics({f"test.{name}": value for name, value in summary.items()})
    run.log_json(evaluate.to_json(scored), "test/scores.json")
    strata = {name: (found["hits"], found["nodes"]) for name, found in summary["strata"].items()}
    drawn = {"sensitivity_by_stratum": figures.sensitivity_by_stratum(strata)}
    drawn |= {f"training_fold{fold}": figures.training_curve(lines) for fold, lines in epochs.items()}
    run.log_figures(drawn)
