"""Gaussian blur as SimCLR has it (arXiv 2002.05709, appendix A)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitkit.data.augmentation.placing import column, parts

SIGMAS = (0.1, 2.0)  # pixels; uniform between them
DRAWS = 2  # whether, sigma


def blurred(images: Tensor, draws: np.ndarray) -> Tensor:
    """uint8 (B, 3, H, W) -> the same, smoothed by a sigma of its own each.

    `draws` (B,) in [0, 1) decide between SIGMAS. The kernel is about a tenth of the shorter side
    wide, and 3 pixels at least; beyond the edges an image goes on as its mirror image.
    """
    radius = radius_for((images.shape[2], images.shape[3]))
    weights = kernels(SIGMAS[0] + (SIGMAS[1] - SIGMAS[0]) * draws, radius)
    result = torch.empty_like(images)
    for part in parts(images):
        steps = [column(weight, images.device) for weight in weights[part].T]
        pixels = F.pad(images[part].float(), (radius,) * 4, mode="reflect")
        pixels = smoothed(smoothed(pixels, steps, 2), steps, 3)
        result[part] = pixels.add_(0.5).to(torch.uint8)
    return result


def radius_for(sides: tuple[int, int]) -> int:
    """Pixels on each side of the middle, as the authors round (simclr/data_util.py)."""
    return min(max(1, min(sides) // 20), min(sides) - 1)


def kernels(sigmas: np.ndarray, radius: int) -> np.ndarray:
    """(B, radius + 1): weights of the middle and of what lies 1, 2, ... pixels from it."""
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigmas[:, None]) ** 2)
    return weights / (2 * weights.sum(axis=1, keepdims=True) - 1)  # the middle's is 1


def smoothed(pixels: Tensor, weights: list[Tensor], dim: int) -> Tensor:
    """One dimension of float32 (B, 3, H, W), which loses what the kernel reaches beyond it.

    In steps of one rounding each, so that every device gives the same pixels.
    """
    radius = len(weights) - 1
    length = pixels.shape[dim] - 2 * radius
    result = pixels.narrow(dim, radius, length) * weights[0]
    for distance, weight in enumerate(weights[1:], 1):
        before = pixels.narrow(dim, radius - distance, length)
        after = pixels.narrow(dim, radius + distance, length)
        result += (before + after) * weight
    return result
