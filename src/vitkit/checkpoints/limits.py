"""Which nets a format can hold, and what of a net its library would compute otherwise."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace

import torch
from torch import Tensor

from vitkit.checkpoints.bundle import Bundle
from vitkit.checkpoints.formats import (
    ANY,
    FORMATS,
    HF_DINOV2,
    HF_VIT,
    NPZ_VIT,
    TIMM_VIT,
    TORCHVISION_VIT,
    Format,
)
from vitkit.checkpoints.infer import usual_heads
from vitkit.checkpoints.peer_json import TIMM_BITS, TIMM_STEMS, dinov2_mlp_ratio, json_beside
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.their_json import hf_preprocessing, timm_preprocessing
from vitkit.data.transforms import Preprocessing
from vitkit.models.bit import BiTConfig
from vitkit.models.nets import Net, NetConfig, kind_of, make_meta
from vitkit.models.vit_config import ViTConfig

TOLERANCE = 1e-5  # of scale: what a library's own constants may change


def format_for(to: str, config: NetConfig) -> Format:
    """The format of that name for a net of this kind; CheckpointError where there is none."""
    kind = kind_of(config)
    if to == "hf" and isinstance(config, ViTConfig):
        return HF_VIT if config.layer_scale is None else HF_DINOV2
    written = {form.name: form for form in FORMATS if form.kind == kind and form.represents}
    if to not in written:
        raise CheckpointError(
            f"{to} has no nets of kind {kind}; what has: {', '.join(['bundle', *written])}"
        )
    return written[to]


def check_represented(
    net: Net, form: Format, with_json: bool, their_constants: bool = False
) -> list[str]:
    """What the library will compute otherwise, as a sentence; [] where nothing moves.

    `with_json` is whether the format's JSON goes with the weights, to say what they do not;
    `their_constants` accepts what the library's own epsilons and GELU change. Raises
    CheckpointError, which names each field, where the format cannot hold this net, or would change
    what it computes.
    """
    config = net.config
    lacking = unrepresented(config, form) + further_limits(config, form)
    if form is TIMM_VIT and not with_json and isinstance(config, ViTConfig):
        # A reader of the weights alone sees whether the norm is fc_norm, and goes by that.
        patches = config.pooling == "patch-mean"
        if config.has_class_token and patches != config.norm_after_pool:
            lacking.append(f"pooling {config.pooling!r} in weights alone, without config.json")
    if lacking:
        raise CheckpointError(
            f"{form.title} cannot represent this net: {', '.join(lacking)}; keep it as a bundle, "
            "or choose another format"
        )
    return check_constants(net, form, with_json, their_constants)


def unrepresented(config: NetConfig, form: Format) -> list[str]:
    """Each field with a value that the format has no place for."""
    lacking = []
    for field in fields(config):
        value, allowed = getattr(config, field.name), form.represents.get(field.name)
        if allowed is ANY or field.name in form.constants:  # or checked by what it changes
            continue
        default = None if field.default is MISSING else field.default
        if value not in (allowed or (default,)):
            lacking.append(f"{field.name} {value!r}")
    return lacking


def further_limits(config: NetConfig, form: Format) -> list[str]:
    """What a list of allowed values cannot say."""
    if form.name == "timm" and isinstance(config, BiTConfig):
        known = (config.units, config.width_factor) in TIMM_BITS
        return [] if known else [f"units {config.units} of width factor {config.width_factor}"]
    if not isinstance(config, ViTConfig):
        return []
    height, width = config.image_size
    gated, pooling = config.mlp == "swiglu", config.pooling
    limits: dict[str, bool] = {}
    if form in (NPZ_VIT, TORCHVISION_VIT, HF_DINOV2):
        limits[f"an oblong image size of {height}x{width}"] = height != width
    if form is TIMM_VIT:
        limits |= {
            f"a stem of {config.stem} units": config.stem not in (None, *TIMM_STEMS),
            "a stem together with SwiGLU": config.stem is not None and gated,
            "attention pooling together with SwiGLU": pooling == "map" and gated,
            "a distillation token together with a stem, SwiGLU, registers or a norm after the pool":
                config.distillation_token
                and (config.stem is not None or gated or config.registers > 0
                     or config.norm_after_pool),
        }  # fmt: skip
    if form is HF_VIT:
        token = config.distillation_token
        limits |= {
            "a hidden layer before the head": config.hidden_head and config.classes > 0,
            "a distillation token without heads": token and config.classes == 0,
            "a register beside a distillation token": token and config.registers > 0,
        }
    if form is HF_DINOV2:
        limits |= {
            f"{config.classes} classes read by pooling {pooling!r}":
                (config.classes > 0) != (pooling == "token+mean"),
            f"an mlp_width of {config.mlp_width}, which no whole mlp_ratio makes":
                dinov2_mlp_ratio(config) is None,
        }  # fmt: skip
    return [limit for limit, holds in limits.items() if holds]


def check_constants(net: Net, form: Format, with_json: bool, accepted: bool) -> list[str]:
    """CheckpointError where the library's own constants would give other outputs."""
    config = net.config
    theirs = {
        name: value
        for name, value in form.constants.items()
        if getattr(config, name) != value
        and not (with_json and form.represents.get(name) is ANY)
        and not (name.startswith("stem_") and getattr(config, "stem", None) is None)
    }
    change = difference(net, replace(config, **theirs)) if theirs else 0.0
    if change <= TOLERANCE:
        return []
    listed = ", ".join(f"{n} {getattr(config, n)} (here) and {v}" for n, v in theirs.items())
    what = f"{form.title} compute with other constants: {listed}; outputs differ by {change:.2g}"
    if accepted:
        return [f"{what} of their scale"]
    advice = "keep it as a bundle"
    if all(form.represents.get(name) is ANY for name in theirs):
        advice += ", write a folder, whose config.json says it,"
    raise CheckpointError(f"{what} of their scale; {advice} or accept that by --their-constants")


