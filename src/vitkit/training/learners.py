"""Which module a config trains: the net itself, or a learner around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

from torch import Tensor, nn

from vitkit.data.transforms import HALF
from vitkit.models.nets import Net
from vitkit.objectives.distillation import Distilling
from vitkit.objectives.learner import INSIDE, Learner, Trained
from vitkit.training.config import TrainConfig

Teacher = Callable[[Tensor], Tensor]  # images as the student gets them -> logits (B, K)
T = TypeVar("T")


def learner_of(
    net: Net,
    config: TrainConfig,
    mean: tuple[float, ...] = HALF,
    std: tuple[float, ...] = HALF,
    teacher: Teacher | None = None,
) -> Trained:
    """The module that is trained: the net where labels alone are learned.

    `mean` and `std` are those by which images are normalised. Without a `teacher` where one is
    asked for, as in a plan, nothing is learned from it. UsageError for a net that the objective is
    not for.
    """
    if config.distillation.teacher is None:
        return net
    return Distilling(
        net, teacher or partial(silent, net.config.classes), config.distillation, config.loss,
        config.label_smoothing,
    )  # fmt: skip


def silent(classes: int, images: Tensor) -> Tensor:
    """The logits of a teacher that knows nothing."""
    return images.new_zeros(len(images), classes)


def bare(net: nn.Module) -> nn.Module:
    """The net itself of what is trained."""
    return net.net if isinstance(net, Learner) else net


def of_net(net: nn.Module, weights: Mapping[str, T]) -> dict[str, T]:
    """What belongs to the net itself, of weights of what is trained, by the net's own names."""
    if not isinstance(net, Learner):
        return dict(weights)
    return {n.removeprefix(INSIDE): w for n, w in weights.items() if n.startswith(INSIDE)}
