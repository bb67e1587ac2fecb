"""Phantoms as a stand-in network meets them: at its spacing, normalised, with the labels that it learns."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.stand_in_weights.recipe import CLIP_HU, MEAN_HU, STD_HU, Recipe
from retroln.imaging.phantom import PhantomSpec, make_phantom
from retroln.machine import cores

FIRST_TRAINING_SEED = 40_000
"""Tests use lower seeds, and hold out those from 90 000."""

Case = tuple[NDArray[np.float32], NDArray[np.uint8]]
"""Image and labels, both z, y, x; label n is the n-th of the recipe's ids."""


def training_cases(recipe: Recipe) -> list[Case]:
    """All phantoms that the network learns from; the same for the same recipe."""
    seeds = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + recipe.phantoms)
    processes = min(len(seeds), cores())
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(partial(training_case, recipe), seeds))


def training_case(recipe: Recipe, seed: int) -> Case:
    """One made-up patient in one of the contrast phases, a little tilted, with more or less noise."""
    rng = np.random.default_rng(seed)
    phantom = make_phantom(
        PhantomSpec(
            seed,
            spacing_mm=(recipe.spacing_mm,) * 3,
            tilt_deg=float(rng.uniform(-8, 8)),
            phase=("native", "arterial", "portal")[seed % 3],
            noise_hu=float(rng.uniform(14, 45)),
        )
    )
    labels = np.where(phantom.vertebrae.array > 0, phantom.vertebrae.array, phantom.ribs.array)
    lut = np.zeros(256, np.uint8)
    for number, value in enumerate(recipe.ids, start=1):
        lut[value] = number
    return _zyx(normalised(phantom.ct.array)).astype(np.float32), _zyx(lut[labels])


def normalised(hu: NDArray[Any]) -> NDArray[Any]:
    """nnU-Net's CTNormalization with the recipe's constants."""
    return (np.clip(hu, *CLIP_HU).astype(np.float32) - MEAN_HU) / STD_HU


def _zyx(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array.transpose(2, 1, 0))
