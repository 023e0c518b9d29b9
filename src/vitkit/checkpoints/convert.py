"""Others' checkpoints -> a Bundle, and a Bundle -> others' checkpoints, strictly."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitkit.checkpoints import keymaps
from vitkit.checkpoints.bundle import Bundle, net_from_state
from vitkit.checkpoints.containers import TORCH_SUFFIXES, read, weights_in, write_tensors
from vitkit.checkpoints.formats import (
    FORMATS,
    HF_DINOV2,
    HF_VIT,
    TIMM_VIT,
    WRITTEN,
    Format,
    clean_names,
    detect,
    read_names,
)
from vitkit.checkpoints.infer import infer_config, settle_positions
from vitkit.checkpoints.keymaps import Table
from vitkit.checkpoints.limits import check_represented, format_for, lost
from vitkit.checkpoints.peer_json import hf_model_type, json_beside
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.published import IMAGENET
from vitkit.checkpoints.tables import FileNames, Mapped, Piece, Tensors, some, to_ours, to_theirs
from vitkit.checkpoints.their_json import Said, said_by
from vitkit.checkpoints.usual import preprocessing_of
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError, named
from vitkit.files import whole_folder
from vitkit.models.nets import Net, resize_net
from vitkit.models.vit_config import ViTConfig
from vitkit.values import fits

WEIGHT_FILES = (".safetensors", ".pth", ".bin")


@dataclass(frozen=True)
class Reading:
    """A checkpoint of another format, read."""

    bundle: Bundle
    form: Format
    pieces: list[Piece]  # each tensor of the file that is used, and where it went


def read_foreign(path: str | Path) -> Bundle:
    """A checkpoint of one of FORMATS: a file, or a folder with weights and config.json.

    The architecture comes from names and shapes and from the JSON beside them; what neither says
    follows the family's convention and is listed in `provenance["assumed"]`. Raises
    CheckpointError, which names each tensor that is missing, surplus or misshapen.
    """
    return read_with_keys(Path(path)).bundle


def read_with_keys(path: Path, known: Preprocessing | None = None) -> Reading:
    """`read_foreign`, with keys; `known` is the preprocessing where that is known without it."""
    source, file = str(path), weights_in(path) if path.is_dir() else path
    form, names, theirs, notes = tensors_of(file, source)
    said = said_by(file.parent, form) | said_by_tensors(theirs, form)
    if known is not None and form.kind != "ViT":  # whose positions say a size
        said["image_size"] = known.image_size
    if form.name == "timm" and notes and "'model'" in notes[0]:  # where DeiT and MAE have them
        said.setdefault("mean_std", IMAGENET)
    mapped = to_ours(theirs, form.table, names, source)
    check_mapped(mapped, names, form, source)
    ours, file_names = mapped.tensors, FileNames(mapped.pieces, form.table)
    if form.name == "hf" or "head.weight" in ours:
        fold_lone_distillation(ours, file_names)
    if form.kind == "ViT" and not any(name.endswith(".attention.qkv.bias") for name in ours):
        add_zero_biases(ours)
        notes.append("q, k and v without biases: zeros in their place")
    config = infer_config(form, ours, file_names, said, source, notes)
    if isinstance(config, ViTConfig):
        settle_positions(ours, config)
    if not config.classes:  # torchvision's head of none
        ours = {n: t for n, t in ours.items() if n not in ("head.weight", "head.bias")}
    net = net_from_state(config, ours, source, file_names)
    if known is not None and config.image_size != known.image_size:
        net = resize_net(net, known.image_size)
    preprocessing = known or preprocessing_of(form, config, said, notes)
    notes += said.get("notes", [])
    notes += not_finite(ours, file_names)
    class_names = said.get("class_names", [])
    if class_names and config.classes and not fits(class_names, list[str]):
        notes.append("no class names of the JSON beside the weights: they are no text")
        class_names = []
    if class_names and len(class_names) != config.classes:
        notes.append(
            f"no class names of the JSON beside the weights: {len(class_names)} for "
            f"{config.classes} classes"
        )
    if len(class_names) != config.classes:
        class_names = default_names(config.classes, notes)
    provenance: dict[str, Any] = {"source": source, "format": form.name}
    if notes:
        provenance["assumed"] = notes
    return Reading(Bundle(net, class_names, preprocessing, provenance), form, mapped.pieces)


def tensors_of(file: Path, source: str) -> tuple[Format, dict[str, str], Tensors, list[str]]:
    """(format, names of the format -> of the file, tensors by the former, what was chosen)."""
    found = read(file)
    tensors, notes = found.tensors, [found.note] if found.note else []
    form = detect(tensors)
    if form is None:
        raise CheckpointError(
            f"{source}: holds {some(sorted(tensors), 3)}, which is none of the known formats: a "
            f"vitkit bundle; {'; '.join(dict.fromkeys(f.title for f in FORMATS))}"
        )
    names = clean_names(tensors, form)
    theirs = {name: tensors.pop(names[name]) for name in read_names(names, form)}
    if tensors:
        notes.append(f"left out, as the net does not read them: {some(sorted(tensors), 3)}")
    if form.name == "npz":
        unstack(theirs, names, source)
    return form, names, theirs, notes


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


def said_by_tensors(theirs: Tensors, form: Format) -> Said:
    """What their names and shapes say that ours do not."""
    said: Said = {}
    query = theirs.get("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel")
    if query is not None and query.ndim == 3:
        said["heads"] = query.shape[1]
    if form.name == "timm" and "fc_norm.weight" in theirs:
        said["norm_after_pool"] = True
    return said


def check_mapped(mapped: Mapped, names: dict[str, str], form: Format, source: str) -> None:
    if mapped.unknown:
        raise CheckpointError(
            f"{source}: holds {some(names[name] for name in mapped.unknown)}, which {form.title} "
            "do not have in any net that vitkit knows"
        )
    if mapped.missing:
        raise CheckpointError(f"{source}: missing {some(mapped.missing)}")


def fold_lone_distillation(tensors: Tensors, names: FileNames) -> None:
    """A distillation token without a head of its own is a register that has a position.

    Hugging Face's DeiT always has the token, also where one head reads the class token alone.
    """
    if "distillation_token" in tensors and "head_distillation.weight" not in tensors:
        tensors["registers"] = tensors.pop("distillation_token")
        names["registers"] = names["distillation_token"]


def not_finite(tensors: Tensors, names: FileNames) -> list[str]:
    """A note that names the tensors with a NaN or an infinity."""
    bad = [
        names[name] for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.numel()
        and not torch.stack(tensor.aminmax()).isfinite().all()
    ]  # fmt: skip
    return [f"NaN or infinity in {some(bad, 3)}"] if bad else []


def add_zero_biases(tensors: Tensors) -> None:
    """Of q, k and v, for nets that were made without them (qkv_bias=False); zeros add nothing."""
    for name, weight in list(tensors.items()):
        if name.endswith(".attention.qkv.weight"):
            tensors[f"{name.removesuffix('weight')}bias"] = torch.zeros(weight.shape[0])


def default_names(classes: int, notes: list[str]) -> list[str]:
    """ImageNet-1k's names for 1,000 classes, else numbers."""
    if classes != 1000:
        return [str(label) for label in range(classes)]
    from torchvision.models import ViT_B_16_Weights

    notes.append("the class names of ImageNet-1k, as it has 1,000 classes")
    return list(ViT_B_16_Weights.IMAGENET1K_V1.meta["categories"])


