"""Train a stand-in network in a few minutes of a CPU, and lay it out as TotalSegmentator wants it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infra.stand_in_weights.cases import Case, training_cases
from infra.stand_in_weights.recipe import Recipe
from retroln.anatomy.totalseg_weights import NETWORKS
from retroln.nnunet import model_folder
from retroln.nnunet.arithmetic import autocast, choose
from retroln.nnunet.muon import Muon

_LR, _WEIGHT_DECAY, _WARM_UP = 6e-3, 1e-2, 40
_BATCH = 2  # in float32 torch leaves small convolutions to oneDNN from two patches on; alone it is slower
_FAINT = 0.3  # of random weights beside those that enlarge
_COARSE_SHARE = 0.7  # of the iterations, at half the resolution: levels are told apart there, and sooner
_NEVER = -50.0  # logit of a label that is not learnt; nnU-Net sums logits in half precision
_BONE_WEIGHT = 8.0  # at the beginning; it falls to 1
_CUT_SHARE = 0.25  # of patches whose scan shows a part of the spine alone
_ON_SPINE_SHARE = 0.7
_OFF_CENTRE = 0.35  # of the patch, how far from its middle the spine is at most: tiles meet it anywhere

Tell = Callable[[str], None]


def make(recipe: Recipe, folder: Path, tell: Tell) -> None:
    """Train a network and write it below `folder`."""
    started = time.monotonic()
    cases = training_cases(recipe)
    rendered_s = time.monotonic() - started
    state = train(recipe, cases, tell)
    write(recipe, state, folder)
    tell(f"{recipe.task_id}: phantoms {rendered_s:.0f} s, all {time.monotonic() - started:.0f} s")


def train(recipe: Recipe, cases: Sequence[Case], tell: Tell) -> dict[str, torch.Tensor]:
    """Muon, Dice and cross-entropy: weights of a network with the learnt outputs.

    Most of it at half the resolution; what that part has learnt is then enlarged, and the whole goes on.
    """
    arithmetic = choose().arithmetic
    torch.manual_seed(recipe.task_id)
    network = model_folder.build_network(recipe.plans(), len(recipe.ids) + 1)
    network = network.to(memory_format=torch.channels_last_3d).train()
    optimizer = Muon.of_unet(network, _LR, _WEIGHT_DECAY)
    pace = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _pace(step, recipe.iterations))
    started, recent = time.monotonic(), []
    coarse_iterations = round(_COARSE_SHARE * recipe.iterations)
    for number, (images, labels) in enumerate(_batches(recipe, cases), start=1):
        optimizer.zero_grad(set_to_none=True)
        with autocast(arithmetic):
            if number <= coarse_iterations:
                logits, labels = _coarse(network, images), labels[:, ::2, ::2, ::2]
            else:
                logits = network(images)
        loss = _loss(logits.float(), labels, _BONE_WEIGHT ** (1 - number / recipe.iterations))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12.0)
        optimizer.step()
        pace.step()
        if number == coarse_iterations:
            _enlarge(network, images)
        recent.append(float(loss.detach()))
        if number % 100 == 0 or number == recipe.iterations:
            mean = float(np.mean(recent[-100:]))
            tell(f"{recipe.task_id}: step {number}, loss {mean:.3f}, {time.monotonic() - started:.0f} s")
    return {name: value.detach().contiguous() for name, value in network.state_dict().items()}


def write(recipe: Recipe, state: dict[str, torch.Tensor], folder: Path) -> None:
    """Give the network an output for each of TotalSegmentator's labels, and lay it out below `folder`."""
    whole = model_folder.build_network(recipe.plans(), recipe.n_labels).state_dict()
    for name, value in whole.items():
        if value.shape == state[name].shape:
            value.copy_(state[name])
            continue
        value.fill_(_NEVER if value.ndim == 1 else 0.0)
        value[[0, *recipe.ids]] = state[name]
    network = NETWORKS[recipe.task_id]
    model_folder.write(folder / network.folder, recipe.plans(), recipe.dataset(), whole)


def _pace(step: int, steps: int) -> float:
    """Learning rate over its highest: a short warm-up, then polynomial decay."""
    return min(1.0, (step + 1) / _WARM_UP) * (1 - step / (steps + 1)) ** 0.9


def _coarse(network: Any, images: torch.Tensor) -> torch.Tensor:
    """Logits at half the resolution, by the output that nnU-Net keeps there for deep supervision."""
    return network.decoder.seg_layers[-2](_coarse_features(network, images))


