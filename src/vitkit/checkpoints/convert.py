"""Others' checkpoints -> a Bundle, and a Bundle -> others' checkpoints, strictly."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitkit.checkpoints import describe, keymaps
from vitkit.checkpoints.bundle import Bundle, net_from_state
from vitkit.checkpoints.containers import read_tensors, weights_in, write_tensors
from vitkit.checkpoints.formats import (
    ANY,
    FORMATS,
    HF_DINOV2,
    HF_VIT,
    WRITTEN,
    Format,
    clean_names,
    detect,
    is_ignored,
)
from vitkit.checkpoints.infer import infer_config, pad_class_positions
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.tables import Piece, Tensors, some, to_ours, to_theirs
from vitkit.errors import UsageError, named
from vitkit.files import whole_folder
from vitkit.models.nets import Net, NetConfig, kind_of, make_meta
from vitkit.models.vit_config import ViTConfig

TOLERANCE = 1e-5  # of scale: what a library's own constants may change
WEIGHT_FILES = (".safetensors", ".pth", ".bin")


@dataclass(frozen=True)
class Reading:
    """A checkpoint of another format, read."""

    bundle: Bundle
    form: Format
    pieces: list[Piece]  # each tensor of the file that is used, and where it went
    ignored: list[str]  # names that only pre-training reads


def read_foreign(path: str | Path) -> Bundle:
    """A checkpoint of one of FORMATS: a file, or a folder with weights and config.json.

    The architecture comes from names and shapes and from the JSON beside them; what neither says
    follows the family's convention and is listed in `provenance["assumed"]`. Raises
    CheckpointError, which names each tensor that is missing, surplus or misshapen.
    """
    return read_with_keys(Path(path)).bundle


def read_with_keys(path: Path) -> Reading:
    source, file = str(path), weights_in(path) if path.is_dir() else path
    tensors = read_tensors(file)
    form = detect(tensors)
    if form is None:
        raise CheckpointError(
            f"{source}: holds {some(sorted(tensors), 3) or 'nothing'}, which is none of the known "
            f"formats: a vitkit bundle, {', '.join(sorted({f.title for f in FORMATS}))}"
        )
    names = clean_names(tensors, form)
    theirs = {name: tensors.pop(old) for name, old in names.items()}
    del tensors
    if form.prefixes:
        unstack(theirs, names, source)
    ignored = [names[name] for name in list(theirs) if is_ignored(name, form)]
    theirs = {name: t for name, t in theirs.items() if not is_ignored(name, form)}
    said = describe.said_by(file.parent, form)
    said |= {"norm_after_pool": "fc_norm.weight" in theirs} if form.name == "timm" else {}
    heads = heads_in(theirs)
    mapped = to_ours(theirs, form.table, names, source)
    notes = [f"left out {some(ignored, 3)}: only pre-training reads them"] if ignored else []
    fold_lone_distillation(mapped.tensors)
    if mapped.unknown:
        raise CheckpointError(
            f"{source}: holds {some(names[n] for n in mapped.unknown)}, which {form.title} do not "
            "have in any net that vitkit knows"
        )
    if mapped.missing:
        raise CheckpointError(f"{source}: missing {some(mapped.missing)}")
    config, assumed = infer_config(form, mapped.tensors, heads, said, source)
    if isinstance(config, ViTConfig):
        pad_class_positions(mapped.tensors, config)
    net = net_from_state(config, mapped.tensors, source, their_names(mapped.pieces))
    notes += assumed
    preprocessing = describe.preprocessing_of(form, config, said, notes)
    class_names = said.get("class_names", [])
    if len(class_names) != config.classes:
        class_names = default_names(config.classes)
    provenance: dict[str, Any] = {"source": source, "format": form.name}
    if notes:
        provenance["assumed"] = notes
    bundle = Bundle(net, class_names, preprocessing, provenance)
    return Reading(bundle, form, mapped.pieces, ignored)


def unstack(theirs: Tensors, names: dict[str, str], source: str) -> None:
    """big_vision's scan keeps all blocks in one tensor, depth first: taken apart."""
    prefix = keymaps.NPZ_SCANNED
    for name in [name for name in theirs if name.startswith(prefix)]:
        stacked, file_name = theirs.pop(name), names[name]
        if stacked.ndim < 2:
            raise CheckpointError(f"{source}: {file_name} has no axis for the depth")
        for layer, tensor in enumerate(stacked):
            single = f"{prefix[:-1]}_{layer}/{name.removeprefix(prefix)}"
            theirs[single], names[single] = tensor, file_name


def heads_in(theirs: Tensors) -> int | None:
    """The heads that Flax's attention has an axis for; None where q, k, v do not say."""
    query = theirs.get("Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel")
    return query.shape[1] if query is not None and query.ndim == 3 else None


def fold_lone_distillation(tensors: Tensors) -> None:
    """A distillation token without a head of its own is a register that has a position.

    Hugging Face's DeiT always has the token, also where one head reads the class token alone.
    """
    if "distillation_token" not in tensors or "head_distillation.weight" in tensors:
        return
    positions = tensors["position_embedding"]
    tensors["registers"] = tensors.pop("distillation_token") + positions[:, 1:2]
    tensors["position_embedding"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)


