"""A net on one task of VTAB-1k: by a linear probe of its frozen features, or fine-tuned."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vitkit.data.source import Concatenated, Source, Splits
from vitkit.data.vtab.opening import TaskImages
from vitkit.data.vtab.pools import drawn
from vitkit.errors import UsageError
from vitkit.evaluation.logistic import L2, fit_logistic
from vitkit.prediction.model import load
from vitkit.training.config import AugmentConfig
from vitkit.workflows.finetune import finetune_on, recipe_config
from vitkit.workflows.protocols.job import Job
from vitkit.workflows.task import open_task

RECIPE = "table4-vtab"


@dataclass(frozen=True)
class Scored:
    top1: float  # share of the test images
    images: int  # of those scored
    how: str  # the penalty that was chosen, or the steps
    data: TaskImages


def scored(job: Job, name: str, images: TaskImages) -> Scored:
    """Fitted to the 1,000 images, and scored on those to test on, or on as many as are wanted."""
    limit, test = job.options.vtab_test, images.test
    if 0 < limit < len(test):
        test = drawn(test, limit, name)
    method = fine_tuned if job.options.vtab_method == "finetune" else probed
    logits, labels, how = method(job, name, images, test)
    right = int((logits.argmax(1) == labels).sum())
    return Scored(right / len(labels), len(labels), how, images)


# The linear probe


def probed(job: Job, name: str, images: TaskImages, test: Source) -> tuple[Tensor, Tensor, str]:
    """Logits (N, K) and labels (N,) of the test images, and the penalty."""
    (x, y), (apart, labels) = job.features(images.fit), job.features(images.choose)
    weight, bias, l2 = probe(x, y, apart, labels, len(images.fit.class_names))
    rows, truth = job.features(test)
    return rows @ weight.T + bias, truth, f"l2 {l2:g}"


def probe(
    x: Tensor, y: Tensor, apart: Tensor, labels: Tensor, classes: int
) -> tuple[Tensor, Tensor, float]:
    """Features (N, D) and labels (N,) to fit on, and others to choose by -> weights (K, D) and bias
    (K,) fitted to both, and the penalty: that of the best top-1 on the others, of equals the one
    with the smallest cross-entropy."""

    def score(weight: Tensor, bias: Tensor) -> tuple[float, float]:
        logits = apart @ weight.T + bias
        right = (logits.argmax(1) == labels).float().mean()
        return float(right), -float(F.cross_entropy(logits, labels))

    scores = [score(*fit) for fit in fit_logistic(x, y, classes, penalties=L2)]
    best = max(range(len(scores)), key=lambda number: scores[number])
    both, truth = torch.cat([x, apart]), torch.cat([y, labels])
    weight, bias = fit_logistic(both, truth, classes, penalties=L2[: best + 1])[-1]
    return weight, bias, L2[best]


# Fine-tuning


def fine_tuned(job: Job, name: str, images: TaskImages, test: Source) -> tuple[Tensor, Tensor, str]:
    """Logits (N, K) and labels (N,) of the test images, and the steps.

    All 1,000 images, the recipe table4-vtab, and the last weights: nothing is chosen. Images are
    resized whole, without crops or mirror images, as by the benchmark's own code
    (google-research/task_adaptation, data_loader.py): both would change what is to be told of some
    tasks, numbers, places and angles.
    """
    if job.world.size > 1:
        raise UsageError("vtab fine-tunes in one process; leave out --gpus, or take linear probes")
    options, both = job.options, Concatenated([images.fit, images.choose])
    task = open_task(Splits(name, both, images.choose))  # to validate on: only for the run's log
    config = recipe_config(task, RECIPE, job.model, any_net=True)
    steps, side = options.vtab_steps or config.steps or 1, options.vtab_side
    config = replace(
        config, steps=steps, evaluate_every=steps, augment=AugmentConfig((1.0, 1.0), "kept", False),
        image_size=(side, side) if side else config.image_size,
    )  # fmt: skip
    device = next(job.model.net.parameters()).device
    with tempfile.TemporaryDirectory() as folder:
        run = finetune_on(
            task, config, job.model, "in memory", out=Path(folder) / name, device=device.type,
            quiet=True,
        )  # fmt: skip
        tuned = load(run.folder / "last").to(device)
    how = f"{steps:,} steps at {config.image_size[0]} px"
    return *replace(job, model=tuned).logits(test), how
