"""Untrained networks under TotalSegmentator's names: its code runs through them, what they find is noise."""

from __future__ import annotations

from pathlib import Path

from infra.stand_in_weights.recipe import TOTAL_IDS, Recipe
from retroln.anatomy.totalseg_weights import FAST, NUMBERING, RIBS, ROUGH, VERTEBRAE, Weights
from retroln.settings import Settings, TotalSegSpec
from retroln.steps import weights, weights_copy
from tests.way import embedded

_IDS = {
    FAST: TOTAL_IDS,
    ROUGH: TOTAL_IDS,
    VERTEBRAE: tuple(range(2, 10)),
    RIBS: (12, 24),
    NUMBERING: tuple(range(18, 25)),
}
_SPACING_MM = {FAST: 3.0, ROUGH: 6.0}


def write_untrained(folder: Path, *tasks: int, blank: bool = False) -> Path:
    """Random networks that label voxels as vertebrae at random, or `blank` ones that label nothing."""
    import torch

    from infra.stand_in_weights.learn import write
    from retroln.nnunet.model_folder import build_network

    for task in tasks:
        recipe = Recipe(task, _IDS[task], _SPACING_MM.get(task, 1.5), (32, 32, 32), (4, 8), 0, 0)
        torch.manual_seed(task)
        state = build_network(recipe.plans(), len(recipe.ids) + 1).state_dict()
        for name, value in state.items():
            if ".seg_layers." in name and value.ndim == 1:
                value[0] = 50.0 if blank else -0.5
        write(recipe, state, folder)
    return folder


def pinned(folder: Path, networks: Path, **spec: object) -> tuple[Settings, Weights]:
    """A platform in `folder` whose store has the networks as its pinned bundle, and this machine's copy."""
    found = weights.import_weights(embedded(folder), [networks])
    totalseg = TotalSegSpec(weights=found.sha256, **{"quality": "fast", "device": "cpu", **spec})  # type: ignore[arg-type]
    settings = embedded(folder, landmarks="totalseg", totalseg=totalseg)
    return settings, weights_copy.fetch(settings)
