"""What the JSON that timm and Hugging Face keep beside weights says."""

from __future__ import annotations

import re
import reprlib
from math import floor
from pathlib import Path
from typing import Any

from vitkit.checkpoints.containers import read_json
from vitkit.checkpoints.formats import Format
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.published import IMAGENET
from vitkit.data.transforms import HALF
from vitkit.values import fits

GELUS = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_tanh": "tanh"}
POOLINGS = {"token": "token", "avg": "mean", "map": "map"}  # timm's names
# What transformers takes where a JSON leaves it out (5.24: configuration_*, image_processing_*).
HF_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {"heads": 12}, "deit": {"heads": 12}, "vit_mae": {"heads": 12}, "ijepa": {"heads": 12},
    "vit_msn": {"heads": 12, "norm_eps": 1e-6}, "dinov2": {"heads": 12},
    "dinov2_with_registers": {"heads": 12},
}  # fmt: skip
HF_PROCESSOR_OF = {"deit": "DeiT", "dinov2": "Bit", "dinov2_with_registers": "Bit"}  # else ViT
HF_USUAL = {
    "do_resize": True, "size": 224, "resample": 2, "do_center_crop": False, "crop_size": 224,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": HALF, "image_std": HALF,
}  # fmt: skip
CLIP = {
    "resample": 3, "do_center_crop": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
}  # fmt: skip
HF_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {}, "DeiT": {"size": 256, "resample": 3, "do_center_crop": True}, "Bit": CLIP,
    "CLIP": CLIP,
}  # fmt: skip
FILTERS = {  # by PIL.Image.Resampling and by timm's names
    2: "bilinear", 3: "bicubic", 4: "area", "bilinear": "bilinear", "bicubic": "bicubic",
    "box": "area",
}  # fmt: skip

# The heads of timm's architectures where model_args leave them out, whatever width and depth it
# says (timm 1.0.31: vision_transformer.py, vision_transformer_hybrid.py, deit.py). The first
# pattern that a name begins with.
TIMM_HEADS = tuple((re.compile(pattern), heads) for pattern, heads in (
    ("vit_base_patch16_gap_224", 16), ("vit_small_resnet", 8), ("vit_base_patch(16|32)_plus_", 14),
    ("vit_giant_.*(dinov2|tipsv2|radio)", 24), ("test_vit[34]", 3), ("test_vit", 2),
    ("(vit|deit)_tiny_", 3), ("vit_(d?p?wee|xsmall)_", 4), ("vit_d?little_", 5),
    ("(vit|deit3?|flexivit)_small", 6), ("(vit|deit3)_mediumd?_", 8), ("vit_betwixt_", 10),
    ("(vit|deit3?|flexivit|beit3)_base", 12), ("vit_so150m2_", 13), ("vit_so150m_", 14),
    ("(vit|deit3|beit3)_(large|intern300m|huge|so400m|giant|giantopt|gigantic)_", 16),
    ("flexivit_large|eva_large_", 16),
))  # fmt: skip
TIMM_TANH = re.compile(  # SigLIP 2's
    r"vit_(so400m_patch16|giantopt_patch16)_siglip_.*"
    r"|vit_(base_patch32_siglip_(gap_)?256|large_patch16_siglip_(gap_)?512)"
)

# Nets with a plain ViT's tensors that compute otherwise: rotary positions, norms after each branch,
# registers that are pooled.
TIMM_OTHERS = re.compile(r".*_(rope|rpn)_.*|test_vit3")

JSON_ERRORS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)
Said = dict[str, Any]
TYPES = {"width": int, "depth": int, "heads": int, "norm_eps": float, "layer_scale": float}


def said_by(folder: Path, form: Format) -> Said:
    """What config.json and preprocessor_config.json in a folder say, by vitkit's names.

    Keys, where known: width, depth, heads, image_size, gelu, norm_eps, layer_scale, pooling,
    class_names, mean_std, preprocessing (fields of Preprocessing), and notes (sentences: what of it
    is done otherwise here). Raises CheckpointError where the JSON is not readable, or says
    what no net here can be.
    """
    path = folder / "config.json"
    if form.name not in ("hf", "timm", "torchvision") or not path.is_file():
        return {}
    config, said = read_json(path), {}
    try:
        if form.name == "hf" and "model_type" in config:
            said = said_by_hf(config, folder / "preprocessor_config.json")
        if form.name == "timm" and isinstance(config.get("architecture"), str):
            said = said_by_timm(config)
        if "num_heads" in config:  # for weights whose library has no such file
            said["heads"] = config["num_heads"]
        for name, kind in TYPES.items():
            if name in said and not fits(said[name], kind):
                raise ValueError(f"{name} {reprlib.repr(said[name])}")
    except JSON_ERRORS as error:
        raise CheckpointError(f"{path}: not as {form.title} have it: {error}") from error
    return said


