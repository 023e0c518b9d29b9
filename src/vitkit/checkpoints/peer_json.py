"""The JSON that goes with weights for timm and for Hugging Face, written."""

from __future__ import annotations

from math import floor
from typing import Any

from vitkit.checkpoints.formats import Format
from vitkit.data.transforms import Preprocessing
from vitkit.models.bit import BiTConfig
from vitkit.models.nets import NetConfig
from vitkit.models.vit_config import ViTConfig

TIMM_STEMS: dict[tuple[int, ...], str] = {  # timm builds the stem by the architecture's name
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
TIMM_BITS: dict[tuple[tuple[int, ...], int], str] = {
    ((3, 4, 6, 3), 1): "resnetv2_50x1_bit", ((3, 4, 6, 3), 3): "resnetv2_50x3_bit",
    ((3, 4, 23, 3), 1): "resnetv2_101x1_bit", ((3, 4, 23, 3), 3): "resnetv2_101x3_bit",
    ((3, 8, 36, 3), 2): "resnetv2_152x2_bit", ((3, 8, 36, 3), 4): "resnetv2_152x4_bit",
}  # fmt: skip
TIMM_POOLINGS = {"token": "token", "map": "map", "mean": "avg", "patch-mean": "avg"}
HF_TITLES = {
    "vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2",
    "dinov2_with_registers": "Dinov2WithRegisters",
}  # fmt: skip


def json_beside(
    form: Format, config: NetConfig, names: list[str], preprocessing: Preprocessing
) -> dict[str, dict[str, Any]]:
    """The files by name and what is in them; `form` is one that has any."""
    if form.name == "timm":
        return {"config.json": timm_json(config, names, preprocessing)}
    assert isinstance(config, ViTConfig)
    return {
        "config.json": hf_json(config, names),
        "preprocessor_config.json": hf_preprocessor_json(preprocessing),
    }


def timm_json(config: NetConfig, names: list[str], preprocessing: Preprocessing) -> dict[str, Any]:
    """config.json of timm's layout, for timm.create_model("local-dir:FOLDER", pretrained=True)."""
    if isinstance(config, ViTConfig):
        architecture, arguments = timm_vit(config)
    else:
        assert isinstance(config, BiTConfig)
        architecture, arguments = TIMM_BITS[config.units, config.width_factor], {}
    height, width = preprocessing.image_size
    resized = preprocessing.resize_to
    # Of the sides before and after the crop timm knows only one share.
    after = min(height, width) if isinstance(resized, int) else height
    before = resized if isinstance(resized, int) else (resized or preprocessing.image_size)[0]
    share = after / before
    if floor(after / share) != before:  # what timm does with it
        share = after / (before + 0.5)
    pretrained = {
        "architecture": architecture,
        "num_classes": config.classes,
        "input_size": [3, height, width],
        "fixed_input_size": isinstance(config, ViTConfig),
        "interpolation": preprocessing.interpolation.replace("area", "box"),
        "crop_pct": share,
        "crop_mode": "center" if preprocessing.resize == "shorter-side" else "squash",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
    named = {"label_names": names} if names else {}
    return {
        "architecture": architecture, "num_classes": config.classes, "model_args": arguments,
        "pretrained_cfg": pretrained, **named,
    }  # fmt: skip


def timm_vit(config: ViTConfig) -> tuple[str, dict[str, Any]]:
    """(architecture, the arguments that make it this net)."""
    hidden = config.mlp_width * (2 if config.mlp == "swiglu" else 1)
    arguments: dict[str, Any] = {
        "img_size": list(config.image_size), "patch_size": config.patch,
        "embed_dim": config.width, "depth": config.depth, "num_heads": config.heads,
        "mlp_ratio": (hidden + 0.5) / config.width,  # timm rounds the product down
        "init_values": config.layer_scale,
    }  # fmt: skip
    if config.mlp == "gelu":
        arguments["act_layer"] = "gelu_tanh" if config.gelu == "tanh" else "gelu"
    if config.distillation_token:
        return "deit_base_distilled_patch16_224", arguments
    arguments |= {
        "class_token": config.has_class_token,
        "global_pool": TIMM_POOLINGS[config.pooling],
        "fc_norm": config.norm_after_pool,
        "reg_tokens": config.registers,
        "no_embed_class": config.registers > 0,
    }
    if config.stem is not None:
        return TIMM_STEMS[config.stem], arguments
    gated = config.mlp == "swiglu"
    return "vit_giant_patch14_dinov2" if gated else "vit_base_patch16_224", arguments


def hf_model_type(config: ViTConfig) -> str:
    if config.layer_scale is not None:
        return "dinov2_with_registers" if config.registers else "dinov2"
    return "deit" if config.distillation_token or config.registers else "vit"


def hf_json(config: ViTConfig, names: list[str]) -> dict[str, Any]:
    """config.json of Hugging Face's layout."""
    kind = hf_model_type(config)
    job = "ForImageClassification" + ("WithTeacher" if config.distillation_token else "")
    height, width = config.image_size
    fields: dict[str, Any] = {
        "model_type": kind,
        "architectures": [HF_TITLES[kind] + (job if config.classes else "Model")],
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch,
        "num_channels": 3,
        "qkv_bias": True,
        "hidden_act": "gelu" if config.gelu == "erf" else "gelu_pytorch_tanh",
        "layer_norm_eps": config.norm_eps,
        "dtype": "float32",
    }
    if config.classes:
        fields["id2label"] = {str(number): name for number, name in enumerate(names)}
        fields["label2id"] = {name: number for number, name in enumerate(names)}
    if config.layer_scale is None:
        return fields | {"intermediate_size": config.mlp_width}
    registers = {"num_register_tokens": config.registers} if config.registers else {}
    return fields | registers | {
        "mlp_ratio": dinov2_mlp_ratio(config), "use_swiglu_ffn": config.mlp == "swiglu",
        "layerscale_value": config.layer_scale,
    }  # fmt: skip


def dinov2_mlp_ratio(config: ViTConfig) -> int | None:
    """The whole number by which Hugging Face's DINOv2 gets its hidden width; None if none does."""
    for ratio in range(1, 2 * config.mlp_width // config.width + 2):
        hidden = config.width * ratio
        if config.mlp == "swiglu":  # two thirds of it, in whole eights
            hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
        if hidden == config.mlp_width:
            return ratio
    return None


def hf_preprocessor_json(preprocessing: Preprocessing) -> dict[str, Any]:
    """preprocessor_config.json."""
    height, width = preprocessing.image_size
    crop = {"height": height, "width": width}
    resized, fields = preprocessing.resize_to, {
        "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(preprocessing.mean), "image_std": list(preprocessing.std),
        "resample": {"bilinear": 2, "bicubic": 3, "area": 4}[preprocessing.interpolation],
    }  # fmt: skip
    if resized is None:
        return fields | {"image_processor_type": "ViTImageProcessor", "size": crop}
    size = {"shortest_edge": resized} if isinstance(resized, int) else {
        "height": resized[0], "width": resized[1],
    }  # fmt: skip
    return fields | {
        "image_processor_type": "BitImageProcessor", "do_center_crop": True, "crop_size": crop,
        "size": size,
    }  # fmt: skip
