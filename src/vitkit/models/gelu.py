"""GELU through one function, by whichever way is faster."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def gelu(x: Tensor, approximate: str) -> Tensor:
    """GELU (arXiv 1606.08415): approximate is "tanh", as in the authors' nets, or "none".

    The tanh form is x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3), since
    (1 + tanh(u)) / 2 = sigmoid(2 u). Compiled for a CPU that is 2.6 times faster forward and twice
    as fast backward (docs/performance.md, "A training step on the CPU").
    """
    if approximate == "tanh" and x.device.type == "cpu" and torch.compiler.is_compiling():
        wide = x.float() if x.dtype == torch.bfloat16 else x
        twice_u = math.sqrt(8 / math.pi) * (wide + 0.044715 * wide * wide * wide)
        return (wide * torch.sigmoid(twice_u)).to(x.dtype)
    return F.gelu(x, approximate=approximate)
