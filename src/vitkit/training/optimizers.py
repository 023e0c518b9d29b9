"""Optimizers of the paper, over the two kinds of weights: decayed and not."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from vitkit.training.config import OptimizerConfig

NOT_DECAYED = (
    "class_token", "distillation_token", "registers", "position_embedding", "row_embedding",
    "column_embedding", "relative_embedding", "probe",
)  # fmt: skip


def make_optimizer(net: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW with decoupled decay (paper, Table 3), or SGD with momentum (Table 4).

    Weight decay is multiplied by the learning rate; biases, norms, the class token and the
    position embeddings are not decayed. Both are fused, but for SGD over sharded weights, which
    torch cannot fuse (2.14).
    """
    groups = parameter_groups(net, config.weight_decay)
    if config.name == "adamw":
        return torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=config.betas, eps=1e-8, fused=True
        )
    fused = not any(isinstance(parameter, DTensor) for parameter in net.parameters())
    optimizer = torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, fused=fused, foreach=not fused
    )
    if config.momentum:
        # Else torch makes them in the first step, and fills them with nothing if that is skipped.
        for parameter in net.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter).detach()
    return optimizer


def parameter_groups(net: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices, which are decayed, and all else, which is not."""
    decayed, others = [], []
    for name, parameter in net.named_parameters():
        is_matrix = parameter.ndim >= 2 and name.rsplit(".")[-1] not in NOT_DECAYED
        (decayed if is_matrix else others).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