def their_names(pieces: list[Piece]) -> dict[str, str]:
    """For each of our names theirs."""
    names: dict[str, str] = {}
    for piece in pieces:
        names[piece.ours] = f"{names[piece.ours]} + {piece.theirs}" if piece.ours in names else (
            piece.theirs
        )  # fmt: skip
    return names


def default_names(classes: int) -> list[str]:
    """ImageNet-1k's names for 1,000 classes, else numbers."""
    if classes == 1000:
        from torchvision.models import ViT_B_16_Weights

        return list(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])
    return [str(label) for label in range(classes)]


# Writing


def write_foreign(bundle: Bundle, path: str | Path, to: str, dry_run: bool = False) -> list[Piece]:
    """Write a bundle in another format -> each tensor of the file and our tensor that it is.

    `to` is "npz", "timm", "hf" or "torchvision". timm and hf write a folder with the JSON that
    their library reads; a path that ends in .safetensors, .pth or .bin gets the weights alone.
    Raises CheckpointError where the format cannot represent the net, and writes nothing then, nor
    where it is a `dry_run`.
    """
    named("format", to, WRITTEN[1:])
    path, form = Path(path), format_for(to, bundle.net.config)
    alone = is_weights_file(path, to)
    if path.exists() and (alone or not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path}: is there already; choose another path, or move it away")
    check_represented(bundle.net, form)
    tensors, pieces = in_their_layout(bundle.net, form)
    if dry_run:
        return pieces
    if alone:
        write_tensors(path, tensors)
        return pieces
    with whole_folder(path) as folder:
        write_tensors(folder / "model.safetensors", tensors)
        for name, content in beside(bundle, form).items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    return pieces


def is_weights_file(path: Path, to: str) -> bool:
    """Whether the path is a file of weights alone; UsageError where the format has another."""
    wanted = {"npz": (".npz",), "torchvision": WEIGHT_FILES}.get(to)
    if wanted and path.suffix not in wanted:
        raise UsageError(f"{path}: --to {to} writes one file; end it in {' or '.join(wanted)}")
    if not wanted and path.suffix == ".npz":
        raise UsageError(f"{path}: --to {to} writes a folder, or a file in .safetensors or .pth")
    return path.suffix in (*WEIGHT_FILES, ".npz")


def beside(bundle: Bundle, form: Format) -> dict[str, dict[str, Any]]:
    """The JSON files that go with the weights."""
    config = bundle.net.config
    if form.name == "timm":
        made = describe.timm_json(config, bundle.class_names, bundle.preprocessing)
        return {"config.json": made}
    assert isinstance(config, ViTConfig)
    return {
        "config.json": describe.hf_json(config, bundle.class_names),
        "preprocessor_config.json": describe.hf_preprocessor_json(bundle.preprocessing),
    }


def format_for(to: str, config: NetConfig) -> Format:
    """The format of that name for a net of this kind; CheckpointError where there is none."""
    kind = kind_of(config)
    candidates = [form for form in FORMATS if form.name == to and form.kind == kind]
    if not candidates:
        known = sorted({form.name for form in FORMATS if form.kind == kind and form.represents})
        raise CheckpointError(
            f"{to} has no nets of kind {kind}; what has: {', '.join(['bundle', *known])}"
        )
    if to == "hf" and isinstance(config, ViTConfig):
        return HF_VIT if config.layer_scale is None else HF_DINOV2
    return candidates[0]


def check_represented(net: Net, form: Format) -> None:
    """CheckpointError, which names each field, where the format cannot hold this net."""
    config = net.config
    plain = type(config)(**{name: getattr(config, name) for name in required(config)},
                         image_size=config.image_size)  # fmt: skip
    lacking = []
    for name, value in vars(config).items():
        if name in form.constants and form.represents.get(name) is not ANY:
            continue  # checked by what it changes
        allowed = form.represents.get(name, (getattr(plain, name),))
        if allowed is not ANY and value not in allowed:
            lacking.append(f"{name} {value!r}")
    lacking += further_limits(config, form)
    if lacking:
        raise CheckpointError(
            f"{form.title} cannot represent this net: {', '.join(lacking)}; keep it as a bundle, "
            "or choose another format"
        )
    check_constants(net, form)


def required(config: NetConfig) -> list[str]:
    """The fields of a config that have no default."""
    return [f.name for f in fields(config) if f.default is MISSING and f.name != "image_size"]


