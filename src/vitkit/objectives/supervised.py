"""Cross-entropy on labels, softmax or sigmoid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["softmax", "sigmoid"]


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    loss: Loss = "softmax",
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Logits (B, K) of any float type, labels (B,) int64 or (B, K) -> the mean loss, in float32
    at least.

    Labels (B, K) are targets between 0 and 1: of mixed images the shares of their classes, or with
    "sigmoid" a one for each of several labels. With "softmax" they are used as they are, so each
    row must sum to 1. "sigmoid" sums over the classes and takes the mean over the batch, as the
    authors did on ImageNet-21k (vision_transformer issues 2 and 34). Smoothing s makes the targets
    (1 - s) * targets + s / K.

    `class_weights` (K,) weight an image's softmax loss by its class, or by the mean over the shares
    of its classes. With "sigmoid" they weight the positive term of each class alone, -target log p,
    since each of several labels has a loss of its own. The sum is divided by B all the same, so
    that parts of a batch add up.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if labels.ndim == 2:
        labels = labels.to(logits.dtype)
    if loss == "softmax":
        if class_weights is None:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        weights = class_weights[labels] if labels.ndim == 1 else labels @ class_weights
        return (losses * weights).mean()
    if labels.ndim == 1:
        labels = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    targets = labels * (1 - smoothing) + smoothing / logits.shape[1]
    summed = F.binary_cross_entropy_with_logits(
        logits, targets, reduction="sum", pos_weight=class_weights
    )
    return summed / len(logits)


def class_weights(images: Sequence[int], power: float) -> Tensor:
    """Numbers of images of each class (K,) -> weights (K,) float32 in proportion to n ** -power.

    Their mean over the images is 1 (over the labels, where images have several). With power 1 all
    classes weigh the same together, and with 0 all images. A class without images has weight 1.
    """
    counts = torch.tensor(images, dtype=torch.float64)
    weights = counts.clamp(min=1) ** -power
    weights *= counts.sum() / (counts * weights).sum()
    return torch.where(counts > 0, weights, 1.0).float()
