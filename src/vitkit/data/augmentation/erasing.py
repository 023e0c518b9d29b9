"""Random erasing (Zhong et al. 2017, arXiv 1708.04896): a rectangle of noise."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vitkit.data.augmentation.placing import placed
from vitkit.data.augmentation.randaugment import inside

AREA = (0.02, 0.33)  # share of the image; uniform
ASPECT = (0.3, 3.3)  # height over width; its logarithm is uniform
ATTEMPTS = 10  # at a rectangle that fits into the image
DRAWS = 4 + 2 * ATTEMPTS  # whether, the noise's key, the place (2), areas and aspects


def erased(images: Tensor, draws: np.ndarray, share: float) -> Tensor:
    """uint8 (B, 3, H, W) -> the same, with noise in a rectangle of this share of the images.

    `draws` (B, DRAWS) lie in [0, 1). Every value of the noise is equally frequent, and it follows
    from the draws and the pixel's place alone, on any device. As in torchvision's RandomErasing an
    image into which no rectangle fits in ten attempts stays as it is.
    """
    sides = (images.shape[2], images.shape[3])
    boxes = erased_boxes(draws, sides)
    where = np.flatnonzero((draws[:, 0] < share) & (boxes[:, 1] > boxes[:, 0]))
    if not len(where):
        return images
    index = placed(where, images.device)
    holes = inside(boxes[where], sides, images.device)
    fresh = noise(draws[where, 1], sides, images.device)
    found = torch.where(holes, fresh, images.index_select(0, index))
    return images.index_copy(0, index, found)


def erased_boxes(draws: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """int64 (B, 4) of top, bottom, left, right; all 0 where no attempt fits."""
    areas, aspects = draws[:, 4:].reshape(len(draws), 2, ATTEMPTS).transpose(1, 0, 2)
    area = math.prod(sides) * (AREA[0] + (AREA[1] - AREA[0]) * areas)
    low, high = np.log(ASPECT)
    aspect = np.exp(low + (high - low) * aspects)
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (heights < sides[0]) & (widths < sides[1])
    rows, first = np.arange(len(draws)), fits.argmax(axis=1)
    size = np.stack([heights[rows, first], widths[rows, first]], axis=1)
    starts = np.floor(draws[:, 2:4] * (np.array(sides) - size + 1))
    ends = starts + size
    boxes = np.stack([starts[:, 0], ends[:, 0], starts[:, 1], ends[:, 1]], axis=1)
    return np.where(fits.any(axis=1)[:, None], boxes, 0).astype(np.int64)


def noise(keys: np.ndarray, sides: tuple[int, int], device: torch.device) -> Tensor:
    """uint8 (B, 3, H, W) from keys (B,) in [0, 1): a hash of key and place, no stream of draws.

    The place is counted from the key on and scrambled as MurmurHash3 finishes; 32-bit integers
    overflow alike everywhere. A pixel's three values are three bytes of its hash.
    """
    first = np.floor(keys * 2**32).astype(np.uint32).view(np.int32)
    places = torch.arange(math.prod(sides), device=device, dtype=torch.int32)
    values = scrambled(places + placed(first, device)[:, None])
    return values.view(torch.uint8).view(len(keys), *sides, 4)[..., :3].permute(0, 3, 1, 2)


def scrambled(values: Tensor) -> Tensor:
    """int32 -> int32, in place: every bit of the result depends on all bits given."""
    for shift, factor in ((16, -2048144789), (13, -1028477387)):  # 0x85EBCA6B, 0xC2B2AE35
        values.bitwise_xor_((values >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(factor)
    return values.bitwise_xor_((values >> 16).bitwise_and_(0xFFFF))