def further_limits(config: NetConfig, form: Format) -> list[str]:
    """What a list of allowed values cannot say."""
    limits = []
    height, width = config.image_size
    if form.name in ("npz", "torchvision") and form.kind == "ViT" and height != width:
        limits.append(f"an oblong image size of {height}x{width}")
    if form.name == "timm" and form.kind == "BiT":
        assert not isinstance(config, ViTConfig)
        if (config.units, config.width_factor) not in describe.TIMM_BITS:  # type: ignore[union-attr]
            limits.append("a ResNet of these units and width")
    if not isinstance(config, ViTConfig):
        return limits
    if form.name == "timm" and config.stem is not None:
        if config.stem not in describe.TIMM_STEMS:
            limits.append(f"a stem of {config.stem} units")
        elif config.registers or config.layer_scale is not None or config.mlp == "swiglu":
            limits.append("a stem together with registers, LayerScale or SwiGLU")
    if form is HF_VIT and config.hidden_head and config.classes:
        limits.append("a hidden layer before the head")
    if form is HF_DINOV2:
        if bool(config.classes) != (config.pooling == "token+mean"):
            limits.append(f"{config.classes} classes read by pooling {config.pooling!r}")
        hidden = config.mlp_width * 3 / 2 if config.mlp == "swiglu" else config.mlp_width
        if hidden % config.width:
            limits.append(f"mlp_width {config.mlp_width}, no whole multiple of the width")
    return limits


def check_constants(net: Net, form: Format) -> None:
    """CheckpointError where the library's own constants would give other logits."""
    config = net.config
    theirs = {
        name: value
        for name, value in form.constants.items()
        if form.represents.get(name) is not ANY and getattr(config, name) != value
    }
    if not theirs or isinstance(config, ViTConfig) and not affects(config, theirs):
        return
    change = difference(net, replace(config, **theirs))
    if change > TOLERANCE:
        listed = ", ".join(f"{n} {getattr(config, n)} (here) and {v}" for n, v in theirs.items())
        raise CheckpointError(
            f"{form.title} compute with other constants: {listed}; the logits would differ by "
            f"{change:.1g} of their scale. Keep it as a bundle"
            + (f", or say --gelu {theirs['gelu']} to go on with theirs" if "gelu" in theirs else "")
        )


def affects(config: ViTConfig, constants: dict[str, Any]) -> bool:
    """Whether the net has what these constants belong to."""
    stemless = config.stem is None and all(name.startswith("stem_") for name in constants)
    return not stemless


@torch.no_grad()
def difference(net: Net, other: NetConfig) -> float:
    """How far the outputs on two images move, as a share of their scale, under another config."""
    twin = make_meta(other)
    twin.load_state_dict(net.state_dict(), assign=True)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *net.config.image_size, generator=generator) * 2 - 1
    ours, theirs = net.eval()(images), twin.eval()(images)
    return float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1.0))


def in_their_layout(net: Net, form: Format) -> tuple[Tensors, list[Piece]]:
    """The net's tensors as a file of the format has them."""
    config = net.config
    state: Tensors = {name: t.detach().cpu() for name, t in net.state_dict().items()}
    table, heads = form.table, 1
    if isinstance(config, ViTConfig):
        heads = config.heads
        if form is HF_DINOV2 and config.mlp == "swiglu":
            table = keymaps.HF_DINOV2_SWIGLU
        if form.name == "timm" and config.registers:
            fold_class_position(state)
    tensors, pieces = to_theirs(state, table, heads)
    if form.name == "timm" and isinstance(config, ViTConfig) and config.norm_after_pool:
        rename(tensors, pieces, {f"norm.{p}": f"fc_norm.{p}" for p in ("weight", "bias")})
    if form.name == "timm" and isinstance(config, ViTConfig) and config.stem == ():
        prefix = "patch_embed.backbone."
        names = [n for n in tensors if n.startswith(prefix + "stem.")]
        rename(tensors, pieces, {n: n.replace(".stem.", ".") for n in names})
    if form.name == "hf" and isinstance(config, ViTConfig):
        hf_names(config, tensors, pieces)
    return tensors, pieces


def fold_class_position(state: Tensors) -> None:
    """timm's nets with registers give the class token no position: it is added to the token."""
    positions = state["position_embedding"]
    state["class_token"] = state["class_token"] + positions[:, :1]
    state["position_embedding"] = positions[:, 1:].contiguous()


def hf_names(config: ViTConfig, tensors: Tensors, pieces: list[Piece]) -> None:
    """The encoder has the model's name before it where there is a head; DINOv2 a mask token."""
    kind = describe.hf_model_type(config)
    if kind.startswith("dinov2"):
        mask = torch.zeros(1, config.width)
        tensors["embeddings.mask_token"] = mask
        pieces.append(Piece("embeddings.mask_token", tuple(mask.shape), "(zeros)"))
    heads = ("classifier.", "distillation_classifier.")
    names = {n: f"{kind}.{n}" for n in tensors if config.classes and not n.startswith(heads)}
    if kind == "deit":
        names |= {f"classifier.{p}": f"cls_classifier.{p}" for p in ("weight", "bias")}
    rename(tensors, pieces, names)


def rename(tensors: Tensors, pieces: list[Piece], names: dict[str, str]) -> None:
    for old, new in names.items():
        tensors[new] = tensors.pop(old)
    pieces[:] = [p._replace(theirs=names.get(p.theirs, p.theirs)) for p in pieces]
