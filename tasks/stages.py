"""One task per shard or model step: a call into `retroln.steps` with retries and a timeout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from retroln.catalog.accounting import CaseOutcome
from retroln.metrics.gate import GateDecision
from retroln.settings import Settings, TrainSpec
from retroln.steps import infer, ingest, prepare, promote, training
from retroln.steps.cohort import CaseEntry
from retroln.steps.infer import Model
from retroln.steps.training import Candidate
from tasks.policy import log_outcome, publish

_HOUR_S = 3600


@task(retries=2, retry_delay_seconds=10, timeout_seconds=_HOUR_S, cache_policy=NO_CACHE)
def list_source(settings: Settings) -> tuple[CaseEntry, ...]:
    """Every case that the source lists."""
    return ingest.list_entries(settings)


@task(retries=2, retry_delay_seconds=10, timeout_seconds=6 * _HOUR_S, cache_policy=NO_CACHE)
def ingest_shard(settings: Settings, entries: tuple[CaseEntry, ...], run_id: int) -> list[CaseOutcome]:
    """Ingest some cases; a retry finds what is done and skips it."""
    return ingest.ingest(settings, entries, run_id=run_id, on_outcome=log_outcome)


@task(retries=2, retry_delay_seconds=10, timeout_seconds=6 * _HOUR_S, cache_policy=NO_CACHE)
def prepare_shard(settings: Settings, scan_ids: Sequence[int], run_id: int) -> list[CaseOutcome]:
    """Prepare some scans in a process pool."""
    return prepare.prepare(settings, scan_ids, run_id=run_id, on_outcome=log_outcome)


@task(cache_policy=NO_CACHE, tags=["training"])
def train_candidate(settings: Settings, spec: TrainSpec) -> Candidate:
    """Train and register a candidate; nnU-Net runs in a subprocess that resumes its checkpoint."""
    logger = get_run_logger()

    def tell(epoch: dict[str, Any]) -> None:
        publish(epoch)
        figures = ", ".join(f"{k} {v:.3g}" for k, v in epoch.items() if isinstance(v, float))
        logger.info("fold %s epoch %s/%s: %s", epoch["fold"], epoch["epoch"] + 1, epoch["epochs"], figures)

    return training.train_candidate(settings, spec, on_epoch=tell)


@task(cache_policy=NO_CACHE)
def check_gates(settings: Settings, version: int) -> GateDecision:
    """Apply the promotion gates; changes nothing."""
    return promote.check(settings, version)


@task(cache_policy=NO_CACHE)
def promote_version(settings: Settings, version: int, reviewer: str, comment: str) -> GateDecision:
    """Move the champion after a person's approval."""
    return promote.promote(settings, version, reviewer=reviewer, comment=comment)


@task(retries=2, retry_delay_seconds=10, timeout_seconds=_HOUR_S, cache_policy=NO_CACHE)
def fetch_champion(settings: Settings) -> Model:
    """Bring the champion to this machine's disk."""
    return infer.fetch_champion(settings)


@task(retries=2, retry_delay_seconds=10, timeout_seconds=6 * _HOUR_S, cache_policy=NO_CACHE)
def infer_shard(settings: Settings, model: Model, scan_ids: Sequence[int], run_id: int) -> list[CaseOutcome]:
    """Run the champion over some scans with the network kept warm."""
    return infer.infer(settings, model, scan_ids, run_id=run_id, on_outcome=log_outcome)
