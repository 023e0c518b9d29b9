"""Every named net, in one literal table, and `build`, which makes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vitkit.errors import UsageError, named

if TYPE_CHECKING:
    from vitkit.models.vit import VisionTransformer, ViTConfig


@dataclass(frozen=True)
class Variant:
    """A row of the table: the size of a net and where its published weights come from."""

    patch: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    weights: str  # where weights of this shape are published


PAPER = "the paper (imagenet21k, imagenet21k+imagenet2012), AugReg"
AUGREG = "AugReg"
NONE = "trained here; none published"

# fmt: off
VARIANTS = {
    # The paper's Table 1, with the patch sizes it uses.
    "ViT-B/32": Variant(32,  768, 12, 12, 3072, PAPER),
    "ViT-B/16": Variant(16,  768, 12, 12, 3072, PAPER),
    "ViT-L/32": Variant(32, 1024, 24, 16, 4096, PAPER),
    "ViT-L/16": Variant(16, 1024, 24, 16, 4096, PAPER),
    "ViT-H/14": Variant(14, 1280, 32, 16, 5120, "the paper (imagenet21k)"),
    # AugReg (arXiv 2106.10270), vit_jax/configs/models.py.
    "ViT-Ti/16": Variant(16, 192, 12,  3,  768, AUGREG),
    "ViT-S/32": Variant(32,  384, 12,  6, 1536, AUGREG),
    "ViT-S/16": Variant(16,  384, 12,  6, 1536, AUGREG),
    "ViT-B/8":  Variant( 8,  768, 12, 12, 3072, AUGREG),
    # For small images and small machines: Ti at smaller patches, then Nano, Pico and Femto.
    "ViT-Ti/8":    Variant( 8, 192, 12, 3, 768, NONE),
    "ViT-Ti/4":    Variant( 4, 192, 12, 3, 768, NONE),
    "ViT-Nano/16": Variant(16, 192,  6, 3, 768, NONE),
    "ViT-Nano/8":  Variant( 8, 192,  6, 3, 768, NONE),
    "ViT-Nano/4":  Variant( 4, 192,  6, 3, 768, NONE),
    "ViT-Pico/8":  Variant( 8,  96,  4, 3, 384, NONE),
    "ViT-Pico/4":  Variant( 4,  96,  4, 3, 384, NONE),
    "ViT-Pico/2":  Variant( 2,  96,  4, 3, 384, NONE),
    "ViT-Femto/2": Variant( 2,  64,  2, 2, 256, NONE),
}
# fmt: on


def variant(name: str) -> Variant:
    """The row of the table; UsageError with the nearest names where there is none."""
    return VARIANTS[named("model", name, VARIANTS)]


def config(
    name: str, classes: int = 1000, image_size: int | tuple[int, int] = 224, **options
) -> ViTConfig:
    """The ViTConfig of a named net; `options` are further fields of it."""
    from vitkit.models.vit import ViTConfig

    row = variant(name)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    try:
        return ViTConfig(
            row.patch, row.width, row.depth, row.heads, row.mlp_width,
            classes=classes, image_size=size, **options,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error


def build(
    name: str,
    classes: int = 1000,
    image_size: int | tuple[int, int] = 224,
    *,
    pooling: Literal["token", "mean"] = "token",
    hidden_head: bool = False,
    gelu: Literal["tanh", "erf"] = "tanh",
    dropout: float = 0.0,
    head_bias: float = 0.0,
) -> VisionTransformer:
    """A net by its name, "ViT-B/16" say, with random weights as the authors draw them.

    `image_size` is a side or (height, width) in pixels, `dropout` a share, `head_bias` the first
    bias of the head. Raises UsageError for a name or a value that cannot be.
    """
    from vitkit.models.vit import VisionTransformer

    return VisionTransformer(
        config(
            name, classes, image_size, pooling=pooling, hidden_head=hidden_head, gelu=gelu,
            dropout=dropout, head_bias=head_bias,
        )
    )  # fmt: skip


def name_of(net: ViTConfig) -> str:
    """The table's name for an architecture, or a description where the table has none."""
    shape = (net.patch, net.width, net.depth, net.heads, net.mlp_width)
    for name, row in VARIANTS.items():
        if shape == (row.patch, row.width, row.depth, row.heads, row.mlp_width):
            return name
    return f"ViT (patch {net.patch}, width {net.width}, depth {net.depth}, heads {net.heads})"
