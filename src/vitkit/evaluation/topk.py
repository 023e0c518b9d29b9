"""Top-1 and top-5 over every image."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from vitkit.data.pipeline import Batch


def top_k(
    predict: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    ks: tuple[int, ...] = (1, 5),
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> dict[str, float]:
    """`predict` takes images (B, 3, H, W) to logits (B, K) -> {"top1", "top5", "loss", "images"}.

    Shares lie between 0 and 1; every image counts once; "loss" is the mean softmax cross-entropy.
    With fewer than k classes top-k is 1. Where several processes have a share of the images each,
    `total` sums what they counted.
    """
    right = dict.fromkeys(ks, 0)
    loss, images = 0.0, 0
    for batch in batches:
        logits = predict(batch.images).float().cpu()
        order = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices  # (B, k), best first
        hits = order == batch.labels[:, None]
        for k in ks:
            right[k] += int(hits[:, :k].any(dim=1).sum()) if k < logits.shape[1] else len(hits)
        loss += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
        images += len(batch.labels)
    counted = total(torch.tensor([*right.values(), loss, images], dtype=torch.float64)).tolist()
    right, loss, images = dict(zip(ks, counted, strict=False)), counted[-2], int(counted[-1])
    if not images:
        raise ValueError("no images to evaluate")
    shares = {f"top{k}": count / images for k, count in right.items()}
    return {**shares, "loss": loss / images, "images": images}


def features_of(
    extract: Callable[[Tensor], Tensor], batches: Iterable[Batch]
) -> tuple[Tensor, Tensor]:
    """`extract` takes images to (B, D) -> features (N, D) float32 and labels (N,), on the CPU."""
    features, labels = [], []
    for batch in batches:
        features.append(extract(batch.images).float().cpu())
        labels.append(batch.labels)
    return torch.cat(features), torch.cat(labels)
