"""What the JSON beside others' weights says, and what holds where there is none."""

from __future__ import annotations

import re
import reprlib
from dataclasses import replace
from math import floor
from pathlib import Path
from typing import Any

from vitkit.checkpoints.bundle import fits
from vitkit.checkpoints.containers import read_json
from vitkit.checkpoints.formats import Format
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.published import IMAGENET
from vitkit.data.transforms import HALF, Preprocessing
from vitkit.models.efficientnet import EfficientNetConfig
from vitkit.models.nets import NetConfig
from vitkit.models.vit_config import ViTConfig

GELUS = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_tanh": "tanh"}
POOLINGS = {"token": "token", "avg": "mean", "map": "map"}  # timm's names
FILTERS = {  # by PIL.Image.Resampling and by timm's names
    2: "bilinear", 3: "bicubic", 4: "area", "bilinear": "bilinear", "bicubic": "bicubic",
    "box": "area",
}  # fmt: skip

# timm's architectures that are not as their width tells (timm 1.0.31, vision_transformer.py).
TIMM_HEADS = {"vit_base_patch16_gap_224": 16, "test_vit": 2, "test_vit2": 2}
TIMM_TANH = re.compile(  # SigLIP 2's
    r"vit_(so400m_patch16|giantopt_patch16)_siglip_.*"
    r"|vit_(base_patch32_siglip_(gap_)?256|large_patch16_siglip_(gap_)?512)"
)

Said = dict[str, Any]
TYPES = {"width": int, "depth": int, "heads": int, "norm_eps": float, "layer_scale": float}


def said_by(folder: Path, form: Format) -> Said:
    """What config.json and preprocessor_config.json in a folder say, by vitkit's names.

    Keys, where known: width, depth, heads, image_size, gelu, norm_eps, layer_scale, pooling,
    class_names, mean_std, preprocessing (fields of Preprocessing), and departures (sentences: what
    of it is done otherwise here). Raises CheckpointError where the JSON is not readable, or says
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
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: not as {form.title} have it: {error}") from error
    return said


def said_by_hf(config: dict[str, Any], processor: Path) -> Said:
    names = {
        "hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "heads",
        "layer_norm_eps": "norm_eps", "layerscale_value": "layer_scale",
    }  # fmt: skip
    said = {ours: config[theirs] for theirs, ours in names.items() if config.get(theirs)}
    if "image_size" in config:
        said["image_size"] = both_sides(config["image_size"])
    activation = config.get("hidden_act", "gelu")
    said["gelu"] = GELUS.get(activation, activation)
    said["pooling"] = "token"  # infer.pooling_of sees DINOv2's head, twice as wide
    if config.get("pooler_act", "tanh") != "tanh":
        raise ValueError(f"pooler_act {config['pooler_act']!r}; the nets here have a tanh there")
    labels = config.get("id2label") or {}
    if all(str(key).isdigit() for key in labels):
        ordered = [str(labels[key]) for key in sorted(labels, key=int)]
        if ordered != [f"LABEL_{number}" for number in range(len(ordered))]:
            said["class_names"] = ordered
    if config["model_type"] in ("deit", "vit_mae", "vit_msn"):
        said["mean_std"] = IMAGENET
    if processor.is_file():
        said["preprocessing"], said["departures"] = hf_preprocessing(read_json(processor))
    return said


def hf_preprocessing(processor: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fields of Preprocessing, and departures; resizes as Pillow's have an antialias."""
    interpolation, departures = known_filter(processor.get("resample", 2))
    fields: dict[str, Any] = {
        "antialias": True, "interpolation": interpolation, "rounding": "floor"
    }  # fmt: skip
    for theirs, ours in (("image_mean", "mean"), ("image_std", "std")):
        if theirs in processor:
            fields[ours] = tuple(processor[theirs])
    if not processor.get("do_normalize", True):
        fields |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    size = processor.get("size", 224)
    crop = processor.get("do_center_crop") and "crop_size" in processor
    if isinstance(size, dict) and "shortest_edge" in size:
        side = size["shortest_edge"]
        fields |= {"resize": "shorter-side", "resize_to": side}
        fields["image_size"] = both_sides(processor["crop_size"] if crop else side)
    elif crop:
        fields |= {"resize_to": both_sides(size), "image_size": both_sides(processor["crop_size"])}
    else:
        fields["image_size"] = both_sides(size)
    return fields, departures


