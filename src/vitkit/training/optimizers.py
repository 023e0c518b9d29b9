"""Optimizers of the paper, over the two kinds of weights: decayed and not."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from vitkit.errors import UsageError
from vitkit.objectives.learner import INSIDE, Learner
from vitkit.training.config import OptimizerConfig
from vitkit.training.lars import Lars
from vitkit.training.parallel import blocks_of
from vitkit.training.trained import trained_weights

NOT_DECAYED = (
    "class_token", "distillation_token", "registers", "position_embedding", "row_embedding",
    "column_embedding", "relative_embedding", "probe", "mask_token",
)  # fmt: skip
TOP = ("norm", "pool", "hidden", "head", "head_distillation")  # what comes after the blocks


def make_optimizer(net: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW with decoupled decay (paper, Table 3), SGD with momentum (Table 4), or LARS.

    Weight decay is multiplied by the learning rate; biases, norms, the class token and the
    position embeddings are not decayed. AdamW and SGD are fused, but for SGD over sharded weights,
    which torch cannot fuse (2.14). Weights that are not trained are not in it.
    """
    groups = parameter_groups(net, config.weight_decay, config.layer_decay)
    if config.name == "adamw":
        return torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=config.betas, eps=1e-8, fused=True
        )
    if config.name == "lars":
        return Lars(groups, config.learning_rate, config.momentum)
    fused = not any(isinstance(parameter, DTensor) for parameter in net.parameters())
    optimizer = torch.optim.SGD(
        groups, lr=config.learning_rate, momentum=config.momentum, fused=fused, foreach=not fused
    )
    if config.momentum:
        # Else torch makes them in the first step, and fills them with nothing if that is skipped.
        for parameter in trained_weights(net).values():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter).detach()
    return optimizer


def parameter_groups(
    net: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict]:  # fmt: skip
    """Groups of trained weights: matrices, which are decayed, and all else, which is not.

    With a layer decay there are two for each layer. `scale` is what a step multiplies the learning
    rate by for the group.
    """
    scales = layer_scales(net, layer_decay)
    groups: dict[tuple[float, bool], dict] = {}
    for name, parameter in trained_weights(net).items():
        is_matrix = parameter.ndim >= 2 and name.rsplit(".")[-1] not in NOT_DECAYED
        group = groups.setdefault(
            (scales[name], is_matrix),
            {"params": [], "weight_decay": weight_decay * is_matrix, "matrices": is_matrix,
             "scale": scales[name]},
        )  # fmt: skip
        group["params"].append(parameter)
    # The decayed ones first.
    return [groups[key] for key in sorted(groups, reverse=True)]


def layer_scales(net: nn.Module, decay: float) -> dict[str, float]:
    """What each weight's learning rate is multiplied by: decay ** (layers above it).

    The head, and what else comes after the blocks, is the highest layer, then each block (each unit
    of a ResNet) is one; what is in none, as embeddings and the root of a stem, is the lowest. As
    BEiT (get_num_layer_for_vit) and MAE (lr_decay.py) count; timm puts the last norm a layer lower.
    What stands beside the net while it learns is the highest layer too. UsageError for a net
    without blocks.
    """
    if isinstance(net, Learner):
        scales = layer_scales(net.net, decay)
        names = [name for name, _ in net.named_parameters()]
        return {name: scales.get(name.removeprefix(INSIDE), 1.0) for name in names}
    names = [name for name, _ in net.named_parameters()]
    if decay == 1:
        return dict.fromkeys(names, 1.0)
    units = blocks_of(net)
    if not units:
        raise UsageError(
            f"optimizer.layer_decay is {decay:g}, but a net of kind {type(net).__name__} has no "
            "blocks to count; leave it out"
        )
    layers = {id(p): n + 1 for n, unit in enumerate(units) for p in unit.parameters()}
    top = len(units) + 1
    return {
        name: decay ** (top - (top if name.split(".")[0] in TOP else layers.get(id(p), 0)))
        for name, p in net.named_parameters()
    }
