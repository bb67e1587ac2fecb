"""Preprocess and train folds. Training runs in a process of its own, so that it can be stopped.

`retroln.nnunet.child` is that process; `train_fold` starts and watches it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from retroln.errors import ConflictError, UserError
from retroln.files import sha256_file, sha256_json, write_json
from retroln.nnunet import bundle
from retroln.nnunet.checkpoint import EPOCHS_FILE, INTERRUPTED, read_epochs, saved, write_epochs
from retroln.nnunet.dataset import DATASET_ID, DATASET_NAME
from retroln.nnunet.environment import Folders, activate, quiet
from retroln.nnunet.loaders import why_stuck
from retroln.nnunet.plans import threads_for_processes
from retroln.settings import AskedArithmetic, TrainSpec

_LOG = logging.getLogger(__name__)
_WEEK_S = 7 * 24 * 3600.0
_POLL_S = 0.3
_GRACE_S = 20.0  # for one iteration and a checkpoint; Kubernetes kills after 30
# Threads that wait spin for some microseconds, then sleep: spinning on, they would take the cores from
# each other on a busy machine. Sleeping at once made a demo iteration 1.15 times as long.
_THREADS = {"GOMP_SPINCOUNT": "20000"}
# glibc gives every large tensor's memory back at once and faults it in again, 1.08 times as long.
_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
_OUTPUT, REQUEST_FILE = "training_output.txt", "request.json"

OnEpoch = Callable[[dict[str, Any]], None]


class Keeper(Protocol):
    """Carries a fold's resumable state between this machine and a place that outlives it.

    Both are called while this process alone works in the fold's folder.
    """

    def restore(self, folder: Path) -> None:
        """Bring state into the folder before training if it is further on than what lies there.

        State of other data or settings does no harm: it is thrown away.
        """
        ...

    def keep(self, folder: Path, *, last: bool) -> None:
        """Copy the state away, now and then, and when an interrupted training has ended (`last`).

        It never raises for a place that is away: training goes on without.
        """
        ...


@dataclass(frozen=True)
class FoldResult:
    """A trained fold.

    Attributes:
        checkpoint: final weights.
        epochs: journal, one JSON object per line.
        seconds: wall time of this call; 0 epochs are trained if the fold was complete.
        resumed_at: epoch that this call started with; the number of epochs if the fold was complete.
    """

    fold: int
    checkpoint: Path
    epochs: Path
    seconds: float
    resumed_at: int


def preprocess(folders: Folders, plans_id: str, processes: int = 1) -> None:
    """Resample and normalise the raw dataset as planned, and write it for fast random access.

    The dataset's description is laid beside the plans first: only nnU-Net's own planner does that.

    Raises:
        UserError: a worker process died, most likely for want of memory.
    """
    from nnunetv2.preprocessing.preprocessors import default_preprocessor as module

    activate(folders.root)
    description = folders.raw / DATASET_NAME / "dataset.json"
    shutil.copyfile(description, folders.preprocessed / DATASET_NAME / "dataset.json")
    try:
        with quiet(), threads_for_processes(module, processes):
            preprocessor = module.DefaultPreprocessor(verbose=False)
            preprocessor.show_progress_bar = False
            preprocessor.run(DATASET_ID, bundle.CONFIGURATION, plans_id, num_processes=processes)
    except RuntimeError as error:
        if "6 feet under" not in str(error):
            raise
        raise UserError(
            "a preprocessing process was killed, most likely for want of memory", fix="use fewer processes"
        ) from error


def train_fold(
    folders: Folders,
    plans_id: str,
    fold: int,
    spec: TrainSpec,
    on_epoch: OnEpoch | None = None,
    *,
    keeper: Keeper | None = None,
    timeout_s: float = _WEEK_S,
    arithmetic: AskedArithmetic = "auto",
) -> FoldResult:
    """Train one fold to its end in a process of its own; a fold that was interrupted goes on.

    A complete fold with the same data, plans and spec is not trained again; one with others starts
    over. `arithmetic` is the machine's, not the spec's: a fold may go on elsewhere in another one, and its
    journal says which each epoch was trained in. `on_epoch` is called here, in order, with each line of the
    journal that this call adds. An exception that reaches the caller meanwhile (a signal, an error in
    `on_epoch`) lets the process save what it has, and goes on its way.

    Raises:
        UserError: the process died (memory is named), failed, or ran out of `timeout_s`.
        ConflictError: another process trains this fold.
        IntegrityError: the checkpoint is not the one that training wrote.
    """
    started = time.monotonic()
    folder = fold_folder(folders, plans_id, fold)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as lock:
        request = _request(folders, plans_id, fold, spec)
        _start_over_if_changed(folder, request)
        if keeper:
            keeper.restore(folder)
            _start_over_if_changed(folder, request)
        resumed_at = _resume_epoch(folder)
        if not (folder / bundle.CHECKPOINT).is_file():
            with _kept(keeper, folder) as keep, _child(folders, folder, lock, spec, arithmetic) as process:
                _watch(process, folder, on_epoch, keep, started + timeout_s)
    seconds = time.monotonic() - started
    return FoldResult(fold, folder / bundle.CHECKPOINT, folder / EPOCHS_FILE, seconds, resumed_at)


def fold_folder(folders: Folders, plans_id: str, fold: int) -> Path:
    """Where a fold's files lie on this machine."""
    return bundle.model_folder(folders, plans_id) / f"fold_{fold}"


