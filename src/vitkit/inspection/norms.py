"""Norms of patch tokens: in large nets a few are far above the rest (arXiv 2309.16588)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitkit.inspection.result import NormsFound
from vitkit.inspection.runs import block_outputs, with_tokens
from vitkit.models.nets import Net

FAR = 10  # deviations above the median, beyond which a norm is an outlier
TO_DEVIATION = 1.4826  # of a normal distribution: its standard deviation over its MAD


@torch.no_grad()
def patch_norms(net: Net, images: Tensor) -> Tensor:
    """Images (B, 3, H, W), normalised -> (B, N) float32: the length of each patch's token as the
    last block gives it, before the final norm. UsageError for a net without tokens."""
    net = with_tokens(net, "patch tokens whose norms could be taken")
    return norms_of(block_outputs(net, images)[-1], net.config.prefix)


def norms_of(tokens: Tensor, prefix: int) -> Tensor:
    """Tokens (B, T, D) -> those of the patches (B, N) float32, on the CPU."""
    return tokens[:, prefix:].float().norm(dim=-1).cpu()


def norms_found(norms: np.ndarray) -> NormsFound:
    """Norms (images, N) -> which of them are outliers: those far above the median of all.

    Far is 10 deviations, a deviation being 1.4826 times the median distance from the median, which
    outliers do not move. (The paper on registers cuts at a fixed norm, read off the two humps of
    DINOv2's histogram; it says nothing about other nets.)
    """
    middle = float(np.median(norms))
    deviation = TO_DEVIATION * float(np.median(np.abs(norms - middle)))
    threshold = middle + FAR * deviation
    return NormsFound(norms.astype(np.float32), threshold, float((norms > threshold).mean()))
