"""Muon for convolutions: AdamW, but a kernel moves along its whole gradient at one pace.

A gradient of a kernel points mostly along a few directions; AdamW follows these first. Muon (Jordan et al.
2024, kellerjordan.github.io/posts/muon) takes the nearest matrix with orthonormal rows instead, so the rare
directions are learnt as soon as the common ones. `torch.optim.Muon` takes matrices alone, `timm.optim.Muon`
kernels too, and both compute in bf16, which a CPU without such instructions emulates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch

_MOMENTUM = 0.95
_STEPS, _QUINTIC = 5, (3.4445, -4.7750, 2.0315)  # as published: singular values end within about 0.7 to 1.2
_AVERAGED_STEPS = 100  # of the running average of the weights
_AS_ADAMW = 0.2  # root mean square of AdamW's steps, in learning rates (Liu et al. 2025, arXiv 2502.16982)


class Muon(torch.optim.AdamW):  # type: ignore[misc]
    """AdamW in which the `kernels` (two axes or more, the first one is a row) take orthogonal steps.

    One learning rate serves both: a step is as long as AdamW's. The state has a running average of the
    weights, since these do not settle in a short training.
    """

    def __init__(
        self,
        kernels: Iterable[torch.nn.Parameter],
        others: Iterable[torch.nn.Parameter],
        lr: float,
        weight_decay: float,
    ) -> None:
        groups = [{"params": list(kernels), "muon": True}, {"params": list(others), "muon": False}]
        super().__init__(groups, lr, weight_decay=weight_decay)

    @classmethod
    def of_unet(cls, network: Any, lr: float, weight_decay: float) -> Self:
        """For a network as nnU-Net builds it: kernels but those of its heads, which say what a voxel is."""
        heads = {*network.decoder.seg_layers.parameters()}
        parameters = [*network.parameters()]
        kernels = [p for p in parameters if p.ndim > 1 and p not in heads]
        return cls(kernels, [p for p in parameters if p.ndim == 1 or p in heads], lr, weight_decay)

    def step(self, closure: Any = None) -> Any:
        """One step, and its part in the average; afterwards the kernels have no gradient."""
        for group in self.param_groups:
            if group["muon"]:
                with torch.no_grad():
                    for kernel in group["params"]:
                        self._move(kernel, group["lr"], group["weight_decay"])
        loss = super().step(closure)
        with torch.no_grad():
            self._average()
        return loss

    def average_of(self, weight: torch.nn.Parameter) -> torch.Tensor:
        """The running average of a weight over its last hundred steps or so; itself before the first one."""
        average: torch.Tensor = self.state.get(weight, {}).get("average", weight)
        return average

    def _average(self) -> None:
        for weight in (weight for group in self.param_groups for weight in group["params"]):
            if state := self.state.get(weight):
                if "average" not in state:
                    state["average"] = weight.detach().clone()
                state["average"].lerp_(weight, max(1 / _AVERAGED_STEPS, 1 / float(state["step"])))

    def _move(self, kernel: torch.nn.Parameter, lr: float, weight_decay: float) -> None:
        if kernel.grad is None:
            return
        state = self.state[kernel]
        if not state:
            state["step"], state["momentum"] = torch.tensor(0.0), torch.zeros_like(kernel)
        state["step"] += 1  # AdamW asks for it where it restores a state
        momentum = state["momentum"].lerp_(kernel.grad, 1 - _MOMENTUM)
        matrix = orthogonal(kernel.grad.lerp(momentum, _MOMENTUM).flatten(1))
        length = _AS_ADAMW * max(matrix.shape) ** 0.5
        kernel.mul_(1 - lr * weight_decay).add_(matrix.view_as(kernel), alpha=-lr * length)
        kernel.grad = None  # AdamW has nothing left to do


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About `u @ v.T` of the matrix's singular value decomposition `u @ diag(s) @ v.T`; zero stays zero.

    Newton and Schulz's iteration, on the small product of the matrix with itself: for a kernel with many
    more columns than rows that is a fifth of the work of iterating the matrix. It needs float32 (the square
    has the square of the condition), whatever the network around it computes in.
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    first, third, fifth = _QUINTIC
    with torch.autocast(matrix.device.type, enabled=False):
        matrix = matrix / (matrix.norm() + 1e-7)
        square = matrix @ matrix.T
        same = torch.eye(len(matrix), device=matrix.device)
        turn = same
        for _ in range(_STEPS):
            next_turn = first * same + square @ (third * same + fifth * square)
            turn, square = next_turn @ turn, next_turn @ square @ next_turn
        return turn @ matrix
