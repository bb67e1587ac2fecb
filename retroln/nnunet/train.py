"""Preprocess and train folds. Training runs in a process of its own, so that it can be stopped.

`python -m retroln.nnunet.train` is that process; `train_fold` starts and watches it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroln.errors import ConflictError, UserError
from retroln.files import sha256_file, sha256_json, write_json
from retroln.nnunet import bundle
from retroln.nnunet.dataset import DATASET_ID, DATASET_NAME
from retroln.nnunet.environment import Folders, activate, quiet
from retroln.nnunet.plans import threads_for_processes
from retroln.settings import TrainSpec

_LOG = logging.getLogger(__name__)
_WEEK_S = 7 * 24 * 3600.0
_POLL_S = 0.3
_GRACE_S = 10.0
# Threads that wait spin for some microseconds, then sleep: spinning on, they would take the cores from
# each other on a busy machine. Sleeping at once made a demo iteration 1.15 times as long.
_THREADS = {"GOMP_SPINCOUNT": "20000"}
# glibc gives every large tensor's memory back at once and faults it in again, 1.08 times as long.
_HEAP = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
_JOURNAL, _OUTPUT, _REQUEST = "epochs.jsonl", "training_output.txt", "request.json"


@dataclass(frozen=True)
class FoldResult:
    """A trained fold.

    Attributes:
        checkpoint: final weights.
        epochs: journal, one JSON object per line.
        seconds: wall time of this call; 0 epochs are trained if the fold was complete.
        resumed_at: epoch that this call started with.
    """

    fold: int
    checkpoint: Path
    epochs: Path
    seconds: float
    resumed_at: int


def preprocess(folders: Folders, plans_id: str, processes: int = 1) -> None:
    """Resample and normalise the raw dataset as planned, and write it for fast random access.

    Raises:
        UserError: a worker process died, most likely for want of memory.
    """
    from nnunetv2.preprocessing.preprocessors import default_preprocessor as module

    activate(folders.root)
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
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    timeout_s: float = _WEEK_S,
) -> FoldResult:
    """Train one fold to its end in a process of its own; a fold that was interrupted goes on.

    A complete fold with the same data, plans and spec is not trained again; one with others starts
    over. `on_epoch` is called here, in order, with each line of the journal that this call adds.

    Raises:
        UserError: the process died (memory is named), failed, or ran out of `timeout_s`.
        ConflictError: another process trains this fold.
    """
    started = time.monotonic()
    folder = bundle.model_folder(folders, plans_id) / f"fold_{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as lock:
        _start_over_if_changed(folder, _request(folders, plans_id, fold, spec))
        resumed_at = _resume_epoch(folder)
        if not (folder / bundle.CHECKPOINT).is_file():
            with _child(folders, folder, lock, spec) as process:
                _watch(process, folder, resumed_at, on_epoch, started + timeout_s)
    seconds = time.monotonic() - started
    return FoldResult(fold, folder / bundle.CHECKPOINT, folder / _JOURNAL, seconds, resumed_at)


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                "this fold is being trained by another process", file=folder, fix="wait for it"
            ) from error
        yield stream.fileno()


def _request(folders: Folders, plans_id: str, fold: int, spec: TrainSpec) -> dict[str, Any]:
    """All that decides the result; its hash tells whether earlier work can be used."""
    base = folders.preprocessed / DATASET_NAME
    inputs = ["dataset.json", "dataset_fingerprint.json", "splits_final.json", f"{plans_id}.json"]
    return {
        "plans_id": plans_id,
        "fold": fold,
        "spec": spec.model_dump(mode="json", include={*_SPEC_FIELDS}),
        "inputs": {name: sha256_file(base / name) for name in inputs},
    }


_SPEC_FIELDS = ("profile", "epochs", "iterations", "validation_iterations", "device", "seed")


def _start_over_if_changed(folder: Path, request: dict[str, Any]) -> None:
    recorded = folder / _REQUEST
    known = json.loads(recorded.read_bytes()) if recorded.is_file() else None
    if known is not None and sha256_json(known) != sha256_json(request):
        _LOG.warning("%s was trained with other data or settings and is trained anew", folder)
        for pattern in ("*.pth", "*.sha256", _JOURNAL):
            for stale in folder.glob(pattern):
                stale.unlink()
    write_json(recorded, request)


def _resume_epoch(folder: Path) -> int:
    """Epochs already in the journal, if there is a checkpoint to go on from."""
    saved = [folder / "checkpoint_latest.pth", folder / bundle.CHECKPOINT]
    return len(_lines(folder / _JOURNAL)) if any(file.is_file() for file in saved) else 0


def _lines(journal: Path) -> list[dict[str, Any]]:
    """Whole lines only; the last may still be being written."""
    if not journal.is_file():
        return []
    text = journal.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@contextmanager
def _child(folders: Folders, folder: Path, lock: int, spec: TrainSpec) -> Iterator[subprocess.Popen[bytes]]:
    """The training process. It holds the fold's lock too, so an orphan keeps others out until it ends."""
    with (folder / _OUTPUT).open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "retroln.nnunet.train", str(folders.root), str(folder)],
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
    told: int,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    deadline: float,
) -> None:
    while process.poll() is None:
        told = _tell(folder, told, on_epoch)
        if time.monotonic() > deadline:
            raise UserError("training ran out of time", file=folder, fix="train again: it resumes")
        time.sleep(_POLL_S)
    _tell(folder, told, on_epoch)
    if process.returncode:
        raise _death(process.returncode, folder)


