"""MixUp and CutMix: images and labels of a pair mixed, each image by a share of its own.

Pairs are positions (2k, 2k + 1) of the stream. MixUp (Zhang et al. 2017, arXiv 1710.09412) as
big_vision has it: an image keeps the larger share. CutMix (Yun et al. 2019, arXiv 1905.04899).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from vitkit.data.augmentation.placing import column, parts, placed
from vitkit.data.augmentation.randaugment import inside

DRAWS = 4  # for each image: which of the two, share, and the place of CutMix, down and across
WHOLE = 1 << 16  # shares are whole numbers over this, so that every device rounds alike


def mixed(
    images: Tensor,
    labels: Tensor,
    positions: np.ndarray,
    draws: np.ndarray,
    classes: int,
    mixup: float,
    cutmix: float,
) -> tuple[Tensor, Tensor]:
    """uint8 images (B, 3, H, W), labels (B,) or (B, K) -> uint8 images, labels (B, K) float32.

    `positions` (B,) are those of the images in the stream, `draws` (B, DRAWS) in [0, 1). With
    mixup above 0 an image keeps the share max(s, 1 - s), s from Beta(mixup, mixup), and takes the
    rest from its partner; with cutmix above 0 a rectangle of the partner is put in, of about the
    share 1 - s, s from Beta(cutmix, cutmix). With both, a coin decides for each pair. Pixels are
    rounded to whole values, and labels have exactly the shares that the pixels have. Raises
    ValueError where an image's partner is not in the batch.
    """
    partner = partners(positions)
    first_of_pair = np.where(positions % 2 == 0, np.arange(len(positions)), partner)
    coin = draws[first_of_pair, 0] < 0.5
    blended = coin if mixup and cutmix else np.full(len(positions), mixup > 0)
    others = images.index_select(0, placed(partner, images.device))
    kept = np.ones(len(positions))
    if blended.any():
        share = beta(draws[:, 1], mixup)
        whole = np.where(blended, np.rint(np.maximum(share, 1 - share) * WHOLE), WHOLE)
        images, kept = blend(images, others, whole.astype(np.int32)), whole / WHOLE
    if not blended.all():
        sides = (images.shape[2], images.shape[3])
        boxes = cutmix_boxes(beta(draws[:, 1], cutmix), draws[:, 2:], sides)
        boxes[blended] = 0
        images = torch.where(inside(boxes, sides, images.device), others, images)
        areas = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
        kept = np.where(blended, kept, 1 - areas / math.prod(sides))
    return images, mixed_labels(labels, partner, kept, classes)


def partners(positions: np.ndarray) -> np.ndarray:
    """(B,): where in the batch the other image of each one's pair is."""
    order = np.argsort(positions)
    firsts, seconds = positions[order][::2], positions[order][1::2]
    if len(firsts) != len(seconds) or (firsts % 2).any() or (firsts + 1 != seconds).any():
        raise ValueError(
            f"{len(positions)} images at positions {positions[:4]}... cannot be mixed: a batch "
            "must hold whole pairs, positions 2k and 2k + 1"
        )
    partner = np.empty_like(order)
    partner[order] = order.reshape(-1, 2)[:, ::-1].reshape(-1)
    return partner


def beta(uniform: np.ndarray, alpha: float) -> np.ndarray:
    """Draws of Beta(alpha, alpha) from draws in [0, 1)."""
    return betaincinv(alpha, alpha, uniform)


def blend(images: Tensor, others: Tensor, whole: np.ndarray) -> Tensor:
    """whole / WHOLE of each image and the rest of its partner, rounded."""
    shares, result = column(whole, images.device), torch.empty_like(images)
    for part in parts(images):
        rest = others[part].to(torch.int32)
        change = images[part].to(torch.int32).sub_(rest).mul_(shares[part])
        result[part] = change.add_(WHOLE // 2).bitwise_right_shift_(16).add_(rest)
    return result


def cutmix_boxes(share: np.ndarray, places: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """int64 (B, 4) of top, bottom, left, right: about 1 - share of the area, cut at the edges."""
    middles = (places * sides).astype(np.int64)
    halves = (0.5 * np.sqrt(1 - share)[:, None] * sides).astype(np.int64)
    starts, ends = (middles - halves).clip(0), (middles + halves).clip(None, sides)
    return np.stack([starts[:, 0], ends[:, 0], starts[:, 1], ends[:, 1]], axis=1)


def mixed_labels(labels: Tensor, partner: np.ndarray, kept: np.ndarray, classes: int) -> Tensor:
    """(B,) or (B, K) -> float32 (B, K): `kept` (B,) of its own and the rest of its partner's."""
    own = placed(kept, labels.device)[:, None]
    others = labels.index_select(0, placed(partner, labels.device))
    if labels.ndim == 2:
        return labels.float() * own + others.float() * (1 - own)
    rows = torch.zeros(len(labels), classes, device=labels.device)
    rows.scatter_(1, labels[:, None], own)
    return rows.scatter_add_(1, others[:, None], 1 - own)
