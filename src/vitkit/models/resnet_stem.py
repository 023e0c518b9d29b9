"""The ResNet in front of the hybrid Vision Transformers (section 3.1, "Hybrid Architecture").

It is ResNet v1 (an activation closes each unit) with group norms and standardised convolutions, as
in the authors' vit_jax/models_resnet.py. Shapes: B images, C channels, sizes halved round up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.models.initialise import lecun_normal_
from vitkit.models.std_conv import StdConv2d, same_padding

GROUPS = 32  # flax.linen.GroupNorm's default, which the authors' code uses

Conv = Callable[..., StdConv2d]  # (channels in, channels out, kernel, stride=1)
Norm = Callable[[int], nn.GroupNorm]  # (channels)


class ResNetStem(nn.Module):
    """Images (B, 3, H, W) -> a feature map (B, channels, H / stride, W / stride).

    `units` is the number of units of each stage, and stage s is 4 * width * 2**s channels wide:
    (3, 4, 6, 3) is ResNet-50, (3, 4, 9) has the units of its last stage in the one before it
    (section 4.1), () is the root alone. The stride is 4, doubled by every stage but the first.
    The epsilons are those of `vitkit.models.std_conv.standardise` and of the group norms.
    Raises ValueError for widths that the 32 groups do not divide, and for stages without units.
    """

    def __init__(
        self,
        units: tuple[int, ...],
        width: int = 64,
        variance_eps: float = 0.0,
        std_eps: float = 1e-5,
        group_norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        if min(units, default=1) < 1:
            raise ValueError(f"units is {units}; every stage must have at least 1")
        if width < 1 or width % GROUPS:
            raise ValueError(
                f"a stem {width} wide cannot be normed in {GROUPS} equal groups; take a width that "
                f"{GROUPS} divides"
            )
        conv = partial(StdConv2d, padding="same", variance_eps=variance_eps, std_eps=std_eps)
        norm = partial(nn.GroupNorm, GROUPS, eps=group_norm_eps)
        self.root = ConvNorm(conv(3, width, 7, 2), norm(width))
        self.stages = nn.ModuleList()
        self.channels, self.stride = width, 4
        for stage, count in enumerate(units):
            middle, stride = width * 2**stage, 1 if stage == 0 else 2
            first = Unit(self.channels, middle, stride, conv, norm)
            rest = (Unit(4 * middle, middle, 1, conv, norm) for _ in range(count - 1))
            self.stages.append(nn.Sequential(first, *rest))
            self.channels, self.stride = 4 * middle, self.stride * stride
        self.initialise()

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, C, H', W')
        x = same_max_pool(F.relu(self.root(images), inplace=True))
        for stage in self.stages:
            x = stage(x)
        return x

    @torch.no_grad()
    def initialise(self) -> None:
        """Random weights as the authors' code draws them: every unit starts as its shortcut."""
        for module in self.modules():
            if isinstance(module, StdConv2d):
                lecun_normal_(module)
            elif isinstance(module, Unit):
                nn.init.zeros_(module.norm3.weight)


class Unit(nn.Module):
    """A bottleneck: (B, channels, H, W) -> (B, 4 * middle, H / stride, W / stride)."""

    def __init__(self, channels: int, middle: int, stride: int, conv: Conv, norm: Norm) -> None:
        super().__init__()
        self.projection = None
        if stride != 1 or channels != 4 * middle:
            self.projection = ConvNorm(conv(channels, 4 * middle, 1, stride), norm(4 * middle))
        self.conv1, self.norm1 = conv(channels, middle, 1), norm(middle)
        self.conv2, self.norm2 = conv(middle, middle, 3, stride), norm(middle)
        self.conv3, self.norm3 = conv(middle, 4 * middle, 1), norm(4 * middle)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.projection is None else self.projection(x)
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)
        x = F.relu(self.norm2(self.conv2(x)), inplace=True)
        return F.relu(shortcut + self.norm3(self.conv3(x)), inplace=True)


class ConvNorm(nn.Module):
    """A convolution and its norm."""

    def __init__(self, conv: StdConv2d, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def same_max_pool(x: Tensor) -> Tensor:
    """3 x 3 maxima at every second place, at TensorFlow's SAME padding: (B, C, H / 2, W / 2).

    At an even size SAME pads the end alone; there the last window is cut off, as ceil_mode does.
    """
    top, left = (same_padding(side, 3, 2)[0] for side in x.shape[-2:])
    return F.max_pool2d(x, 3, 2, padding=(top, left), ceil_mode=True)
