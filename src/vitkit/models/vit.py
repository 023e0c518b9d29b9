"""The Vision Transformer of "An Image is Worth 16x16 Words" (arXiv 2010.11929), equations 1 to 4.

Shapes: B images, H x W pixels, P patch side, N = (H / P) * (W / P) patches, T = prefix + N tokens
(the prefix is the class token and what else stands before the patches), D width, h heads,
d = D / h, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.models.attend import attend, attend_written_out
from vitkit.models.gelu import gelu
from vitkit.models.initialise import lecun_normal_
from vitkit.models.positions import sincos_2d
from vitkit.models.resnet_stem import ResNetStem
from vitkit.models.restricted import attend_within, parse_pattern
from vitkit.models.stochastic_depth import depth_rate, kept_of_some
from vitkit.models.vit_config import ViTConfig


class VisionTransformer(nn.Module):
    """Images (B, 3, H, W) -> logits (B, K). Source: section 3.1 and the authors' models_vit.py."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch
        self.stem = None if config.stem is None else stem_of(config)
        channels = 3 if self.stem is None else self.stem.channels
        self.patch_embedding = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = parameter(1, 1, width) if config.has_class_token else None
        self.distillation_token = parameter(1, 1, width) if config.distillation_token else None
        self.registers = parameter(1, config.registers, width) if config.registers else None
        self.make_positions()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.pool = AttentionPool(config) if config.pooling == "map" else None
        self.hidden = nn.Linear(width, width) if config.hidden_head else None
        self.head: nn.Module = nn.Identity()
        self.head_distillation: nn.Module | None = None
        self.initialise()

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, K)
        return self.classify(self.encode(images))

    def features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D): what the final linear layer reads.

        With pooling "token+mean" they are (B, 2 D); with a distillation token the mean of what the
        two heads read.
        """
        return self.summary(self.encode(images))

    def classify(self, x: Tensor) -> Tensor:
        """Tokens (B, T, D) as the last block gives them -> logits (B, K)."""
        if self.head_distillation is None:
            return self.head(self.summary(x))
        of_class, of_teacher = self.classify_twice(x)
        return (of_class + of_teacher) / 2  # DeiT

    def classify_twice(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, D) as the last block gives them -> logits (B, K) of the class head and of
        the distillation head, each from its own token; only nets with that token have both."""
        assert self.head_distillation is not None
        tokens = self.norm(x)
        return self.head(tokens[:, 0]), self.head_distillation(tokens[:, 1])

    def summary(self, x: Tensor) -> Tensor:
        """Tokens (B, T, D) as the last block gives them -> features (B, D), or (B, 2 D)."""
        if self.config.norm_after_pool:
            pooled = self.norm(self.pooled(x))
        else:
            pooled = self.pooled(self.norm(x))  # Eq. 4
        return pooled if self.hidden is None else torch.tanh(self.hidden(pooled))

    def pooled(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, D), or (B, 2 D)
        pooling, patches = self.config.pooling, x[:, self.config.prefix :]
        if self.pool is not None:
            return self.pool(patches)
        if self.config.distillation_token:
            return x[:, :2].mean(dim=1)
        if pooling == "token":
            return x[:, 0]
        if pooling == "token+mean":
            return torch.cat([x[:, 0], patches.mean(dim=1)], dim=-1)
        return patches.mean(dim=1)

    def tokens(self, images: Tensor, layers: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """Tokens (B, T, D) after the final norm, for use of the net as a backbone.

        `layers` names blocks by index (0 is the first, -1 the last); each one's output is then
        returned, in the order asked for, the final norm applied to each. (A net whose norm comes
        after the pool gives its tokens without one.) Raises IndexError for a block it has not.
        """
        norm = nn.Identity() if self.config.norm_after_pool else self.norm
        if layers is None:
            return norm(self.encode(images))
        depth = len(self.blocks)
        if not all(-depth <= layer < depth for layer in layers):
            raise IndexError(f"layers {list(layers)}: the blocks are 0 to {depth - 1}, or -1 back")
        wanted = [layer % depth for layer in layers]
        outputs = {}
        x = self.embed(images)
        for layer, block in enumerate(self.blocks[: max(wanted, default=-1) + 1]):
            x = block(self.add_positions(x, layer))
            outputs[layer] = x
        return [norm(outputs[layer]) for layer in wanted]

    def encode(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, T, D)
        return self.through_blocks(self.embed(images))

    def through_blocks(self, x: Tensor) -> Tensor:  # tokens (B, T, D) -> (B, T, D)
        for layer, block in enumerate(self.blocks):
            x = block(self.add_positions(x, layer))
        return x

    def embed(self, images: Tensor) -> Tensor:
        """Eq. 1: (B, 3, H, W) -> (B, T, D): class token, distillation token, registers, patches."""
        return self.lead(self.embed_patches(images))

    def embed_patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D), row by row, without positions."""
        if images.shape[-2:] != self.config.image_size:
            found, built = "x".join(map(str, images.shape[-2:])), self.config.image_size
            raise ValueError(
                f"images of {found} pixels given to a net built for {built[0]}x{built[1]}; resize "
                "the images, or the net by vitkit.models.nets.resize_net"
            )
        x = images if self.stem is None else self.stem(images)
        return self.patch_embedding(x).flatten(2).transpose(1, 2)

    def lead(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Embedded patches (B, N, D) -> tokens (B, T, D): with positions, behind the prefix.

        `kept` (B, n) int64 are the patches of each image that go on, in this order; none is all.
        """
        leading = [t for t in (self.class_token, self.distillation_token) if t is not None]
        positions = self.positions() if self.config.positions_at == "stem" else None
        if positions is not None:  # (1, len(leading) + N, D); registers have none
            leading = [t + positions[:, i : i + 1] for i, t in enumerate(leading)]
            x = x + positions[:, len(leading) :]
        if kept is not None:
            x = x.take_along_dim(kept[..., None], dim=1)
        if self.registers is not None:
            leading.append(self.registers)
        if leading:
            x = torch.cat([t.expand(x.shape[0], -1, -1) for t in leading] + [x], dim=1)
        return self.dropout(x)

    def add_positions(self, x: Tensor, layer: int) -> Tensor:
        """Appendix D.4: positions added to the input of every layer, where the config says so."""
        if self.config.positions_at == "stem":
            return x
        positions = self.positions()
        assert positions is not None  # the config sees to it
        return x + positions[layer if self.config.positions_at == "layers" else 0]

    def make_positions(self) -> None:
        """The parameters of the config's kind of positions (appendix D.4)."""
        config = self.config
        sets = config.depth if config.positions_at == "layers" else 1
        rows, columns = config.grid
        self.row_embedding = self.column_embedding = None
        self.position_embedding: Tensor | None
        if config.positions == "1d":
            self.position_embedding = parameter(sets, config.positioned, config.width)
        elif config.positions == "sincos2d":  # fixed, and kept with the weights
            table = sincos_2d(config.grid, config.width, prefix=config.positioned_prefix)
            self.register_buffer("position_embedding", table)
        else:
            self.position_embedding = None
        if config.positions == "2d":
            self.row_embedding = parameter(sets, rows, config.width // 2)
            self.column_embedding = parameter(sets, columns, config.width // 2)

    def positions(self) -> Tensor | None:
        """(1 or depth, class tokens + N, D), or None where nothing is added to the tokens."""
        if self.row_embedding is None or self.column_embedding is None:
            return self.position_embedding
        rows, columns = self.config.grid
        by_row = self.row_embedding[:, :, None].expand(-1, -1, columns, -1)
        by_column = self.column_embedding[:, None].expand(-1, rows, -1, -1)
        patches = torch.cat([by_row, by_column], dim=-1).flatten(1, 2)  # (., N, D)
        return F.pad(patches, (0, 0, self.config.positioned_prefix, 0))  # class tokens get zeros

    @torch.no_grad()
    def initialise(self) -> None:
        """Random weights as the authors' code draws them (models_vit.py)."""
        lecun_normal_(self.patch_embedding)
        for token in (self.class_token, self.distillation_token):
            if token is not None:
                nn.init.zeros_(token)
        for drawn in (self.position_embedding, self.row_embedding, self.column_embedding,
                      self.registers):  # fmt: skip
            if isinstance(drawn, nn.Parameter):
                nn.init.normal_(drawn, std=0.02)
        for module in self.modules():
            if isinstance(module, Attention | Mlp | AttentionPool):
                module.initialise()
        if self.hidden is not None:
            lecun_normal_(self.hidden)
        self.reset_head(self.config.classes, self.config.head_bias)

    @torch.no_grad()
    def reset_head(self, classes: int, bias: float = 0.0) -> None:
        """A fresh final layer for `classes` classes: zero weights, constant bias; none for 0."""
        self.config = replace(self.config, classes=classes, head_bias=bias)
        weight = self.norm.weight

        def fresh() -> nn.Module:
            if classes == 0:
                return nn.Identity()
            head = nn.Linear(
                self.config.feature_width, classes, device=weight.device, dtype=weight.dtype
            )
            nn.init.zeros_(head.weight)
            nn.init.constant_(head.bias, bias)
            return head

        self.head = fresh()
        self.head_distillation = fresh() if self.config.distillation_token and classes else None


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


def stem_of(config: ViTConfig) -> ResNetStem:
    """The hybrid's ResNet (section 3.1, "Hybrid Architecture")."""
    assert config.stem is not None
    return ResNetStem(
        config.stem, config.stem_width, variance_eps=config.stem_variance_eps,
        std_eps=config.stem_std_eps, group_norm_eps=config.stem_norm_eps,
    )  # fmt: skip


class Block(nn.Module):
    """Eq. 2 and 3: pre-norm self-attention and MLP, each with a residual connection."""

    def __init__(self, config: ViTConfig, layer: int = 0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config, layer)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config)
        self.dropout = nn.Dropout(config.dropout)
        self.stochastic_depth = depth_rate(config.stochastic_depth, layer, config.depth)
        self.scale1 = self.scale2 = None  # LayerScale (arXiv 2103.17239)
        if config.layer_scale is not None:
            self.scale1 = nn.Parameter(torch.full((config.width,), config.layer_scale))
            self.scale2 = nn.Parameter(torch.full((config.width,), config.layer_scale))

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        x = x + self.dropped(scaled(self.attention(self.norm1(x)), self.scale1))
        return x + self.dropped(scaled(self.mlp(self.norm2(x)), self.scale2))

    def dropped(self, branch: Tensor) -> Tensor:
        return kept_of_some(self.dropout(branch), self.stochastic_depth, self.training)


def scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


class Attention(nn.Module):
    """Multi-head self-attention (appendix A, Eq. 5 to 8); biases on q, k, v and the output."""

    def __init__(self, config: ViTConfig, layer: int = 0) -> None:
        super().__init__()
        self.heads, self.grid, self.prefix = config.heads, config.grid, config.prefix
        self.pattern = parse_pattern(config.attention[layer % len(config.attention)])
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.relative_embedding = None
        if config.positions == "relative":
            self.relative_embedding = parameter(2 * config.tokens - 1, config.width)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        q, k, v = self.project(x)
        if self.relative_embedding is None:
            mixed = attend_within(q, k, v, self.pattern, self.grid, self.prefix)
        else:
            mixed = attend_written_out(q, k, v, self.relative_logits(q, self.relative_embedding))
        return self.out(mixed.transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> q, k, v, each (B, h, T, d)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, h, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def relative_logits(self, q: Tensor, embedding: Tensor) -> Tensor:
        """q_i . r_(i - j) / sqrt(d): q (B, h, T, d), r (2 T - 1, D) -> (B, h, T, T).

        Appendix D.4: relative attention in one dimension, the class token being number 0. Row
        o of r is offset i - j = T - 1 - o.
        """
        length = q.shape[-2]
        keys = embedding.unflatten(-1, (self.heads, -1)).permute(1, 2, 0)  # (h, d, 2 T - 1)
        by_offset = (q * q.shape[-1] ** -0.5) @ keys.to(q.dtype)  # (B, h, T, 2 T - 1)
        # Row i is to start i places earlier: with a column more, that is a reshape.
        flat = F.pad(by_offset, (0, 1)).flatten(-2)[..., length - 1 : -1]
        flat = F.pad(flat, (0, length * (2 * length - 1) - flat.shape[-1]))
        return flat.unflatten(-1, (length, 2 * length - 1))[..., :length]

    def initialise(self) -> None:
        for part in self.qkv.weight.chunk(3):  # each of q, k, v is its own D x D matrix
            nn.init.xavier_uniform_(part)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)
        if self.relative_embedding is not None:
            nn.init.normal_(self.relative_embedding, std=0.02)


class Mlp(nn.Module):
    """Two dense layers with a GELU between, or a SwiGLU (arXiv 2002.05202), as DINOv2-g has."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.gated = config.mlp == "swiglu"
        self.dense1 = nn.Linear(config.width, config.mlp_width * (2 if self.gated else 1))
        self.dense2 = nn.Linear(config.mlp_width, config.width)
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.dense2(self.dropout(self.activate(self.dense1(x))))

    def activate(self, x: Tensor) -> Tensor:
        if self.gated:
            gate, x = x.chunk(2, dim=-1)
            return F.silu(gate) * x
        return gelu(x, self.approximate)

    def initialise(self) -> None:
        for dense in (self.dense1, self.dense2):
            nn.init.xavier_uniform_(dense.weight)
            nn.init.normal_(dense.bias, std=1e-6)


class AttentionPool(nn.Module):
    """One learned query reads all patches, then an MLP: big_vision's MAPHead (models/vit.py)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.probe = parameter(1, 1, width)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Mlp(replace(config, dropout=0.0))  # which big_vision's has not

    def forward(self, x: Tensor) -> Tensor:  # (B, N, D) -> (B, D)
        q = self.q(self.probe).expand(x.shape[0], -1, -1).unflatten(-1, (self.heads, -1))
        k, v = self.kv(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = self.out(attend(q.transpose(1, 2), k, v).transpose(1, 2).flatten(2))  # (B, 1, D)
        return (mixed + self.mlp(self.norm(mixed)))[:, 0]

    def initialise(self) -> None:
        bound = math.sqrt(6 / (1 + self.probe.shape[-1]))  # Flax's xavier of a (1, 1, D) array
        nn.init.uniform_(self.probe, -bound, bound)
        for part in (self.q.weight, *self.kv.weight.chunk(2), self.out.weight):
            nn.init.xavier_uniform_(part)
        for dense in (self.q, self.kv, self.out):
            nn.init.zeros_(dense.bias)