def said_by_timm(config: dict[str, Any]) -> Said:
    pretrained = config.get("pretrained_cfg") or config
    arguments = config.get("model_args") or {}
    architecture = config["architecture"]
    names = {"embed_dim": "width", "depth": "depth", "num_heads": "heads"}
    said = {ours: arguments[theirs] for theirs, ours in names.items() if arguments.get(theirs)}
    if architecture in TIMM_HEADS:
        said.setdefault("heads", TIMM_HEADS[architecture])
    usual = "gelu_tanh" if TIMM_TANH.fullmatch(architecture) else "gelu"
    activation = arguments.get("act_layer") or usual
    said["gelu"] = GELUS.get(activation, activation)
    if arguments.get("init_values"):
        said["layer_scale"] = arguments["init_values"]
    if "img_size" in arguments or "input_size" in pretrained:
        said["image_size"] = both_sides(arguments.get("img_size") or pretrained["input_size"][1:])
    pooling = arguments.get("global_pool", config.get("global_pool", "token"))
    pooling = "token" if pooling is None else pooling
    if pooling not in POOLINGS or arguments.get("pool_include_prefix"):
        raise ValueError(f"global_pool {pooling!r} (pool_include_prefix), which no net here has")
    said["pooling"] = POOLINGS[pooling]
    labels = config.get("label_names") or pretrained.get("label_names")
    if isinstance(labels, list):
        descriptions = config.get("label_descriptions") or {}
        said["class_names"] = [str(descriptions.get(label, label)) for label in labels]
    if "mean" in pretrained and "input_size" in pretrained:
        said["preprocessing"], said["departures"] = timm_preprocessing(pretrained)
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
        return fields | {"resize": "direct", "resize_to": scaled}, departures
    if mode != "center":
        departures.append(f"a crop of the middle in place of timm's crop_mode {mode!r}")
    return fields | {"resize": "shorter-side", "resize_to": scaled[0]}, departures


def known_filter(theirs: Any) -> tuple[str, list[str]]:
    """Our interpolation, and the departure where it is another."""
    if theirs in FILTERS:
        return FILTERS[theirs], []
    return "bicubic", [f"bicubic interpolation in place of {theirs!r}"]


def both_sides(size: Any) -> tuple[int, int]:
    """A side, [height, width] or {"height": ..., "width": ...} -> (height, width)."""
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    sides = size if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"an image size of {reprlib.repr(size)}")
    return sides[0], sides[1]


def preprocessing_of(
    form: Format, config: NetConfig, said: Said, notes: list[str]
) -> Preprocessing:
    """What the JSON says, at the size that the net reads; else what the family usually does."""
    if "preprocessing" in said:
        notes += said["departures"]
        try:
            return Preprocessing(**said["preprocessing"]).at(config.image_size)
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"the preprocessing beside the weights: {error}") from error
    made = usual_preprocessing(form, config, said.get("mean_std"))
    notes.append(f"preprocessing as {form.title} usually have it: {made.summary}")
    return made


def usual_preprocessing(form: Format, config: NetConfig, mean_std: Any) -> Preprocessing:
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
    by_imagenet = (  # DeiT, DINOv2, MAE
        mean_std or config.distillation_token or config.layer_scale or config.norm_after_pool
    )
    if form.name == "hf":
        if not by_imagenet:
            return Preprocessing(size, antialias=True)
        return replace(cropped(size, 256 / 224, "bicubic", IMAGENET), rounding="floor")
    if mean_std and min(size) < 384:  # DeiT's and MAE's own evaluation: 256 for 224
        return cropped(size, 256 / 224, "bicubic", mean_std)
    mean_std = IMAGENET if by_imagenet or not config.classes else (HALF, HALF)  # MAE, DINO: no head
    return cropped(size, 1 / 0.9 if min(size) < 384 else 1.0, "bicubic", mean_std)


def cropped(
    size: tuple[int, int], scale: float, interpolation: Any, mean_std: tuple
) -> Preprocessing:
    """Shorter side to `scale` times the larger side of `size`, then its middle."""
    return Preprocessing(
        size, "shorter-side", floor(max(size) * scale + 1e-6), interpolation, antialias=True,
        rounding="torchvision", mean=mean_std[0], std=mean_std[1],
    )  # fmt: skip


def torchvision_efficientnet(config: EfficientNetConfig) -> Preprocessing:
    """As the first published weights of this size are evaluated (torchvision's Weights)."""
    from torchvision.models import get_model_weights

    first = next(iter(get_model_weights(f"efficientnet_{config.size.lower()}")))
    made = first.transforms()
    (crop,), (resize,) = made.crop_size, made.resize_size
    way = "bicubic" if "bicubic" in str(made.interpolation).lower() else "bilinear"
    return cropped((crop, crop), resize / crop, way, IMAGENET).at(config.image_size)
