"""One task per shard or model step: a call into `retroln.steps` with retries and a timeout.

Tasks that may run on another machine (Dask) take `settings=None`: they read their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE

from retroln.catalog.accounting import CaseOutcome
from retroln.metrics.gate import GateDecision
from retroln.settings import Settings, TrainSpec
from retroln.steps import infer, ingest, leftovers, prepare, promote, reconcile, training
from retroln.steps.entry import CaseEntry
from retroln.steps.infer import Champion
from retroln.steps.leftovers import Swept
from retroln.steps.promote import Decision
from retroln.steps.reconcile import Reconciled
from retroln.steps.training import Candidate, Ticket
from retroln.steps.workspace import open_workspace
from tasks.artifacts import Progress
from tasks.policy import log_epoch, log_outcome, settings_in_use

OWNER = "flow-run/"
_HOUR_S = 3600


@task(retries=2, retry_delay_seconds=10, timeout_seconds=_HOUR_S, cache_policy=NO_CACHE)
def list_source(settings: Settings) -> tuple[CaseEntry, ...]:
    """Every case that the source lists."""
    return ingest.list_entries(settings)


@task(retries=2, retry_delay_seconds=10, timeout_seconds=24 * _HOUR_S, cache_policy=NO_CACHE)
def ingest_cases(
    settings: Settings, entries: tuple[CaseEntry, ...], run_id: int, progress: Progress
) -> list[CaseOutcome]:
    """Ingest cases in one process pool; a retry goes on with what is left."""
    passed = count(1)

    def tell(outcome: CaseOutcome) -> None:
        log_outcome(outcome)
        progress.reach(next(passed))

    return ingest.ingest(settings, entries, run_id=run_id, owner=owner(), on_outcome=tell)


@task(retries=2, retry_delay_seconds=10, timeout_seconds=6 * _HOUR_S, cache_policy=NO_CACHE)
def prepare_shard(settings: Settings | None, scan_ids: Sequence[int], run_id: int) -> list[CaseOutcome]:
    """Prepare some scans in a process pool."""
    return prepare.prepare(
        settings or settings_in_use(), scan_ids, run_id=run_id, owner=owner(), on_outcome=log_outcome
    )


@task(retries=2, retry_delay_seconds=10, timeout_seconds=6 * _HOUR_S, cache_policy=NO_CACHE)
def infer_shard(settings: Settings | None, scan_ids: Sequence[int], run_id: int) -> list[CaseOutcome]:
    """Run the champion over some scans with the network kept warm."""
    settings = settings or settings_in_use()
    found = infer.find_champion(settings)
    if found.version != open_workspace(settings).catalog.run(run_id).parameters["version"]:
        return infer.leave(settings, found, scan_ids, run_id=run_id)
    model = infer.fetch(settings, found)
    return infer.infer(settings, model, scan_ids, run_id=run_id, owner=owner(), on_outcome=log_outcome)


def owner() -> str:
    """Under which name this run claims cases."""
    return owner_of(runtime.flow_run.get_id())


def owner_of(flow_run_id: Any) -> str:
    """The name under which a flow run claims cases, from which others can see whether it lives."""
    return f"{OWNER}{flow_run_id}"


@task(retries=2, retry_delay_seconds=10, timeout_seconds=_HOUR_S, cache_policy=NO_CACHE)
def find_champion(settings: Settings) -> Champion:
    """Which version is the champion."""
    return infer.find_champion(settings)


@task(cache_policy=NO_CACHE, tags=["training"])
def train_candidate(settings: Settings, spec: TrainSpec) -> Candidate:
    """Train and register a candidate here; nnU-Net runs in a subprocess that resumes its checkpoint."""
    return training.train_candidate(settings, spec, on_epoch=log_epoch)


@task(retries=2, retry_delay_seconds=10, cache_policy=NO_CACHE)
def begin_training(settings: Settings, spec: TrainSpec) -> Candidate | Ticket:
    """Freeze the dataset and open the MLflow run, or find that this was trained before."""
    return training.begin(settings, spec)


@task(cache_policy=NO_CACHE, tags=["training"])
def train_fold(settings: Settings, ticket: Ticket, fold: int) -> None:
    """Train one fold to its end, from its last checkpoint if there is one."""
    training.train_fold(settings, ticket, fold, on_epoch=log_epoch)


@task(retries=1, retry_delay_seconds=10, cache_policy=NO_CACHE)
def score(settings: Settings, ticket: Ticket) -> None:
    """Bundle the folds and score them on the locked test set."""
    training.score(settings, ticket)


@task(retries=2, retry_delay_seconds=10, cache_policy=NO_CACHE)
def register(settings: Settings, ticket: Ticket) -> Candidate:
    """Register the scored bundle as a candidate."""
    return training.register(settings, ticket)


@task(cache_policy=NO_CACHE)
def abandon(settings: Settings, ticket: Ticket, error: Exception) -> None:
    """Close the MLflow run of a training that failed."""
    training.abandon(settings, ticket, error)


@task(cache_policy=NO_CACHE)
def check_gates(settings: Settings, version: int) -> GateDecision:
    """Apply the promotion gates; changes nothing."""
    return promote.check(settings, version)


@task(cache_policy=NO_CACHE)
def promote_version(settings: Settings, version: int, reviewer: str, comment: str) -> Decision:
    """Move the champion after a person's approval."""
    return promote.promote(settings, version, reviewer=reviewer, comment=comment)


@task(cache_policy=NO_CACHE)
def reject_version(settings: Settings, version: int, reviewer: str, comment: str) -> None:
    """Record a person's rejection."""
    promote.reject(settings, version, reviewer=reviewer, comment=comment)


@task(retries=2, retry_delay_seconds=10, cache_policy=NO_CACHE)
def reconcile_registry(settings: Settings) -> Reconciled:
    """Decide what a reviewer approved, and make the registry follow the audit."""
    return reconcile.reconcile(settings)


@task(retries=2, retry_delay_seconds=10, cache_policy=NO_CACHE)
def sweep_withdrawn(settings: Settings) -> Swept:
    """Remove what came of withdrawn patients after their withdrawal."""
    return leftovers.sweep(settings)
