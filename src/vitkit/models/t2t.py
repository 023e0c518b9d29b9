"""T2T-ViT of "Tokens-to-Token ViT" (arXiv 2101.11986), after its authors' yitu-opensource/T2T-ViT.

Shapes: B images, H x W pixels, N = H / 16 * W / 16 patches, T = 1 + N tokens (the class token
first), D width, h heads, d = D / h, K classes; c the width of the tokens-to-token layers, S the
tokens they read, M random features of the performer.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.models.attend import attend
from vitkit.models.stochastic_depth import depth_rate, kept_of_some
from vitkit.models.vit_config import nearest
from vitkit.values import settle

NORM_EPS = 1e-5  # torch.nn.LayerNorm's default, which the authors' code leaves as it is
CELL = 16  # pixels along the side of a token: the strides 4, 2 and 2
PERFORMER_DROPOUT = 0.1  # token_performer.py: fixed there, whatever the dropout of the net
PERFORMER_EPS = 1e-8  # token_performer.py: keeps the division from 0 / 0

TokensToTokenKind = Literal["performer", "transformer"]


@dataclass(frozen=True)
class T2TConfig:
    """The architecture of one T2T-ViT.

    Raises ValueError, one sentence, where no net can be of these values.
    """

    width: int  # D
    depth: int  # blocks, those of the tokens-to-token module not counted
    heads: int
    mlp_width: int
    # What mixes the tokens between soft splits: linear attention, or all pairs ("T2T-ViT_t").
    tokens_to_token: TokensToTokenKind = "performer"
    token_dim: int = 64  # c
    classes: int = 1000  # K; 0 is no head, and the net gives its features
    image_size: tuple[int, int] = (224, 224)  # (H, W), pixels
    dropout: float = 0.0  # after the positions, and after every dense layer of a block but q, k, v
    stochastic_depth: float = 0.0  # of the last block, from 0 in the first; 0.1 in main.py
    head_bias: float = 0.0  # initial bias of the head

    def __post_init__(self) -> None:
        settle(self)
        least = {"width": 1, "depth": 1, "heads": 1, "mlp_width": 1, "token_dim": 2, "classes": 0}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {minimum}")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        kind, kinds = self.tokens_to_token, get_args(TokensToTokenKind)
        if kind not in kinds:
            options = " or ".join(map(repr, kinds))
            raise ValueError(f"tokens_to_token {kind!r} is not known; choose {options}")
        height, width = self.image_size
        if min(height, width) < 1 or height % CELL or width % CELL:
            raise ValueError(
                f"image size {height}x{width} is not a multiple of {CELL}, the side of a token; "
                f"the nearest that is: {nearest(height, CELL)}x{nearest(width, CELL)}"
            )
        for name in ("dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // CELL, self.image_size[1] // CELL

    @property
    def prefix(self) -> int:
        """Tokens before the patches: the class token."""
        return 1

    @property
    def tokens(self) -> int:
        """T, the length of the sequence that the blocks read."""
        return self.prefix + self.grid[0] * self.grid[1]


class T2TViT(nn.Module):
    """Images (B, 3, H, W) -> logits (B, K). Source: section 3 and the authors' t2t_vit.py."""

    position_embedding: Tensor

    def __init__(self, config: T2TConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens_to_token = TokensToToken(config)
        self.class_token = nn.Parameter(torch.empty(1, 1, config.width))
        # Fixed, but kept with the weights: a published net may have come from another image size.
        self.register_buffer("position_embedding", sinusoids(config.tokens, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.head = nn.Linear(config.width, config.classes) if config.classes else nn.Identity()
        self.initialise()

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, K)
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D): the class token after the final norm, which the head reads."""
        return self.norm(self.encode(images)[:, 0])

    def encode(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, T, D)
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return x

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, T, D), the class token first."""
        if images.shape[-2:] != self.config.image_size:
            found, built = "x".join(map(str, images.shape[-2:])), self.config.image_size
            raise ValueError(
                f"images of {found} pixels given to a net built for {built[0]}x{built[1]}; resize "
                "the images, or build the net for that image_size: its positions are not trained"
            )
        x = self.tokens_to_token(images)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.dropout(x + self.position_embedding)

    @torch.no_grad()
    def initialise(self) -> None:
        """Random weights as the authors' code draws them: normal of deviation 0.02, biases 0."""
        nn.init.trunc_normal_(self.class_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head, nn.Linear):
            nn.init.constant_(self.head.bias, self.config.head_bias)

    @torch.no_grad()
    def reset_head(self, classes: int, bias: float = 0.0) -> None:
        """A fresh final layer for `classes` classes: zero weights, constant bias; none for 0."""
        self.config = replace(self.config, classes=classes, head_bias=bias)
        if classes == 0:
            self.head = nn.Identity()
            return
        like = self.norm.weight
        self.head = nn.Linear(self.config.width, classes, device=like.device, dtype=like.dtype)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, bias)


