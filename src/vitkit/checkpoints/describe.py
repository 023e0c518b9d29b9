"""The JSON beside others' weights, read and written; what holds where there is none."""

from __future__ import annotations

from math import floor
from pathlib import Path
from typing import Any

from vitkit.checkpoints.containers import read_json
from vitkit.checkpoints.formats import Format
from vitkit.checkpoints.problems import CheckpointError
from vitkit.data.transforms import Preprocessing
from vitkit.models.efficientnet import EfficientNetConfig
from vitkit.models.nets import NetConfig
from vitkit.models.vit_config import ViTConfig

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and std, shares of 255
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
GELUS = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_tanh": "tanh"}
PIL_FILTERS = {2: "bilinear", 3: "bicubic"}

Said = dict[str, Any]


def said_by(folder: Path, form: Format) -> Said:
    """What config.json and preprocessor_config.json in a folder say, by vitkit's names.

    Keys, where known: heads, image_size, gelu, norm_eps, pooling, class_names, preprocessing (a
    dict of fields of Preprocessing). Raises CheckpointError where the JSON is not readable or says
    what no net here can be.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    said = read_json(path)
    if form.name == "hf" and "model_type" in said:
        return said_by_hf(said, folder)
    if form.name == "timm" and "architecture" in said:
        return said_by_timm(said, path)
    return {}


def said_by_hf(config: dict[str, Any], folder: Path) -> Said:
    said: Said = {}
    for theirs, ours in (("num_attention_heads", "heads"), ("layer_norm_eps", "norm_eps")):
        if theirs in config:
            said[ours] = config[theirs]
    if "image_size" in config:
        said["image_size"] = both_sides(config["image_size"])
    activation = config.get("hidden_act", "gelu")
    if activation not in GELUS:
        raise CheckpointError(
            f"{folder / 'config.json'}: hidden_act {activation!r}; the nets here have a GELU"
        )
    said["gelu"] = GELUS[activation]
    labels = config.get("id2label") or {}
    names = [labels[key] for key in sorted(labels, key=int)] if is_numbered(labels) else []
    if names and names != [f"LABEL_{number}" for number in range(len(names))]:
        said["class_names"] = names
    path = folder / "preprocessor_config.json"
    if path.is_file():
        said["preprocessing"] = hf_preprocessing(read_json(path))
    return said


def is_numbered(labels: object) -> bool:
    return isinstance(labels, dict) and all(
        str(key).isdigit() and isinstance(name, str) for key, name in labels.items()
    )


def hf_preprocessing(processor: dict[str, Any]) -> dict[str, Any]:
    """Fields of Preprocessing; Pillow's resizes, which Hugging Face uses, have an antialias."""
    fields: dict[str, Any] = {"antialias": True}
    fields["interpolation"] = PIL_FILTERS.get(processor.get("resample", 2), "bilinear")
    for theirs, ours in (("image_mean", "mean"), ("image_std", "std")):
        if theirs in processor:
            fields[ours] = tuple(processor[theirs])
    size = processor.get("size", 224)
    if isinstance(size, dict) and "shortest_edge" in size:
        fields |= {"resize": "shorter-side", "resize_to": size["shortest_edge"]}
        fields["image_size"] = both_sides(processor.get("crop_size", size["shortest_edge"]))
    elif processor.get("do_center_crop") and "crop_size" in processor:
        fields |= {"resize_to": both_sides(size), "image_size": both_sides(processor["crop_size"])}
    else:
        fields["image_size"] = both_sides(size)
    return fields


def said_by_timm(config: dict[str, Any], path: Path) -> Said:
    pretrained = config.get("pretrained_cfg", config)
    arguments = config.get("model_args", {})
    if not isinstance(pretrained, dict) or not isinstance(arguments, dict):
        raise CheckpointError(f"{path}: pretrained_cfg or model_args is no JSON object")
    said: Said = {}
    if "num_heads" in arguments:
        said["heads"] = arguments["num_heads"]
    if "img_size" in arguments or "input_size" in pretrained:
        said["image_size"] = both_sides(arguments.get("img_size", pretrained["input_size"][1:]))
    if arguments.get("act_layer") in GELUS:
        said["gelu"] = GELUS[arguments["act_layer"]]
    if arguments.get("global_pool", config.get("global_pool")) == "avg":
        said["pooling"] = "mean"
    names = config.get("label_names", pretrained.get("label_names"))
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        said["class_names"] = names
    if "mean" in pretrained and "input_size" in pretrained:
        said["preprocessing"] = timm_preprocessing(pretrained)
    return said


