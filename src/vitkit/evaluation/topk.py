"""Top-1, top-5 and the recall of each class over every image, and where images have several labels
mean average precision."""

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
) -> dict[str, Any]:
    """`predict` takes images (B, 3, H, W) to logits (B, K) -> {"top1", "top5", "loss", "images",
    "mean_class_recall", "class_recall", "class_images"}.

    Shares lie between 0 and 1; every image counts once; "loss" is the mean softmax cross-entropy.
    With fewer than k classes top-k is 1. "class_images" lists how many images of each class there
    are, "class_recall" the share of them that were found, None of a class without images, and
    "mean_class_recall" is over the others, each alike. All else are numbers.

    Labels (B, K) of zeros and ones are several for an image, or none: "top1" is then the share of
    the images with any label whose best class is among them, "top5" the share with one of them
    among the best five, "loss" the mean sigmoid cross-entropy, summed over the classes, and
    "mean_average_precision" is over the classes that any image has. A label counts as found where
    its sigmoid is above 0.5. DataError where no image has a label.

    Where several processes have a share of the images each, `total` sums what they counted, and
    `of_all` gives the list of what each process has, for the average precision, which every
    process then computes of all images.
    """
    counts = np.zeros(len(ks) + 2)  # images right by each k, with any label, and all
    loss = 0.0
    by_class = torch.zeros(2, 0, dtype=torch.int64)  # images that were found, and all, of each
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in batches:
        logits, labels = predict(batch.images).float().cpu(), batch.labels.cpu()
        if not by_class.shape[1]:
            by_class = torch.zeros(2, logits.shape[1], dtype=torch.int64)
        if not len(labels):  # of a process that has no more images, and computes along
            continue
        order = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices  # (B, k), best first
        by_class += found_and_all(logits, order[:, 0], labels)
        counts += [*right_and_labelled(order, labels, ks, logits.shape[1]), len(labels)]
        kind = "softmax" if labels.ndim == 1 else "sigmoid"
        loss += float(cross_entropy(logits, labels, kind)) * len(labels)
        if labels.ndim == 2:
            kept.append((logits.numpy(), (labels > 0).numpy()))
    sums = total(torch.cat([torch.tensor([*counts, loss]).double(), by_class.flatten()])).tolist()
    (*right, labelled, images, loss), by_class = sums[: len(ks) + 3], sums[len(ks) + 3 :]
    if not images:
        raise ValueError("no images to evaluate")
    if not labelled:
        raise DataError(
            f"none of the {int(images)} images to evaluate has a label; evaluate on images with "
            "labels of the net's classes"
        )
    shares = {f"top{k}": count / labelled for k, count in zip(ks, right, strict=True)}
    result = {**shares, "loss": loss / images, "images": int(images), **recalls(by_class)}
    everyones = [pair for pairs in of_all(kept) for pair in pairs]
    if everyones:
        scores, labels = (np.concatenate(arrays) for arrays in zip(*everyones, strict=True))
        result["mean_average_precision"] = mean_average_precision(scores, labels)
    return result


def right_and_labelled(
    order: Tensor, labels: Tensor, ks: tuple[int, ...], classes: int
) -> list[int]:
    """How many images have a label among the best k classes, for each k, and how many have any."""
    if labels.ndim == 1:
        hits, labelled = order == labels[:, None], torch.ones(len(labels), dtype=torch.bool)
    else:
        hits, labelled = labels.gather(1, order) > 0, (labels > 0).any(dim=1)
    right = [hits[:, :k].any(dim=1) if k < classes else labelled for k in ks]
    return [int(rows.sum()) for rows in (*right, labelled)]


def found_and_all(logits: Tensor, best: Tensor, labels: Tensor) -> Tensor:
    """(2, K): how many images of each class the net gives that class, and how many there are."""
    if labels.ndim == 2:
        has = labels > 0
        return torch.stack([(has & (logits > 0)).sum(0), has.sum(0)])
    right = labels[best == labels]
    return torch.stack([of.bincount(minlength=logits.shape[1]) for of in (right, labels)])


def recalls(by_class: list[float]) -> dict[str, Any]:
    """The numbers of images of each class that were found, then those of all, as `top_k` has it."""
    found, images = np.array(by_class, dtype=np.int64).reshape(2, -1).tolist()
    each = [right / of if of else None for right, of in zip(found, images, strict=True)]
    return {
        "mean_class_recall": float(np.mean([share for share in each if share is not None])),
        "class_recall": each,
        "class_images": images,
    }


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
