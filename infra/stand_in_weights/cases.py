"""Phantoms as a stand-in network meets them: at its spacing, normalised, with the labels that it learns."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.stand_in_weights.recipe import CLIP_HU, MEAN_HU, STD_HU, TOTAL_IDS, Recipe
from retroln.imaging.phantom import PhantomSpec, make_phantom
from retroln.imaging.volume import occupied_box

FIRST_TRAINING_SEED = 40_000
"""Tests use lower seeds, and hold out those from 90 000."""
_SPINE_EXTENT_MM = (180.0, 300.0, 330.0)

Case = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""Image and labels, both z, y, x; label n is the n-th of the recipe's ids."""


def training_cases(recipe: Recipe) -> list[Case]:
    """All phantoms that a network learns from; the same for the same recipe."""
    seeds = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + recipe.phantoms)
    processes = min(len(seeds), os.cpu_count() or 1)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(partial(training_case, recipe), seeds))


def training_case(recipe: Recipe, seed: int) -> Case:
    """One made-up patient in one of the contrast phases, a little tilted, with more or less noise."""
    rng = np.random.default_rng(seed)
    whole = PhantomSpec(0).extent_mm
    phantom = make_phantom(
        PhantomSpec(
            seed,
            spacing_mm=(recipe.spacing_mm,) * 3,
            tilt_deg=float(rng.uniform(-8, 8)),
            phase=("native", "arterial", "portal")[seed % 3],
            extent_mm=whole if recipe.margin_mm is None else _SPINE_EXTENT_MM,
            noise_hu=float(rng.uniform(14, 45)),
        )
    )
    labels = np.where(phantom.vertebrae.array > 0, phantom.vertebrae.array, phantom.ribs.array)
    lut = np.zeros(256, np.uint8)
    for number, value in enumerate(TOTAL_IDS[: len(recipe.ids)], start=1):
        lut[value] = number
    image, learnt = phantom.ct.array, lut[labels]
    if recipe.margin_mm is not None:
        box = occupied_box(learnt)
        assert box is not None, "a phantom has vertebrae"
        margin = round(recipe.margin_mm / recipe.spacing_mm)
        part = tuple(
            slice(max(lo - margin, 0), hi + margin) for lo, hi in zip(box.start, box.stop, strict=True)
        )
        image, learnt = image[part], learnt[part]
    return _zyx(normalised(image)).astype(np.float32), _zyx(learnt)


def normalised(hu: NDArray[Any]) -> NDArray[Any]:
    """nnU-Net's CTNormalization with the recipe's constants."""
    return (np.clip(hu, *CLIP_HU).astype(np.float32) - MEAN_HU) / STD_HU


def _zyx(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array.transpose(2, 1, 0))
