"""A batch norm before the head while it is trained, which a bundle's plain head has folded in.

A linear layer that follows it learns alike whatever the scale of the features, which differs widely
between the ways to learn without labels. MAE (arXiv 2111.06377, appendix A.1) probes so.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitkit.errors import UsageError

EPS = 1e-6  # mae's main_linprobe.py
FIRST_STD = 0.01  # of the head's weights, as there
MEAN, VARIANCE = "head.norm.running_mean", "head.norm.running_var"


class NormedHead(nn.Linear):
    """Features (B, D), standardised over the batch or by running statistics -> logits (B, K)."""

    def __init__(self, head: nn.Linear) -> None:
        where = {"device": head.weight.device, "dtype": head.weight.dtype}
        super().__init__(head.in_features, head.out_features, **where)
        self.weight, self.bias = head.weight, head.bias
        self.norm = nn.BatchNorm1d(head.in_features, eps=EPS, affine=False, **where)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.norm(input))


def norm_head(net: nn.Module) -> None:
    """Give a net's head the norm, and first weights that are not zero: LARS could not scale those.

    UsageError for a net without a single linear head.
    """
    head = net.head
    if not isinstance(head, nn.Linear) or getattr(net, "head_distillation", None) is not None:
        raise UsageError("head_norm is for nets with one linear head; leave it out")
    if not head.weight.is_meta:
        nn.init.normal_(head.weight, std=FIRST_STD)
    net.head = NormedHead(head)


def folded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict whose head computes the same without the norm; one without it as it is.

    W (x - mean) / sqrt(var + eps) + b = W' x + b', with W' = W / sqrt(var + eps), b' = b - W' mean.
    """
    if MEAN not in weights:
        return weights
    plain = {name: t for name, t in weights.items() if not name.startswith("head.norm.")}
    weight = weights["head.weight"] * torch.rsqrt(weights[VARIANCE] + EPS)
    return plain | {
        "head.weight": weight, "head.bias": weights["head.bias"] - weight @ weights[MEAN],
    }  # fmt: skip
