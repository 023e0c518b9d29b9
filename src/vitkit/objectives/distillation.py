"""Learning from a teacher's answers beside the labels: DeiT (arXiv 2012.12877, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitkit.data.transforms import Preprocessing
from vitkit.models.nets import Net
from vitkit.models.vit import VisionTransformer
from vitkit.objectives.learner import Learner
from vitkit.objectives.settings import DistillationConfig
from vitkit.objectives.supervised import cross_entropy


def distillation_loss(
    logits: Tensor,
    teacher_logits: Tensor,
    targets: Literal["hard", "soft"] = "hard",
    temperature: float = 1.0,
) -> Tensor:
    """Logits (B, K) of a net and of its teacher, of any float type -> the mean loss, in float32 at
    least.

    "hard" is the cross-entropy with the teacher's likeliest class (equation 3), whatever the
    temperature. "soft" is T^2 KL(teacher || net) of the probabilities of logits / T (equation 2),
    the mean over the B images; deit's code (losses.py) divides the sum by B K instead.
    """
    logits, teacher_logits = (
        found.to(torch.promote_types(found.dtype, torch.float32))
        for found in (logits, teacher_logits)
    )
    if targets == "hard":
        return F.cross_entropy(logits, teacher_logits.argmax(dim=-1))
    ours, theirs = (F.log_softmax(found / temperature, -1) for found in (logits, teacher_logits))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2


class Teacher:
    """A trained net that answers for a student's images, and learns nothing.

    It is no module, so that no state, optimizer or sharding of a student that holds it has any of
    its weights.
    """

    def __init__(
        self, net: Net, theirs: Preprocessing, students: Preprocessing, order: Tensor | None = None
    ) -> None:
        """`theirs` and `students` prepare images for the teacher and for the student; `order` (K,)
        int64 says which of the teacher's classes each of the student's is, by default its own."""
        self.net = net.eval().requires_grad_(False)
        self.image_size = theirs.image_size
        self.order = order
        (our_mean, our_std), (mean, std) = (
            torch.tensor((each.mean, each.std)).view(2, 3, 1, 1) for each in (students, theirs)
        )
        self.scale, self.shift = our_std / std, (our_mean - mean) / std

    def to(self, device: torch.device) -> Teacher:
        """Itself, on a device."""
        self.net.to(device)
        self.scale, self.shift = self.scale.to(device), self.shift.to(device)
        self.order = None if self.order is None else self.order.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the student reads them -> the teacher's logits (B, K), in the
        order of the student's classes."""
        images = images * self.scale + self.shift
        if tuple(images.shape[-2:]) != self.image_size:
            images = F.interpolate(images, self.image_size, mode="bicubic", antialias=True)
        logits = self.net(images)
        return logits if self.order is None else logits[:, self.order]


class Distilling(Learner):
    """A net that learns from labels and from a teacher.

    With a distillation token the class head learns from the labels and the other head from the
    teacher, each by itself: only afterwards are they averaged. Without one the same head learns
    from both.
    """

    def __init__(
        self,
        net: Net,
        teacher: Callable[[Tensor], Tensor],
        distillation: DistillationConfig,
        smoothing: float = 0.0,
    ) -> None:
        """`teacher` gives logits (B, K) for the net's images (`Teacher`); smoothing is of the loss
        against the labels."""
        super().__init__(net)
        self.teacher, self.distillation, self.smoothing = teacher, distillation, smoothing

    def loss(self, images: Tensor, labels: Tensor, places: np.ndarray) -> Tensor:
        """-> (1 - share) cross-entropy with the labels + share distillation loss, scalar."""
        asked = self.distillation
        answers = self.teacher(images)  # first, before the net's activations take memory
        if isinstance(self.net, VisionTransformer) and self.net.head_distillation is not None:
            logits, to_distil = self.net.classify_twice(self.net.encode(images))
        else:
            logits = to_distil = self.net(images)
        from_labels = cross_entropy(logits, labels, smoothing=self.smoothing)
        from_teacher = distillation_loss(to_distil, answers, asked.targets, asked.temperature)
        return (1 - asked.share) * from_labels + asked.share * from_teacher
