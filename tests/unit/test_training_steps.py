"""One training spread over machines: work folders of their own; one store, catalog and MLflow."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pytest

pytest.importorskip("nnunetv2")
import torch

from retroln.errors import ConflictError, IntegrityError, NotFoundError, UserError
from retroln.imaging.phantom import PhantomSpec, make_phantom
from retroln.nnunet import train as nnunet_train
from retroln.nnunet.bundle import CHECKPOINT
from retroln.nnunet.checkpoint import LATEST
from retroln.settings import Hu, RoiSpec, Settings, TrainSpec
from retroln.specs import Absent
from retroln.steps import folds, ingest, prepare, promote, training, workshop
from retroln.steps.fold_store import FoldStore, Ticket
from retroln.steps.runs import Run
from retroln.steps.workspace import open_workspace
from retroln.tracking.runs import attach, is_finished
from tests.way import embedded, write_case

SPEC = TrainSpec(
    profile="demo",
    folds=(0, 1),
    n_folds=2,
    epochs=2,
    iterations=2,
    validation_iterations=1,
    device="cpu",
    stand_in="trained for four steps on phantoms",
)
LONGER = SPEC.model_copy(update={"folds": (0,), "epochs": 20})  # no machine ends before it is told to


def machine(settings: Settings, name: str) -> Settings:
    """The same platform seen from a machine with a work folder of its own."""
    return settings.model_copy(update={"work_dir": settings.work_dir / name})


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Four labelled, prepared patients."""
    folder = tmp_path_factory.mktemp("training")
    settings = embedded(folder)
    for number in range(4):
        made = make_phantom(PhantomSpec(seed=50 + number, spacing_mm=(5.0, 5.0, 6.0), orientation="RAS"))
        case = folder / "source" / f"PAT{number}" / f"CASE{number}"
        write_case(case, made)
    catalog = open_workspace(settings).catalog
    run_id = Run.begin(settings, "ingest", {}).run_id
    for entry in ingest.list_entries(settings):
        ingest.ingest_case(settings, run_id, entry)
    for scan_id in list(catalog.scans_to_prepare()):
        prepare.prepare_case(settings, run_id, catalog.scan(scan_id))
    assert len(catalog.labelled_prepared()) == 4
    return settings


@dataclass(frozen=True)
class Spread:
    """A training whose parts were done on four machines."""

    ticket: Ticket
    unregistered: tuple[bool, bool]
    candidate: training.Candidate
    summaries: tuple[folds.FoldSummary, ...]
    told: list[dict[str, Any]]


@pytest.fixture(scope="module")
def spread(platform: Settings) -> Spread:
    ticket = training.begin(machine(platform, "coordinator"), SPEC)
    assert isinstance(ticket, Ticket)
    ticket = Ticket.model_validate_json(ticket.model_dump_json())
    told: list[dict[str, Any]] = []
    first = training.train_fold(machine(platform, "a"), ticket, 0, told.append)
    with pytest.raises(NotFoundError, match="fold_1"):
        training.score(machine(platform, "c"), ticket)
    with pytest.raises(NotFoundError, match="bundle"):
        training.register(machine(platform, "coordinator"), ticket)
    second = training.train_fold(machine(platform, "b"), ticket, 1, told.append)
    training.score(machine(platform, "c"), ticket)
    before = is_finished(platform, ticket.mlflow_run_id)
    candidate = training.register(machine(platform, "coordinator"), ticket)
    after = is_finished(platform, ticket.mlflow_run_id)
    return Spread(ticket, (before, after), candidate, (first, second), told)


def history(settings: Settings, run_id: str) -> dict[str, list[int]]:
    """Steps of each metric of a run, as often as MLflow holds them."""
    client = attach(settings, run_id).connection.client
    names = client.get_run(run_id).data.metrics
    return {name: sorted(m.step for m in client.get_metric_history(run_id, name)) for name in names}


def weights(settings: Settings, ticket: Ticket, fold: int, folder: Path) -> dict[str, Any]:
    FoldStore.of(settings, ticket).fetch(f"fold_{fold}", folder)
    found: dict[str, Any] = torch.load(folder / CHECKPOINT, weights_only=False)["network_weights"]
    return found


