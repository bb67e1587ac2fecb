"""The process that trains one fold: `python -m retroln.nnunet.child ROOT FOLD_FOLDER ARITHMETIC`."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, cast

from retroln.errors import UserError
from retroln.nnunet import bundle
from retroln.nnunet.arithmetic import of_network
from retroln.nnunet.dataset import DATASET_NAME
from retroln.nnunet.environment import activate
from retroln.nnunet.loaders import end_when_stuck
from retroln.nnunet.train import REQUEST_FILE
from retroln.settings import AskedArithmetic, TrainSpec


def _device(name: str) -> Any:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device", expected="a GPU that torch can use", fix="device=auto or cpu")
    is_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if is_cuda else "cpu")


def train_here(root: Path, folder: Path, asked: AskedArithmetic) -> None:
    """The child's work: train the fold that `request.json` describes, from its last checkpoint."""
    parent, told = os.getppid(), _listen()
    folders = activate(root)
    request = json.loads((folder / REQUEST_FILE).read_bytes())
    spec = TrainSpec.of_record(request["spec"])
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
    trainer.arithmetic = of_network(spec.profile, trainer.device.type, asked)
    end_when_stuck()
    lives = parent_lives(parent)
    trainer.may_go_on = lambda: lives() and not told
    start = trainer.resume()
    np.random.seed((spec.seed + start) % 2**32)  # noqa: NPY002 (nnU-Net's loaders draw from the global one)
    torch.manual_seed(spec.seed + start)
    try:
        trainer.run_training()
    finally:
        for loader in multiprocessing.active_children():
            loader.kill()  # they have inherited a deaf ear for SIGTERM


def _listen() -> list[int]:
    """Collect SIGTERMs instead of dying of them; data loaders outlive one too, until all is saved."""
    told: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        told.append(number)

    signal.signal(signal.SIGTERM, note)
    return told


if __name__ == "__main__":
    train_here(Path(sys.argv[1]), Path(sys.argv[2]), cast(AskedArithmetic, sys.argv[3]))
