"""BiT, the ResNets that the paper compares with (section 4.1; "Big Transfer", arXiv 1912.11370).

ResNet v2 (norm and activation open each unit) with group norms and standardised convolutions, as in
google-research/big_transfer's bit_pytorch/models.py. Shapes: B images, C channels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.models.initialise import lecun_normal_
from vitkit.models.std_conv import StdConv2d, check_epsilons
from vitkit.values import settle

GROUPS = 32  # of every norm

Conv = Callable[..., StdConv2d]  # (channels in, channels out, kernel, stride=1, padding=0)
Norm = Callable[[int], nn.GroupNorm]  # (channels)


@dataclass(frozen=True)
class BiTConfig:
    """The architecture of one BiT. Raises ValueError where no net can be of these values."""

    units: tuple[int, ...]  # of each stage: (3, 4, 6, 3) is ResNet-50
    width_factor: int = 1  # the "x3" of R50x3
    root_width: int = 64  # channels of the root, before the width factor
    classes: int = 1000  # K; 0 is no head, and the net gives its features
    image_size: tuple[int, int] = (224, 224)  # (H, W), pixels, that images are prepared to
    head_bias: float = 0.0  # initial bias of the head; the authors take -10 for sigmoid losses
    variance_eps: float = 1e-10  # of the convolutions: vitkit.models.std_conv.standardise
    std_eps: float = 0.0
    group_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        settle(self)
        if min(self.units, default=0) < 1:
            raise ValueError(f"units is {self.units}; it is the number of units of each stage")
        for name in ("width_factor", "root_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % GROUPS:
            raise ValueError(
                f"a root {self.width} wide (root_width times width_factor) cannot be normed in "
                f"{GROUPS} equal groups"
            )
        if self.classes < 0:
            raise ValueError(f"classes is {self.classes}; it must be at least 0")
        if min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}; it is a height and a width, pixels")
        check_epsilons(self.variance_eps, self.std_eps)
        if not 0 < self.group_norm_eps < math.inf:
            raise ValueError(f"group_norm_eps is {self.group_norm_eps}; it must be above 0")

    @property
    def width(self) -> int:
        """Channels of the root."""
        return self.root_width * self.width_factor

    @property
    def feature_width(self) -> int:
        """D, what the head reads: channels of the last stage."""
        return 4 * self.width * 2 ** (len(self.units) - 1)


class BiT(nn.Module):
    """Images (B, 3, H, W) -> logits (B, K).

    A convolutional net: images of any size will do, whatever `config.image_size` says.
    """

    def __init__(self, config: BiTConfig) -> None:
        super().__init__()
        self.config = config
        conv = partial(
            StdConv2d, padding=0, variance_eps=config.variance_eps, std_eps=config.std_eps
        )
        norm = partial(nn.GroupNorm, GROUPS, eps=config.group_norm_eps)
        self.root = conv(3, config.width, 7, 2, padding=3)
        self.stages = nn.ModuleList()
        channels = config.width
        for stage, count in enumerate(config.units):
            middle, stride = config.width * 2**stage, 1 if stage == 0 else 2
            first = Unit(channels, middle, stride, conv, norm)
            rest = (Unit(4 * middle, middle, 1, conv, norm) for _ in range(count - 1))
            self.stages.append(nn.Sequential(first, *rest))
            channels = 4 * middle
        self.norm = norm(channels)
        self.head: nn.Module = nn.Identity()
        self.initialise()

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, K)
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D): what the head reads, the mean of the feature map."""
        return self.feature_map(images).mean(dim=(2, 3))

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, h, w) after the last norm and ReLU.

        With four stages h and w are H / 32 and W / 32, rounded up.
        """
        x = F.pad(self.root(images), (1, 1, 1, 1))  # zeros, which win over negative neighbours
        x = F.max_pool2d(x, 3, 2)
        for stage in self.stages:
            x = stage(x)
        return F.relu(self.norm(x), inplace=True)

    @torch.no_grad()
    def initialise(self) -> None:
        """Random weights as big_vision's bit_paper.py draws them: Flax's default for kernels."""
        for module in self.modules():
            if isinstance(module, StdConv2d):
                lecun_normal_(module)
        self.reset_head(self.config.classes, self.config.head_bias)

    @torch.no_grad()
    def reset_head(self, classes: int, bias: float = 0.0) -> None:
        """A fresh final layer for `classes` classes: zero weights, constant bias; none for 0."""
        self.config = replace(self.config, classes=classes, head_bias=bias)
        if classes == 0:
            self.head = nn.Identity()
            return
        like = self.norm.weight
        self.head = nn.Linear(len(like), classes, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, bias)


class Unit(nn.Module):
    """A bottleneck: (B, channels, H, W) -> (B, 4 * middle, H / stride, W / stride)."""

    def __init__(self, channels: int, middle: int, stride: int, conv: Conv, norm: Norm) -> None:
        super().__init__()
        self.projection = None
        if stride != 1 or channels != 4 * middle:
            self.projection = conv(channels, 4 * middle, 1, stride)
        self.norm1, self.conv1 = norm(channels), conv(channels, middle, 1)
        self.norm2, self.conv2 = norm(middle), conv(middle, middle, 3, stride, padding=1)
        self.norm3, self.conv3 = norm(middle), conv(middle, 4 * middle, 1)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x), inplace=True)
        shortcut = x if self.projection is None else self.projection(activated)
        x = self.conv1(activated)
        x = self.conv2(F.relu(self.norm2(x), inplace=True))
        x = self.conv3(F.relu(self.norm3(x), inplace=True))
        return shortcut + x