def test_parts_on_four_machines_make_one_candidate(spread: Spread, platform: Settings) -> None:
    assert spread.unregistered == (False, True)
    assert [(e["fold"], e["epoch"], e["epochs"]) for e in spread.told] == [
        (0, 0, 2),
        (0, 1, 2),
        (1, 0, 2),
        (1, 1, 2),
    ]
    assert [(s.fold, s.epochs, s.resumed_at) for s in spread.summaries] == [(0, 2, 0), (1, 2, 0)]
    workspace = open_workspace(platform)
    fetched = workspace.registry.fetch(spread.candidate.version, platform.work_dir / "fetched")
    assert {p.name for p in fetched.iterdir()} >= {"fold_0", "fold_1", "contract.json"}
    logged = history(platform, spread.ticket.mlflow_run_id)
    assert logged["fold0.train_loss"] == logged["fold1.lr"] == [0, 1]
    assert logged["test.fp_per_volume"] == [0]
    work = [path.name for path in (platform.work_dir / "coordinator").rglob("*") if path.is_file()]
    assert work == []


def test_parts_done_again_do_nothing(spread: Spread, platform: Settings) -> None:
    coordinator, ticket = machine(platform, "coordinator"), spread.ticket
    again = training.train_fold(machine(platform, "new"), ticket, 1)
    assert (again.epochs, again.seconds) == (2, 0.0)
    training.score(machine(platform, "new"), ticket)
    assert training.register(coordinator, ticket) == spread.candidate
    begun = training.begin(coordinator, SPEC)
    assert isinstance(begun, training.Candidate)
    assert (begun.version, begun.skipped) == (spread.candidate.version, True)
    assert not (platform.work_dir / "new" / "nnunet").exists()


def test_one_process_makes_the_same_weights(spread: Spread, platform: Settings, tmp_path: Path) -> None:
    alone = SPEC.model_copy(update={"folds": (0,)})
    candidate = training.train_candidate(machine(platform, "b"), alone)
    assert not candidate.skipped
    ticket = spread.ticket.model_copy(update={"spec": alone})
    expected = weights(platform, spread.ticket, 0, tmp_path / "spread")
    got = weights(platform, ticket, 0, tmp_path / "alone")
    assert expected and got.keys() == expected.keys()
    assert all(torch.equal(got[name], value) for name, value in expected.items())


def test_fold_outside_the_spec_is_refused(spread: Spread, platform: Settings) -> None:
    with pytest.raises(UserError, match="fold 7 is not part"):
        training.train_fold(platform, spread.ticket, 7)


def test_crop_made_anew_since_is_refused(
    spread: Spread, platform: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workshop, "_frozen", lambda *_: {f"CASE{n}": ("0" * 64, None) for n in range(4)})
    with pytest.raises(ConflictError, match="made anew since"):
        workshop.ready(machine(platform, "late"), spread.ticket)


def test_training_whose_coordinator_died_goes_on_in_its_run(spread: Spread, platform: Settings) -> None:
    spec = SPEC.model_copy(update={"epochs": 9})
    first = training.begin(machine(platform, "coordinator"), spec)
    assert isinstance(first, Ticket)
    waiting = attach(machine(platform, "other"), first.mlflow_run_id, "fold_0")
    waiting._lines.append([{"step": 0, "time_ms": 1, "metrics": {"fold0.lr": 0.5}}])
    waiting.close()
    assert training.begin(machine(platform, "other"), spec) == first
    client = waiting.connection.client
    assert client.get_run(first.mlflow_run_id).info.status == "RUNNING"
    assert history(platform, first.mlflow_run_id) == {"fold0.lr": [0]}
    training.abandon(platform, first, "no GPU worker came")
    failed = client.get_run(first.mlflow_run_id)
    assert (failed.info.status, failed.data.tags["error"]) == ("FAILED", "no GPU worker came")
    assert training.begin(platform, spec) == first
    running = client.get_run(first.mlflow_run_id)
    assert running.info.status == "RUNNING"
    assert "error" not in running.data.tags
    assert running.data.params["epochs"] == "9"
    assert len(running.inputs.dataset_inputs) == 1
    assert training.begin(platform, spec.model_copy(update={"seed": 1})) != first


def test_training_that_died_between_registering_and_ending_is_ended(
    spread: Spread, platform: Settings
) -> None:
    attach(platform, spread.ticket.mlflow_run_id).connection.client.update_run(
        spread.ticket.mlflow_run_id, status="RUNNING"
    )
    assert training.begin(platform, SPEC) == spread.ticket
    assert training.register(platform, spread.ticket) == spread.candidate
    assert is_finished(platform, spread.ticket.mlflow_run_id)
    assert promote.find_trained(platform, SPEC, spread.candidate.dataset) == spread.candidate.version
    assert set(map(len, history(platform, spread.ticket.mlflow_run_id).values())) == {1, 2}


