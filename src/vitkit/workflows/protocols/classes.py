"""The classes of DATA beside those of the net, matched by name."""

from __future__ import annotations

import torch
from torch import Tensor

from vitkit.data.checks import DataError, some
from vitkit.data.classes.imagenet import looks_like, same_imagenet_classes
from vitkit.errors import UsageError


def class_numbers(known: list[str], given: list[str], title: str) -> Tensor:
    """For each class of the data its number in the net, by name or as the same class of ImageNet
    by another name: (K of the data,) int64."""
    if not known:
        raise UsageError(
            "this net has no head, so it predicts no classes; use --protocol few-shot, knn or "
            "linear, or fine-tune it"
        )
    unknown = [name for name in given if name not in known]
    if unknown:
        places = same_imagenet_classes(known, given)
        if None not in places:
            return torch.tensor(places)
        of_set = looks_like(given)
        how = "use --protocol few-shot, knn or linear" if of_set is None else f"--classes {of_set}"
        raise DataError(
            f"{title}: the net does not know the classes {some(unknown)}; it knows {some(known)}. "
            f"Evaluate on data with its classes, or {how}"
        )
    return torch.tensor([known.index(name) for name in given])


def renumber(labels: Tensor, number: Tensor, classes: int) -> Tensor:
    """Labels (B,) or (B, K) of the data -> those of the net, which has so many classes."""
    if labels.ndim == 1:
        return number[labels]
    of_net = labels.new_zeros(len(labels), classes)
    of_net[:, number] = labels
    return of_net