@torch.no_grad()
def difference(net: Net, other: NetConfig) -> float:
    """How far features and logits move, as a share of their scale, under another config.

    The larger of one image of noise and one of flat grey, which hides least of an epsilon.
    """
    twin = make_meta(other)
    twin.load_state_dict(net.state_dict(), assign=True)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, *net.config.image_size, generator=generator) * 2 - 1
    images = torch.cat([noise, torch.zeros_like(noise)])

    def outputs(one: Net) -> tuple[Tensor, Tensor]:
        features = one.eval().features(images)
        two_heads = getattr(one, "head_distillation", None) is not None
        return features, one(images) if two_heads else one.head(features)

    return max(
        float((a - b).abs().max() / a.abs().max().clamp(min=1.0))
        for one, other in zip(outputs(net), outputs(twin), strict=True)
        for a, b in zip(one, other, strict=True)
    )


def lost(bundle: Bundle, form: Format, with_json: bool) -> list[str]:
    """What whoever reads the file will not find in it, a few words each."""
    config, made = bundle.net.config, bundle.preprocessing
    losses = []
    if not with_json:
        losses += ["class names", "preprocessing"]
    elif not made.antialias:
        losses.append(f"that images are resized without antialias: {form.title} always have one")
    if with_json:
        read = read_again(bundle, form)
        if read.summary != made.summary:
            losses.append(f"how images are prepared: {made.summary} (here), {read.summary} (there)")
        elif made.resize_to is not None and made.rounding != read.rounding:
            losses.append(f"how crops are rounded, {made.rounding!r}: some move by a pixel")
        if made.interpolation == "area":
            losses.append("an area resize: theirs is Pillow's box, which weighs borders otherwise")
    for name in ("dropout", "stochastic_depth"):
        usual = next((f.default for f in fields(config) if f.name == name), None)
        if getattr(config, name, usual) != usual:
            losses.append(f"{name} {getattr(config, name)}")
    if form is HF_VIT and not config.classes and not getattr(config, "hidden_head", False):
        losses.append("a pooler, which this net has not: load it with add_pooling_layer=False")
    if form is TORCHVISION_VIT and not config.classes:
        losses.append("a head, which this net has not and torchvision's has: load it strict=False")
    oblong = config.image_size[0] != config.image_size[1]
    if isinstance(config, ViTConfig):
        if config.positions == "sincos2d":
            losses.append("that the positions are fixed: they are written as if learned")
        if not with_json and form is not NPZ_VIT and config.heads != heads_read(config):
            losses.append(f"the number of heads, {config.heads}: tell whoever reads it")
    if not with_json and (oblong or not isinstance(config, ViTConfig)):
        losses.append(f"the image size, {config.image_size[0]}x{config.image_size[1]}")
    return losses


def read_again(bundle: Bundle, form: Format) -> Preprocessing:
    """The preprocessing that the format's JSON says once it is written; or CheckpointError."""
    beside = json_beside(form, bundle.net.config, [], bundle.preprocessing)
    if form.name == "timm":
        made, _ = timm_preprocessing(beside["config.json"]["pretrained_cfg"])
    else:
        kind = beside["config.json"]["model_type"]
        made, _ = hf_preprocessing(beside["preprocessor_config.json"], kind)
    try:
        return Preprocessing(**made)
    except ValueError as error:
        raise CheckpointError(
            f"{form.title} cannot say how images are prepared here: {error}"
        ) from error


def heads_read(config: ViTConfig) -> int | None:
    """The heads that a reader takes this net to have, from its shapes; None where it cannot say."""
    try:
        gated = config.mlp == "swiglu"
        return usual_heads(config.width, config.depth, config.mlp_width, gated, [])
    except ValueError:
        return None