def said_by_hf(config: dict[str, Any], processor: Path) -> Said:
    kind = config["model_type"]
    names = {
        "hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads",
        "layer_norm_eps": "norm_eps", "layerscale_value": "layer_scale",
    }  # fmt: skip
    said: Said = {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs)}
    said = HF_DEFAULTS.get(kind, {}) | said
    if "image_size" in config:
        said["image_size"] = both_sides(config["image_size"])
    activation = config.get("hidden_act", "gelu")
    said["gelu"] = GELUS.get(activation, activation)
    said["pooling"] = "token"  # infer.pooling_of sees DINOv2's head, twice as wide
    if config.get("pooler_act", "tanh") != "tanh":
        raise ValueError(f"pooler_act {config['pooler_act']!r}; the nets here have a tanh there")
    labels = config.get("id2label") or {}
    numbers = [str(number) for number in range(len(labels))]
    if labels.keys() != set(numbers):
        said["notes"] = ["no class names of id2label, which does not count from 0 to the last"]
    elif [labels[n] for n in numbers] != [f"LABEL_{n}" for n in numbers]:
        said["class_names"] = [labels[n] for n in numbers]
    if kind in ("deit", "vit_mae", "vit_msn"):
        said["mean_std"] = IMAGENET
    if processor.is_file():
        try:
            said["preprocessing"], notes = hf_preprocessing(read_json(processor), kind)
        except JSON_ERRORS as error:
            raise CheckpointError(f"{processor}: no processor of a ViT: {error}") from error
        said["notes"] = [*said.get("notes", []), *notes]
    return said


def hf_preprocessing(processor: dict[str, Any], model: str) -> tuple[dict[str, Any], list[str]]:
    """Fields of Preprocessing, and what is done otherwise; Pillow's resizes have an antialias."""
    title = processor.get("image_processor_type") or processor.get("feature_extractor_type")
    title = HF_PROCESSOR_OF.get(model, "ViT") if title is None else str(title)
    kind = re.sub("(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", title)
    notes = [] if kind in HF_PROCESSORS else [f"where {title} has defaults, those of ViT's"]
    given = {n: v for n, v in processor.items() if v is not None or n.startswith("do_")}
    processor = HF_USUAL | HF_PROCESSORS.get(kind, {}) | given
    interpolation, departures = known_filter(processor["resample"])
    # Theirs is (pixel * factor - mean) / std, ours (pixel / 255 - mean) / std.
    scale = 255 * processor["rescale_factor"] if processor["do_rescale"] else 255
    mean, std = (
        value if isinstance(value, list | tuple) else [value] * 3  # one number is for each channel
        for value in (processor["image_mean"], processor["image_std"])
    )
    if not processor["do_normalize"]:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    fields: dict[str, Any] = {
        "antialias": True, "interpolation": interpolation, "rounding": "floor",
        "mean": tuple(value / scale for value in mean),
        "std": tuple(value / scale for value in std),
    }  # fmt: skip
    sizes, of_size = hf_sizes(processor, shorter_side=kind in ("Bit", "CLIP"))
    return fields | sizes, notes + departures + of_size


