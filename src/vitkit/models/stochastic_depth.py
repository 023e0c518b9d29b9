"""Stochastic depth (arXiv 1603.09382): training leaves a residual branch out for some images."""

from __future__ import annotations

import torch
from torch import Tensor


def depth_rate(rate: float, layer: int, depth: int) -> float:
    """The share of images for which block `layer` of 0 to `depth` - 1 is left out.

    From 0 in the first block linearly to `rate` in the last, as in big_vision, models/mlp_mixer.py,
    and in the T2T-ViT's code.
    """
    return rate * layer / max(1, depth - 1)


def kept_of_some(branch: Tensor, rate: float, training: bool) -> Tensor:
    """A branch (B, ...): in training zeros for a random share `rate` of the images, the others
    scaled up in their place so that the mean stays (big_vision's Mixer does not scale).

    The draws are those of torch's generator, one for each image; with a rate of 0 there are none.
    """
    if not training or rate == 0:
        return branch
    shape = (branch.shape[0], *[1] * (branch.ndim - 1))
    kept = torch.rand(shape, device=branch.device) >= rate
    return torch.where(kept, branch / (1 - rate), 0)
