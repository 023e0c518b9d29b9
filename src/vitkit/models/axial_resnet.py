"""AxialResNet: a ResNet whose 3x3 convolutions are row and column attention (appendix D.6).

Axial-DeepLab's classification net (arXiv 2003.07853), as its authors' PyTorch code has it
(csrhddlam/axial-deeplab, lib/models/axialnet.py); the Vision Transformer paper built on that code.

Shapes: B images, C channels, h heads, d = C / h, K classes; n is the length of a line, a row or a
column of the feature map, and L the number of lines in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.values import settle

DOWN, ACROSS = 2, 3  # dimensions of (B, C, H, W)


@dataclass(frozen=True)
class AxialResNetConfig:
    """The architecture of one AxialResNet. Raises ValueError where no net can be of these values.

    Widths 32, 48 and 64 with the default units are the Axial-ResNet-S, -M and -L of Axial-DeepLab.
    """

    width: int  # channels of the root; the four stages give 4, 8, 16 and 32 times as many
    units: tuple[int, ...] = (3, 4, 6, 3)  # of each stage: those of ResNet-50
    heads: int = 8  # of every attention
    classes: int = 1000  # K; 0 is no head, and the net gives its features
    image_size: tuple[int, int] = (224, 224)  # (H, W), pixels: its relative positions' lengths
    head_bias: float = 0.0  # initial bias of the head

    def __post_init__(self) -> None:
        settle(self)
        for name in ("width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if min(self.units, default=0) < 1:
            raise ValueError(f"units is {self.units}; it is the number of units of each stage")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        if self.classes < 0:
            raise ValueError(f"classes is {self.classes}; it must be at least 0")
        if any(x < 1 or x % self.stride for x in self.image_size):
            raise ValueError(
                f"image size {'x'.join(map(str, self.image_size))} is not a height and a width "
                f"that are multiples of {self.stride} pixels, the stride of the net"
            )

    @property
    def stride(self) -> int:
        """Pixels along the side of one place in the last feature map."""
        return 4 * 2 ** (len(self.units) - 1)

    @property
    def feature_width(self) -> int:
        """D, what the head reads: channels of the last stage."""
        return 4 * self.width * 2 ** (len(self.units) - 1)


class AxialResNet(nn.Module):
    """Images (B, 3, H, W) -> logits (B, K), of the size that the net was built for."""

    def __init__(self, config: AxialResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.root = nn.Conv2d(3, config.width, 7, stride=2, padding=3, bias=False)
        self.root_norm = nn.BatchNorm2d(config.width)
        self.stages = nn.ModuleList()
        channels = config.width
        size = (config.image_size[0] // 4, config.image_size[1] // 4)
        for stage, count in enumerate(config.units):
            middle, stride = config.width * 2 ** (stage + 1), 1 if stage == 0 else 2
            units = [Unit(channels, middle, config.heads, size, stride)]
            channels, size = 2 * middle, (size[0] // stride, size[1] // stride)
            units += [Unit(channels, middle, config.heads, size) for _ in range(count - 1)]
            self.stages.append(nn.Sequential(*units))
        self.head: nn.Module = nn.Identity()
        self.initialise()

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, K)
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D): what the head reads, the mean of the feature map."""
        return self.feature_map(images).mean(dim=(2, 3))

    def feature_map(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D, H / 32, W / 32), for four stages."""
        if images.shape[-2:] != self.config.image_size:
            found, built = "x".join(map(str, images.shape[-2:])), self.config.image_size
            raise ValueError(
                f"images of {found} pixels given to a net built for {built[0]}x{built[1]}, whose "
                "relative positions fit no other size; resize the images, or train it at that size"
            )
        x = F.relu(self.root_norm(self.root(images)))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in self.stages:
            x = stage(x)
        return x

    @torch.no_grad()
    def initialise(self) -> None:
        """Random weights as the authors' code draws them, but for the head, which starts at zero.

        A unit begins as its shortcut: the last norm of each has zero weights.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, AxialAttention):
                module.initialise()
            elif isinstance(module, Unit):
                nn.init.zeros_(module.norm2.weight)
        self.reset_head(self.config.classes, self.config.head_bias)

    @torch.no_grad()
    def reset_head(self, classes: int, bias: float = 0.0) -> None:
        """A fresh final layer for `classes` classes: zero weights, constant bias; none for 0."""
        self.config = replace(self.config, classes=classes, head_bias=bias)
        if classes == 0:
            self.head = nn.Identity()
            return
        like, width = self.root.weight, self.config.feature_width
        self.head = nn.Linear(width, classes, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, bias)


