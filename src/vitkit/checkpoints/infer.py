"""The architecture of a checkpoint, from the names and shapes of its tensors (ours by now)."""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from vitkit.checkpoints.formats import Format
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.tables import FileNames, Tensors
from vitkit.models.bit import BiTConfig
from vitkit.models.efficientnet import USUAL_IMAGE_SIZES, EfficientNetConfig
from vitkit.models.nets import NetConfig
from vitkit.models.t2t import T2TConfig
from vitkit.models.variants import VARIANTS
from vitkit.models.vit_config import Pooling, ViTConfig

HEAD_WIDTH = 64  # of nearly all nets; those of VARIANTS and these, by their width, are others
HEADS = {1152: 16, 1536: 16}  # So400m (arXiv 2305.13035), SigLIP 2's giant; no SwiGLUs
FEATURE_WIDTHS = {  # of EfficientNet: 1280 times its width factor, in whole eights
    "B0": 1280, "B1": 1280, "B2": 1408, "B3": 1536, "B4": 1792, "B5": 2048, "B6": 2304, "B7": 2560,
}  # fmt: skip
FIRST_LAYER_SCALE = 1e-5  # of DINOv2; a checkpoint holds what became of it

Said = dict[str, Any]  # what else is known: their_json.said_by


def infer_config(
    form: Format, tensors: Tensors, names: FileNames, said: Said, source: str, notes: list[str]
) -> NetConfig:
    """The config; `notes` gets a sentence for each thing in it that the checkpoint does not say.

    Raises CheckpointError where a tensor that the architecture is read from is missing or
    misshapen, and where the JSON is of another net.
    """
    constants = form.constants | {name: said[name] for name in form.constants if name in said}
    try:
        if form.kind == "ViT":
            config = vit_config(tensors, constants, said, notes)
            if form.name in ("timm", "hf"):  # others know one GELU, and pool as their tensors show
                notes += unsaid(config, said)
            return config
        if form.kind == "BiT":
            return bit_config(tensors, constants, said, notes)
        if form.kind == "T2T-ViT":
            return t2t_config(tensors, notes)
        return efficientnet_config(tensors)
    except KeyError as error:
        lacking = names.get(error.args[0]) or names[error.args[0]]
        raise CheckpointError(f"{source}: missing {lacking}") from error
    except IndexError as error:
        raise CheckpointError(f"{source}: a tensor has too few axes: {error}") from error
    except (ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def vit_config(
    tensors: Tensors, constants: dict[str, Any], said: Said, notes: list[str]
) -> ViTConfig:
    embedding = tensors["patch_embedding.weight"]
    width, patch = embedding.shape[0], embedding.shape[-1]
    stem = stage_units(tensors, r"stem\.stages\.") if "stem.root.conv.weight" in tensors else None
    options = dict(constants)
    if stem is None:
        options = {name: v for name, v in constants.items() if not name.startswith("stem_")}
    else:
        options |= {"stem": stem, "stem_width": tensors["stem.root.conv.weight"].shape[0]}
    mlp_width = tensors["blocks.0.mlp.dense2.weight"].shape[1]
    gated = tensors["blocks.0.mlp.dense1.weight"].shape[0] == 2 * mlp_width
    if gated:
        options |= {"mlp": "swiglu", "gelu": "erf"}  # which it does not use
    depth = count(tensors, r"blocks\.(\d+)\.")
    agrees("width", width, said)
    agrees("depth", depth, said)
    size = image_size(tensors, patch if stem is None else patch * stride(stem), said)
    if size != said.get("image_size", size):
        asked, found = ("x".join(map(str, sides)) for sides in (said["image_size"], size))
        notes.append(f"images of {found}, for which there are positions; config.json says {asked}")
    return ViTConfig(
        patch=patch,
        width=width,
        depth=depth,
        heads=said.get("heads") or usual_heads(width, depth, mlp_width, gated, notes),
        mlp_width=mlp_width,
        classes=classes_of(tensors),
        image_size=size,
        pooling=pooling_of(tensors, width, said),
        hidden_head="hidden.weight" in tensors,
        norm_after_pool=said.get("norm_after_pool", False),
        distillation_token="distillation_token" in tensors,
        registers=tensors["registers"].shape[1] if "registers" in tensors else 0,
        layer_scale=said.get("layer_scale", FIRST_LAYER_SCALE)
        if "blocks.0.scale1" in tensors
        else None,
        **options,
    )


def unsaid(config: ViTConfig, said: Said) -> list[str]:
    """What no tensor of a ViT shows, where no JSON said it."""
    notes = []
    if config.mlp == "gelu" and "gelu" not in said:
        notes.append(f"GELU {config.gelu!r}")
    seen = config.pooling in ("map", "token+mean") or config.distillation_token
    if not seen and "pooling" not in said:
        notes.append(f"pooling {config.pooling!r}")
    return notes


def agrees(what: str, found: int, said: Said) -> None:
    if what in said and said[what] != found:
        raise ValueError(
            f"the config.json beside the weights is of another net: its {what} is {said[what]}, "
            f"that of the weights {found}"
        )


def classes_of(tensors: Tensors) -> int:
    sized = [tensors[name] for name in ("head.weight", "head.bias") if name in tensors]
    return sized[0].shape[0] if sized else 0


def pooling_of(tensors: Tensors, width: int, said: Said) -> Pooling:
    """What the head reads, from what there is."""
    if "pool.probe" in tensors:
        return "map"
    if "class_token" not in tensors:
        return "mean"
    if "head.weight" in tensors and tensors["head.weight"].shape[1] == 2 * width:
        return "token+mean"
    averaged = said.get("pooling", "mean" if said.get("norm_after_pool") else "token") == "mean"
    return "patch-mean" if averaged else "token"


def usual_heads(width: int, depth: int, mlp_width: int, gated: bool, notes: list[str]) -> int:
    """By the field's convention: q, k and v in one do not say how many heads they are for."""
    shape = {"width": width, "depth": depth, "mlp_width": mlp_width}
    for name, row in VARIANTS.items():
        if row.kind == "ViT" and shape.items() <= row.sizes.items():
            notes.append(f"{row.sizes['heads']} heads, as {name} has")
            return row.sizes["heads"]
    heads = ({} if gated else HEADS).get(width, width // HEAD_WIDTH)
    if width % HEAD_WIDTH:
        raise ValueError(
            f"a net {width} wide has no usual number of heads, and no config.json beside the "
            'weights says it; write one that holds {"num_heads": N}, or add that to it'
        )
    notes.append(f"{heads} heads, as nets {width} wide usually have")
    return heads


def prefixes(tensors: Tensors) -> tuple[int, ...]:
    """How many tokens before the patches may have a position, the usual number first."""
    tokens = sum(name in tensors for name in ("class_token", "distillation_token"))
    registers = tensors["registers"].shape[1] if "registers" in tensors else 0
    return tokens, 0, tokens + registers


def image_size(tensors: Tensors, cell: int, said: Said) -> tuple[int, int]:
    """(height, width) in pixels, from the number of positions; a square unless the JSON says so."""
    positions = tensors["position_embedding"].shape[1]
    possible = [positions - prefix for prefix in prefixes(tensors)]
    if "image_size" in said:
        rows, columns = (side // cell for side in said["image_size"])
        if rows * columns in possible:
            return rows * cell, columns * cell
    for patches in possible:
        side = math.isqrt(max(0, patches))
        usual = patches == possible[0]
        if side * side == patches and side >= (1 if usual else 2):
            return side * cell, side * cell
    raise ValueError(
        f"{positions} position embeddings are no square grid of patches with "
        f"{prefixes(tensors)[0]} tokens before them, and no config.json beside the weights says "
        "the image size"
    )


def settle_positions(tensors: Tensors, config: ViTConfig) -> None:
    """Positions as our nets have them: of class and distillation tokens and patches.

    Files without those of the class tokens (big_vision, DeiT III) get zeros, which add nothing;
    those of registers are added to the registers.
    """
    positions, prefix = tensors["position_embedding"], config.positioned_prefix
    surplus = positions.shape[1] - config.positioned
    if prefix and surplus == -prefix:
        zeros = positions.new_zeros(len(positions), prefix, positions.shape[-1])
        tensors["position_embedding"] = torch.cat([zeros, positions], dim=1)
    elif config.registers and surplus == config.registers:
        tokens, of_registers, patches = positions.tensor_split((prefix, prefix + surplus), dim=1)
        tensors["registers"] = tensors["registers"] + of_registers
        tensors["position_embedding"] = torch.cat([tokens, patches], dim=1)


def stage_units(tensors: Tensors, prefix: str) -> tuple[int, ...]:
    """The number of units of each stage."""
    stages = count(tensors, prefix + r"(\d+)\.")
    return tuple(count(tensors, rf"{prefix}{stage}\.(\d+)\.") for stage in range(stages))


def stride(stem: tuple[int, ...]) -> int:
    """Pixels along the side of what a ResNet of these stages gives."""
    return 4 * 2 ** max(0, len(stem) - 1)


def count(tensors: Tensors, pattern: str) -> int:
    """How many there are, by the largest number at the pattern's group."""
    numbers = (int(match[1]) for name in tensors if (match := re.match(pattern, name)))
    return 1 + max(numbers, default=-1)


def bit_config(
    tensors: Tensors, constants: dict[str, Any], said: Said, notes: list[str]
) -> BiTConfig:
    channels = tensors["root.weight"].shape[0]
    factor = channels // 64 if channels % 64 == 0 else 1
    classes = classes_of(tensors)
    # Weights for ImageNet-1k were fine-tuned at 480 pixels (big_transfer's README), others at 224.
    side = 480 if classes == 1000 else 224
    if "image_size" not in said:
        notes.append(f"images of {side} pixels, as BiT of {classes} classes usually read")
    return BiTConfig(
        units=stage_units(tensors, r"stages\."),
        width_factor=factor,
        root_width=channels // factor,
        classes=classes,
        image_size=said.get("image_size", (side, side)),
        **constants,
    )


def t2t_config(tensors: Tensors, notes: list[str]) -> T2TConfig:
    width = tensors["tokens_to_token.projection.weight"].shape[0]
    performer = "tokens_to_token.layer1.attention.random_features" in tensors
    side = math.isqrt(tensors["position_embedding"].shape[1] - 1) * 16
    heads = width // (HEAD_WIDTH if width % HEAD_WIDTH == 0 else HEAD_WIDTH // 2)
    notes.append(f"{heads} heads, as T2T-ViTs {width} wide usually have")
    return T2TConfig(
        width=width,
        depth=count(tensors, r"blocks\.(\d+)\."),
        heads=heads,
        mlp_width=tensors["blocks.0.mlp.dense1.weight"].shape[0],
        tokens_to_token="performer" if performer else "transformer",
        token_dim=tensors["tokens_to_token.layer1.norm2.weight"].shape[0],
        classes=classes_of(tensors),
        image_size=(side, side),
    )


def efficientnet_config(tensors: Tensors) -> EfficientNetConfig:
    """The size by its features and the depth of its first stage."""
    width = tensors["backbone.8.0.weight"].shape[0]
    sizes = [size for size, features in FEATURE_WIDTHS.items() if features == width]
    if not sizes:
        raise ValueError(f"no EfficientNet B0 to B7 has {width} features")
    deeper = "backbone.1.1.block.0.0.weight" in tensors  # than B0
    size = sizes[-1] if deeper else sizes[0]
    side = USUAL_IMAGE_SIZES[size]
    return EfficientNetConfig(size, classes=classes_of(tensors), image_size=(side, side))
