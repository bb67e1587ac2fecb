"""The optimiser of trainings that have minutes: the demo's and the stand-in's."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from retroln.nnunet.model_folder import build_network
from retroln.nnunet.muon import Muon, orthogonal
from retroln.nnunet.plans import architecture


@pytest.mark.parametrize("shape", [(24, 1296), (128, 64), (8, 9), (2, 3)])
def test_an_orthogonal_step_has_the_directions_of_the_gradient_and_about_equal_lengths(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(1)
    left, _, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    lengths = torch.logspace(0, -1, min(shape))
    found = orthogonal(left @ torch.diag(lengths) @ right)
    turned = left.T @ found @ right.T
    assert found.shape == shape
    assert turned.diagonal().min() > 0.65
    assert turned.diagonal().max() < 1.25
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 1e-4


def test_orthogonal_steps_are_taken_in_float32_within_a_network_in_bf16() -> None:
    torch.manual_seed(1)
    matrix = torch.randn(24, 400)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = orthogonal(matrix)
    torch.testing.assert_close(found, orthogonal(matrix), rtol=0, atol=0)


def test_no_gradient_is_no_step() -> None:
    assert not orthogonal(torch.zeros(3, 5)).any()


def _parameters() -> tuple[torch.nn.Parameter, torch.nn.Parameter]:
    torch.manual_seed(2)
    return torch.nn.Parameter(torch.randn(4, 2, 1, 3, 3)), torch.nn.Parameter(torch.randn(4))


def _step(optimizer: Muon, kernel: torch.nn.Parameter, bias: torch.nn.Parameter, seed: int) -> None:
    torch.manual_seed(seed)
    kernel.grad, bias.grad = torch.randn_like(kernel), torch.randn_like(bias)
    optimizer.step()


def test_a_first_step_of_a_kernel_is_as_long_as_adamws_are_later_on() -> None:
    kernel, bias = _parameters()
    before = kernel.detach().clone()
    _step(Muon([kernel], [bias], lr=0.01, weight_decay=0.0), kernel, bias, seed=3)
    rms = (kernel.detach() - before).square().mean().sqrt().item()
    assert rms == pytest.approx(0.2 * 0.01, rel=0.3)


def test_weights_decay_with_the_learning_rate() -> None:
    kernel, bias = _parameters()
    before = kernel.detach().clone()
    optimizer = Muon([kernel], [bias], lr=0.1, weight_decay=0.5)
    kernel.grad = torch.zeros_like(kernel)
    optimizer.step()
    torch.testing.assert_close(kernel.detach(), before * 0.95)


def test_what_is_no_kernel_follows_adamw() -> None:
    kernel, bias = _parameters()
    alone = torch.nn.Parameter(bias.detach().clone())
    adamw = torch.optim.AdamW([alone], 0.01, weight_decay=0.1)
    optimizer = Muon([kernel], [bias], lr=0.01, weight_decay=0.1)
    for seed in (3, 4):
        _step(optimizer, kernel, bias, seed)
        alone.grad = bias.grad
        adamw.step()
    torch.testing.assert_close(bias, alone, rtol=0, atol=0)


def test_a_restored_optimiser_goes_on_as_the_one_that_was_stored() -> None:
    kernel, bias = _parameters()
    optimizer = Muon([kernel], [bias], lr=0.01, weight_decay=0.1)
    _step(optimizer, kernel, bias, seed=3)
    later_kernel, later_bias = deepcopy(kernel), deepcopy(bias)
    restored = Muon([later_kernel], [later_bias], lr=1.0, weight_decay=1.0)
    restored.load_state_dict(deepcopy(optimizer.state_dict()))
    _step(optimizer, kernel, bias, seed=4)
    _step(restored, later_kernel, later_bias, seed=4)
    for weight, later in ((kernel, later_kernel), (bias, later_bias)):
        torch.testing.assert_close(weight, later, rtol=0, atol=0)
        torch.testing.assert_close(optimizer.average_of(weight), restored.average_of(later), rtol=0, atol=0)


def test_the_average_follows_the_weights_over_their_last_hundred_steps() -> None:
    kernel, bias = _parameters()
    optimizer = Muon([kernel], [bias], lr=0.01, weight_decay=0.1)
    assert optimizer.average_of(kernel) is kernel
    seen: dict[torch.nn.Parameter, list[torch.Tensor]] = {kernel: [], bias: []}
    for seed in range(100):
        _step(optimizer, kernel, bias, seed)
        for weight, values in seen.items():
            values.append(weight.detach().clone())
    for weight, values in seen.items():
        torch.testing.assert_close(optimizer.average_of(weight), torch.stack(values).mean(0))
    before = optimizer.average_of(bias).clone()
    _step(optimizer, kernel, bias, seed=100)
    torch.testing.assert_close(optimizer.average_of(bias), 0.99 * before + 0.01 * bias.detach())


def test_heads_norms_and_biases_of_a_unet_follow_adamw() -> None:
    plans = {"configurations": {"3d_fullres": {"architecture": _small_unet()}}}
    network = build_network(plans, 3)
    kernels, others = Muon.of_unet(network, 0.01, 0.1).param_groups
    heads = {*network.decoder.seg_layers.parameters()}
    assert {*kernels["params"]} | {*others["params"]} == {*network.parameters()}
    assert len(kernels["params"]) + len(others["params"]) == len([*network.parameters()])
    assert heads <= {*others["params"]}
    assert all(p.ndim == 5 for p in kernels["params"])
    assert all(p.ndim == 1 for p in {*others["params"]} - heads)


def _small_unet() -> dict[str, Any]:
    return architecture((4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2, (1, 1))