class LaterTrain(TrainSpec):
    """As a later version may know it."""

    arithmetic: Annotated[str, Absent("float32")] = "float32"


class LaterRoi(RoiSpec):
    """As a later version may know it."""

    above_mm: Annotated[float | None, Absent(None)] = None


class LaterHu(Hu):
    """As a later version may know it."""

    low_becomes: Annotated[float, Absent(0.0)] = 0.0


def test_fields_that_are_new_train_nothing_again(spread: Spread, platform: Settings) -> None:
    later = platform.model_copy(update={"roi": LaterRoi(), "hu": LaterHu()})
    assert prepare.reopen(later) == 0
    found = training.begin(later, LaterTrain(**SPEC.model_dump()))
    assert found == replace(spread.candidate, skipped=True)
    another = LaterTrain(**SPEC.model_dump(), arithmetic="bfloat16")
    assert promote.find_trained(later, another, spread.candidate.dataset) is None


def train_until_killed(settings: Settings, ticket: Ticket) -> None:
    """For a process of its own, which stands for a machine that is lost."""
    folds.CHECKPOINT_EVERY_S = 0.0
    training.train_fold(settings, ticket, 0)


def lose_a_machine(settings: Settings, ticket: Ticket) -> int:
    """Kill a process that trains once a checkpoint is in the store; the epochs behind that."""
    process = multiprocessing.get_context("spawn").Process(target=train_until_killed, args=(settings, ticket))
    process.start()
    latest, deadline = None, time.monotonic() + 120
    while latest is None and time.monotonic() < deadline and process.is_alive():
        latest = FoldStore.of(settings, ticket).sealed("fold_0/latest")
        time.sleep(0.1)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    latest = FoldStore.of(settings, ticket).sealed("fold_0/latest")
    assert latest is not None
    return int(latest.facts["epochs"])


def test_fold_goes_on_from_machine_to_machine(spread: Spread, platform: Settings) -> None:
    ticket = training.begin(platform, LONGER)
    assert isinstance(ticket, Ticket)
    shared = FoldStore.of(platform, ticket)
    killed_at = lose_a_machine(machine(platform, "a"), ticket)

    def worker_shuts_down(epoch: dict[str, Any]) -> None:
        if epoch["epoch"] >= killed_at:  # the line of the epoch before may have been lost with the machine
            raise SystemExit("worker shuts down")

    with pytest.raises(SystemExit, match="worker shuts down"):
        training.train_fold(machine(platform, "b"), ticket, 0, worker_shuts_down)
    latest = shared.sealed("fold_0/latest")
    assert latest is not None
    assert killed_at < latest.facts["epochs"] < LONGER.epochs
    told: list[int] = []
    last = training.train_fold(machine(platform, "a"), ticket, 0, lambda epoch: told.append(epoch["epoch"]))
    assert last.resumed_at == latest.facts["epochs"]
    assert told == list(range(last.resumed_at, LONGER.epochs))
    assert [line["epoch"] for line in folds.epochs_of(shared, 0)] == list(range(LONGER.epochs))
    assert shared.sealed("fold_0/latest") is None
    assert [info.key for info in shared.store.list(f"{shared.prefix}/fold_0/latest/")] == []
    steps = history(platform, ticket.mlflow_run_id)
    assert Counter(map(tuple, steps.values())) == {tuple(range(LONGER.epochs)): 5}


def test_changed_checkpoint_in_the_store_is_not_restored(
    spread: Spread, platform: Settings, tmp_path: Path
) -> None:
    shared = FoldStore.of(platform, spread.ticket)
    for name in (LATEST, "epochs.jsonl", nnunet_train.REQUEST_FILE):
        (tmp_path / name).write_bytes(b"genuine")
    sealed = shared.put(
        "fold_9/latest", {p.name: p for p in tmp_path.iterdir() if p.is_file()}, {"epochs": 3}
    )
    shared.store.put_bytes(b"evil", f"{shared.prefix}/fold_9/latest/{sealed.name}/{LATEST}")
    (tmp_path / "fold").mkdir()
    with pytest.raises(IntegrityError, match="not those that were sealed"):
        folds._Keeper(shared, "fold_9/latest").restore(tmp_path / "fold")
    assert not (tmp_path / "fold" / LATEST).exists()