def timm_preprocessing(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of Preprocessing: timm resizes to the size over crop_pct, then crops the middle."""
    size = both_sides(config["input_size"][1:])
    scaled = tuple(floor(side / config.get("crop_pct", 0.875)) for side in size)
    fields = {
        "image_size": size, "antialias": True, "mean": tuple(config["mean"]),
        "std": tuple(config["std"]),
        "interpolation": "bicubic" if config.get("interpolation") == "bicubic" else "bilinear",
    }  # fmt: skip
    if config.get("crop_mode") == "squash" or size[0] != size[1]:
        return fields | {"resize": "direct", "resize_to": scaled}
    return fields | {"resize": "shorter-side", "resize_to": scaled[0]}


def both_sides(size: Any) -> tuple[int, int]:
    """A side, [height, width] or {"height": ..., "width": ...} -> (height, width)."""
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    sides = size if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise CheckpointError(f"the JSON beside the weights has an image size of {size!r}")
    return sides[0], sides[1]


def preprocessing_of(
    form: Format, config: NetConfig, said: Said, notes: list[str]
) -> Preprocessing:
    """What the JSON says, at the size that the net reads; else what the family usually does."""
    if "preprocessing" in said:
        try:
            return Preprocessing(**said["preprocessing"]).at(config.image_size)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the preprocessing beside the weights: {error}") from error
    made = usual_preprocessing(form, config)
    if form.name != "npz":  # which never say it, and know one way only
        notes.append(f"preprocessing as {form.title} usually have it: {made.summary}")
    return made


def usual_preprocessing(form: Format, config: NetConfig) -> Preprocessing:
    """Of the library or the authors; docs/checkpoints.md has the table."""
    size = config.image_size
    if form.name == "npz":
        return Preprocessing.direct(size)
    if isinstance(config, EfficientNetConfig):
        return torchvision_efficientnet(config)
    if form.name == "torchvision":  # its weights for 224 pixels resize to 256 (Weights.meta)
        side = 256 if size == (224, 224) else min(size)
        return cropped(size, side / min(size), "bilinear", IMAGENET)
    if form.kind == "BiT":
        return Preprocessing(size, antialias=True)
    if form.name == "t2t":
        return cropped(size, 1 / 0.9, "bicubic", IMAGENET)
    assert isinstance(config, ViTConfig)
    by_imagenet = (
        config.distillation_token or config.layer_scale is not None or config.norm_after_pool
    )  # DeiT, DINOv2, MAE
    if form.name == "hf":
        if not by_imagenet:
            return Preprocessing(size, antialias=True)
        return cropped(size, 256 / 224, "bicubic", IMAGENET)
    mean_std = IMAGENET if by_imagenet or not config.classes else HALF  # MAE and DINO: no head
    return cropped(size, 1 / 0.9 if min(size) < 384 else 1.0, "bicubic", mean_std)


def cropped(
    size: tuple[int, int], scale: float, interpolation: Any, mean_std: tuple
) -> Preprocessing:
    """Shorter side to `scale` times the larger side of `size`, then its middle."""
    return Preprocessing(
        size, "shorter-side", floor(max(size) * scale + 1e-6), interpolation, antialias=True,
        mean=mean_std[0], std=mean_std[1],
    )  # fmt: skip


def torchvision_efficientnet(config: EfficientNetConfig) -> Preprocessing:
    """As the first published weights of this size are evaluated (torchvision's Weights)."""
    from torchvision.models import get_model_weights

    first = next(iter(get_model_weights(f"efficientnet_{config.size.lower()}")))
    made = first.transforms()
    (crop,), (resize,) = made.crop_size, made.resize_size
    way = "bicubic" if "bicubic" in str(made.interpolation).lower() else "bilinear"
    return cropped((crop, crop), resize / crop, way, IMAGENET).at(config.image_size)


# Writing: the JSON that the other library reads.


def timm_json(config: NetConfig, names: list[str], preprocessing: Preprocessing) -> dict[str, Any]:
    """config.json of timm's layout, for timm.create_model("local-dir:FOLDER", pretrained=True)."""
    architecture, arguments = (
        timm_vit(config) if isinstance(config, ViTConfig) else (timm_bit(config), {})
    )
    height, width = config.image_size
    resized = preprocessing.resize_to
    side = resized if isinstance(resized, int) else (resized or config.image_size)[0]
    pretrained = {
        "architecture": architecture,
        "num_classes": config.classes,
        "input_size": [3, height, width],
        "fixed_input_size": isinstance(config, ViTConfig),
        "interpolation": preprocessing.interpolation,
        "crop_pct": min(height, width) / side,
        "crop_mode": "center" if preprocessing.resize == "shorter-side" else "squash",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
    }
    named = {"label_names": names} if names else {}
    return {
        "architecture": architecture, "num_classes": config.classes, "model_args": arguments,
        "pretrained_cfg": pretrained, **named,
    }  # fmt: skip


TIMM_STEMS = {  # timm builds the stem by the architecture's name
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}


def timm_vit(config: ViTConfig) -> tuple[str, dict[str, Any]]:
    """(architecture, the arguments that make it this net)."""
    hidden = config.mlp_width * (2 if config.mlp == "swiglu" else 1)
    arguments: dict[str, Any] = {
        "img_size": list(config.image_size), "embed_dim": config.width, "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": (hidden + 0.5) / config.width,  # timm rounds the product down
    }  # fmt: skip
    if config.gelu == "tanh" and config.mlp == "gelu":
        arguments["act_layer"] = "gelu_tanh"
    if config.distillation_token:
        return "deit_base_distilled_patch16_224", arguments | {"patch_size": config.patch}
    arguments["class_token"] = config.has_class_token
    arguments["global_pool"] = {"token": "token", "map": "map"}.get(config.pooling, "avg")
    arguments["fc_norm"] = config.norm_after_pool
    if config.registers:
        arguments |= {"reg_tokens": config.registers, "no_embed_class": True}
    if config.layer_scale is not None:
        arguments["init_values"] = config.layer_scale
    if config.stem is not None:
        return TIMM_STEMS[config.stem], arguments
    arguments["patch_size"] = config.patch
    return "vit_giant_patch14_dinov2" if config.mlp == "swiglu" else "vit_base_patch16_224", (
        arguments
    )


TIMM_BITS = {
    ((3, 4, 6, 3), 1): "resnetv2_50x1_bit", ((3, 4, 6, 3), 3): "resnetv2_50x3_bit",
    ((3, 4, 23, 3), 1): "resnetv2_101x1_bit", ((3, 4, 23, 3), 3): "resnetv2_101x3_bit",
    ((3, 8, 36, 3), 2): "resnetv2_152x2_bit", ((3, 8, 36, 3), 4): "resnetv2_152x4_bit",
}  # fmt: skip


def timm_bit(config: Any) -> str:
    return TIMM_BITS[config.units, config.width_factor]


def hf_json(config: ViTConfig, names: list[str]) -> dict[str, Any]:
    """config.json of Hugging Face's layout."""
    kind = hf_model_type(config)
    title = {"vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2"}.get(kind, "Dinov2WithRegisters")
    job = "ForImageClassification" + ("WithTeacher" if kind == "deit" else "")
    height, width = config.image_size
    fields: dict[str, Any] = {
        "model_type": kind,
        "architectures": [title + (job if config.classes else "Model")],
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
    if kind in ("vit", "deit"):
        return fields | {"intermediate_size": config.mlp_width}
    gated = config.mlp == "swiglu"
    ratio = config.mlp_width * 3 / (2 * config.width) if gated else config.mlp_width / config.width
    fields |= {"mlp_ratio": int(ratio), "use_swiglu_ffn": gated, "use_mask_token": False,
               "layerscale_value": config.layer_scale}  # fmt: skip
    return fields | ({"num_register_tokens": config.registers} if config.registers else {})


def hf_model_type(config: ViTConfig) -> str:
    if config.distillation_token:
        return "deit"
    if config.layer_scale is None:
        return "vit"
    return "dinov2_with_registers" if config.registers else "dinov2"


def hf_preprocessor_json(preprocessing: Preprocessing) -> dict[str, Any]:
    """preprocessor_config.json."""
    height, width = preprocessing.image_size
    crop = {"height": height, "width": width}
    fields: dict[str, Any] = {
        "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(preprocessing.mean), "image_std": list(preprocessing.std),
        "resample": 3 if preprocessing.interpolation == "bicubic" else 2,
    }  # fmt: skip
    if preprocessing.resize == "shorter-side":
        return fields | {
            "image_processor_type": "BitImageProcessor", "do_center_crop": True, "crop_size": crop,
            "size": {"shortest_edge": preprocessing.resize_to},
        }  # fmt: skip
    return fields | {"image_processor_type": "ViTImageProcessor", "size": crop}
