"""Any trained nnU-Net model folder: opened once, kept, and used from folder to folder without processes.

A model folder is `plans.json`, `dataset.json` and `fold_<n>/checkpoint_final.pth`, as every nnU-Net leaves it
and TotalSegmentator ships it. RetroLN's own models are bundles (`retroln.nnunet.bundle`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from retroln.errors import IntegrityError, NotFoundError
from retroln.files import atomic_path, sha256_unchanged, write_json
from retroln.nnunet.bundle import CHECKPOINT, CONFIGURATION
from retroln.nnunet.environment import quiet

PLANS_FILE, DATASET_FILE = "plans.json", "dataset.json"
STAND_IN = "stand_in"
"""Key of `dataset.json` under which a network says that it stands in for another one; nnU-Net ignores it."""
_IMAGE_END = "_0000.nii.gz"
_KEPT = 8  # TotalSegmentator's full quality, with robust cropping, ribs and refinement, takes five


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose bytes are known.

    Attributes:
        files: name and sha256 of each file, names relative to `path`.
    """

    path: Path
    files: tuple[tuple[str, str], ...]
    folds: tuple[int, ...] = (0,)

    def check(self) -> None:
        """Hash every file. A checkpoint is a pickle: nothing is loaded that is not what was recorded.

        Raises:
            NotFoundError: a file is missing.
            IntegrityError: a file has other bytes.
        """
        for name, recorded in self.files:
            file = self.path / name
            if not file.is_file():
                raise NotFoundError("a file of the network is missing", file=file, fix=_FETCH)
            if (got := sha256_unchanged(file)) != recorded:
                raise IntegrityError(
                    "bytes do not match their recorded sha256",
                    file=file,
                    expected=recorded,
                    got=got,
                    fix=_FETCH,
                )


def predict_folder(
    model: ModelFolder, source: Path, target: Path, *, device: str, tile_step: float, mirroring: bool
) -> None:
    """Predict every `<case>_0000.nii.gz` of a folder into `<case>.nii.gz`, in this process.

    The stock prediction: nnU-Net's preprocessing, sliding window and export, one file after the other. The
    network stays loaded for the next call with the same model, device and options.

    Args:
        device: as torch names it, e.g. "cpu" or "cuda:0".
        tile_step: distance of two tiles as a share of the patch.

    Raises:
        NotFoundError, IntegrityError: as `ModelFolder.check`, when the network is loaded.
    """
    import torch

    predictor = _opened(model, device, tile_step, mirroring)
    torch.backends.cudnn.benchmark = device != "cpu"  # callers put it back, opening a predictor sets it
    images = sorted(source.glob(f"*{_IMAGE_END}"))
    # given a folder, nnU-Net starts a pool of processes to list it
    inputs = [[str(image)] for image in images]
    outputs = [str(target / image.name.removesuffix(_IMAGE_END)) for image in images]
    with quiet():
        predictor.predict_from_files_sequential(inputs, outputs)


@lru_cache(maxsize=_KEPT)
def _opened(model: ModelFolder, device: str, tile_step: float, mirroring: bool) -> Any:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    model.check()
    with quiet():
        predictor = nnUNetPredictor(
            tile_step_size=tile_step, use_mirroring=mirroring, device=torch.device(device), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(model.path), model.folds, CHECKPOINT)
    return predictor


def build_network(plans: Mapping[str, Any], n_outputs: int) -> Any:
    """The untrained network of a plan for one input channel, without deep supervision."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    with quiet():
        return get_network_from_plans(
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
            1,
            n_outputs,
            deep_supervision=False,
        )


def write(
    path: Path,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    weights: Mapping[str, Any],
    trainer: str = "nnUNetTrainer",
) -> None:
    """Lay out fold 0 of a model folder that stock nnU-Net predicts with, unmirrored.

    Args:
        weights: the network's `state_dict`, on the CPU.
        trainer: a trainer class of nnU-Net's; inference builds the network through it.
    """
    import torch

    write_json(path / PLANS_FILE, plans)
    write_json(path / DATASET_FILE, dataset)
    content = {
        "network_weights": dict(weights),
        "trainer_name": trainer,
        "init_args": {"configuration": CONFIGURATION, "fold": 0},
        "inference_allowed_mirroring_axes": None,
    }
    with atomic_path(path / "fold_0" / CHECKPOINT) as partial:
        torch.save(content, partial)


def labels_in(dataset: bytes) -> int:
    """How many labels, background included, a `dataset.json` names. Raises `ValueError` if it names none."""
    content = json.loads(dataset)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not labels:
        raise ValueError("no labels")
    return len(labels)


def stand_in_of(dataset: bytes) -> str | None:
    """What a `dataset.json` says of itself if its network stands in for another one."""
    said = json.loads(dataset).get(STAND_IN)
    return None if said is None else str(said)


_FETCH = "delete the folder; the next run fetches it again"
