"""Key tables: how others name and lay out the weights of a Vision Transformer.

A row is (our name, their names, layout). `{i}` is the number of a block; where a row has several
of their names, our tensor is theirs stacked along the first axis. `convert.py` applies a table.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Layout = Literal["same", "conv", "dense", "heads-in", "heads-out", "flat"]


class Row(NamedTuple):
    ours: str
    theirs: tuple[str, ...]
    layout: Layout = "same"


# The authors' .npz files. "conv" is (H, W, in, out), "dense" (in, out); the heads of attention have
# an axis of their own: "heads-in" (D, h, d), "heads-out" (h, d, D), "flat" (h, d).
BLOCK = "Transformer/encoderblock_{i}"
ATTENTION = f"{BLOCK}/MultiHeadDotProductAttention_0"
MLP = f"{BLOCK}/MlpBlock_0"
NPZ = (
    Row("patch_embedding.weight", ("embedding/kernel",), "conv"),
    Row("patch_embedding.bias", ("embedding/bias",)),
    Row("class_token", ("cls",)),
    Row("position_embedding", ("Transformer/posembed_input/pos_embedding",)),
    Row("blocks.{i}.norm1.weight", (f"{BLOCK}/LayerNorm_0/scale",)),
    Row("blocks.{i}.norm1.bias", (f"{BLOCK}/LayerNorm_0/bias",)),
    Row(
        "blocks.{i}.attention.qkv.weight",
        (f"{ATTENTION}/query/kernel", f"{ATTENTION}/key/kernel", f"{ATTENTION}/value/kernel"),
        "heads-in",
    ),
    Row(
        "blocks.{i}.attention.qkv.bias",
        (f"{ATTENTION}/query/bias", f"{ATTENTION}/key/bias", f"{ATTENTION}/value/bias"),
        "flat",
    ),
    Row("blocks.{i}.attention.out.weight", (f"{ATTENTION}/out/kernel",), "heads-out"),
    Row("blocks.{i}.attention.out.bias", (f"{ATTENTION}/out/bias",)),
    Row("blocks.{i}.norm2.weight", (f"{BLOCK}/LayerNorm_1/scale",)),
    Row("blocks.{i}.norm2.bias", (f"{BLOCK}/LayerNorm_1/bias",)),
    Row("blocks.{i}.mlp.dense1.weight", (f"{MLP}/Dense_0/kernel",), "dense"),
    Row("blocks.{i}.mlp.dense1.bias", (f"{MLP}/Dense_0/bias",)),
    Row("blocks.{i}.mlp.dense2.weight", (f"{MLP}/Dense_1/kernel",), "dense"),
    Row("blocks.{i}.mlp.dense2.bias", (f"{MLP}/Dense_1/bias",)),
    Row("norm.weight", ("Transformer/encoder_norm/scale",)),
    Row("norm.bias", ("Transformer/encoder_norm/bias",)),
    Row("hidden.weight", ("pre_logits/kernel",), "dense"),
    Row("hidden.bias", ("pre_logits/bias",)),
    Row("head.weight", ("head/kernel",), "dense"),
    Row("head.bias", ("head/bias",)),
)  # fmt: skip

# Older Flax numbered the parts of a block through, and optimiser dumps put a prefix before all.
NPZ_OLDER_NAMES = (
    ("/LayerNorm_2/", "/LayerNorm_1/"),
    ("/MultiHeadDotProductAttention_1/", "/MultiHeadDotProductAttention_0/"),
    ("/MlpBlock_3/", "/MlpBlock_0/"),
)
NPZ_PREFIXES = ("opt/target/", "params/")