# Writing


@dataclass(frozen=True)
class Writing:
    """What was written in another format, or would be."""

    pieces: list[Piece]  # each tensor of the file and our tensor that it is
    lost: list[str]  # what whoever reads the file will not find in it, or compute otherwise


def write_foreign(
    bundle: Bundle,
    path: str | Path,
    to: str,
    *,
    dry_run: bool = False,
    their_constants: bool = False,
) -> Writing:
    """Write a bundle in another format.

    `to` is "npz", "timm", "hf" or "torchvision". timm and hf write a folder with the JSON that
    their library reads; a path that ends in .safetensors, .pth or .bin gets the weights alone.
    `their_constants` accepts what the epsilons and the GELU of that library change. Raises
    CheckpointError where the format cannot represent the net, and writes nothing then, nor where
    it is a `dry_run`.
    """
    named("format", to, WRITTEN[1:])
    path, net = Path(path), bundle.net
    form = format_for(to, net.config)
    alone = is_weights_file(path, to)
    if path.exists() and (alone or not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path}: is there already; choose another path, or move it away")
    changed = check_represented(net, form, not alone, their_constants)
    tensors, pieces = in_their_layout(net, form)
    writing = Writing(pieces, changed + lost(bundle, form, with_json=not alone))
    if dry_run:
        return writing
    if alone:
        write_tensors(path, tensors)
        return writing
    with whole_folder(path) as folder:
        write_tensors(folder / "model.safetensors", tensors)
        beside = json_beside(form, net.config, bundle.class_names, bundle.preprocessing)
        for name, content in beside.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    return writing


