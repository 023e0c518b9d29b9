"""What the table of recipes says of each, and the data they were written for. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vitkit.data.facts import DataFacts
from vitkit.models.variants import variant
from vitkit.training.config import TrainConfig

# Images and classes as the paper counts them (section 4.1), at the side that they are read at.
JFT = DataFacts(images=303_000_000, classes=18_291)
IMAGENET_21K = DataFacts(images=14_000_000, classes=21_843)
IMAGENET = DataFacts(images=1_281_167, classes=1000)
CIFAR_100 = DataFacts(images=50_000, classes=100, side=32)
PETS = DataFacts(images=3_680, classes=37)
VTAB = DataFacts(images=1000, classes=100)  # 19 tasks of 1,000 images; their classes differ


@dataclass(frozen=True)
class Recipe:
    """A recipe: the function, and what it was written for.

    For pre-training `make` is (facts, net's name or None) -> TrainConfig, for fine-tuning (facts,
    net's name, the checkpoint's image size) -> TrainConfig. Its docstring is what people read.
    """

    make: Callable[..., TrainConfig]
    nets: tuple[str, ...] = ()  # that it was written for, the first by default; () is any
    data: DataFacts | None = None  # that it was written for; None where it follows the data
    # Of fine-tuning, the learning rates that its authors choose among, those that they add for
    # ResNets and hybrids, and the share of the training images by which they choose.
    learning_rates: tuple[float, ...] = ()
    further_rates: tuple[float, ...] = ()
    dev_share: float | None = None


def is_vit(model: str) -> bool:
    """Whether a net, of those with a name, can have a hidden head, dropout, stochastic depth."""
    return variant(model).kind == "ViT"
