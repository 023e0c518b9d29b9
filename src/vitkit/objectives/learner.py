"""What is trained where an objective needs more than a net's logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from vitkit.models.nets import Net, NetConfig

INSIDE = "net."  # how the names of the net's weights begin in a learner


class Learner(nn.Module, ABC):
    """A net together with what stands beside it while it learns (a decoder, a projection head).

    Only `net` is kept in bundles; states of a run hold all of it. What its classes draw at random
    follows from their seed and the images' places in the stream, not from torch's generator.
    """

    together: ClassVar[bool] = False  # whether images are compared: a batch cannot come in parts

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    @property
    def config(self) -> NetConfig:
        return self.net.config

    @property
    def further_blocks(self) -> list[nn.Module]:
        """Transformer blocks beside the net's own."""
        return []

    def forward(
        self, images: Tensor, labels: Tensor | None = None, places: np.ndarray | None = None
    ) -> Any:
        """Images (B, 3, H, W), normalised -> what the net gives; with labels and places the loss;
        with places alone the examples.

        All goes through here, since sharded weights are gathered for a module as a whole.
        """
        if places is None:
            return self.net(images)
        if labels is None:
            return self.examples(images, places)
        return self.loss(images, labels, places)

    @abstractmethod
    def loss(self, images: Tensor, labels: Tensor, places: np.ndarray) -> Tensor:
        """Normalised images (B, 3, H, W), labels (B,) int64 or (B, K) shares, which only some read,
        and places (B,) int64 of the images in the stream -> the mean loss of the images, scalar."""

    def examples(self, images: Tensor, places: np.ndarray) -> Any:
        """What the net makes of images, to be looked at; arguments as for `loss`. None where it
        learns from labels, of which predictions tell."""
        return None


Trained = Net | Learner  # what a run trains
