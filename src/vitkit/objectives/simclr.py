"""SimCLR (arXiv 2002.05709): two views of an image must be more alike than views of others."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from torch.nn import functional as F

from vitkit.data.augmentation.placing import placed
from vitkit.errors import UsageError
from vitkit.models.nets import Net, feature_width
from vitkit.objectives.learner import Learner
from vitkit.objectives.settings import ContrastiveConfig


class SimCLR(Learner):
    """A net whose features h learn through a projection head g(h) = W2 relu(W1 h) (section 2.1).

    A batch holds two views of each image, at places i and i + B/2 in it (`data.repeats` of 2). The
    authors' code normalises in the head over the batch; here nothing does, as such statistics would
    be each process's own and tell a view which others it came with.

    Every process compares its images with those of all: all must ask for a loss, each of its share
    of a batch of `batch_size` views. UsageError for fewer than two images, or half a pair.
    """

    together: ClassVar[bool] = True

    def __init__(self, net: Net, contrastive: ContrastiveConfig, batch_size: int) -> None:
        super().__init__(net)
        if batch_size < 4 or batch_size % 2:
            raise UsageError(
                "contrastive learning compares different images, each in two views: batch_size is "
                f"{batch_size}; give an even number of at least 4"
            )
        self.temperature, self.batch_size = contrastive.temperature, batch_size
        self.projection = nn.Sequential(
            nn.Linear(feature_width(net), contrastive.hidden_width, bias=False),
            nn.ReLU(),
            nn.Linear(contrastive.hidden_width, contrastive.width, bias=False),
        )

    def loss(self, images: Tensor, labels: Tensor, places: np.ndarray) -> Tensor:
        """Eq. 1, the mean over this process's views (B,) of their losses, in float32 at least."""
        projected = self.projected(images)
        # A batch begins at a multiple of its size.
        where = placed(places % self.batch_size, images.device)
        # No order between processes is relied on: each puts its own rows in, and adds nothing else.
        every = projected.new_zeros(self.batch_size, projected.shape[1])
        every = every.index_copy(0, where, projected)
        if len(places) < self.batch_size:
            every = SumOfProcesses.apply(every)
        return nt_xent(projected, every, where, self.temperature)

    def projected(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, d) of length 1, in float32 at least."""
        projected = self.projection(self.net.features(images))
        return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)

    @torch.no_grad()
    def examples(self, images: Tensor, places: np.ndarray) -> Tensor:
        """Cosines (B, B) of the projections of a whole batch, ordered by place: the two views of
        an image are rows i and i + B/2."""
        projected = self.projected(images)[placed(places.argsort(), images.device)]
        with torch.autocast(images.device.type, enabled=False):
            return projected @ projected.T


def nt_xent(anchors: Tensor, views: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Eq. 1 of arXiv 2002.05709, the mean over the anchors: scalar.

    `anchors` (A, d) are rows number `rows` (A,) int64 of `views` (2N, d), all of length 1; the
    other view of row i is row i + N, modulo 2N. Similarities and loss are in float32 at least,
    autocast or not; where torch lets a GPU multiply float32 by TF32, as runs in bf16 do, the
    factors are rounded to its 11 bits.
    """
    with torch.autocast(anchors.device.type, enabled=False):  # cosines / 0.1 in bfloat16: too rough
        similarities = (anchors / temperature) @ views.T
    itself = rows[:, None] == torch.arange(len(views), device=rows.device)
    similarities = similarities.masked_fill_(itself, -torch.inf)  # in place: it is large
    return F.cross_entropy(similarities, (rows + len(views) // 2) % len(views))


class SumOfProcesses(torch.autograd.Function):
    """The sum of the processes' tensors, in all of them; so is the gradient, as the loss of each
    depends on what all put in.

    The mean that DDP takes of the gradients is then that of the mean of the processes' losses.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return summed(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return summed(gradients[0])


def summed(tensor: Tensor) -> Tensor:
    found = tensor.clone()
    if not is_fake(found):  # that of a memory plan, which has no numbers
        dist.all_reduce(found)
    return found
