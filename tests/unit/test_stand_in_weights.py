"""How the stand-in network learns: its loss, its coarse beginning, and the stages that its patch allows."""

from __future__ import annotations

import pytest
import torch

from infra.stand_in_weights import learn
from infra.stand_in_weights.recipe import RECIPE, TOTAL_IDS, Recipe
from retroln.anatomy.totalseg_weights import FAST
from retroln.nnunet.model_folder import build_network


def test_each_stage_halves_the_axes_that_can_be_halved() -> None:
    recipe = Recipe(FAST, TOTAL_IDS, 3.0, (24, 12, 4), (4, 4, 8, 8, 8), 0, 0)
    assert recipe.strides == [(1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 1, 1), (1, 1, 1)]


def test_the_loss_is_weighted_cross_entropy_and_the_dice_loss_of_labels_that_are_there() -> None:
    torch.manual_seed(1)
    logits, labels = torch.randn(2, 4, 3, 4, 5), torch.randint(0, 3, (2, 3, 4, 5))
    shares = logits.softmax(1)
    entropy = torch.nn.functional.cross_entropy(logits, labels, torch.tensor([1.0, 5.0, 5.0, 5.0]))
    dice = [
        (2 * shares[:, label][labels == label].sum() + 1)
        / (shares[:, label].sum() + (labels == label).sum() + 1)
        for label in (1, 2)
    ]
    expected = entropy + 1 - torch.stack(dice).mean()
    assert float(learn._loss(logits, labels, 5.0)) == pytest.approx(float(expected), abs=1e-5)


def test_without_bone_the_loss_is_cross_entropy_alone() -> None:
    logits, labels = torch.zeros(1, 4, 2, 2, 2), torch.zeros(1, 2, 2, 2, dtype=torch.long)
    assert float(learn._loss(logits, labels, 8.0)) == pytest.approx(float(torch.tensor(4.0).log()))


def test_the_finest_stage_begins_as_an_enlargement_of_the_coarse_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "_FAINT", 0.0)
    torch.manual_seed(1)
    recipe = Recipe(FAST, TOTAL_IDS, 3.0, (16, 16, 16), (16, 16, 16), 0, 0)
    network = build_network(recipe.plans(), len(TOTAL_IDS) + 1).eval()
    images = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        before = network(images)
        learn._enlarge(network, images)
        coarse = torch.nn.functional.interpolate(learn._coarse(network, images), scale_factor=2)
        after = network(images)
    assert coarse.shape == after.shape
    assert (after - coarse).abs().max() < 0.1 * coarse.std()
    assert (before - coarse).abs().max() > coarse.std()


def test_the_recipe_lets_the_finest_stage_begin_so() -> None:
    assert RECIPE.features[0] == RECIPE.features[1] > len(RECIPE.ids)
