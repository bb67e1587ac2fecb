"""nnU-Net's trainer with RetroLN's budget, patience for a CPU, and a journal of epochs.

The class lives outside nnU-Net's tree. Its checkpoints name the stock trainer, because inference
needs nothing else: a bundle can be read by any nnU-Net.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from numpy.typing import NDArray

from retroln.files import atomic_path, sha256_file
from retroln.nnunet import checkpoint
from retroln.nnunet.arithmetic import autocast
from retroln.nnunet.bundle import CHECKPOINT
from retroln.nnunet.checkpoint import EPOCHS_FILE, INTERRUPTED, LATEST
from retroln.nnunet.muon import Muon
from retroln.nnunet.patches import LabelledCrop, Patches, PatchPlan
from retroln.nnunet.plans import PROFILE_KEY
from retroln.settings import TrainSpec

_DEMO_LR, _DEMO_WEIGHT_DECAY = 1.5e-2, 1e-2
_WARM_UP = 0.1  # of all iterations
_SETTLED = 0.7  # of all epochs: from here on the norms keep what they have seen so far
_NODE_SHARE = 0.02  # what the untrained network says everywhere: about the share of node voxels


class RetroLNTrainer(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's training with our epochs; profile `demo` is made to learn in minutes on a CPU.

    Both keep nnU-Net's loss (Dice + cross-entropy, deep supervision) and polynomial decay.
    `reference` is stock: SGD with Nesterov momentum 0.99 from 0.01, weight decay 3e-5, augmentation,
    mirroring on axes 0, 1, 2. `demo` takes Muon up to 0.015 with a warm-up (`retroln.nnunet.muon`;
    in 300 steps it learns what SGD has not begun to), the average of its last weights, and patches that
    follow its mistakes (`retroln.nnunet.patches`), unmirrored. On a CPU a network is laid out channels-last
    and computes in `arithmetic`.
    """

    network: Any
    arithmetic = "float32"

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device,
    ) -> None:
        super().__init__({**plans, "continue_training": False}, configuration, fold, dataset_json, device)
        self.is_demo = plans.get(PROFILE_KEY) == "demo"
        self.oversample_foreground_percent = 0.5
        self.save_every = 1 if self.is_demo else 10
        if self.is_demo:
            # the journal has the same figures; to draw them takes as long as several iterations
            self.logger.plot_progress_png = lambda _: None
        self.may_go_on: Callable[[], bool] = lambda: True
        self._seed, self._step = 0, 0
        self._said: Any = None

    def apply(self, spec: TrainSpec) -> None:
        """Take budget and seed from the spec, before training starts."""
        self._seed = spec.seed
        self.num_epochs = spec.epochs
        self.num_iterations_per_epoch = spec.iterations
        self.num_val_iterations_per_epoch = spec.validation_iterations

    @property
    def folder(self) -> Path:
        """Where this fold's files lie."""
        return Path(self.output_folder)

    def initialize(self) -> None:
        """Build network, optimiser and loss."""
        super().initialize()
        if self.is_demo:
            self._expect_few_nodes()
            self.network.register_forward_hook(self._listen)
        if self.device.type == "cpu":
            self.network = self.network.to(memory_format=torch.channels_last_3d)

    def configure_optimizers(self) -> Any:
        """Stock SGD, or Muon for the demo: its heads, biases and norms follow AdamW."""
        if not self.is_demo:
            return super().configure_optimizers()
        from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

        self.initial_lr = _DEMO_LR
        optimizer = Muon.of_unet(self.network, _DEMO_LR, _DEMO_WEIGHT_DECAY)
        return optimizer, PolyLRScheduler(optimizer, _DEMO_LR, self.num_epochs)

    def _expect_few_nodes(self) -> None:
        """Start from the share of node voxels, not from one half: that takes hundreds of steps to unlearn."""
        for layer in self.network.decoder.seg_layers:
            with torch.no_grad():
                layer.bias.copy_(torch.tensor([0.0, math.log(_NODE_SHARE / (1 - _NODE_SHARE))]))

    def _listen(self, _: Any, __: Any, outputs: Any) -> None:
        self._said = (outputs[0] if isinstance(outputs, (list, tuple)) else outputs).detach()

    def get_dataloaders(self) -> Any:
        """The stock loaders; the demo has patches that follow its mistakes, from crops kept in memory."""
        if not self.is_demo:
            return super().get_dataloaders()
        self.dataset_class = infer_dataset_class(self.preprocessed_dataset_folder)
        training, validation = self.get_tr_and_val_datasets()
        return self._patches(training, 0), self._patches(validation, 1)

    def _patches(self, dataset: Any, stream: int) -> Patches:
        loaded = (dataset.load_case(name) for name in dataset.identifiers)
        crops = [LabelledCrop.of(image[:][0], mask[:][0]) for image, mask, *_ in loaded]
        planned, scales = self.configuration_manager, self._get_deep_supervision_scales()
        plan = PatchPlan(tuple(planned.patch_size), planned.batch_size, scales)
        return Patches(crops, plan, np.random.default_rng([self._seed, self.current_epoch, stream]))

    def on_train_epoch_start(self) -> None:
        """As nnU-Net; the demo's learning rate then changes with every iteration, and its norms settle."""
        super().on_train_epoch_start()
        self._step = self.current_epoch * self.num_iterations_per_epoch
        if self.is_demo and self.current_epoch >= _SETTLED * self.num_epochs:
            self._settle_norms()

    def _settle_norms(self) -> None:
        """Normalise as inference will: a batch of difficult patches is not like the tiles of a scan."""
        for module in self.network.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.eval()

    def _set_pace(self) -> None:
        """Linear warm-up, then nnU-Net's polynomial decay."""
        share = self._step / (self.num_epochs * self.num_iterations_per_epoch)
        self._step += 1
        for group in self.optimizer.param_groups:
            group["lr"] = _DEMO_LR * min(1.0, (share + 1e-3) / _WARM_UP) * (1 - share) ** 0.9

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One step of the stock trainer, on a CPU in `arithmetic`.

        Raises:
            SystemExit: training may not go on; what it has is saved, and the status is `INTERRUPTED`.
        """
        self._leave_if_told()
        if self.is_demo:
            self._set_pace()
        with self._laid_out(batch):
            taken = dict(super().train_step(batch))
        if self.is_demo:
            self.dataloader_train.learn(_probability(self._said))
        return taken

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One validation batch, in the same arithmetic as training; `SystemExit` as in `train_step`."""
        self._leave_if_told()
        with self._laid_out(batch):
            return dict(super().validation_step(batch))

    def _laid_out(self, batch: dict[str, Any]) -> Any:
        if self.device.type == "cpu":
            batch["data"] = batch["data"].to(memory_format=torch.channels_last_3d)
        return autocast(self.arithmetic)

    def _build_loss(self) -> Any:
        """nnU-Net's loss; where the network runs in bf16 its outputs are summed in float32.

        nnU-Net's own trainers override this one: it is the place for another loss, whatever its name says.
        """
        loss = super()._build_loss()
        if self.arithmetic != "bf16":
            return loss
        return lambda outputs, targets: loss([output.float() for output in outputs], targets)

    def on_epoch_end(self) -> None:
        """Checkpoint, then one line in the journal; `resume` adds the line that a crash in between loses."""
        epoch = self.current_epoch
        super().on_epoch_end()
        with (self.folder / EPOCHS_FILE).open("a") as stream:
            stream.write(json.dumps(self._figures(epoch)) + "\n")

    def _leave_if_told(self) -> None:
        """Save between two iterations and exit. The epoch counts as not begun, and is done again later."""
        if self.may_go_on():
            return
        for values in self.logger.get_checkpoint().values():
            del values[self.current_epoch :]
        self.current_epoch -= 1  # nnU-Net stores the number after this one
        self.save_checkpoint(str(self.folder / LATEST))
        raise SystemExit(INTERRUPTED)

    def _figures(self, epoch: int) -> dict[str, Any]:
        def value(name: str) -> float:
            return float(self.logger.get_value(name, step=epoch))

        figures: dict[str, Any] = {
            "epoch": epoch,
            "train_loss": value("train_losses"),
            "val_loss": value("val_losses"),
            "pseudo_dice": value("mean_fg_dice"),
            "lr": value("lrs"),
            "arithmetic": self.arithmetic,
            "seconds": value("epoch_end_timestamps") - value("epoch_start_timestamps"),
        }
        return {name: number if _is_sayable(number) else None for name, number in figures.items()}

    def save_checkpoint(self, filename: str) -> None:
        """Write atomically. The final one holds the weights and plain values alone (no optimiser)."""
        target = Path(filename)
        if target.name == CHECKPOINT:
            self._save_weights(target)
            return
        with atomic_path(target) as partial:
            super().save_checkpoint(str(partial))
            checkpoint.record(target, sha256_file(partial), self.current_epoch + 1)

    def _save_weights(self, target: Path) -> None:
        # a compiled module has no public name for the one inside; nnU-Net reads this one, too
        network = getattr(self.network, "_orig_mod", self.network)
        weights = {**network.state_dict()}
        if self.is_demo:
            # the decoder holds the encoder once more
            named = network.named_parameters(remove_duplicate=False)
            weights |= {name: self.optimizer.average_of(weight) for name, weight in named}
        init = {name: self.my_init_kwargs[name] for name in ("configuration", "fold")}
        content = {
            "network_weights": {k: v.detach().cpu().contiguous() for k, v in weights.items()},
            "trainer_name": nnUNetTrainer.__name__,
            "init_args": init,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
        }
        with atomic_path(target) as partial:
            torch.save(content, partial)

    def resume(self) -> int:
        """Go on after the last checkpoint if there is one; the epoch to start with.

        Raises:
            IntegrityError: the checkpoint is not the one that this trainer wrote.
        """
        if found := checkpoint.saved(self.folder):
            self.load_checkpoint(str(found.path))
        journal = self.folder / EPOCHS_FILE
        kept = checkpoint.read_epochs(journal)[: self.current_epoch]
        lost = [self._figures(epoch) for epoch in range(len(kept), self.current_epoch)]
        checkpoint.write_epochs(journal, kept + lost)
        return int(self.current_epoch)

    def plot_network_architecture(self) -> None:
        """Nothing: it wants a package that no longer works."""


def _probability(logits: torch.Tensor) -> NDArray[np.float32]:
    """P(node) from the two logits, shape (b, z, y, x)."""
    two = logits.float()
    probability: NDArray[np.float32] = torch.sigmoid(two[:, 1] - two[:, 0]).cpu().numpy()
    return probability


def _is_sayable(value: Any) -> bool:
    """Whether JSON knows the value: no NaN, no infinity."""
    return isinstance(value, str) or math.isfinite(value)


def parent_lives(parent: int) -> Callable[[], bool]:
    """Whether this process still has the parent that started it."""
    return lambda: os.getppid() == parent