@contextmanager
def _kept(keeper: Keeper | None, folder: Path) -> Iterator[Callable[[], None]]:
    """Something to call now and then; an exception has the keeper take the last state away."""
    try:
        yield (lambda: keeper.keep(folder, last=False)) if keeper else (lambda: None)
    except BaseException:
        if keeper:
            keeper.keep(folder, last=True)
        raise


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """The fold's lock. A process whose parent died saves and ends within the grace, so wait for it."""
    deadline = time.monotonic() + _GRACE_S
    with (folder / ".lock").open("w") as stream:
        while not _is_mine(stream):
            if time.monotonic() > deadline:
                raise ConflictError(
                    "this fold is being trained by another process", file=folder, fix="wait for it"
                )
            time.sleep(_POLL_S)
        yield stream.fileno()


def _is_mine(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _request(folders: Folders, plans_id: str, fold: int, spec: TrainSpec) -> dict[str, Any]:
    """All that decides the result; its hash tells whether earlier work can be used."""
    base = folders.preprocessed / DATASET_NAME
    inputs = ["dataset.json", "dataset_fingerprint.json", "splits_final.json", f"{plans_id}.json"]
    return {
        "plans_id": plans_id,
        "fold": fold,
        "spec": spec.recorded(_SPEC_FIELDS),
        "inputs": {name: sha256_file(base / name) for name in inputs},
    }


_SPEC_FIELDS = ("profile", "epochs", "iterations", "validation_iterations", "device", "seed")


def _start_over_if_changed(folder: Path, request: dict[str, Any]) -> None:
    recorded = folder / REQUEST_FILE
    known = json.loads(recorded.read_bytes()) if recorded.is_file() else None
    if known is not None and sha256_json(known) != sha256_json(request):
        _LOG.warning("%s was trained with other data or settings and is trained anew", folder)
        for pattern in ("*.pth", "*.sha256", EPOCHS_FILE):
            for stale in folder.glob(pattern):
                stale.unlink()
    write_json(recorded, request)


def _resume_epoch(folder: Path) -> int:
    """Whole epochs behind what is there; later lines of the journal are cut, they will come again."""
    journal = folder / EPOCHS_FILE
    if (folder / bundle.CHECKPOINT).is_file():
        return len(read_epochs(journal))
    found = saved(folder)
    epochs = found.epochs if found else 0
    write_epochs(journal, read_epochs(journal)[:epochs])
    return epochs


@contextmanager
def _child(
    folders: Folders, folder: Path, lock: int, spec: TrainSpec, arithmetic: AskedArithmetic
) -> Iterator[subprocess.Popen[bytes]]:
    """The training process. It holds the fold's lock too, so an orphan keeps others out until it ends."""
    with (folder / _OUTPUT).open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "retroln.nnunet.child", str(folders.root), str(folder), arithmetic],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**_THREADS, **(_HEAP if spec.profile == "demo" else {}), **os.environ},
            pass_fds=(lock,),
        )
    try:
        yield process
    finally:
        _stop(process)


def _watch(
    process: subprocess.Popen[bytes],
    folder: Path,
    on_epoch: OnEpoch | None,
    keep: Callable[[], None],
    deadline: float,
) -> None:
    told = len(read_epochs(folder / EPOCHS_FILE))
    while process.poll() is None:
        told = _tell(folder, told, on_epoch)
        keep()
        if time.monotonic() > deadline:
            raise UserError("training ran out of time", file=folder, fix="train again: it resumes")
        time.sleep(_POLL_S)
    _tell(folder, told, on_epoch)
    if process.returncode:
        raise _death(process.returncode, folder)


def _tell(folder: Path, told: int, on_epoch: OnEpoch | None) -> int:
    lines = read_epochs(folder / EPOCHS_FILE)
    if on_epoch is not None:
        for line in lines[told:]:
            on_epoch(line)
    return max(told, len(lines))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let the process save and end, then end what is left of its group, such as its data loaders."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _death(returncode: int, folder: Path) -> UserError:
    output = (folder / _OUTPUT).read_text("utf-8", "replace")
    tail = " | ".join(line for line in output.splitlines()[-3:] if line.strip())
    memory = returncode in (-signal.SIGKILL, 128 + signal.SIGKILL) or "out of memory" in output.lower()
    if stuck := why_stuck(output):
        what, fix = stuck
    elif memory or "MemoryError" in output:
        what, fix = "training ran out of memory", "free memory or use a larger machine, then train again"
    elif returncode == INTERRUPTED:
        what, fix = "training was told to stop and saved what it had", "train again: it resumes"
    elif returncode < 0:
        what, fix = f"training was ended by {signal.Signals(-returncode).name}", "train again: it resumes"
    else:
        what, fix = "training failed", f"look at {folder / _OUTPUT}"
    return UserError(what, file=folder, got=f"exit status {returncode}, {tail}", fix=fix)
