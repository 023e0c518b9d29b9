"""Top-1 and top-5 over every image, and where images have several labels mean average precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitkit.data.checks import DataError
from vitkit.data.pipeline import Batch
from vitkit.objectives.supervised import cross_entropy


def top_k(
    predict: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    ks: tuple[int, ...] = (1, 5),
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
    of_all: Callable[[Any], list[Any]] = lambda own: [own],
) -> dict[str, float]:
    """`predict` takes images (B, 3, H, W) to logits (B, K) -> {"top1", "top5", "loss", "images"}.

    Shares lie between 0 and 1; every image counts once; "loss" is the mean softmax cross-entropy.
    With fewer than k classes top-k is 1.

    Labels (B, K) of zeros and ones are several for an image, or none: "top1" is then the share of
    the images with any label whose best class is among them, "top5" the share with one of them
    among the best five, "loss" the mean sigmoid cross-entropy, summed over the classes, and
    "mean_average_precision" is over the classes that any image has. DataError where no image has a
    label.

    Where several processes have a share of the images each, `total` sums what they counted, and
    `of_all` gives the list of what each process has, for the average precision, which every
    process then computes of all images.
    """
    counts = np.zeros(len(ks) + 2)  # images right by each k, with any label, and all
    loss = 0.0
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in batches:
        logits, labels = predict(batch.images).float().cpu(), batch.labels.cpu()
        if not len(labels):  # of a process that has no more images, and computes along
            continue
        counts += [*right_and_labelled(logits, labels, ks), len(labels)]
        kind = "softmax" if labels.ndim == 1 else "sigmoid"
        loss += float(cross_entropy(logits, labels, kind)) * len(labels)
        if labels.ndim == 2:
            kept.append((logits.numpy(), (labels > 0).numpy()))
    sums = total(torch.tensor([*counts, loss], dtype=torch.float64)).tolist()
    *right, labelled, images, loss = sums
    if not images:
        raise ValueError("no images to evaluate")
    if not labelled:
        raise DataError(
            f"none of the {int(images)} images to evaluate has a label; evaluate on images with "
            "labels of the net's classes"
        )
    shares = {f"top{k}": count / labelled for k, count in zip(ks, right, strict=True)}
    result = {**shares, "loss": loss / images, "images": int(images)}
    everyones = [pair for pairs in of_all(kept) for pair in pairs]
    if everyones:
        scores, labels = (np.concatenate(arrays) for arrays in zip(*everyones, strict=True))
        result["mean_average_precision"] = mean_average_precision(scores, labels)
    return result


def right_and_labelled(logits: Tensor, labels: Tensor, ks: tuple[int, ...]) -> list[int]:
    """How many images have a label among the best k classes, for each k, and how many have any."""
    order = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices  # (B, k), best first
    if labels.ndim == 1:
        hits, labelled = order == labels[:, None], torch.ones(len(labels), dtype=torch.bool)
    else:
        hits, labelled = labels.gather(1, order) > 0, (labels > 0).any(dim=1)
    right = [hits[:, :k].any(dim=1) if k < logits.shape[1] else labelled for k in ks]
    return [int(rows.sum()) for rows in (*right, labelled)]


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Scores (N, K) and labels (N, K) bool -> the mean over the classes that any image has."""
    present = np.flatnonzero(labels.any(axis=0))
    return float(np.mean([average_precision(scores[:, k], labels[:, k]) for k in present]))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """The sum over thresholds of (recall gained) x precision; images of one score come together.

    Scores (N,), labels (N,) bool of which at least one is true.
    """
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    found = np.cumsum(labels[order])[last_of_score]
    precision = found / (last_of_score + 1)
    return float(np.sum(np.diff(found, prepend=0) * precision) / found[-1])


def features_of(
    extract: Callable[[Tensor], Tensor], batches: Iterable[Batch]
) -> tuple[Tensor, Tensor]:
    """`extract` takes images to (B, D) -> features (N, D) float32 and labels (N,), on the CPU."""
    features, labels = [], []
    for batch in batches:
        features.append(extract(batch.images).float().cpu())
        labels.append(batch.labels)
    return torch.cat(features), torch.cat(labels)
