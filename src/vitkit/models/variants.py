"""Every named net, in one literal table, and `build`, which makes one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from vitkit.errors import UsageError, named

if TYPE_CHECKING:
    from vitkit.models.nets import Net, NetConfig


@dataclass(frozen=True)
class Variant:
    """A row of the table."""

    kind: str  # of vitkit.models.nets.KINDS
    sizes: dict[str, Any]  # fields of the kind's config
    side: int = 224  # pixels of the images that it usually reads


def vit(patch: int, width: int, depth: int, heads: int, mlp_width: int, side: int = 224,
        **further: Any) -> Variant:  # fmt: skip
    sizes = {"patch": patch, "width": width, "depth": depth, "heads": heads, "mlp_width": mlp_width}
    return Variant("ViT", sizes | further, side)


def bit(units: tuple[int, ...], width_factor: int, side: int = 224) -> Variant:
    return Variant("BiT", {"units": units, "width_factor": width_factor}, side)


def t2t(module: str, width: int, depth: int, heads: int, mlp_width: int) -> Variant:
    sizes = {"tokens_to_token": module, "width": width, "depth": depth, "heads": heads,
             "mlp_width": mlp_width}  # fmt: skip
    return Variant("T2T-ViT", sizes)


def efficientnet(size: str, side: int) -> Variant:
    return Variant("EfficientNet", {"size": size}, side)


AXIAL = ("row", "column")  # appendix D.6: row attention and MLP, column attention and MLP

# fmt: off
VARIANTS = {
    # The paper's Table 1, with the patch sizes it uses.
    "ViT-B/32": vit(32,  768, 12, 12, 3072),
    "ViT-B/16": vit(16,  768, 12, 12, 3072),
    "ViT-L/32": vit(32, 1024, 24, 16, 4096),
    "ViT-L/16": vit(16, 1024, 24, 16, 4096),
    "ViT-H/14": vit(14, 1280, 32, 16, 5120),
    # AugReg (arXiv 2106.10270), vit_jax/configs/models.py.
    "ViT-Ti/16": vit(16, 192, 12,  3,  768),
    "ViT-S/32": vit(32,  384, 12,  6, 1536),
    "ViT-S/16": vit(16,  384, 12,  6, 1536),
    "ViT-B/8":  vit( 8,  768, 12, 12, 3072),
    # Scaling Vision Transformers (arXiv 2106.04560), Table 2.
    "ViT-g/14": vit(14, 1408, 40, 16, 6144),
    "ViT-G/14": vit(14, 1664, 48, 16, 8192),
    # DINOv2 (arXiv 2304.07193): LayerScale, and SwiGLU for its g.
    "DINOv2-S/14": vit(14,  384, 12,  6, 1536, 518, gelu="erf", layer_scale=1e-5),
    "DINOv2-B/14": vit(14,  768, 12, 12, 3072, 518, gelu="erf", layer_scale=1e-5),
    "DINOv2-L/14": vit(14, 1024, 24, 16, 4096, 518, gelu="erf", layer_scale=1e-5),
    "DINOv2-g/14": vit(14, 1536, 40, 24, 4096, 518, mlp="swiglu", layer_scale=1e-5),
    # The hybrids: section 4.4 of the paper (R50), AugReg's table (R, R26).
    "R50+ViT-B/32": vit(1,  768, 12, 12, 3072, stem=(3, 4, 6, 3)),
    "R50+ViT-B/16": vit(1,  768, 12, 12, 3072, stem=(3, 4, 9)),
    "R50+ViT-L/32": vit(1, 1024, 24, 16, 4096, stem=(3, 4, 6, 3)),
    "R50+ViT-L/16": vit(1, 1024, 24, 16, 4096, stem=(3, 4, 9)),
    "R+ViT-Ti/16":  vit(8,  192, 12,  3,  768, stem=()),
    "R26+ViT-S/32": vit(1,  384, 12,  6, 1536, stem=(2, 2, 2, 2)),
    "R26+ViT-B/32": vit(1,  768, 12, 12, 3072, stem=(2, 2, 2, 2)),
    # Big Transfer (arXiv 1912.11370), with those that only the paper's Table 6 has.
    "BiT-R50x1":  bit((3, 4, 6, 3), 1),
    "BiT-R50x2":  bit((3, 4, 6, 3), 2),
    "BiT-R50x3":  bit((3, 4, 6, 3), 3),
    "BiT-R101x1": bit((3, 4, 23, 3), 1),
    "BiT-R101x3": bit((3, 4, 23, 3), 3),
    "BiT-R152x1": bit((3, 8, 36, 3), 1),
    "BiT-R152x2": bit((3, 8, 36, 3), 2),
    "BiT-R152x4": bit((3, 8, 36, 3), 4),
    "BiT-R200x3": bit((3, 24, 36, 3), 3),
    # Axial attention, appendix D.6: each block of B becomes two.
    "Axial-ViT-B/32": vit(32, 768, 24, 12, 3072, attention=AXIAL),
    "Axial-ViT-B/16": vit(16, 768, 24, 12, 3072, attention=AXIAL),
    "AxialResNet-50":   Variant("AxialResNet", {"units": (3, 4, 6, 3), "width": 64}),
    "AxialResNet-50-M": Variant("AxialResNet", {"units": (3, 4, 6, 3), "width": 48}),
    "AxialResNet-50-S": Variant("AxialResNet", {"units": (3, 4, 6, 3), "width": 32}),
    # Tokens-to-token (arXiv 2101.11986), with a performer; _t: with a transformer.
    "T2T-ViT-14":   t2t("performer",   384, 14, 6, 1152),
    "T2T-ViT-19":   t2t("performer",   448, 19, 7, 1344),
    "T2T-ViT-24":   t2t("performer",   512, 24, 8, 1536),
    "T2T-ViT_t-14": t2t("transformer", 384, 14, 6, 1152),
    "T2T-ViT_t-19": t2t("transformer", 448, 19, 7, 1344),
    "T2T-ViT_t-24": t2t("transformer", 512, 24, 8, 1536),
    # EfficientNet (arXiv 1905.11946), the nets of Noisy Student, from torchvision.
    "EfficientNet-B0": efficientnet("B0", 224),
    "EfficientNet-B1": efficientnet("B1", 240),
    "EfficientNet-B2": efficientnet("B2", 260),
    "EfficientNet-B3": efficientnet("B3", 300),
    "EfficientNet-B4": efficientnet("B4", 380),
    "EfficientNet-B5": efficientnet("B5", 456),
    "EfficientNet-B6": efficientnet("B6", 528),
    "EfficientNet-B7": efficientnet("B7", 600),
    # For small images and small machines: Ti at smaller patches, then Nano, Pico and Femto.
    "ViT-Ti/8":    vit( 8, 192, 12, 3, 768, 64),
    "ViT-Ti/4":    vit( 4, 192, 12, 3, 768, 32),
    "ViT-Nano/16": vit(16, 192,  6, 3, 768),
    "ViT-Nano/8":  vit( 8, 192,  6, 3, 768, 64),
    "ViT-Nano/4":  vit( 4, 192,  6, 3, 768, 32),
    "ViT-Pico/8":  vit( 8,  96,  4, 3, 384, 64),
    "ViT-Pico/4":  vit( 4,  96,  4, 3, 384, 32),
    "ViT-Pico/2":  vit( 2,  96,  4, 3, 384, 16),
    "ViT-Femto/2": vit( 2,  64,  2, 2, 256, 16),
    # A hybrid and a ResNet of that size, to compare with ViT-Pico/4.
    "R5+ViT-Pico/4": vit(1, 96,  4, 3, 384, 32, stem=(1,)),
    "BiT-R14x1":     bit((1, 1, 1, 1), 1, 32),
}
# fmt: on


def variant(name: str) -> Variant:
    """The row of the table; UsageError with the nearest names where there is none."""
    return VARIANTS[named("model", name, VARIANTS)]


def field_names(name: str) -> list[str]:
    """The fields of the config that the named net has."""
    from vitkit.models.nets import KINDS

    return [field.name for field in fields(KINDS[variant(name).kind].config)]


def config(
    name: str,
    classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> NetConfig:
    """The config of a named net; `options` are further fields of it.

    Without `image_size` it is the side that the net is usually used at: 224 pixels for most.
    UsageError for a value that cannot be, or a field that nets of this kind do not have.
    """
    from vitkit.models.nets import KINDS

    row = variant(name)
    kind = KINDS[row.kind].config
    size = row.side if image_size is None else image_size
    size = (size, size) if isinstance(size, int) else size
    for option in options:
        named(f"option of {name}", option, field_names(name))
    try:
        return kind(**row.sizes | {"classes": classes, "image_size": size} | options)
    except (ValueError, TypeError) as error:  # TypeError: a value of another type
        raise UsageError(f"{name}: {error}") from error


def build(
    name: str,
    classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    **options: Any,
) -> Net:
    """A net by its name, "ViT-B/16" say, with random weights as its authors draw them.

    `classes` 0 makes a net without a head. `image_size` is a side or (height, width) in pixels, by
    default the side that the net is usually used at (224 for most, 518 for DINOv2's, 32 for /4).
    `options` are further fields of the net's config (vitkit.models.vit_config.ViTConfig):
    `pooling="mean"`, `hidden_head=True`, `gelu="erf"`, `dropout=0.1`, `head_bias=-10.0`,
    `positions="2d"`, `attention=("window:7", "global")`, `registers=4` and so on. Raises
    UsageError for a name or a value that cannot be.
    """
    from vitkit.models.nets import make

    return make(config(name, classes, image_size, **options))


def name_of(net: NetConfig) -> str:
    """The table's name for an architecture, or a description where the table has none."""
    from vitkit.models.nets import kind_of

    kind = kind_of(net)
    rows = {name: row for name, row in VARIANTS.items() if row.kind == kind}
    for name, row in rows.items():
        # Where two rows fit (R+ViT-Ti/16, ViT-Ti/8), the one that says more comes first.
        if all(getattr(net, field) == value for field, value in row.sizes.items()):
            return name
    shown = (
        ("patch", "width", "depth", "heads") if kind == "ViT" else next(iter(rows.values())).sizes
    )
    return f"{kind} (" + ", ".join(f"{field} {getattr(net, field)}" for field in shown) + ")"
