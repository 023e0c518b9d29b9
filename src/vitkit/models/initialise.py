"""Random weights that more than one net draws."""

from __future__ import annotations

import math

from torch import nn


def lecun_normal_(layer: nn.Conv2d | nn.Linear) -> None:
    """Flax's lecun_normal: variance 1 / fan-in, truncated at two standard deviations; bias 0."""
    fan_in = layer.weight[0].numel()
    std = math.sqrt(1 / fan_in) / 0.87962566103423978  # what truncation takes away is put back
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
