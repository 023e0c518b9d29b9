"""ViTConfig: the architecture of one Vision Transformer, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from vitkit.models.resnet_stem import GROUPS
from vitkit.models.restricted import parse_pattern
from vitkit.models.std_conv import check_epsilons
from vitkit.values import settle

NORM_EPS = 1e-6  # flax.linen.LayerNorm's default, which the authors' models_vit.py uses

Pooling = Literal["token", "mean", "map", "patch-mean", "token+mean"]
Positions = Literal["1d", "2d", "relative", "sincos2d", "none"]
PositionsAt = Literal["stem", "layers", "layers-shared"]


@dataclass(frozen=True)
class ViTConfig:
    """The architecture of one Vision Transformer; of how it is trained only what is dropped.

    Raises ValueError, one sentence, where no net can be of these values.
    """

    patch: int  # P, pixels; with a stem, cells of what the stem gives
    width: int  # D
    depth: int  # blocks
    heads: int
    mlp_width: int
    classes: int = 1000  # K; 0 is no head, and the net gives its features
    image_size: tuple[int, int] = (224, 224)  # (H, W), pixels
    # What the head reads. "mean" (the authors' "gap") and "map" (attention pooling) go without a
    # class token; "patch-mean" has one and leaves it out of the mean; "token+mean" puts both side
    # by side, as DINOv2's linear heads read them.
    pooling: Pooling = "token"
    hidden_head: bool = False  # the pre-training head: one hidden tanh layer of width D
    gelu: Literal["tanh", "erf"] = "tanh"  # the authors' Flax code uses the tanh approximation
    norm_eps: float = NORM_EPS
    dropout: float = 0.0  # after every dense layer but q, k, v, and after the positions
    stochastic_depth: float = 0.0  # of the last block, from 0 in the first
    head_bias: float = 0.0  # initial bias of the head; the authors take -10 for sigmoid losses
    mlp: Literal["gelu", "swiglu"] = "gelu"
    norm_after_pool: bool = False  # the final norm reads what was pooled: MAE's fc_norm
    positions: Positions = "1d"  # the paper's ablation, appendix D.4; "1d" is the paper's net
    positions_at: PositionsAt = "stem"  # or added in every layer, the same ones or its own
    attention: tuple[str, ...] = ("global",)  # a pattern for all layers, or one for each in turn
    distillation_token: bool = False  # DeiT's, with a head of its own; the two are averaged
    registers: int = 0  # tokens without a position after the class token (arXiv 2309.16588)
    layer_scale: float | None = None  # LayerScale's first value; None is no LayerScale
    stem: tuple[int, ...] | None = None  # the hybrid: units of each stage of its ResNet
    stem_width: int = 64  # channels of the stem's root
    stem_variance_eps: float = 0.0  # the epsilons of the stem: models/resnet_stem.py
    stem_std_eps: float = 1e-5
    stem_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if isinstance(self.attention, str):
            object.__setattr__(self, "attention", (self.attention,))
        settle(self)
        self.check_numbers()
        self.check_choices()
        self.check_combinations()

    def check_numbers(self) -> None:
        if min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}; it is a height and a width, pixels")
        for name in ("patch", "width", "depth", "heads", "mlp_width", "stem_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("classes", "registers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        height, width = self.image_size
        if height % self.cell or width % self.cell:
            raise ValueError(
                f"image size {height}x{width} is not a multiple of the patch size {self.cell}; "
                f"the nearest that is: {nearest(height, self.cell)}x{nearest(width, self.cell)}"
            )
        for name in ("dropout", "stochastic_depth"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in [0, 1)")
        for name in ("norm_eps", "stem_norm_eps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        check_epsilons(self.stem_variance_eps, self.stem_std_eps)
        if self.stem is not None and (min(self.stem, default=1) < 1 or len(self.stem) > 8):
            raise ValueError(f"stem is {self.stem}; it is the number of units of each stage")
        if self.stem is not None and self.stem_width % GROUPS:
            raise ValueError(f"stem_width is {self.stem_width}; GroupNorm needs a multiple of 32")

    def check_choices(self) -> None:
        choices = {
            "pooling": get_args(Pooling),
            "gelu": ("tanh", "erf"),
            "mlp": ("gelu", "swiglu"),
            "positions": get_args(Positions),
            "positions_at": get_args(PositionsAt),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                options = " or ".join(map(repr, known))
                raise ValueError(f"{name} {getattr(self, name)!r} is not known; choose {options}")

    def check_combinations(self) -> None:
        if self.positions_at != "stem":
            if self.positions in ("relative", "none"):
                raise ValueError(
                    f"positions {self.positions!r} are not added anywhere, so positions_at "
                    f"{self.positions_at!r} says nothing; leave it at 'stem'"
                )
            if self.positions == "sincos2d" and self.positions_at == "layers":
                raise ValueError(
                    "positions 'sincos2d' are fixed, the same for every layer: positions_at is "
                    "'layers-shared' or 'stem'"
                )
            if self.registers:
                raise ValueError("registers have no positions to add at every layer")
        parts = {"2d": 2, "sincos2d": 4}.get(self.positions, 1)
        if self.width % parts or (parts == 4 and self.width < 8):
            raise ValueError(
                f"positions {self.positions!r} split the width in {parts} equal parts, and "
                f"{self.width} cannot be"
            )
        if self.distillation_token and (self.pooling != "token" or self.hidden_head):
            raise ValueError("a distillation token goes with pooling 'token' and no hidden head")
        if self.pooling == "token+mean" and (self.hidden_head or self.norm_after_pool):
            raise ValueError(
                "pooling 'token+mean' goes without a hidden head and with the norm before the pool"
            )
        if len(self.attention) not in (1, self.depth) and self.depth % len(self.attention or "x"):
            raise ValueError(
                f"attention names {len(self.attention)} patterns, which do not divide the depth "
                f"{self.depth}; give one for all layers, or patterns that repeat"
            )
        for text in self.attention:
            pattern = parse_pattern(text)
            pattern.check(self.grid)
            if self.positions == "relative" and text != "global":
                raise ValueError(f"relative positions go with global attention, not {text!r}")
        if not self.attention:
            raise ValueError("attention names no pattern; give ('global',), say")

    @property
    def cell(self) -> int:
        """Pixels of the image along the side of one token: P, times the stem's stride."""
        if self.stem is None:
            return self.patch
        return self.patch * 4 * 2 ** max(0, len(self.stem) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.cell, self.image_size[1] // self.cell

    @property
    def has_class_token(self) -> bool:
        return self.pooling in ("token", "patch-mean", "token+mean")

    @property
    def positioned_prefix(self) -> int:
        """Class and distillation tokens: those before the patches that have a position."""
        return int(self.has_class_token) + int(self.distillation_token)

    @property
    def prefix(self) -> int:
        """Tokens before the patches, registers included."""
        return self.positioned_prefix + self.registers

    @property
    def positioned(self) -> int:
        """Tokens that have a position: all but the registers."""
        return self.positioned_prefix + self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """T, the length of the sequence."""
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def feature_width(self) -> int:
        """What the head reads: D, or 2 D."""
        return self.width * (2 if self.pooling == "token+mean" else 1)


def nearest(side: int, patch: int) -> int:
    """The multiple of `patch` nearest to `side`, at least one patch."""
    return max(1, round(side / patch)) * patch