def is_weights_file(path: Path, to: str) -> bool:
    """Whether the path is a file of weights alone; UsageError where the format has another."""
    refuse_unwritten(path)
    wanted = {"npz": (".npz",), "torchvision": WEIGHT_FILES}.get(to)
    if wanted and path.suffix not in wanted:
        raise UsageError(f"{path}: --to {to} writes one file; end it in {' or '.join(wanted)}")
    if not wanted and path.suffix == ".npz":
        raise UsageError(f"{path}: --to {to} writes a folder, or a file in .safetensors or .pth")
    return path.suffix in (*WEIGHT_FILES, ".npz")


def refuse_unwritten(path: Path) -> None:
    """UsageError for the name of a file of weights that is none of those written."""
    if path.suffix.lower() in (".npz", ".safetensors", *TORCH_SUFFIXES) and (
        path.suffix not in (*WEIGHT_FILES, ".npz")
    ):
        raise UsageError(f"{path}: written are .npz, .safetensors, .pth and .bin")


def in_their_layout(net: Net, form: Format) -> tuple[Tensors, list[Piece]]:
    """The net's tensors as a file of the format has them."""
    config = net.config
    state: Tensors = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    if not isinstance(config, ViTConfig):
        return to_theirs(state, form.table, heads=1)
    if config.registers and config.has_class_token:
        settle_for_registers(state, form)
    tensors, pieces = to_theirs(state, vit_table(config, form), config.heads)
    if form is HF_DINOV2:  # which always has one
        name, token = keymaps.HF_MASK_TOKEN, torch.zeros(1, config.width)
        name = f"{hf_model_type(config)}.{name}" if config.classes else name
        tensors[name] = token
        pieces.append(Piece(name, tuple(token.shape), "(zeros)"))
    return tensors, pieces


def settle_for_registers(state: Tensors, form: Format) -> None:
    """Positions as others have them in nets with registers."""
    positions = state["position_embedding"]
    if form is TIMM_VIT:  # none for the class token: it is added to the token
        state["class_token"] = state["class_token"] + positions[:, :1]
        state["position_embedding"] = positions[:, 1:].contiguous()
    elif form is HF_VIT:  # DeiT: one for the token that is the register here
        zeros = torch.zeros_like(positions[:, :1])
        state["position_embedding"] = torch.cat([positions[:, :1], zeros, positions[:, 1:]], dim=1)


def vit_table(config: ViTConfig, form: Format) -> Table:
    """The format's table, the rows for this very net first."""
    first: Table = ()
    if form is TIMM_VIT:
        first += keymaps.TIMM_FC_NORM if config.norm_after_pool else ()
        first += keymaps.TIMM_ROOT_ALONE if config.stem == () else ()
    if form is HF_DINOV2:
        first += keymaps.HF_SWIGLU if config.mlp == "swiglu" else ()
    if form is HF_VIT:
        first += keymaps.HF_TEACHER if config.distillation_token else ()
        first += keymaps.HF_LONE_TOKEN if config.registers else ()
    table = first + form.table
    if form.name != "hf" or not config.classes:
        return table
    prefix = f"{hf_model_type(config)}."  # of all but the heads, where there are heads
    return tuple(
        row if row.ours.startswith("head")
        else row._replace(theirs=tuple(prefix + name for name in row.theirs))
        for row in table
    )  # fmt: skip
