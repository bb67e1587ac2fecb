"""Train one fold of a training, on whichever machine; another machine can go on with it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retroln.errors import NotFoundError, UserError
from retroln.nnunet import checkpoint, environment, train
from retroln.nnunet.bundle import CHECKPOINT
from retroln.nnunet.checkpoint import EPOCHS_FILE, LATEST
from retroln.settings import Settings
from retroln.steps import workshop
from retroln.steps.fold_store import FoldStore, Sealed, Ticket
from retroln.steps.outages import riding_out
from retroln.tracking.runs import TrainingRun, attached

_LOG = logging.getLogger(__name__)
CHECKPOINT_EVERY_S = 300.0
"""The last checkpoint is copied to the store at most this often."""
_LAST_PAUSES_S = (0.0, 2.0, 4.0)

OnEpoch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class FoldSummary:
    """A trained fold, in plain values.

    Attributes:
        epochs: whole epochs behind the fold.
        resumed_at: epoch that this call started with.
        seconds: of training in this call; 0 when the store held the fold already.
        last: figures of the last epoch.
    """

    fold: int
    epochs: int
    resumed_at: int
    seconds: float
    last: dict[str, Any]


def place_of(fold: int) -> str:
    """Where a finished fold lies in the training's part of the store."""
    return f"fold_{fold}"


def train_fold(settings: Settings, ticket: Ticket, fold: int, on_epoch: OnEpoch | None = None) -> FoldSummary:
    """Train a fold to its end and put it into the store, unless it is there.

    An interrupted fold goes on from the checkpoint on this machine or the one in the store, whichever
    has more epochs behind it. Each epoch is logged to the ticket's MLflow run as `fold<n>.*`, once;
    `on_epoch` is told each epoch that is trained here, with `fold` and `epochs` (of the spec). When an
    exception arrives (a worker that shuts down), the training saves its state, which is copied to the
    store before the exception goes on its way.

    Raises:
        UserError: the spec has no such fold, or training failed.
        ConflictError: another process on this machine trains this fold, or a patient of the dataset version
            withdrew.
    """
    if fold not in ticket.spec.folds:
        raise UserError(
            f"fold {fold} is not part of this training",
            expected=f"one of {ticket.spec.folds}",
            fix="add it to TrainSpec.folds",
        )
    shared, place = FoldStore.of(settings, ticket), place_of(fold)
    if shared.sealed(place):
        lines = epochs_of(shared, fold)
        return FoldSummary(fold, len(lines), len(lines), 0.0, lines[-1])
    shop = workshop.ready(settings, ticket)
    keeper = _Keeper(shared, f"{place}/latest")
    with attached(settings, ticket.mlflow_run_id, place) as run:
        journal = train.fold_folder(shop.folders, shop.plans_id, fold) / EPOCHS_FILE
        tell = _Teller(run, ticket, fold, journal, on_epoch)
        result = train.train_fold(
            shop.folders,
            shop.plans_id,
            fold,
            ticket.spec,
            tell,
            keeper=keeper,
            arithmetic=settings.arithmetic,
        )
        lines = checkpoint.read_epochs(result.epochs)
        run.log_epochs(_named(fold, line) for line in lines)  # also of a fold that needed no more training
    riding_out(lambda: _put(shared, place, result), settings.patience_s)
    return FoldSummary(fold, len(lines), result.resumed_at, result.seconds, lines[-1])


def epochs_of(shared: FoldStore, fold: int) -> list[dict[str, Any]]:
    """The journal of a finished fold."""
    return [json.loads(line) for line in shared.read(place_of(fold), EPOCHS_FILE).splitlines()]


