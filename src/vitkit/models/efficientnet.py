"""EfficientNet B0 to B7 (arXiv 1905.11946): torchvision's nets behind the contract of vitkit's.

Shapes: B images, H x W pixels (any), D width of the features (1280 for B0), K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vitkit.values import settle

# The side in pixels that each was made for: EfficientNetBuilder's params_dict, the original code.
USUAL_IMAGE_SIZES = {
    "B0": 224, "B1": 240, "B2": 260, "B3": 300, "B4": 380, "B5": 456, "B6": 528, "B7": 600,
}  # fmt: skip


@dataclass(frozen=True)
class EfficientNetConfig:
    """Which EfficientNet; the epsilon and momentum of its BatchNorms are torchvision's.

    Raises ValueError, one sentence, where no net can be of these values.
    """

    size: str  # "B0" to "B7"
    classes: int = 1000  # K; 0 is no head, and the net gives its features
    image_size: tuple[int, int] = (224, 224)  # (H, W), pixels: what it is for; it takes any
    dropout: float | None = None  # before the head; None is torchvision's, 0.2 (B0) to 0.5 (B7)
    stochastic_depth: float = 0.2  # of the last block, from 0 in the first; torchvision's default
    head_bias: float = 0.0  # initial bias of the head

    def __post_init__(self) -> None:
        settle(self)
        if self.size not in USUAL_IMAGE_SIZES:
            raise ValueError(
                f"size {self.size!r} is not known; choose one of {', '.join(USUAL_IMAGE_SIZES)}"
            )
        if self.classes < 0:
            raise ValueError(f"classes is {self.classes}; it must be at least 0")
        if min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}; it is a height and a width, pixels")
        for name in ("dropout", "stochastic_depth"):
            share = getattr(self, name)
            if share is not None and not 0 <= share < 1:
                raise ValueError(f"{name} is {share}; it must be in [0, 1)")


class EfficientNet(nn.Module):
    """Images (B, 3, H, W) of any size -> logits (B, K).

    The names of its state differ from torchvision's in two beginnings only: `backbone.` stands for
    torchvision's `features.`, `head.` for `classifier.1.`.
    """

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.config = config
        from torchvision.models import efficientnet  # seconds that the other nets do without

        net = getattr(efficientnet, f"efficientnet_{config.size.lower()}")(
            num_classes=max(1, config.classes),  # torchvision cannot initialise a head of none
            stochastic_depth_prob=config.stochastic_depth,
            **({} if config.dropout is None else {"dropout": config.dropout}),
        )
        self.backbone: nn.Module = net.features
        self.pool: nn.Module = net.avgpool
        self.dropout, head = net.classifier
        assert isinstance(head, nn.Linear)
        self.feature_width = head.in_features  # D
        self.head: nn.Module = head if config.classes else nn.Identity()
        nn.init.constant_(head.bias, config.head_bias)

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, K)
        features = self.features(images)
        return self.head(self.dropout(features)) if self.config.classes else features

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D): the average over the last map, which the head reads."""
        return self.pool(self.backbone(images)).flatten(1)

    @torch.no_grad()
    def reset_head(self, classes: int, bias: float = 0.0) -> None:
        """A fresh final layer for `classes` classes: zero weights, constant bias; none for 0."""
        self.config = replace(self.config, classes=classes, head_bias=bias)
        if classes == 0:
            self.head = nn.Identity()
            return
        like = next(self.backbone.parameters())
        self.head = nn.Linear(self.feature_width, classes, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, bias)
