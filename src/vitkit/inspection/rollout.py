"""Attention rollout (Abnar and Zuidema, arXiv 2005.00928, section 3; Figure 6 and appendix D.8).

Attention, averaged over heads, is followed through the layers; half of each layer's matrix is the
identity, for the residual connection beside it: the product of 0.5 A + 0.5 I over all layers.

Shapes: B images, L layers, h heads, T tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitkit.errors import UsageError
from vitkit.inspection.attention import (
    Reading,
    attentive,
    pool_attention,
    read_by_head,
    token_names,
    watched,
)
from vitkit.inspection.runs import device_of, evaluating
from vitkit.models.nets import Net


def rollout(attention: np.ndarray | Tensor) -> np.ndarray:
    """Attention (L, h, T, T) of one image, the first layer first -> (T, T), float64.

    Row i says how much each input token has in output token i; it sums to 1. UsageError for
    another shape.
    """
    product, *rest = with_residual(attention)
    for layer in rest:
        product = layer @ product
    return product


def with_residual(attention: Any) -> np.ndarray:
    """Attention (L, h, T, T) -> 0.5 A + 0.5 I (L, T, T), A the mean over heads; float64."""
    maps = attention.detach().cpu() if isinstance(attention, Tensor) else attention
    maps = np.asarray(maps, dtype=np.float64)
    if maps.ndim != 4 or maps.shape[2] != maps.shape[3] or not maps.size:
        raise UsageError(
            f"attention of shape {maps.shape}; expected that of one image, (layers, heads, tokens, "
            "tokens)"
        )
    return 0.5 * maps.mean(axis=1) + 0.5 * np.eye(maps.shape[-1])


@torch.inference_mode()
def rollout_of(net: Net, images: Tensor) -> Tensor:
    """Rollout to what the head reads, of a batch: (B, 3, H, W) -> (B, T), float32, on the CPU.

    It is the class token's row of `rollout`, or the mean of the rows of what else the head reads,
    weighted by the probe's attention with pooling "map". No map of a single head is kept.
    UsageError for a net without attention among tokens.
    """
    net = attentive(net)
    fused: list[Tensor] = []

    def fuse(reading: Reading) -> None:
        heads, by_image = range(reading.module.heads), []
        for image in range(len(reading.qkv)):
            logits = reading.logits(slice(image, image + 1), heads, None)
            by_image.append(torch.softmax(logits, dim=-1).mean(dim=1))
        fused.append(torch.cat(by_image))

    with evaluating(net), watched(net, range(len(net.blocks)), fuse):
        net(images.to(device_of(net)))
    probe = pool_attention(net, images)
    shares = read_by_head(net).expand(len(images), -1)
    if probe is not None:
        shares = F.pad(probe.mean(dim=1), (len(token_names(net)), 0))
    row = shares[:, None].to(fused[0].device)
    for layer in reversed(fused):
        row = (row + row @ layer) / 2
    return row[:, 0].cpu()
