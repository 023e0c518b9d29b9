"""Which module a config trains: the net itself, or a learner around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from vitkit.data.transforms import HALF
from vitkit.models.nets import Net
from vitkit.objectives.distillation import Distilling, Teacher
from vitkit.objectives.learner import INSIDE, Learner, Trained
from vitkit.objectives.mae import MaskedAutoencoder
from vitkit.objectives.masking import MaskedPatches
from vitkit.objectives.simclr import SimCLR
from vitkit.training.config import TrainConfig

T = TypeVar("T")


def learner_of(
    net: Net,
    config: TrainConfig,
    mean: tuple[float, ...] = HALF,
    std: tuple[float, ...] = HALF,
    teacher: Teacher | None = None,
) -> Trained:
    """The module that is trained: the net where labels alone are learned.

    `mean` and `std` are those by which images are normalised; from a `teacher` is learned beside
    labels. UsageError for a net that the objective is not for.
    """
    if config.objective == "masked-patches":
        return MaskedPatches(net, config.masking, config.seed, mean, std)
    if config.objective == "mae":
        return MaskedAutoencoder(net, config.masking, config.seed, mean, std)
    if config.objective == "simclr":
        return SimCLR(net, config.contrastive, config.batch_size)
    if teacher is None:
        return net
    return Distilling(net, teacher, config.distillation, config.label_smoothing)


def bare(net: nn.Module) -> nn.Module:
    """The net itself of what is trained."""
    return net.net if isinstance(net, Learner) else net


def of_net(net: nn.Module, weights: Mapping[str, T]) -> dict[str, T]:
    """What belongs to the net itself, of weights of what is trained, by the net's own names."""
    if not isinstance(net, Learner):
        return dict(weights)
    return {n.removeprefix(INSIDE): w for n, w in weights.items() if n.startswith(INSIDE)}
