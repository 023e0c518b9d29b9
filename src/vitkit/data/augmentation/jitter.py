"""Colour jitter: brightness, contrast, saturation and hue, one after another in this order.

Each as in torchvision's ColorJitter, whose order is drawn anew for each image; a fixed one lets a
batch go through in four steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitkit.data.augmentation.placing import column, parts, placed
from vitkit.data.augmentation.randaugment import blend

NAMES = ("brightness", "contrast", "saturation", "hue")
DRAWS = len(NAMES)


def jittered(
    images: Tensor, draws: np.ndarray, amounts: tuple[float, float, float, float]
) -> Tensor:
    """uint8 (B, 3, H, W) -> the same, with other brightness, contrast, saturation and hue.

    Of the first three `amounts` each gives a factor that is uniform between 1 - amount (but at
    least 0) and 1 + amount; the hue turns by a share of the circle that is uniform between -amount
    and amount (at most 0.5). `draws` (B, DRAWS) lie in [0, 1).
    """
    result = torch.empty_like(images)
    for part in parts(images):
        factors = [
            column(low + (high - low) * draws[part, number], images.device)
            for number, (low, high) in enumerate(ranges(amounts))
        ]
        result[part] = one_after_another(images[part], factors, amounts)
    return result


def one_after_another(
    images: Tensor, factors: list[Tensor], amounts: tuple[float, float, float, float]
) -> Tensor:
    """Factors (B, 1, 1, 1); what has an amount of 0 is left out."""
    if amounts[0]:
        images = blend(torch.zeros((), device=images.device), images, factors[0])
    if amounts[1]:
        images = blend(
            luma(images).mean((2, 3), keepdim=True, dtype=torch.float64).float(), images, factors[1]
        )
    if amounts[2]:
        images = blend(luma(images), images, factors[2])
    if amounts[3]:
        images = turned(images, factors[3])
    return images


def ranges(amounts: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    factors = [(max(0.0, 1 - amount), 1 + amount) for amount in amounts[:3]]
    return [*factors, (-amounts[3], amounts[3])]


def luma(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 1, H, W), whole numbers."""
    red, green, blue = images.float().split(1, dim=1)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).floor_()


def without_colour(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> the same, three equal channels, as torchvision's rgb_to_grayscale."""
    return luma(images).to(torch.uint8).repeat(1, 3, 1, 1)


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """The hue turned by `turns` (B, 1, 1, 1) of the circle; saturation and value (HSV) stay."""
    pixels = images.float()
    red, green, blue = pixels.split(1, dim=1)
    value, least = pixels.amax(1, keepdim=True), pixels.amin(1, keepdim=True)
    chroma = value - least
    # Six sectors: from red over yellow, green, cyan, blue and magenta to red again.
    safe = chroma.clamp(min=1)  # where it is 0 the hue does not matter
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = hue + 6 * turns
    # A channel is at its height within one sector of its own hue and falls to the least beyond.
    sectors = placed(np.array([5.0, 3.0, 1.0]), images.device).view(1, 3, 1, 1)
    distance = torch.remainder(hue + sectors, 6)
    falls = torch.minimum(distance, 4 - distance).clamp_(0, 1)
    return (value - chroma * falls).add_(0.5).to(torch.uint8)
