"""What a net that learns without labels is worth so far, found on held-out images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitkit.data.pipeline import Batch, evaluation_batches
from vitkit.data.source import Source, Subset
from vitkit.data.transforms import normalised
from vitkit.evaluation.collapse import spread
from vitkit.evaluation.fewshot import few_shot
from vitkit.evaluation.topk import features_of
from vitkit.objectives.learner import Learner
from vitkit.training.config import DataConfig
from vitkit.training.step import Setup, in_parts, placed, ready
from vitkit.training.world import of_all, total
from vitkit.workflows.feeding import loader_threads, training_stream
from vitkit.workflows.task import Task

SHOTS = 10  # images of each class
L2 = 10.0  # of short runs of small nets more tells less (docs/results.md, "Digits")
AT_MOST = 2048  # held-out images that the loss is taken of


def probe(
    learner: nn.Module,
    setup: Setup,
    task: Task,
    predict: Callable[[Tensor], Tensor],
    in_step: Callable[[Iterator[Batch]], Iterator[Batch]],
    at_once: int,
) -> dict[str, Any]:
    """{"loss", "feature_spread", "images"} on the held-out images, and "few_shot" where there are
    labels: the accuracy (0 to 1) of least squares on features of 10 training images of each class.

    `predict` gives the features (B, D) of prepared images; `in_step` keeps the processes of a run
    together, all of which call this. The loss is of images augmented as in training, the same at
    every evaluation.
    """
    load = partial(prepared, setup=setup, at_once=at_once)
    features, labels = gathered(predict, in_step(load(task.val)))
    found = {
        "loss": held_out_loss(learner, setup, task, in_step, at_once),
        "feature_spread": spread(features),
        "images": len(features),
    }
    shots = images_to_learn_from(task)
    if shots is not None:
        x, y = gathered(predict, in_step(load(shots)))
        each = int(np.bincount(y)[np.unique(y)].min())
        (found["few_shot"],) = few_shot(x, y, features, labels, [each], [0], L2).values()
    return found


def held_out_loss(
    learner: nn.Module,
    setup: Setup,
    task: Task,
    in_step: Callable[[Iterator[Batch]], Iterator[Batch]],
    at_once: int,
) -> float:
    """The objective's mean loss over about as many held-out images as there are.

    Where images are not compared, no more of them at once than training takes.
    """
    assert isinstance(learner, Learner)
    repeats = setup.config.data.repeats
    config = replace(setup.config, data=DataConfig(repeats=repeats))
    engine = replace(setup.engine, keep="none")
    stream = training_stream(replace(task, train=task.val), config, engine)
    batches = ready(stream.batches(), setup)
    images = min(len(task.val), AT_MOST) * repeats
    count, summed = math.ceil(images / config.batch_size), torch.zeros((), dtype=torch.float64)
    try:
        learner.eval()
        for _, batch in zip(range(count), in_step(batches), strict=False):
            images_here = len(batch.labels)
            parts = 1 if learner.together else math.ceil(images_here / at_once)
            for part in in_parts(placed(batch, setup.engine.device), parts):
                pixels = normalised(part.images, setup.constants)
                with torch.no_grad(), setup.engine.autocast():
                    loss = learner(pixels, part.labels, part.positions)
                summed += loss.double().cpu() * len(part.labels) / images_here
    finally:
        batches.close()
    return float(total(summed)) / count / setup.engine.world.size


def images_to_learn_from(task: Task) -> Source | None:
    """Some training images of each class; None where images have no class, or several."""
    if not task.labelled or task.train.multi_label:
        return None
    labels = np.asarray(task.train.labels)
    random = np.random.default_rng(0)
    order = [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return Subset(task.train, np.concatenate([members[:SHOTS] for members in order]))


def prepared(source: Source, setup: Setup, at_once: int) -> Iterator[Batch]:
    """This process's share of the images, as a net is evaluated on them."""
    world = setup.engine.world
    threads = loader_threads(setup.config, world)
    return evaluation_batches(
        source, setup.preprocessing, at_once, threads, None, world.rank, world.size
    )


def gathered(
    predict: Callable[[Tensor], Tensor], batches: Iterator[Batch]
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) and labels (N,) of the shares of all processes."""
    own = [tensor.numpy() for tensor in features_of(predict, batches)]
    features, labels = zip(*of_all(own), strict=True)
    return np.concatenate(features), np.concatenate(labels)
