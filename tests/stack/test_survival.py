"""Programs are killed and servers go away in the middle of work: it ends done, once, and accounted for."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from retroln.catalog.accounting import Outcome
from retroln.catalog.states import ScanState
from retroln.settings import TrainSpec
from retroln.tracking.connection import Connection
from tests.servers.team import THEIRS, Team
from tests.stack.driver import Platform, kill, wait
from tests.stack.test_pipeline import prepared
from tests.stack.test_spread import ingested

__all__ = ["prepared"]

_EPOCHS = 60
_SHARD_WORKERS = ("worker-cpu-shards-0", "worker-cpu-shards-1")


@contextmanager
def _preparing(platform: Platform, prefix: str, count: int = 24) -> Iterator[int]:
    """A prepare run in the middle of its shards; when the block ends, its cases are done exactly once."""
    cases = ingested(platform, prefix, count)
    flow_run = platform.start("prepare", shard_size=count // 2)
    record = wait(lambda: _running(platform, flow_run), 120, "prepare does not begin")
    wait(lambda: platform.catalog.count_outcomes(record)[Outcome.DONE] > 0, 120, "no case is done")
    assert platform.catalog.count_outcomes(record)[Outcome.DONE] < count, "too late to disturb it"
    yield record
    ended = platform.ended(flow_run, 400)
    assert ended.state_name == "Completed", ended.state
    assert platform.states(*cases) == {ScanState.PREPARED}
    for case in cases:
        states = [event.to_state for event in platform.catalog.case_history(case).events]
        assert states == ["ingested", "prepared"], case
    accounting = platform.catalog.run(record).accounting
    assert accounting is not None
    assert (accounting.done, accounting.quarantined, accounting.failed) == (count, _held(platform), 0)
    assert platform.catalog.claims() == []
    _nothing_runs_for_ever(platform, flow_run)


def _running(platform: Platform, flow_run: UUID) -> int | None:
    return next((run.run_id for run in platform.catalog.runs() if run.external_id == str(flow_run)), None)


def _held(platform: Platform) -> int:
    return len(platform.catalog.held_after_ingest())


def _nothing_runs_for_ever(platform: Platform, flow_run: UUID) -> None:
    children = platform.prefect.read_flow_runs(limit=200)
    assert not [run for run in children if run.id == flow_run and not (run.state and run.state.is_final())]
    record = _running(platform, flow_run)
    assert record
    for shard in platform.children_of(record):
        assert platform.ended(shard.id, 200).state


def test_a_flow_that_is_killed_is_taken_over_and_a_worker_that_is_killed_alone_comes_back(
    platform: Platform,
) -> None:
    of_flow, of_worker = _SHARD_WORKERS
    with _preparing(platform, "KILLONE"):
        kill(*platform.flow_processes(of_flow), *platform.worker_processes(of_worker))


def test_worker_and_flow_killed_together_are_noticed_by_their_silence(platform: Platform) -> None:
    with _somebody_elses_run(platform) as theirs:
        with _preparing(platform, "KILLBOTH") as record:
            theirs.say_that_it_lives()
            for worker in _SHARD_WORKERS:
                kill(*platform.worker_processes(worker), *platform.flow_processes(worker))
        assert "Crashed" in {shard.state_name for shard in platform.children_of(record)}
        assert theirs.state() == "Running", "it has been silent for longer than ours"


@dataclass(frozen=True)
class _Theirs:
    team: Team
    run: FlowRun

    def say_that_it_lives(self) -> None:
        self.team.beat(self.run)

    def state(self) -> str | None:
        return self.team.state(self.run)


@contextmanager
def _somebody_elses_run(platform: Platform) -> Iterator[_Theirs]:
    """A run on this server that is none of RetroLN's; it is gone when the block ends."""
    team = Team(platform.prefect)
    run = team.start(THEIRS)
    try:
        yield _Theirs(team, run)
    finally:
        team.set(run.id, "Completed")
        platform.prefect.delete_deployment(run.deployment_id)


def test_prefect_and_postgresql_restart_in_the_middle(platform: Platform) -> None:
    with _preparing(platform, "RESTART", 36) as record:
        _restart(platform, "prefect", "postgres", amid=(record, 36))