class Unit(nn.Module):
    """A bottleneck: (B, channels, H, W) -> (B, 2 * middle, H / stride, W / stride)."""

    def __init__(
        self, channels: int, middle: int, heads: int, size: tuple[int, int], stride: int = 1
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, middle, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(middle)
        self.column_attention = AxialAttention(middle, heads, size[0], along=DOWN)
        self.row_attention = AxialAttention(middle, heads, size[1], along=ACROSS)
        self.conv2 = nn.Conv2d(middle, 2 * middle, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * middle)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != 2 * middle:
            self.shortcut.append(nn.Conv2d(channels, 2 * middle, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(2 * middle))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.row_attention(self.column_attention(x))
        if self.stride != 1:
            x = F.avg_pool2d(x, self.stride)
        return F.relu(shortcut + self.norm2(self.conv2(F.relu(x))))


class AxialAttention(nn.Module):
    """Position-sensitive self-attention along each line (Axial-DeepLab, Eq. 4).

    Logits are of a query and a key, and of either with a learned embedding of their offset; the
    output is a mean of values and one of embeddings of offsets. Queries and keys are half as wide
    as values. Batch norms stand where a Vision Transformer has 1 / sqrt(d).
    """

    def __init__(self, width: int, heads: int, length: int, along: int) -> None:
        super().__init__()
        self.heads, self.length, self.along = heads, length, along
        value = width // heads  # d
        self.parts = [value // 2, value // 2, value]  # of q, k and v in each head
        self.qkv = nn.Conv1d(width, 2 * width, 1, bias=False)
        self.qkv_norm = nn.BatchNorm1d(2 * width)
        self.content_norm = nn.BatchNorm2d(heads)  # on the logits of query and key
        self.query_norm = nn.BatchNorm2d(heads)  # on those of query and offset
        self.key_norm = nn.BatchNorm2d(heads)  # on those of key and offset
        self.value_norm = nn.BatchNorm1d(width)  # on the output that is a mean of values
        self.offset_norm = nn.BatchNorm1d(width)  # on that of embeddings of offsets
        # The same for all heads. Column o is the offset o - (n - 1): for q and v that of query
        # less key, for k that of key less query.
        self.relative_embedding = nn.Parameter(torch.empty(2 * value, 2 * length - 1))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        lines = x.movedim(self.along, -1).transpose(1, 2)  # (B, lines, C, n)
        mixed = self.mix(lines.flatten(0, 1)).unflatten(0, lines.shape[:2])
        return mixed.transpose(1, 2).movedim(-1, self.along)

    def mix(self, x: Tensor) -> Tensor:  # (L, C, n) -> (L, C, n)
        qkv = self.qkv_norm(self.qkv(x)).unflatten(1, (self.heads, -1))  # (L, h, 2 d, n)
        q, k, v = qkv.split(self.parts, dim=2)
        # i is the place of a query, j of a key, c a channel, l a line.
        for_q, for_k, for_v = self.offsets().split(self.parts)  # (channels, n, n)
        logits = self.content_norm(q.transpose(2, 3) @ k)
        logits = logits + self.query_norm(torch.einsum("lhci,cij->lhij", q, for_q))
        logits = logits + self.key_norm(torch.einsum("lhcj,cji->lhij", k, for_k))
        weights = torch.softmax(logits, dim=-1)
        values = (v @ weights.transpose(2, 3)).flatten(1, 2)
        offsets = torch.einsum("lhij,cij->lhci", weights, for_v).flatten(1, 2)
        return self.value_norm(values) + self.offset_norm(offsets)

    def offsets(self) -> Tensor:
        """(2 d, n, n): at i, j the embedding of the offset i - j."""
        return self.relative_embedding.unfold(1, self.length, 1).flip(2)

    def initialise(self) -> None:
        nn.init.normal_(self.qkv.weight, std=self.qkv.in_channels**-0.5)
        nn.init.normal_(self.relative_embedding, std=self.parts[-1] ** -0.5)