def sinusoids(tokens: int, width: int) -> Tensor:
    """Fixed positions (1, T, D) of tokens in a row, sine and cosine in turn (arXiv 1706.03762)."""
    channel = torch.arange(width)
    rate = 10000.0 ** (-2 * (channel // 2).double() / width)
    angle = torch.arange(tokens).double()[:, None] * rate
    table = torch.where(channel % 2 == 0, angle.sin(), angle.cos())
    return table.to(torch.get_default_dtype())[None]


class TokensToToken(nn.Module):
    """Section 3.1: images (B, 3, H, W) -> tokens (B, N, D), neighbours merged three times."""

    def __init__(self, config: T2TConfig) -> None:
        super().__init__()
        merged = config.token_dim * 3 * 3
        self.layer1 = TokenLayer(config, 3 * 7 * 7)
        self.layer2 = TokenLayer(config, merged)
        self.projection = nn.Linear(merged, config.width)

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, N, D)
        height, width = images.shape[-2:]
        x = self.layer1(soft_split(images, kernel=7, stride=4))  # (B, H / 4 * W / 4, c)
        x = self.layer2(soft_split(restructured(x, height // 4, width // 4), kernel=3, stride=2))
        x = soft_split(restructured(x, height // 8, width // 8), kernel=3, stride=2)
        return self.projection(x)


def soft_split(image: Tensor, kernel: int, stride: int) -> Tensor:
    """(B, c, H, W) -> (B, H / stride * W / stride, c * kernel^2): each token an overlapping square.

    The padding is half the overlap, rounded up: 2 for 7 by 4, 1 for 3 by 2.
    """
    padding = (kernel - stride + 1) // 2
    return F.unfold(image, kernel, padding=padding, stride=stride).transpose(1, 2)


def restructured(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, height * width, c) -> (B, c, height, width): tokens as an image again."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


class TokenLayer(nn.Module):
    """Tokens (B, S, C) -> (B, S, c). As the width changes, the values are what is added to."""

    def __init__(self, config: T2TConfig, width: int) -> None:
        super().__init__()
        performer = config.tokens_to_token == "performer"
        dim = config.token_dim
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = (PerformerAttention if performer else TokenAttention)(width, dim)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, dim)
        self.dropout = nn.Dropout(PERFORMER_DROPOUT if performer else 0.0)

    def forward(self, x: Tensor) -> Tensor:  # (B, S, C) -> (B, S, c)
        mixed, values = self.attention(self.norm1(x))
        x = values + self.dropout(mixed)
        return x + self.dropout(self.mlp(self.norm2(x)))


class TokenAttention(nn.Module):
    """Attention of one head between all pairs of tokens; token_transformer.py."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.rescale = math.sqrt(dim / width)  # the authors divide by sqrt(C), attend by sqrt(c)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, C) -> what each token gathered (B, S, c), and its own values (B, S, c)."""
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)  # each (B, 1, S, c)
        mixed = attend(q * self.rescale, k, v)
        return self.out(mixed.squeeze(1)), v.squeeze(1)


class PerformerAttention(nn.Module):
    """Attention in linear time by positive random features (arXiv 2009.14794, FAVOR+).

    token_performer.py: exp(q . k) is estimated by f(q) . f(k), f(x) = exp(W x - |x|^2 / 2) /
    sqrt(M), the rows of W being orthogonal and of length sqrt(M). W is drawn once and not trained.
    """

    random_features: Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        features = dim // 2
        self.kqv = nn.Linear(width, 3 * dim)  # keys first, as in published weights
        self.out = nn.Linear(dim, dim)
        weight = nn.init.orthogonal_(torch.empty(features, dim)) * math.sqrt(features)
        self.register_buffer("random_features", weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, C) -> what each token gathered (B, S, c), and its own values (B, S, c)."""
        kqv = self.kqv(x)
        return self.out(linear_attention(kqv, self.random_features)), kqv.chunk(3, dim=-1)[2]


def linear_attention(kqv: Tensor, weight: Tensor) -> Tensor:
    """k, q, v (B, S, 3 c) and W (M, c) -> (B, S, c).

    In float32 at least: a feature can be exp(M / 2), which float16 overflows, and S are summed.
    """
    dtype = torch.promote_types(kqv.dtype, torch.float32)
    with without_autocast(kqv.device.type):
        k, q, v = kqv.to(dtype).chunk(3, dim=-1)
        k, q = positive_features(k, weight.to(dtype)), positive_features(q, weight.to(dtype))
        total = q @ k.sum(dim=1).unsqueeze(-1)  # (B, S, 1)
        gathered = q @ (k.transpose(1, 2) @ v)  # (B, S, c)
        return (gathered / (total + PERFORMER_EPS)).to(kqv.dtype)


def positive_features(x: Tensor, weight: Tensor) -> Tensor:  # (B, S, c), (M, c) -> (B, S, M)
    half_square = x.square().sum(dim=-1, keepdim=True) / 2
    return torch.exp(F.linear(x, weight) - half_square) / math.sqrt(len(weight))


def without_autocast(device_type: str) -> AbstractContextManager:
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


class Block(nn.Module):
    """Section 3.2: pre-norm self-attention and MLP, each with a residual connection."""

    def __init__(self, config: T2TConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attention = Attention(config.width, config.heads)
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = Mlp(config.width, config.mlp_width, config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.stochastic_depth = depth_rate(config.stochastic_depth, layer, config.depth)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        x = x + self.dropped(self.attention(self.norm1(x)))
        return x + self.dropped(self.mlp(self.norm2(x)))

    def dropped(self, branch: Tensor) -> Tensor:
        return kept_of_some(self.dropout(branch), self.stochastic_depth, self.training)


class Attention(nn.Module):
    """Multi-head self-attention; no bias on q, k and v."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        q, k, v = self.project(x)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> q, k, v, each (B, h, T, d)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, h, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


class Mlp(nn.Module):
    """Two dense layers with a GELU between them."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dense1 = nn.Linear(width, hidden)
        self.dense2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.dense2(self.dropout(F.gelu(self.dense1(x))))
