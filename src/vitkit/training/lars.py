"""LARS: a learning rate for each matrix, in proportion to its norm over that of its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

TRUST = 0.001  # of a matrix's norm that a step at learning rate 1 may change


class Lars(torch.optim.Optimizer):
    """SGD with momentum whose gradients of matrices are scaled by TRUST |w| / |g|.

    "Large Batch Training of Convolutional Networks" (arXiv 1708.03888), as MoCo v3 and MAE probe
    with it (mae's util/lars.py): g = gradient + weight decay * w comes first, then the ratio, then
    momentum; the learning rate multiplies last. The ratio is 1 where either norm is 0. Groups with
    `matrices` False, biases and norms, are not scaled.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "fused": False})
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for weight in weights if momentum else ():
            self.state[weight]["momentum_buffer"] = torch.zeros_like(weight).detach()

    @torch.no_grad()
    # torch's own type has a loss come back from a closure; a step here computes none.
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                change = weight.grad + group["weight_decay"] * weight
                if group["matrices"]:
                    change *= trust(weight, change)
                if group["momentum"]:
                    moving = self.state[weight]["momentum_buffer"]
                    change = moving.mul_(group["momentum"]).add_(change)
                weight.sub_(change, alpha=group["lr"])


def trust(weight: Tensor, gradient: Tensor) -> Tensor:
    """What a gradient is multiplied by, a scalar; one for all parts of sharded tensors."""
    size, step = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(gradient)
    return torch.where((size > 0) & (step > 0), TRUST * size / step, 1.0)
