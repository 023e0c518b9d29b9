"""Key tables: how others name and lay out the weights of the nets.

A row is (our name, their names, layout). Where a row has several of their names, our tensor is
theirs stacked along the first axis. `{i}` is the number of a block; `{s}` and `{u}` are the stage
and the unit of a ResNet, counted from 0, `{s1}` and `{u1}` the same from 1, `{u02}` from 1 in two
digits; `{rest}` is all the rest of a name. Reading knows every row; writing takes the first row for
each of our names, the rows after it are other names that files have for the same. `tables.py`
applies a table in both directions.

Layouts, theirs -> ours. Flax: "conv" (H, W, in, out) -> (out, in, H, W); "dense" (in, out) ->
(out, in); the heads of attention have an axis of their own: "heads-in" (D, h, d), "heads-out"
(h, d, D), "heads-flat" (h, d). "pixel" (1, 1, in, out) and "pixel-torch" (out, in, 1, 1) are a
linear layer kept as a 1x1 convolution; "vector" is (C,) with leading ones; "same" is the same.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Layout = Literal[
    "same", "conv", "dense", "heads-in", "heads-out", "heads-flat", "pixel", "pixel-torch", "vector"
]


class Row(NamedTuple):
    ours: str
    theirs: tuple[str, ...]
    layout: Layout = "same"


Table = tuple[Row, ...]


def pair(ours: str, theirs: str) -> Table:
    """Weight and bias of one layer that both sides lay out alike."""
    return tuple(Row(f"{ours}.{part}", (f"{theirs}.{part}",)) for part in ("weight", "bias"))


def joined(ours: str, *theirs: str) -> Table:
    """Weight and bias of one layer of ours that is several of theirs."""
    return tuple(
        Row(f"{ours}.{part}", tuple(f"{name}.{part}" for name in theirs))
        for part in ("weight", "bias")
    )


def flax(ours: str, theirs: str, layout: Layout) -> Table:
    return (
        Row(f"{ours}.weight", (f"{theirs}/kernel",), layout),
        Row(f"{ours}.bias", (f"{theirs}/bias",)),
    )


def flax_norm(ours: str, theirs: str, scale: str = "scale", bias: str = "bias") -> Table:
    return (
        Row(f"{ours}.weight", (f"{theirs}/{scale}",), "vector"),
        Row(f"{ours}.bias", (f"{theirs}/{bias}",), "vector"),
    )


def flax_attention(ours: str, theirs: str, stacked: dict[str, tuple[str, ...]]) -> Table:
    rows: list[Row] = []
    for name, parts in stacked.items():
        kernels = tuple(f"{theirs}/{part}/kernel" for part in parts)
        biases = tuple(f"{theirs}/{part}/bias" for part in parts)
        rows.append(Row(f"{ours}.{name}.weight", kernels, "heads-in"))
        rows.append(Row(f"{ours}.{name}.bias", biases, "heads-flat"))
    return (
        *rows,
        Row(f"{ours}.out.weight", (f"{theirs}/out/kernel",), "heads-out"),
        Row(f"{ours}.out.bias", (f"{theirs}/out/bias",)),
    )


# The authors' .npz (vision_transformer, AugReg, big_vision's ViT), by the names of the released
# files, which number the parts of a block through and which every loader of such files knows.

BLOCK = "Transformer/encoderblock_{i}"
POOL = "MAPHead_0"
NPZ_VIT: Table = (
    *flax("patch_embedding", "embedding", "conv"),
    Row("class_token", ("cls",)),
    Row("position_embedding", ("Transformer/posembed_input/pos_embedding",)),
    *flax_norm("blocks.{i}.norm1", f"{BLOCK}/LayerNorm_0"),
    *flax_attention(
        "blocks.{i}.attention", f"{BLOCK}/MultiHeadDotProductAttention_1",
        {"qkv": ("query", "key", "value")},
    ),
    *flax_norm("blocks.{i}.norm2", f"{BLOCK}/LayerNorm_2"),
    *flax("blocks.{i}.mlp.dense1", f"{BLOCK}/MlpBlock_3/Dense_0", "dense"),
    *flax("blocks.{i}.mlp.dense2", f"{BLOCK}/MlpBlock_3/Dense_1", "dense"),
    *flax_norm("norm", "Transformer/encoder_norm"),
    Row("pool.probe", (f"{POOL}/probe",)),
    *flax_attention(
        "pool", f"{POOL}/MultiHeadDotProductAttention_0", {"q": ("query",), "kv": ("key", "value")}
    ),
    *flax_norm("pool.norm", f"{POOL}/LayerNorm_0"),
    *flax("pool.mlp.dense1", f"{POOL}/MlpBlock_0/Dense_0", "dense"),
    *flax("pool.mlp.dense2", f"{POOL}/MlpBlock_0/Dense_1", "dense"),
    *flax("hidden", "pre_logits", "dense"),
    *flax("head", "head", "dense"),
)  # fmt: skip

UNIT = "block{s1}/unit{u1}"
NPZ_STEM: Table = (
    Row("stem.root.conv.weight", ("conv_root/kernel",), "conv"),
    *flax_norm("stem.root.norm", "gn_root"),
    *(
        row
        for n in (1, 2, 3)
        for row in (
            Row(f"stem.stages.{{s}}.{{u}}.conv{n}.weight", (f"{UNIT}/conv{n}/kernel",), "conv"),
            *flax_norm(f"stem.stages.{{s}}.{{u}}.norm{n}", f"{UNIT}/gn{n}"),
        )
    ),
    Row("stem.stages.{s}.{u}.projection.conv.weight", (f"{UNIT}/conv_proj/kernel",), "conv"),
    *flax_norm("stem.stages.{s}.{u}.projection.norm", f"{UNIT}/gn_proj"),
)

BIT_UNIT = "resnet/block{s1}/unit{u02}"
NPZ_BIT: Table = (
    Row("root.weight", ("resnet/root_block/standardized_conv2d/kernel",), "conv"),
    *(
        row
        for n, part in ((1, "a"), (2, "b"), (3, "c"))
        for row in (
            Row(
                f"stages.{{s}}.{{u}}.conv{n}.weight",
                (f"{BIT_UNIT}/{part}/standardized_conv2d/kernel",),
                "conv",
            ),
            *flax_norm(
                f"stages.{{s}}.{{u}}.norm{n}", f"{BIT_UNIT}/{part}/group_norm", "gamma", "beta"
            ),
        )
    ),
    Row(
        "stages.{s}.{u}.projection.weight",
        (f"{BIT_UNIT}/a/proj/standardized_conv2d/kernel",),
        "conv",
    ),
    *flax_norm("norm", "resnet/group_norm", "gamma", "beta"),
    Row("head.weight", ("resnet/head/conv2d/kernel",), "pixel"),
    Row("head.bias", ("resnet/head/conv2d/bias",)),
)

# (pattern, replacement): other ways to write the same .npz names.
PART = r"(/encoderblock(?:_\d+)?)"
NPZ_RENAMES = (
    # Flax linen numbers each kind of part for itself: LayerNorm_0 and _1, attention 0, MLP 0.
    (rf"{PART}/LayerNorm_1/", r"\1/LayerNorm_2/"),
    (rf"{PART}/MultiHeadDotProductAttention_0/", r"\1/MultiHeadDotProductAttention_1/"),
    (rf"{PART}/MlpBlock_0/", r"\1/MlpBlock_3/"),
    (r"^(?:Transformer/)?pos_embedding$", "Transformer/posembed_input/pos_embedding"),
    (r"/standardized_conv2d_\d+/", "/standardized_conv2d/"),
)
NPZ_PREFIXES = ("opt/target/", "params/", "img/")  # taken off one after another
NPZ_SCANNED = "Transformer/encoderblock/"  # big_vision's scan: all blocks in one, depth first

# timm, and what shares its names: DeiT, MAE, DINOv2's own files.

TIMM_FC_NORM = pair("norm", "fc_norm")  # the norm after the pool: ViTConfig.norm_after_pool
TIMM_VIT: Table = (
    *pair("patch_embedding", "patch_embed.proj"),
    Row("class_token", ("cls_token",)),
    Row("distillation_token", ("dist_token",)),
    Row("registers", ("reg_token",)),
    Row("registers", ("register_tokens",)),  # DINOv2
    Row("position_embedding", ("pos_embed",)),
    *pair("blocks.{i}.norm1", "blocks.{i}.norm1"),
    *pair("blocks.{i}.attention.qkv", "blocks.{i}.attn.qkv"),
    *pair("blocks.{i}.attention.out", "blocks.{i}.attn.proj"),
    Row("blocks.{i}.scale1", ("blocks.{i}.ls1.gamma",)),
    Row("blocks.{i}.scale1", ("blocks.{i}.gamma_1",)),  # DeiT III
    *pair("blocks.{i}.norm2", "blocks.{i}.norm2"),
    *pair("blocks.{i}.mlp.dense1", "blocks.{i}.mlp.fc1"),
    *pair("blocks.{i}.mlp.dense2", "blocks.{i}.mlp.fc2"),
    *pair("blocks.{i}.mlp.dense1", "blocks.{i}.mlp.w12"),  # DINOv2's SwiGLU
    *pair("blocks.{i}.mlp.dense2", "blocks.{i}.mlp.w3"),
    Row("blocks.{i}.scale2", ("blocks.{i}.ls2.gamma",)),
    Row("blocks.{i}.scale2", ("blocks.{i}.gamma_2",)),
    *pair("norm", "norm"),
    *TIMM_FC_NORM,
    *pair("hidden", "pre_logits.fc"),  # timm before 0.6
    Row("pool.probe", ("attn_pool.latent",)),
    *pair("pool.q", "attn_pool.q"),
    *pair("pool.kv", "attn_pool.kv"),
    *pair("pool.out", "attn_pool.proj"),
    *pair("pool.norm", "attn_pool.norm"),
    *pair("pool.mlp.dense1", "attn_pool.mlp.fc1"),
    *pair("pool.mlp.dense2", "attn_pool.mlp.fc2"),
    *pair("head", "head"),
    *pair("head_distillation", "head_dist"),
)

BACKBONE = "patch_embed.backbone"
STAGE = f"{BACKBONE}.stages.{{s}}.blocks.{{u}}"
TIMM_ROOT_ALONE: Table = (  # R+ViT-Ti/16: no stages
    Row("stem.root.conv.weight", (f"{BACKBONE}.conv.weight",)),
    *pair("stem.root.norm", f"{BACKBONE}.norm"),
)
TIMM_STEM: Table = (
    Row("stem.root.conv.weight", (f"{BACKBONE}.stem.conv.weight",)),
    *pair("stem.root.norm", f"{BACKBONE}.stem.norm"),
    *TIMM_ROOT_ALONE,
    *(
        row
        for n in (1, 2, 3)
        for row in (
            Row(f"stem.stages.{{s}}.{{u}}.conv{n}.weight", (f"{STAGE}.conv{n}.weight",)),
            *pair(f"stem.stages.{{s}}.{{u}}.norm{n}", f"{STAGE}.norm{n}"),
        )
    ),
    Row("stem.stages.{s}.{u}.projection.conv.weight", (f"{STAGE}.downsample.conv.weight",)),
    *pair("stem.stages.{s}.{u}.projection.norm", f"{STAGE}.downsample.norm"),
)

TIMM_BIT_UNIT = "stages.{s}.blocks.{u}"
TIMM_BIT: Table = (
    Row("root.weight", ("stem.conv.weight",)),
    *(
        row
        for n in (1, 2, 3)
        for row in (
            Row(f"stages.{{s}}.{{u}}.conv{n}.weight", (f"{TIMM_BIT_UNIT}.conv{n}.weight",)),
            *pair(f"stages.{{s}}.{{u}}.norm{n}", f"{TIMM_BIT_UNIT}.norm{n}"),
        )
    ),
    Row("stages.{s}.{u}.projection.weight", (f"{TIMM_BIT_UNIT}.downsample.conv.weight",)),
    *pair("norm", "norm"),
    Row("head.weight", ("head.fc.weight",), "pixel-torch"),
    Row("head.bias", ("head.fc.bias",)),
)

TIMM_PREFIXES = ("timm_model.", "backbone.")  # transformers' wrapper; DINO's training files
TIMM_RENAMES = (
    (r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),  # which may keep the blocks in chunks
)
TIMM_IGNORED = (r"mask_token", r"decoder_.*")  # what only pre-training reads (DINOv2, MAE)

# Hugging Face: the names of version 4, which files have; then those of version 5 in memory.

HF_TEACHER = pair("head", "cls_classifier")  # DeiT with its teacher's token and head
HF_LONE_TOKEN: Table = (Row("registers", ("embeddings.distillation_token",)),)  # without its head
LAYER, LAYER5 = "encoder.layer.{i}", "layers.{i}"
QKV = ("query", "key", "value")
HF_EMBEDDINGS: Table = (
    *pair("patch_embedding", "embeddings.patch_embeddings.projection"),
    Row("class_token", ("embeddings.cls_token",)),
    Row("distillation_token", ("embeddings.distillation_token",)),
    Row("registers", ("embeddings.register_tokens",)),
    Row("position_embedding", ("embeddings.position_embeddings",)),
)
HF_HEADS: Table = (
    *pair("norm", "layernorm"),
    *pair("hidden", "pooler.dense"),
    *pair("head", "classifier"),
    *HF_TEACHER,
    *pair("head_distillation", "distillation_classifier"),
)
HF_VIT: Table = (
    *HF_EMBEDDINGS,
    *pair("blocks.{i}.norm1", f"{LAYER}.layernorm_before"),
    *joined("blocks.{i}.attention.qkv", *(f"{LAYER}.attention.attention.{n}" for n in QKV)),
    *pair("blocks.{i}.attention.out", f"{LAYER}.attention.output.dense"),
    *pair("blocks.{i}.norm2", f"{LAYER}.layernorm_after"),
    *pair("blocks.{i}.mlp.dense1", f"{LAYER}.intermediate.dense"),
    *pair("blocks.{i}.mlp.dense2", f"{LAYER}.output.dense"),
    *HF_HEADS,
    *pair("blocks.{i}.norm1", f"{LAYER5}.layernorm_before"),
    *joined("blocks.{i}.attention.qkv", *(f"{LAYER5}.attention.{n[0]}_proj" for n in QKV)),
    *pair("blocks.{i}.attention.out", f"{LAYER5}.attention.o_proj"),
    *pair("blocks.{i}.norm2", f"{LAYER5}.layernorm_after"),
    *pair("blocks.{i}.mlp.dense1", f"{LAYER5}.mlp.fc1"),
    *pair("blocks.{i}.mlp.dense2", f"{LAYER5}.mlp.fc2"),
)
HF_SWIGLU: Table = (
    *pair("blocks.{i}.mlp.dense1", f"{LAYER}.mlp.weights_in"),
    *pair("blocks.{i}.mlp.dense2", f"{LAYER}.mlp.weights_out"),
)
HF_DINOV2: Table = (
    *HF_EMBEDDINGS,
    *pair("blocks.{i}.norm1", f"{LAYER}.norm1"),
    *joined("blocks.{i}.attention.qkv", *(f"{LAYER}.attention.attention.{n}" for n in QKV)),
    *pair("blocks.{i}.attention.out", f"{LAYER}.attention.output.dense"),
    Row("blocks.{i}.scale1", (f"{LAYER}.layer_scale1.lambda1",)),
    *pair("blocks.{i}.norm2", f"{LAYER}.norm2"),
    *pair("blocks.{i}.mlp.dense1", f"{LAYER}.mlp.fc1"),
    *pair("blocks.{i}.mlp.dense2", f"{LAYER}.mlp.fc2"),
    Row("blocks.{i}.scale2", (f"{LAYER}.layer_scale2.lambda1",)),
    *HF_HEADS,
    *joined("blocks.{i}.attention.qkv", *(f"{LAYER}.attention.{n[0]}_proj" for n in QKV)),
    *pair("blocks.{i}.attention.out", f"{LAYER}.attention.o_proj"),
    *HF_SWIGLU,
    *joined("blocks.{i}.mlp.dense1", f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj"),
    *pair("blocks.{i}.mlp.dense2", f"{LAYER}.mlp.down_proj"),
)
HF_RENAMES = ((r"^(?:vit|deit|dinov2|dinov2_with_registers)\.", ""),)  # before the encoder's names
HF_UNREAD_WITH_HEAD = (r"pooler\..*",)
HF_MASK_TOKEN = "embeddings.mask_token"
HF_IGNORED = (re.escape(HF_MASK_TOKEN), r"decoder\..*")  # what only pre-training reads

# torchvision.

TV_LAYER = "encoder.layers.encoder_layer_{i}"
TORCHVISION_VIT: Table = (
    *pair("patch_embedding", "conv_proj"),
    Row("class_token", ("class_token",)),
    Row("position_embedding", ("encoder.pos_embedding",)),
    *pair("blocks.{i}.norm1", f"{TV_LAYER}.ln_1"),
    Row("blocks.{i}.attention.qkv.weight", (f"{TV_LAYER}.self_attention.in_proj_weight",)),
    Row("blocks.{i}.attention.qkv.bias", (f"{TV_LAYER}.self_attention.in_proj_bias",)),
    *pair("blocks.{i}.attention.out", f"{TV_LAYER}.self_attention.out_proj"),
    *pair("blocks.{i}.norm2", f"{TV_LAYER}.ln_2"),
    *pair("blocks.{i}.mlp.dense1", f"{TV_LAYER}.mlp.0"),
    *pair("blocks.{i}.mlp.dense2", f"{TV_LAYER}.mlp.3"),
    *pair("norm", "encoder.ln"),
    *pair("hidden", "heads.pre_logits"),
    *pair("head", "heads.head"),
    *pair("blocks.{i}.mlp.dense1", f"{TV_LAYER}.mlp.linear_1"),  # before torchvision 0.13
    *pair("blocks.{i}.mlp.dense2", f"{TV_LAYER}.mlp.linear_2"),
)
TORCHVISION_EFFICIENTNET: Table = (
    Row("backbone.{rest}", ("features.{rest}",)),
    *pair("head", "classifier.1"),
)

# T2T-ViT's own files (yitu-opensource/T2T-ViT); `{i}` is the number of a layer or a block.

T2T_LAYER, T2T_THEIRS = "tokens_to_token.layer{i}", "tokens_to_token.attention{i}"
T2T: Table = (
    Row("class_token", ("cls_token",)),
    Row("position_embedding", ("pos_embed",)),
    *pair(f"{T2T_LAYER}.norm1", f"{T2T_THEIRS}.norm1"),
    *pair(f"{T2T_LAYER}.norm2", f"{T2T_THEIRS}.norm2"),
    Row(f"{T2T_LAYER}.attention.random_features", (f"{T2T_THEIRS}.w",)),  # the performer's
    *pair(f"{T2T_LAYER}.attention.kqv", f"{T2T_THEIRS}.kqv"),
    *pair(f"{T2T_LAYER}.attention.out", f"{T2T_THEIRS}.proj"),
    *pair(f"{T2T_LAYER}.mlp.dense1", f"{T2T_THEIRS}.mlp.0"),
    *pair(f"{T2T_LAYER}.mlp.dense2", f"{T2T_THEIRS}.mlp.2"),
    *pair(f"{T2T_LAYER}.attention.qkv", f"{T2T_THEIRS}.attn.qkv"),  # the transformer's
    *pair(f"{T2T_LAYER}.attention.out", f"{T2T_THEIRS}.attn.proj"),
    *pair(f"{T2T_LAYER}.mlp.dense1", f"{T2T_THEIRS}.mlp.fc1"),
    *pair(f"{T2T_LAYER}.mlp.dense2", f"{T2T_THEIRS}.mlp.fc2"),
    *pair("tokens_to_token.projection", "tokens_to_token.project"),
    *pair("blocks.{i}.norm1", "blocks.{i}.norm1"),
    *pair("blocks.{i}.attention.qkv", "blocks.{i}.attn.qkv"),
    *pair("blocks.{i}.attention.out", "blocks.{i}.attn.proj"),
    *pair("blocks.{i}.norm2", "blocks.{i}.norm2"),
    *pair("blocks.{i}.mlp.dense1", "blocks.{i}.mlp.fc1"),
    *pair("blocks.{i}.mlp.dense2", "blocks.{i}.mlp.fc2"),
    *pair("norm", "norm"),
    *pair("head", "head"),
)
