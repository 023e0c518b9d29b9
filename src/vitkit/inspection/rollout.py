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

from vitkit.errors import UsageError
from vitkit.inspection.attention import Reading, blocks_of, device_of, token_names, watched
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
def class_token_rollout(net: Net, images: Tensor) -> Tensor:
    """The class token's row of `rollout` for a batch: (B, 3, H, W) -> (B, T), float32, on the CPU.

    Of a net without a class token it is the mean of the patches' rows, as its head reads their
    mean. No map of a single head is kept: L (T, T) numbers an image are.
    """
    fused: list[Tensor] = []

    def fuse(reading: Reading) -> None:
        images, heads = range(len(reading.qkv)), range(reading.module.heads)
        softmax = (torch.softmax(reading.logits(slice(i, i + 1), heads, None), -1) for i in images)
        fused.append(torch.cat([weights.mean(dim=1) for weights in softmax]))

    with watched(net, range(len(blocks_of(net))), fuse):
        net(images.to(device_of(net)))
    names, tokens = token_names(net), fused[0].shape[-1]
    row = torch.zeros(len(images), 1, tokens, device=fused[0].device)
    if "class token" in names:
        row[..., 0] = 1
    else:
        row[..., len(names) :] = 1 / (tokens - len(names))
    for layer in reversed(fused):
        row = (row + row @ layer) / 2
    return row[:, 0].cpu()
