"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929), equations 1 to 4.

Shapes: B images, H x W pixels, P patch side, N = (H / P) * (W / P) patches, T = prefix + N tokens
(the prefix is the class token, where there is one), D width, h heads, d = D / h, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.models.attend import attend

NORM_EPS = 1e-6  # flax.linen.LayerNorm's default, which the authors' models_vit.py uses


@dataclass(frozen=True)
class ViTConfig:
    """The architecture of one Vision Transformer; nothing about how it is trained but dropout."""

    patch: int  # P, pixels
    width: int  # D
    depth: int  # blocks
    heads: int
    mlp_width: int
    classes: int = 1000  # K
    image_size: tuple[int, int] = (224, 224)  # (H, W), pixels
    pooling: Literal["token", "mean"] = "token"  # "mean" has no class token, as the authors' "gap"
    hidden_head: bool = False  # the pre-training head: one hidden tanh layer of width D
    gelu: Literal["tanh", "erf"] = "tanh"  # the authors' Flax code uses the tanh approximation
    norm_eps: float = NORM_EPS
    dropout: float = 0.0  # after every dense layer but q, k, v, and after the positions
    head_bias: float = 0.0  # initial bias of the head; the authors take -10 for sigmoid losses

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", tuple(self.image_size))  # a list from JSON, say
        for name in ("patch", "width", "depth", "heads", "mlp_width", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        height, width = self.image_size
        if min(height, width) < 1 or height % self.patch or width % self.patch:
            raise ValueError(
                f"image size {height}x{width} is not a multiple of the patch size {self.patch}; "
                f"the nearest that is: {nearest(height, self.patch)}x{nearest(width, self.patch)}"
            )
        if self.pooling not in ("token", "mean"):
            raise ValueError(f"pooling {self.pooling!r} is not known; choose 'token' or 'mean'")
        if self.gelu not in ("tanh", "erf"):
            raise ValueError(f"gelu {self.gelu!r} is not known; choose 'tanh' or 'erf'")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be in [0, 1)")
        if not 0 < self.norm_eps < math.inf:
            raise ValueError(f"norm_eps is {self.norm_eps}; it must be above 0")
        if not math.isfinite(self.head_bias):
            raise ValueError(f"head_bias is {self.head_bias}; it must be a finite number")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch

    @property
    def prefix(self) -> int:
        """Tokens before the patches."""
        return 1 if self.pooling == "token" else 0

    @property
    def tokens(self) -> int:
        """T, the length of the sequence."""
        return self.prefix + self.grid[0] * self.grid[1]


def nearest(side: int, patch: int) -> int:
    """The multiple of `patch` nearest to `side`, at least one patch."""
    return max(1, round(side / patch)) * patch


class VisionTransformer(nn.Module):
    """Images (B, 3, H, W) -> logits (B, K). Source: section 3.1 and the authors' models_vit.py."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embedding = nn.Conv2d(3, width, config.patch, stride=config.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width)) if config.prefix else None
        self.position_embedding = nn.Parameter(torch.empty(1, config.tokens, width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.hidden = nn.Linear(width, width) if config.hidden_head else None
        self.head = nn.Linear(width, config.classes)
        self.initialise()

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, K)
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D): what the final linear layer reads."""
        tokens = self.norm(self.encode(images))  # Eq. 4
        pooled = tokens[:, 0] if self.config.pooling == "token" else tokens.mean(dim=1)
        return pooled if self.hidden is None else torch.tanh(self.hidden(pooled))

    def tokens(self, images: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Tokens (B, T, D) after the final norm, for use of the net as a backbone.

        `layers` names blocks by index (0 is the first, -1 the last); each one's output is then
        returned, in the order asked for, the final norm applied to each.
        """
        if layers is None:
            return self.norm(self.encode(images))
        outputs = []
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return [self.norm(outputs[layer]) for layer in layers]

    def encode(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, T, D)
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return x

    def embed(self, images: Tensor) -> Tensor:
        """Eq. 1: (B, 3, H, W) -> (B, T, D), the class token first."""
        if images.shape[-2:] != self.config.image_size:
            found, built = "x".join(map(str, images.shape[-2:])), self.config.image_size
            raise ValueError(
                f"images of {found} pixels given to a net built for {built[0]}x{built[1]}; resize "
                "the images, or the net by vitkit.models.positions.resize_net"
            )
        x = self.patch_embedding(images).flatten(2).transpose(1, 2)  # (B, N, D), row by row
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        return self.dropout(x + self.position_embedding)

    @torch.no_grad()
    def initialise(self) -> None:
        """Random weights as the authors' code draws them (models_vit.py)."""
        lecun_normal_(self.patch_embedding)
        if self.class_token is not None:
            nn.init.zeros_(self.class_token)
        nn.init.normal_(self.position_embedding, std=0.02)
        for module in self.modules():
            if isinstance(module, Attention | Mlp):
                module.initialise()
        if self.hidden is not None:
            lecun_normal_(self.hidden)
        self.reset_head(self.config.classes, self.config.head_bias)

    @torch.no_grad()
    def reset_head(self, classes: int, bias: float = 0.0) -> None:
        """A fresh final layer for `classes` classes: zero weights, constant bias."""
        self.config = replace(self.config, classes=classes, head_bias=bias)
        weight = self.head.weight
        self.head = nn.Linear(weight.shape[1], classes, device=weight.device, dtype=weight.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, bias)


class Block(nn.Module):
    """Eq. 2 and 3: pre-norm self-attention and MLP, each with a residual connection."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head self-attention (appendix A, Eq. 5 to 8); biases on q, k, v and the output."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        q, k, v = self.project(x)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> q, k, v, each (B, h, T, d)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, h, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def initialise(self) -> None:
        for part in self.qkv.weight.chunk(3):  # each of q, k, v is its own D x D matrix
            nn.init.xavier_uniform_(part)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.dense1 = nn.Linear(config.width, config.mlp_width)
        self.dense2 = nn.Linear(config.mlp_width, config.width)
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.dense2(self.dropout(F.gelu(self.dense1(x), approximate=self.approximate)))

    def initialise(self) -> None:
        for dense in (self.dense1, self.dense2):
            nn.init.xavier_uniform_(dense.weight)
            nn.init.normal_(dense.bias, std=1e-6)


def lecun_normal_(layer: nn.Conv2d | nn.Linear) -> None:
    """Flax's lecun_normal: variance 1 / fan-in, truncated at two standard deviations; bias 0."""
    fan_in = layer.weight[0].numel()
    std = math.sqrt(1 / fan_in) / 0.87962566103423978  # what truncation takes away is put back
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
