"""Cross-entropy on labels, softmax or sigmoid."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["softmax", "sigmoid"]


def cross_entropy(
    logits: Tensor, labels: Tensor, loss: Loss = "softmax", smoothing: float = 0.0
) -> Tensor:
    """Logits (B, K) of any float type, labels (B,) int64 or (B, K) -> the mean loss, in float32
    at least.

    Labels (B, K) are targets between 0 and 1: of mixed images the shares of their classes, or with
    "sigmoid" a one for each of several labels. With "softmax" they are used as they are, so each
    row must sum to 1. "sigmoid" sums over the classes and takes the mean over the batch, as the
    authors did on ImageNet-21k (vision_transformer issues 2 and 34). Smoothing s makes the targets
    (1 - s) * targets + s / K.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if labels.ndim == 2:
        labels = labels.to(logits.dtype)
    if loss == "softmax":
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    if labels.ndim == 1:
        labels = F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    targets = labels * (1 - smoothing) + smoothing / logits.shape[1]
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(logits)