def hf_sizes(processor: dict[str, Any], shorter_side: bool) -> tuple[dict[str, Any], list[str]]:
    """Those fields of Preprocessing that are sizes; `shorter_side` is what a lone number is of."""
    notes, size = [], processor["size"]
    if not processor["do_resize"]:
        notes.append("images resized, which the processor leaves as large as they are")
    if processor.get("do_pad"):
        notes.append("images as large as they are, which the processor pads")
    if isinstance(size, dict) and "shortest_edge" in size:
        if "longest_edge" in size:
            notes.append("a longer side of any length, which the processor limits")
        size, shorter_side = size["shortest_edge"], True
    shorter_side = shorter_side and isinstance(size, int)
    resized = both_sides(size)
    if not processor["do_center_crop"]:
        if shorter_side:
            notes.append("the middle of an oblong image, which the processor keeps whole")
            return {"resize": "shorter-side", "resize_to": size, "image_size": resized}, notes
        return {"image_size": resized}, notes
    crop = both_sides(processor["crop_size"])
    if any(before < after for before, after in zip(resized, crop, strict=True)):
        notes.append("images resized to the crop, which the processor fills with black")
        resized = size = max(*crop, *resized) if shorter_side else crop
    if shorter_side:
        return {"resize": "shorter-side", "resize_to": size, "image_size": crop}, notes
    return {"resize_to": resized, "image_size": crop}, notes


def said_by_timm(config: dict[str, Any]) -> Said:
    pretrained = config.get("pretrained_cfg") or config
    arguments = config.get("model_args") or {}
    architecture = config["architecture"]
    if TIMM_OTHERS.fullmatch(architecture):
        raise ValueError(f"architecture {architecture!r}, which no net here is")
    names = {"embed_dim": "width", "depth": "depth", "num_heads": "heads"}
    said = {ours: arguments[theirs] for theirs, ours in names.items() if arguments.get(theirs)}
    if usual := next((heads for name, heads in TIMM_HEADS if name.match(architecture)), None):
        said.setdefault("heads", usual)
    by_name = "gelu_tanh" if TIMM_TANH.fullmatch(architecture) else "gelu"
    activation = arguments.get("act_layer") or by_name
    said["gelu"] = GELUS.get(activation, activation)
    if arguments.get("init_values"):
        said["layer_scale"] = arguments["init_values"]
    if "img_size" in arguments or "input_size" in pretrained:
        said["image_size"] = both_sides(arguments.get("img_size") or pretrained["input_size"][1:])
    pooling = arguments.get("global_pool", config.get("global_pool"))
    if pooling is None:  # (a net without a class token can only average: infer.pooling_of)
        pooling = "avg" if architecture.startswith("eva_large_") else "token"
    if pooling not in POOLINGS:
        raise ValueError(f"global_pool {pooling!r}, which no net here has")
    if arguments.get("pool_include_prefix"):
        raise ValueError("pool_include_prefix, which no net here has")
    said["pooling"] = POOLINGS[pooling]
    labels = config.get("label_names") or pretrained.get("label_names")
    if isinstance(labels, list):
        descriptions = config.get("label_descriptions") or {}
        said["class_names"] = [descriptions.get(label, label) for label in labels]
    if "mean" in pretrained and "input_size" in pretrained:
        said["preprocessing"], said["notes"] = timm_preprocessing(pretrained)
    return said


def timm_preprocessing(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fields of Preprocessing, and departures; timm crops from the size over crop_pct."""
    size = both_sides(config["input_size"][1:])
    scaled = tuple(floor(side / config.get("crop_pct", 0.875)) for side in size)
    interpolation, departures = known_filter(config.get("interpolation", "bicubic"))
    fields = {
        "image_size": size, "antialias": True, "interpolation": interpolation,
        "rounding": "torchvision", "mean": tuple(config["mean"]), "std": tuple(config["std"]),
    }  # fmt: skip
    mode = config.get("crop_mode", "center")
    if mode == "squash" or size[0] != size[1]:
        if mode != "squash":
            departures.append("images distorted to their oblong, which timm crops to it")
        return fields | {"resize_to": None if scaled == size else scaled}, departures
    if mode != "center":
        departures.append(f"a crop of the middle in place of timm's crop_mode {mode!r}")
    return fields | {"resize": "shorter-side", "resize_to": scaled[0]}, departures


def known_filter(theirs: Any) -> tuple[str, list[str]]:
    """Our interpolation, and the departure where it is another."""
    if theirs in FILTERS:
        box = ["an area resize in place of Pillow's box"] if FILTERS[theirs] == "area" else []
        return FILTERS[theirs], box
    return "bicubic", [f"bicubic interpolation in place of {theirs!r}"]


def both_sides(size: Any) -> tuple[int, int]:
    """A side, [height, width] or {"height": ..., "width": ...} -> (height, width)."""
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    sides = size if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"an image size of {reprlib.repr(size)}")
    return sides[0], sides[1]
