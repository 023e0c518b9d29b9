"""The formats of others: how a file of each is known, and what its library can compute.

A format is data. `convert.py` reads and writes by it, `limits.py` says which nets it can hold,
`their_json.py` and `peer_json.py` know the JSON beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vitkit.checkpoints import keymaps
from vitkit.checkpoints.keymaps import Table

ANY = object()  # of a field: every value can be represented

# What a plain ViT of each library has; formats below change single entries. A field that is not
# named must have its default. (Fixed positions are written as if they were learned.)
PLAIN_VIT = {
    "patch": ANY, "width": ANY, "depth": ANY, "heads": ANY, "mlp_width": ANY, "classes": ANY,
    "image_size": ANY, "dropout": ANY, "stochastic_depth": ANY, "head_bias": ANY,
    "pooling": ("token",), "positions": ("1d", "sincos2d"),
}  # fmt: skip


@dataclass(frozen=True)
class Format:
    """One way to keep the weights of one kind of net."""

    name: str  # as `--to` has it, or for reading only
    title: str  # for people
    kind: str  # of vitkit.models.nets.KINDS
    table: Table
    marks: tuple[str, ...]  # a file that has all of these names is of this format
    # Taken off the names, one after another, where any has it; names without it are left out.
    prefixes: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()  # (pattern, replacement), then
    ignored: tuple[str, ...] = ()  # patterns of whole names that only pre-training reads
    unread_with_head: tuple[str, ...] = ()  # and those that a net with a head does not read
    constants: dict[str, Any] = field(default_factory=dict)  # what its library computes with
    represents: dict[str, Any] = field(default_factory=dict)  # field: the values it can hold


NPZ_VIT = Format(
    "npz",
    "the authors' .npz (vision_transformer, AugReg, big_vision)",
    "ViT",
    (*keymaps.NPZ_VIT, *keymaps.NPZ_STEM),
    marks=("embedding/kernel", "Transformer/encoder_norm/scale"),
    renames=keymaps.NPZ_RENAMES,
    prefixes=keymaps.NPZ_PREFIXES,
    constants={
        "gelu": "tanh", "norm_eps": 1e-6,
        "stem_variance_eps": 0.0, "stem_std_eps": 1e-5, "stem_norm_eps": 1e-6,
    },
    represents=PLAIN_VIT | {
        "pooling": ("token", "mean", "map"), "hidden_head": ANY, "stem": ANY, "stem_width": ANY,
    },
)  # fmt: skip
NPZ_BIT = Format(
    "npz",
    "BiT's .npz (big_transfer)",
    "BiT",
    keymaps.NPZ_BIT,
    marks=("resnet/root_block/standardized_conv2d/kernel",),
    renames=keymaps.NPZ_RENAMES,
    prefixes=keymaps.NPZ_PREFIXES,
    constants={"variance_eps": 1e-10, "std_eps": 0.0, "group_norm_eps": 1e-5},
    represents=dict.fromkeys(
        ("units", "width_factor", "root_width", "classes", "image_size", "head_bias"), ANY
    ),
)
TIMM_VIT = Format(
    "timm",
    "timm's ViT, DeiT, MAE and DINOv2",
    "ViT",
    (*keymaps.TIMM_VIT, *keymaps.TIMM_STEM),
    marks=("patch_embed.proj.weight", "blocks.0.norm1.weight"),
    prefixes=keymaps.TIMM_PREFIXES,
    renames=keymaps.TIMM_RENAMES,
    ignored=keymaps.TIMM_IGNORED,
    constants={
        "gelu": "erf", "norm_eps": 1e-6,
        "stem_variance_eps": 1e-8, "stem_std_eps": 0.0, "stem_norm_eps": 1e-5,
    },
    represents=PLAIN_VIT | {
        "pooling": ("token", "mean", "map", "patch-mean"), "norm_after_pool": ANY, "stem": ANY,
        "stem_width": (64,), "distillation_token": ANY, "registers": ANY, "layer_scale": ANY,
        "mlp": ANY, "gelu": ANY,
    },
)  # fmt: skip
TIMM_BIT = Format(
    "timm",
    "timm's BiT (resnetv2_*_bit)",
    "BiT",
    keymaps.TIMM_BIT,
    marks=("stem.conv.weight", "stages.0.blocks.0.norm1.weight"),
    prefixes=keymaps.TIMM_PREFIXES,
    constants={"variance_eps": 1e-8, "std_eps": 0.0, "group_norm_eps": 1e-5},
    represents=dict.fromkeys(("units", "width_factor", "classes", "image_size", "head_bias"), ANY),
)
HF_VIT = Format(
    "hf",
    "Hugging Face's ViT, DeiT and ViTMAE",
    "ViT",
    keymaps.HF_VIT,
    marks=("embeddings.patch_embeddings.projection.weight",),
    renames=keymaps.HF_RENAMES,
    ignored=keymaps.HF_IGNORED,
    unread_with_head=keymaps.HF_UNREAD_WITH_HEAD,
    constants={"gelu": "erf", "norm_eps": 1e-12},
    represents=PLAIN_VIT | {
        "gelu": ANY, "norm_eps": ANY, "distillation_token": ANY, "hidden_head": ANY,
        "registers": (0, 1),  # DeiT's token where its head is not kept
    },
)  # fmt: skip
HF_DINOV2 = Format(
    "hf",
    "Hugging Face's DINOv2, with and without registers",
    "ViT",
    keymaps.HF_DINOV2,
    marks=(
        "embeddings.patch_embeddings.projection.weight", "encoder.layer.0.layer_scale1.lambda1",
    ),
    renames=keymaps.HF_RENAMES,
    ignored=keymaps.HF_IGNORED,
    unread_with_head=keymaps.HF_UNREAD_WITH_HEAD,
    constants={"gelu": "erf", "norm_eps": 1e-6},
    represents=PLAIN_VIT | {
        "pooling": ("token", "token+mean"), "gelu": ANY, "norm_eps": ANY, "registers": ANY,
        "layer_scale": ANY, "mlp": ANY,
    },
)  # fmt: skip
TORCHVISION_VIT = Format(
    "torchvision",
    "torchvision's vit_*",
    "ViT",
    keymaps.TORCHVISION_VIT,
    marks=("conv_proj.weight", "encoder.ln.weight"),
    constants={"gelu": "erf", "norm_eps": 1e-6},
    represents=PLAIN_VIT | {"hidden_head": ANY},
)
TORCHVISION_EFFICIENTNET = Format(
    "torchvision",
    "torchvision's efficientnet_b*",
    "EfficientNet",
    keymaps.TORCHVISION_EFFICIENTNET,
    marks=("features.0.0.weight", "features.1.0.block.0.0.weight"),
    represents=dict.fromkeys(
        ("size", "classes", "image_size", "head_bias", "dropout", "stochastic_depth"), ANY
    ),
)
T2T = Format(
    "t2t",
    "the files of yitu-opensource/T2T-ViT",
    "T2T-ViT",
    keymaps.T2T,
    marks=("tokens_to_token.project.weight",),
)

# The first whose marks a file has is its format.
FORMATS = (
    NPZ_VIT, NPZ_BIT, TIMM_VIT, TIMM_BIT, HF_DINOV2, HF_VIT, TORCHVISION_VIT,
    TORCHVISION_EFFICIENTNET, T2T,
)  # fmt: skip
WRITTEN = ("bundle", "npz", "timm", "hf", "torchvision")  # what `--to` takes


def clean_names(names: Iterable[str], form: Format) -> dict[str, str]:
    """Each name as the format's table has it -> the name that it has in the file.

    Names without a prefix that others have are left out: the optimiser's, say. Of two names that
    become one, the second keeps a name that no table has.
    """
    cleaned = {name: name for name in names}
    for prefix in form.prefixes:
        kept = {name: old for name, old in cleaned.items() if name.startswith(prefix)}
        if kept:
            cleaned = {name.removeprefix(prefix): old for name, old in kept.items()}
    for pattern, replacement in form.renames:
        renamed: dict[str, str] = {}
        for name, old in cleaned.items():
            new = re.sub(pattern, replacement, name)
            renamed[f"{old} (again)" if new in renamed else new] = old
        cleaned = renamed
    return cleaned


def read_names(names: Iterable[str], form: Format) -> list[str]:
    """Those of the names, as the table has them, that the net reads."""
    names = list(names)
    with_head = any(name.startswith(("classifier.", "cls_classifier.")) for name in names)
    ignored = form.ignored + (form.unread_with_head if with_head else ())
    return [n for n in names if not any(re.fullmatch(pattern, n) for pattern in ignored)]


def detect(names: Iterable[str]) -> Format | None:
    """The format of a file with these names, None where it is none of FORMATS."""
    names = list(names)
    for form in FORMATS:
        cleaned = clean_names(names, form)
        if all(mark in cleaned for mark in form.marks):
            return form
    return None