def test_s3_is_gone_for_half_a_minute(platform: Platform) -> None:
    with _preparing(platform, "STORE") as record:
        _restart(platform, "seaweedfs", away_s=30, amid=(record, 24))


def _restart(
    platform: Platform, *programs: str, away_s: float = 3, amid: tuple[int, int] | None = None
) -> None:
    """Stop programs, the first one first, and start them again; `amid` is a run and how many cases it has.

    Shards stand still until the programs are gone, which may take longer than the rest of the work, and
    go on while they are away.
    """
    try:
        with platform.standing_still(*_SHARD_WORKERS):
            if amid:
                record, count = amid
                assert platform.catalog.count_outcomes(record)[Outcome.DONE] < count, "too late to disturb it"
            for program in programs:
                platform.supervisor.stop(program)
        time.sleep(away_s)
    finally:
        for program in reversed(programs):
            platform.supervisor.start(program)


def test_training_survives_a_kill_a_worker_that_is_told_to_stop_and_an_absent_mlflow(
    prepared: Platform,
) -> None:
    platform = prepared
    spec = TrainSpec(
        profile="demo",
        epochs=_EPOCHS,
        iterations=8,
        validation_iterations=1,
        n_folds=2,
        test_fraction=0.3,
        device="cpu",
        stand_in="trained for some steps on phantoms",
    )
    worker = "worker-gpu-none-training"
    flow_run = platform.start("train", spec=spec.model_dump(mode="json"))
    epochs = wait(lambda: _journal(platform), 300, "training does not begin")
    _reach(epochs, 3)
    kill(*platform.flow_processes(worker))
    _reach(epochs, _lines(epochs) + 3)
    platform.supervisor.stop(worker)
    saved = epochs.with_name("checkpoint_latest.pth").stat().st_mtime
    assert saved > epochs.stat().st_mtime, "no checkpoint was written on the way out"
    seen = _lines(epochs)
    platform.supervisor.start(worker)
    _reach(epochs, seen + 3)
    assert seen + 3 < _EPOCHS, "too late to take MLflow away"
    _restart(platform, "mlflow", away_s=30)
    ended = platform.ended(flow_run, 500)
    assert ended.state_name == "Completed", ended.state
    platform.run("reconcile")  # sweeps what a fold that ended without MLflow left in its journal
    _every_epoch_is_in_mlflow_once_and_in_order(platform)
    folds = [run for run in platform.runs_of("train-fold") if _epochs_of(run.parameters) == _EPOCHS]
    assert sorted(str(run.state_name) for run in folds) == ["Completed", "Crashed", "Crashed"]
    assert len({run.parameters["ticket"]["mlflow_run_id"] for run in folds}) == 1


def _epochs_of(parameters: dict[str, Any]) -> int:
    return int(parameters["ticket"]["spec"]["epochs"])


def _journal(platform: Platform) -> Path | None:
    """The journal of epochs of the fold that is being trained."""
    found = (platform.stack.home / "work" / "nnunet").rglob("epochs.jsonl")
    fresh = [path for path in found if time.time() - path.stat().st_mtime < 20 and _is_of(path, _EPOCHS)]
    return fresh[0] if fresh else None


def _is_of(journal: Path, epochs: int) -> bool:
    return bool(json.loads((journal.parent / "request.json").read_text())["spec"]["epochs"] == epochs)


def _lines(journal: Path) -> int:
    return len(journal.read_text().splitlines())


def _reach(journal: Path, epochs: int) -> None:
    wait(lambda: _lines(journal) >= epochs, 200, f"training does not reach epoch {epochs}")


def _every_epoch_is_in_mlflow_once_and_in_order(platform: Platform) -> None:
    registry = platform.workspace.registry
    version = registry.get_alias("candidate")
    assert version is not None
    client = Connection.of(platform.settings).client
    history = client.get_metric_history(str(registry.version(version).run_id), "fold0.train_loss")
    steps = [metric.step for metric in sorted(history, key=lambda metric: metric.timestamp)]
    assert steps == list(range(_EPOCHS))