def _tell(folder: Path, told: int, on_epoch: Callable[[dict[str, Any]], None] | None) -> int:
    lines = _lines(folder / _JOURNAL)
    if on_epoch is not None:
        for line in lines[told:]:
            on_epoch(line)
    return max(told, len(lines))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and the data loaders that it started; nothing happens if they are gone."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            continue


def _death(returncode: int, folder: Path) -> UserError:
    output = (folder / _OUTPUT).read_text(errors="replace")
    tail = " | ".join(line for line in output.splitlines()[-3:] if line.strip())
    memory = returncode in (-signal.SIGKILL, 128 + signal.SIGKILL) or "out of memory" in output.lower()
    if memory or "MemoryError" in output:
        what, fix = "training ran out of memory", "free memory or use a larger machine, then train again"
    elif returncode < 0:
        what, fix = f"training was ended by {signal.Signals(-returncode).name}", "train again: it resumes"
    else:
        what, fix = "training failed", f"look at {folder / _OUTPUT}"
    return UserError(what, file=folder, got=f"exit status {returncode}, {tail}", fix=fix)


def _device(name: str) -> Any:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device", expected="a GPU that torch can use", fix="device=auto or cpu")
    is_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if is_cuda else "cpu")


def _train_here(root: Path, folder: Path) -> None:
    """The child's work: train the fold that `request.json` describes, from its last checkpoint."""
    parent = os.getppid()
    folders = activate(root)
    request = json.loads((folder / _REQUEST).read_bytes())
    spec = TrainSpec.model_validate(request["spec"])
    if spec.profile == "demo":
        os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112 (nnU-Net spells it so)

    import numpy as np
    import torch

    from retroln.nnunet.trainer import RetroLNTrainer, parent_lives

    base = folders.preprocessed / DATASET_NAME
    plans = json.loads((base / f"{request['plans_id']}.json").read_bytes())
    described = json.loads((base / "dataset.json").read_bytes())
    trainer = RetroLNTrainer(plans, bundle.CONFIGURATION, request["fold"], described, _device(spec.device))
    trainer.apply(spec)
    trainer.may_go_on = parent_lives(parent)
    start = trainer.resume()
    np.random.seed((spec.seed + start) % 2**32)  # noqa: NPY002 (nnU-Net's loaders draw from the global one)
    torch.manual_seed(spec.seed + start)
    trainer.run_training()


if __name__ == "__main__":
    _train_here(Path(sys.argv[1]), Path(sys.argv[2]))
