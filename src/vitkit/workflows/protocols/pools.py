"""Images to learn from beside the images to score, for protocols that fit something."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vitkit.data.checks import DataError, some
from vitkit.data.opening import held_out, require_classes
from vitkit.data.source import Source, Splits
from vitkit.errors import VitkitError
from vitkit.workflows.protocols.job import Job


def learning_and_scored(job: Job, protocol: str, several: bool = False) -> tuple[Source, Source]:
    """Images to learn from and images to score, of the same classes. DataError for images of one
    class alone, and unless `several`, for images of several labels each."""
    pool, scored = sources(job.splits, None if job.train is None else job.train.train)
    if (pool.multi_label or scored.multi_label) and not several:
        raise DataError(
            f"{protocol} takes images of one class each, and these may have several labels; use "
            "--protocol top-k or linear"
        )
    if pool.multi_label != scored.multi_label:
        raise DataError(
            f"{protocol}: only one of the images to learn from and those to score have several "
            "labels; give data of one kind"
        )
    require_classes(pool, protocol)
    return pool, scored


def finite_features(job: Job, source: Source) -> tuple[Tensor, Tensor]:
    """`job.features`. VitkitError where they are not numbers, from which nothing can be learned."""
    features, labels = job.features(source)
    bad = int((~torch.isfinite(features)).any(1).sum())
    if bad:
        raise VitkitError(
            f"the features of {bad:,} of {len(source):,} images are not finite; the net's weights "
            "are damaged, or its training diverged"
        )
    return features, labels


def sources(splits: Splits, train: Source | None) -> tuple[Source, Source]:
    """Of DATA's own splits, or of those of --train and what is to be scored of DATA."""
    if train is not None:
        scored = splits.test or splits.val or splits.train
        if train.class_names != scored.class_names:
            raise DataError(
                f"found the classes {some(train.class_names)} to learn from, but "
                f"{some(scored.class_names)} in {splits.name}; expected the same names in both"
            )
        return train, scored
    if splits.test is not None:
        return splits.train, splits.test
    if splits.val is None:
        splits = held_out(splits.train, splits.name, share=0.5, at_most=len(splits.train))
    assert splits.val is not None  # held_out makes one
    return splits.train, splits.val


def recalls(
    right: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[list[float | None], list[int]]:
    """Of each class the share of its images (N,) that are right, None where it has none, and how
    many it has."""
    images = np.bincount(labels, minlength=classes).tolist()
    found = np.bincount(labels[right], minlength=classes).tolist()
    return [n / of if of else None for n, of in zip(found, images, strict=True)], images
