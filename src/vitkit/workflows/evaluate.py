"""Evaluation of a checkpoint on DATA."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from vitkit.data.checks import DataError, some
from vitkit.data.opening import held_out, open_data, require_classes
from vitkit.data.pipeline import Batch, evaluation_batches
from vitkit.data.source import Source
from vitkit.errors import UsageError, named
from vitkit.evaluation.fewshot import L2, few_shot
from vitkit.evaluation.topk import features_of, top_k
from vitkit.prediction.model import Model, load
from vitkit.reports.classes import by_name
from vitkit.training.log import numbers
from vitkit.training.precision import choose_device

PROTOCOLS = ("top-k", "few-shot")
BATCH = 256


def evaluate(
    checkpoint: str | Path | Model,
    data: Any,
    protocol: Literal["top-k", "few-shot"] | str = "top-k",
    *,
    train: Any = None,
    l2: float = L2,
    device: str = "auto",
    threads: int = 2,
) -> dict[str, Any]:
    """{"metrics": {...}, "images": ..., "seconds": ..., ...}; metrics are shares between 0 and 1.

    Of "top-k" also {"class_recall": {name: share or None}, "class_images": {name: number}}, of
    DATA's classes (vitkit.evaluation.topk.top_k).

    "top-k" scores every image of DATA (its test split, where it has one, else its validation
    split, else all) and matches classes by name. "few-shot" fits a linear classifier in closed form
    on 1, 5, 10 and 25 images of each class from `train`, DATA's own training split, or a half held
    apart, and scores the others; the classes may be any, and `l2` is the penalty.
    """
    named("protocol", protocol, PROTOCOLS)
    model = checkpoint if isinstance(checkpoint, Model) else load(checkpoint)
    model.to(choose_device(device))
    began = time.perf_counter()
    splits = open_data(data)
    if protocol == "few-shot":
        pool, scored = few_shot_sources(splits, None if train is None else open_data(train).train)
        metrics, classes = few_shot_metrics(model, pool, scored, l2, threads), {}
    else:
        scored = splits.test or splits.val or splits.train
        metrics, classes = top_k_metrics(model, scored, splits.name, threads)
    return {
        "metrics": metrics,
        **classes,
        "protocol": protocol,
        "data": splits.name,
        "images": len(scored),
        "seconds": round(time.perf_counter() - began, 2),
    }


def top_k_metrics(
    model: Model, source: Source, title: str, threads: int
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Numbers, and by class what `evaluate` says."""
    number = class_numbers(model.class_names, source.class_names, title)
    batches = evaluation_batches(source, model.preprocessing, BATCH, threads)
    classes = len(model.class_names)
    renumbered = (Batch(b.images, renumber(b.labels, number, classes)) for b in batches)
    found = top_k(lambda images: model.run(model.net, images), renumbered)
    # In the order of the data's classes, whose names are all different.
    of_data = {
        name: [values[n] for n in number.tolist()]
        for name, values in found.items()
        if isinstance(values, list)
    }
    return numbers(found), by_name(of_data, source.class_names)


def renumber(labels, number, classes: int):
    """Labels (B,) or (B, K) of the data -> those of the net, which has so many classes."""
    if labels.ndim == 1:
        return number[labels]
    of_net = labels.new_zeros(len(labels), classes)
    of_net[:, number] = labels
    return of_net


def class_numbers(known: list[str], given: list[str], title: str):
    """For each class of the data its number in the net, by name."""
    import torch

    if not known:
        raise UsageError(
            "this net has no head, so it predicts no classes; use --protocol few-shot, or "
            "fine-tune it"
        )
    unknown = [name for name in given if name not in known]
    if unknown:
        raise DataError(
            f"{title}: the net does not know the classes {some(unknown)}; it knows {some(known)}. "
            "Evaluate on data with its classes, or use --protocol few-shot"
        )
    return torch.tensor([known.index(name) for name in given])


def few_shot_sources(splits, train: Source | None) -> tuple[Source, Source]:
    """Images to take shots from and images to score."""
    if train is not None:
        scored = splits.test or splits.val or splits.train
        if train.class_names != scored.class_names:
            raise DataError(
                f"found the classes {some(train.class_names)} to take shots from, but "
                f"{some(scored.class_names)} in {splits.name}; expected the same names in both"
            )
        return train, scored
    if splits.test is not None:
        return splits.train, splits.test
    if splits.val is None:
        splits = held_out(splits.train, splits.name, share=0.5, at_most=len(splits.train))
    assert splits.val is not None  # held_out makes one
    return splits.train, splits.val


def few_shot_metrics(
    model: Model, pool: Source, scored: Source, l2: float, threads: int
) -> dict[str, float]:
    if pool.multi_label or scored.multi_label:
        raise DataError(
            "few-shot takes images of one class each, and these may have several labels; use "
            "--protocol top-k"
        )
    require_classes(pool, "few-shot")
    features, labels = [], []
    for source in (pool, scored):
        batches = evaluation_batches(source, model.preprocessing, BATCH, threads)
        x, y = features_of(lambda images: model.run(model.net.features, images), batches)
        features.append(x.numpy())
        labels.append(y.numpy())
    return few_shot(features[0], labels[0], features[1], labels[1], l2=l2)