def arithmetic_of(epochs: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the epochs of a journal were trained in; several if the fold went on on another machine."""
    return sorted({epoch["arithmetic"] for epoch in epochs if "arithmetic" in epoch})


def _put(shared: FoldStore, place: str, result: train.FoldResult) -> None:
    folder = result.checkpoint.parent
    files = {
        CHECKPOINT: result.checkpoint,
        EPOCHS_FILE: result.epochs,
        "plans.json": folder.parent / "plans.json",
        "dataset.json": folder.parent / "dataset.json",
    }
    facts = {
        "versions": environment.versions(),
        "arithmetic": arithmetic_of(checkpoint.read_epochs(result.epochs)),
    }
    shared.put(place, files, facts, first_wins=True)
    shared.sweep(f"{place}/latest", keep=None)


@dataclass
class _Teller:
    """Logs each epoch to the MLflow run; before the first, those that a process which died did not log."""

    run: TrainingRun
    ticket: Ticket
    fold: int
    journal: Path
    then: OnEpoch | None
    _began: bool = False

    def __call__(self, epoch: dict[str, Any]) -> None:
        if not self._began:
            known = checkpoint.read_epochs(self.journal)
            earlier = [line for line in known if line["epoch"] < epoch["epoch"]]
            self.run.log_epochs(_named(self.fold, line) for line in earlier)
            self._began = True
        self.run.log_epoch(_named(self.fold, epoch))
        if self.then:
            self.then({**epoch, "fold": self.fold, "epochs": self.ticket.spec.epochs})


def _named(fold: int, epoch: dict[str, Any]) -> dict[str, Any]:
    figures = {f"fold{fold}.{name}": value for name, value in epoch.items() if name != "epoch"}
    return {**figures, "epoch": epoch["epoch"]}


@dataclass
class _Keeper:
    """Keeps the last checkpoint of a fold in the store; a store that is away is only warned about."""

    shared: FoldStore
    place: str
    _kept: Sealed | None = None
    _copied_at: float = field(default_factory=time.monotonic)

    def restore(self, folder: Path) -> None:
        """Fetch the store's state if it has more epochs behind it than what lies here.

        Raises:
            IntegrityError: the store's bytes are not those that were sealed.
            UnavailableError: the store is away; nothing is trained twice for want of it.
        """
        found = self.shared.sealed(self.place)
        if found is None or found.facts["epochs"] <= _epochs_here(folder):
            return
        with tempfile.TemporaryDirectory(prefix=".restored-", dir=folder) as scratch:
            found = self.shared.fetch(self.place, Path(scratch))
            checkpoint.record(folder / LATEST, found.files[LATEST], int(found.facts["epochs"]))
            for name in (train.REQUEST_FILE, EPOCHS_FILE, LATEST):
                (Path(scratch) / name).replace(folder / name)
        self._kept = found

    def keep(self, folder: Path, *, last: bool) -> None:
        """Copy the state to the store if time has come, or at the end, patiently but shortly."""
        if not last and time.monotonic() - self._copied_at < CHECKPOINT_EVERY_S:
            return
        self._copied_at = time.monotonic()
        for pause_s in _LAST_PAUSES_S if last else (0.0,):
            time.sleep(pause_s)
            if self._is_copied(folder):
                return

    def _is_copied(self, folder: Path) -> bool:
        try:
            self._copy(folder)
        except NotFoundError:  # no checkpoint yet
            return True
        except UserError as error:
            _LOG.warning("the last checkpoint could not be copied to the store: %s", error)
            return False
        return True

    def _copy(self, folder: Path) -> None:
        with _frozen(folder) as still:
            if self._kept and self._kept.files.get(LATEST) == still.sha256:
                return
            names = (LATEST, EPOCHS_FILE, train.REQUEST_FILE)
            files = {name: still.path.parent / name for name in names}
            self._kept = self.shared.put(self.place, files, {"epochs": still.epochs})
            self.shared.sweep(self.place, keep=self._kept)


@contextmanager
def _frozen(folder: Path) -> Iterator[checkpoint.Saved]:
    """The checkpoint, with what belongs to it, in a folder where training does not replace it."""
    if not (folder / LATEST).is_file():
        raise NotFoundError("no checkpoint", file=folder / LATEST)
    with tempfile.TemporaryDirectory(prefix=".kept-", dir=folder) as scratch:
        still = Path(scratch, LATEST)
        try:
            os.link(folder / LATEST, still)
        except OSError:
            shutil.copyfile(folder / LATEST, still)
        for name in (EPOCHS_FILE, train.REQUEST_FILE):
            shutil.copyfile(folder / name, Path(scratch, name))
        yield checkpoint.check(still, copy_of=folder / LATEST)


def _epochs_here(folder: Path) -> int:
    """Whole epochs behind what lies on this machine; -1 without a checkpoint."""
    if (folder / CHECKPOINT).is_file():
        return len(checkpoint.read_epochs(folder / EPOCHS_FILE))
    found = checkpoint.saved(folder)
    return found.epochs if found else -1