def _coarse_features(network: Any, images: torch.Tensor) -> torch.Tensor:
    decoder, skips = network.decoder, network.encoder(images)
    features = skips[-1]
    for up, stage, skip in zip(decoder.transpconvs[:-1], decoder.stages[:-1], skips[-2:0:-1], strict=True):
        features = stage(torch.cat((up(features), skip), 1))
    return features


@torch.no_grad()
def _enlarge(network: Any, images: torch.Tensor) -> None:
    """Let the finest stage begin as an enlargement of the coarse one: it has to learn no more than details.

    Both have as many features. Its normalisation gives back the mean and the spread that it takes away.
    """
    decoder, coarse = network.decoder, _coarse_features(network, images).float()
    up, block, head = decoder.transpconvs[-1], decoder.stages[-1].convs[0], decoder.seg_layers[-1]
    same = torch.eye(coarse.shape[1])
    up.weight.copy_(same[:, :, None, None, None].expand_as(up.weight))
    up.bias.zero_()
    middle = tuple(side // 2 for side in block.conv.kernel_size)
    block.conv.weight.mul_(_FAINT)
    block.conv.weight[:, : len(same), *middle] += same
    block.norm.weight.copy_(coarse.std((2, 3, 4)).mean(0))
    block.norm.bias.copy_(coarse.mean((0, 2, 3, 4)))
    head.load_state_dict(decoder.seg_layers[-2].state_dict())


def _loss(logits: torch.Tensor, labels: torch.Tensor, bone_weight: float) -> torch.Tensor:
    """Cross-entropy and the mean soft Dice loss of the labels that are in the batch.

    A few voxels in a hundred are bone of interest, so it weighs more at first.
    """
    classes = logits.shape[1]
    weights = torch.full((classes,), bone_weight)
    weights[0] = 1.0
    labels = labels.flatten(1)
    log_shares = logits.flatten(2).contiguous().log_softmax(1)
    shares = log_shares.exp()
    right = shares.gather(1, labels[:, None])
    overlap = torch.zeros(classes).index_add(0, labels.flatten(), right.flatten())[1:]
    volume = labels.flatten().bincount(minlength=classes)[1:]
    dice = (2 * overlap + 1) / (shares.sum((0, 2))[1:] + volume + 1)
    entropy = torch.nn.functional.nll_loss(log_shares, labels, weights)
    present = volume > 0
    return entropy + (1 - dice[present]).mean() if present.any() else entropy


def _batches(recipe: Recipe, cases: Sequence[Case]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rng = np.random.default_rng(recipe.task_id)
    for _ in range(recipe.iterations):
        chosen = rng.integers(len(cases), size=_BATCH)
        patches = [_patch(cases[case], recipe.patch, rng) for case in chosen]
        images, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*patches, strict=True))
        yield images[:, None].to(memory_format=torch.channels_last_3d), labels.long()


def _patch(case: Case, size: tuple[int, int, int], rng: np.random.Generator) -> Case:
    """A patch, mostly of the spine, of the whole scan or of one that ends within the spine."""
    image, labels = case
    if rng.uniform() < _CUT_SHARE:
        low, high = rng.uniform(0, 0.35), rng.uniform(0.65, 1)
        keep = slice(int(low * len(image)), int(high * len(image)))
        image, labels = image[keep], labels[keep]
    starts = [int(rng.integers(0, max(n - side, 0) + 1)) for n, side in zip(image.shape, size, strict=True)]
    if rng.uniform() < _ON_SPINE_SHARE and labels.any():
        middle = np.argwhere(labels[::4, ::4, ::4]).mean(0) * 4
        for axis in (1, 2):
            at = round(middle[axis] - size[axis] / 2 + rng.uniform(-_OFF_CENTRE, _OFF_CENTRE) * size[axis])
            starts[axis] = int(np.clip(at, 0, max(image.shape[axis] - size[axis], 0)))
    part = tuple(slice(start, start + side) for start, side in zip(starts, size, strict=True))
    image = image[part] * np.float32(rng.uniform(0.9, 1.1)) + np.float32(rng.uniform(-0.1, 0.1))
    image = image + rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 0.12))
    return _padded(image, size), _padded(labels[part], size)


def _padded(array: Any, size: tuple[int, int, int]) -> Any:
    """Zeros on both sides of what is too small, as nnU-Net pads."""
    missing = [side - n for n, side in zip(array.shape, size, strict=True)]
    return np.pad(array, [(n // 2, n - n // 2) for n in missing])
