"""A head that is fitted to the frozen features before fine-tuning begins.

"Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (Kumar et al.,
ICLR 2022, arXiv 2202.10054): linear probing, then fine-tuning, keeps the features that a head of
zeros would have the first steps change.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vitkit.data.checks import BadImages
from vitkit.data.holding_out import held_out_indices
from vitkit.data.mixing import subset
from vitkit.data.pipeline import Batch, evaluation_batches
from vitkit.data.source import Source, Subset, Without, strata
from vitkit.evaluation.logistic import L2, fit_logistic
from vitkit.evaluation.topk import features_of, top_k
from vitkit.models.nets import Net
from vitkit.training.log import headline
from vitkit.training.step import Setup
from vitkit.workflows.feeding import loader_threads
from vitkit.workflows.run import EVALUATION_BATCH
from vitkit.workflows.task import SUBSET_SEED, Task

AT_MOST = 50_000  # images, the same share of every class: their features are held in memory
HELD_OUT = 0.1  # the share of them that the penalty is chosen by
BLIND = L2[2]  # where there are too few to hold any out


def fit_head(net: Net, setup: Setup, task: Task) -> str:
    """Put a linear probe of the training images in place of the net's head -> a line about it.

    The images are seen once, as they are evaluated. The net ends on the CPU.
    """
    pool = task.train
    if len(pool) > AT_MOST:
        pool = subset(pool, AT_MOST, SUBSET_SEED)
    of_class = strata(pool)
    held = held_out_indices(of_class, HELD_OUT, AT_MOST, SUBSET_SEED)
    held = held[of_class[held] >= 0]  # an image without any label tells nothing
    bad = BadImages(limit=max(10, len(pool) // 1000))
    net.to(setup.engine.device).eval()
    x, y = features(net, setup, Without(pool, held), bad)
    classes, loss, weights = setup.classes, setup.config.loss, setup.class_weights
    penalties, told = [BLIND], "too few images to choose the penalty by"
    if len(held):
        apart, labels = features(net, setup, Subset(pool, held), bad)
        fits = fit_logistic(x, y, classes, loss, L2, weights)
        scores = [scored(apart, labels, *fit) for fit in fits]
        best = max(range(len(fits)), key=lambda number: scores[number])
        penalties, (share, _) = L2[: best + 1], scores[best]  # on the same way to the best
        x, y = torch.cat([x, apart]), torch.cat([y, labels])
        told = f"{share:.1%} {what_of(labels)} on {len(apart):,} of them, held apart"
    put(net, *fit_logistic(x, y, classes, loss, penalties, weights)[-1])
    net.cpu()
    of = "" if pool is task.train else f" of {len(task.train):,}"
    return f"linear probe of {len(x):,}{of} images to train on: {told}, l2 {penalties[-1]:g}"


def features(net: Net, setup: Setup, source: Source, bad: BadImages) -> tuple[Tensor, Tensor]:
    """Features (N, D) float32 and labels (N,) or (N, K), on the device; bad images are left out."""
    engine, config = setup.engine, setup.config
    # No more at once than training takes: that is what memory was planned for.
    parts = config.accumulation * engine.world.size
    at_once = min(EVALUATION_BATCH, math.ceil(config.batch_size / parts))
    threads = loader_threads(config, engine.world)
    batches = evaluation_batches(source, setup.preprocessing, at_once, threads, bad)

    @torch.inference_mode()
    def extract(images: Tensor) -> Tensor:
        with engine.autocast():
            return net.features(images.to(engine.device))

    found, labels = features_of(extract, batches)
    return found.to(engine.device), labels.to(engine.device)


def scored(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, float]:
    """The headline, and the negative loss, which decides between equals; larger is better."""
    found = top_k(lambda rows: rows @ weight.T + bias, [Batch(x, labels)])
    return headline(found)[1], -found["loss"]


def what_of(labels: Tensor) -> str:
    return "mean average precision" if labels.ndim == 2 else "top-1"


@torch.no_grad()
def put(net: Net, weight: Tensor, bias: Tensor) -> None:
    """Weights (K, D) and bias (K,) into the final layer; of a distilled net into both, whose mean
    reads the mean of both tokens."""
    for head in (net.head, getattr(net, "head_distillation", None)):
        if isinstance(head, nn.Linear):
            head.weight.copy_(weight)
            head.bias.copy_(bias)
