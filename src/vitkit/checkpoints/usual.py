"""The preprocessing that others' weights need: as the JSON beside them says, else the usual one."""

from __future__ import annotations

from dataclasses import replace
from math import floor
from typing import Any

from vitkit.checkpoints.formats import Format
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.published import IMAGENET
from vitkit.checkpoints.their_json import Said
from vitkit.data.transforms import HALF, Preprocessing
from vitkit.models.efficientnet import EfficientNetConfig
from vitkit.models.nets import NetConfig
from vitkit.models.vit_config import ViTConfig


def preprocessing_of(
    form: Format, config: NetConfig, said: Said, notes: list[str]
) -> Preprocessing:
    """What the JSON says, at the size that the net reads; else what the family usually does."""
    if "preprocessing" in said:
        try:
            made = Preprocessing(**said["preprocessing"])
            if made.image_size != config.image_size:
                theirs, ours = ("x".join(map(str, s)) for s in (made.image_size, config.image_size))
                notes.append(
                    f"images of {ours}, as the net reads; the JSON beside it says {theirs}"
                )
            return made.at(config.image_size)
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
