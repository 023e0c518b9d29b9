"""The architecture of a checkpoint, from the names and shapes of its tensors (ours by now)."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from vitkit.checkpoints.formats import Format
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.tables import Tensors
from vitkit.models.bit import BiTConfig
from vitkit.models.efficientnet import USUAL_IMAGE_SIZES, EfficientNetConfig
from vitkit.models.nets import NetConfig, make_meta
from vitkit.models.t2t import T2TConfig
from vitkit.models.vit_config import ViTConfig

# Heads by width where they are not 64 wide: H (arXiv 2010.11929), So400m (2305.13035), g, G
# (2106.04560).
HEADS = {1280: 16, 1152: 16, 1408: 16, 1664: 16}
HEAD_WIDTH = 64
FIRST_LAYER_SCALE = 1e-5  # of DINOv2; a checkpoint holds what became of it

Said = dict[str, Any]  # what the JSON beside the weights says: describe.said_by


def infer_config(
    form: Format, tensors: Tensors, heads: int | None, said: Said, source: str
) -> tuple[NetConfig, list[str]]:
    """The config, and a sentence for each thing in it that the checkpoint does not say.

    `heads` is what the tensors themselves say. Raises CheckpointError where a tensor that the
    architecture is read from is missing or misshapen.
    """
    notes: list[str] = []
    constants = form.constants | {k: said[k] for k in form.constants if k in said}
    try:
        if form.kind == "ViT":
            return vit_config(tensors, heads, constants, said, source, notes), notes
        if form.kind == "BiT":
            return bit_config(tensors, constants, said), notes
        if form.kind == "T2T-ViT":
            return t2t_config(tensors, said), notes
        return efficientnet_config(tensors), notes
    except KeyError as error:
        raise CheckpointError(
            f"{source}: has no {error.args[0]} (by vitkit's name), so it is no whole {form.title}"
        ) from error
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def vit_config(
    tensors: Tensors, heads: int | None, constants: dict[str, Any], said: Said, source: str,
    notes: list[str],
) -> ViTConfig:  # fmt: skip
    embedding = tensors["patch_embedding.weight"]
    width, patch = embedding.shape[0], embedding.shape[-1]
    stem = stem_units(tensors) if "stem.root.conv.weight" in tensors else None
    cell = patch if stem is None else patch * 4 * 2 ** max(0, len(stem) - 1)
    mlp_width = tensors["blocks.0.mlp.dense2.weight"].shape[1]
    gated = tensors["blocks.0.mlp.dense1.weight"].shape[0] == 2 * mlp_width
    positioned = ("class_token" in tensors) + ("distillation_token" in tensors)
    options = dict(constants)
    if stem is None:
        options = {k: v for k, v in constants.items() if not k.startswith("stem_")}
    else:
        options |= {"stem": stem, "stem_width": tensors["stem.root.conv.weight"].shape[0]}
    return ViTConfig(
        patch=patch,
        width=width,
        depth=count(tensors, r"blocks\.(\d+)\."),
        heads=heads or said.get("heads") or usual_heads(width, source, notes),
        mlp_width=mlp_width,
        classes=tensors["head.weight"].shape[0] if "head.weight" in tensors else 0,
        image_size=image_size(tensors, cell, positioned, said, source),
        pooling=pooling_of(tensors, width, said),
        hidden_head="hidden.weight" in tensors,
        mlp="swiglu" if gated else "gelu",
        norm_after_pool=bool(said.get("norm_after_pool")),
        distillation_token="distillation_token" in tensors,
        registers=tensors["registers"].shape[1] if "registers" in tensors else 0,
        layer_scale=FIRST_LAYER_SCALE if "blocks.0.scale1" in tensors else None,
        **options,
    )


def pooling_of(tensors: Tensors, width: int, said: Said) -> str:
    """What the head reads, from what there is."""
    if "pool.probe" in tensors:
        return "map"
    if "class_token" not in tensors:
        return "mean"
    if "head.weight" in tensors and tensors["head.weight"].shape[1] == 2 * width:
        return "token+mean"
    averaged = said.get("norm_after_pool") or said.get("pooling") == "mean"
    return "patch-mean" if averaged else "token"


def usual_heads(width: int, source: str, notes: list[str]) -> int:
    """By the field's convention; a fused q, k, v does not say how many heads it is for."""
    heads = HEADS.get(width, width // HEAD_WIDTH)
    if heads < 1 or width % heads:
        raise CheckpointError(
            f"{source}: a net {width} wide has no usual number of heads, and no config.json beside "
            "the weights says it; add one with num_heads (timm: under model_args)"
        )
    notes.append(f"{heads} heads, as nets {width} wide usually have")
    return heads


def image_size(
    tensors: Tensors, cell: int, positioned: int, said: Said, source: str
) -> tuple[int, int]:
    """(height, width) in pixels, from the number of positions; a square unless the JSON says so."""
    count = tensors["position_embedding"].shape[1]
    if "image_size" in said:
        height, width = said["image_size"]
        patches = (height // cell) * (width // cell)
        if count in (patches, patches + positioned):
            return height // cell * cell, width // cell * cell
    for patches in (count - positioned, count):
        side = math.isqrt(max(0, patches))
        if side >= 1 and side * side == patches:
            return side * cell, side * cell
    raise CheckpointError(
        f"{source}: {count} position embeddings are not a square grid"
        + (f" and {positioned} class tokens" if positioned else "")
        + ", and no config.json beside the weights says the image size"
    )


def stem_units(tensors: Tensors) -> tuple[int, ...]:
    return stage_units(tensors, r"stem\.stages\.")


def stage_units(tensors: Tensors, prefix: str) -> tuple[int, ...]:
    """The number of units of each stage."""
    stages = count(tensors, prefix + r"(\d+)\.")
    return tuple(count(tensors, rf"{prefix}{stage}\.(\d+)\.") for stage in range(stages))


def count(tensors: Tensors, pattern: str) -> int:
    """How many numbers the names have at the pattern's group."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


def bit_config(tensors: Tensors, constants: dict[str, Any], said: Said) -> BiTConfig:
    channels = tensors["root.weight"].shape[0]
    factor = channels // 64 if channels % 64 == 0 else 1
    classes = tensors["head.weight"].shape[0] if "head.weight" in tensors else 0
    # Weights for ImageNet-1k were fine-tuned at 480 pixels (big_transfer's README), others at 224.
    side = 480 if classes == 1000 else 224
    return BiTConfig(
        units=stage_units(tensors, r"stages\."),
        width_factor=factor,
        root_width=channels // factor,
        classes=classes,
        image_size=said.get("image_size", (side, side)),
        **constants,
    )


def t2t_config(tensors: Tensors, said: Said) -> T2TConfig:
    width = tensors["tokens_to_token.projection.weight"].shape[0]
    performer = "tokens_to_token.layer1.attention.random_features" in tensors
    side = math.isqrt(tensors["position_embedding"].shape[1] - 1) * 16
    return T2TConfig(
        width=width,
        depth=count(tensors, r"blocks\.(\d+)\."),
        heads=width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else max(1, width // 32),
        mlp_width=tensors["blocks.0.mlp.dense1.weight"].shape[0],
        tokens_to_token="performer" if performer else "transformer",
        token_dim=tensors["tokens_to_token.layer1.norm2.weight"].shape[0],
        classes=tensors["head.weight"].shape[0] if "head.weight" in tensors else 0,
        image_size=said.get("image_size", (side, side)),
    )


def efficientnet_config(tensors: Tensors) -> EfficientNetConfig:
    """The size whose names and shapes these are."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    classes = len(tensors["head.bias"])
    for size, side in USUAL_IMAGE_SIZES.items():
        config = EfficientNetConfig(size, classes=classes, image_size=(side, side))
        if tensors["head.weight"].shape[1] == feature_width(size):
            expected = make_meta(config).state_dict()
            if {name: tensor.shape for name, tensor in expected.items()} == shapes:
                return config
    raise ValueError("no EfficientNet B0 to B7 has these tensors")


def feature_width(size: str) -> int:
    """D of an EfficientNet (torchvision's table)."""
    widths = (1280, 1280, 1408, 1536, 1792, 2048, 2304, 2560)
    return widths[int(size[1:])]


def pad_class_positions(tensors: Tensors, config: ViTConfig) -> None:
    """Files without positions for the class tokens: zeros, which add nothing, in their places."""
    positions = tensors["position_embedding"]
    lacking = config.positioned - positions.shape[1]
    if lacking and lacking == config.positioned_prefix:
        zeros = positions.new_zeros(1, lacking, positions.shape[-1])
        tensors["position_embedding"] = torch.cat([zeros, positions], dim=1)
