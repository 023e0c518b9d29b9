"""vitkit's own format: a folder with model.safetensors and config.json, and nothing executable."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vitkit.data.transforms import Preprocessing
from vitkit.errors import VitkitError
from vitkit.files import whole_folder
from vitkit.models.vit import VisionTransformer, ViTConfig

FORMAT_VERSION = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"


class CheckpointError(VitkitError):
    """A checkpoint is damaged, foreign, or of another net; the message says which and where."""


@dataclass(frozen=True)
class Bundle:
    """A net with everything a consumer needs to use it."""

    net: VisionTransformer
    class_names: list[str]
    preprocessing: Preprocessing
    provenance: dict[str, Any] = field(default_factory=dict)  # where the weights come from


def write_bundle(path: str | Path, bundle: Bundle) -> None:
    """Write a bundle; `path` is then the whole new one, or what it was before."""
    with whole_folder(Path(path)) as folder:
        state = {name: t.detach().cpu().contiguous() for name, t in bundle.net.state_dict().items()}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        config = {
            "format": "vitkit",
            "format_version": FORMAT_VERSION,
            "architecture": {"kind": "ViT", **asdict(bundle.net.config)},
            "class_names": bundle.class_names,
            "preprocessing": asdict(bundle.preprocessing),
            "provenance": bundle.provenance,
            "weights_sha256": sha256(folder / WEIGHTS),
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle, its hash verified before a tensor is used. Raises CheckpointError."""
    folder = Path(path)
    config = read_config(folder)
    architecture = dict(config["architecture"])
    kind = architecture.pop("kind", None)
    if kind != "ViT":
        raise CheckpointError(f"{folder}: holds a net of kind {kind!r}; this version knows 'ViT'")
    net_config = from_json(ViTConfig, architecture, folder)
    preprocessing = from_json(Preprocessing, config["preprocessing"], folder)
    found = sha256(folder / WEIGHTS)
    if found != config["weights_sha256"]:
        raise CheckpointError(
            f"{folder / WEIGHTS}: damaged: its SHA-256 is {found[:12]}..., {CONFIG} says "
            f"{str(config['weights_sha256'])[:12]}...; copy the bundle again, or use another one"
        )
    try:
        state = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise CheckpointError(
            f"{folder / WEIGHTS}: not readable as safetensors: {error}"
        ) from error
    class_names = [str(name) for name in config["class_names"]]
    if len(class_names) != net_config.classes:
        raise CheckpointError(
            f"{folder / CONFIG}: {len(class_names)} class names for {net_config.classes} classes"
        )
    net = net_from_state(net_config, state, str(folder))
    return Bundle(net, class_names, preprocessing, config.get("provenance", {}))


def net_from_state(
    config: ViTConfig, state: dict[str, torch.Tensor], source: str
) -> VisionTransformer:
    """A net in eval mode with these weights; CheckpointError names each that does not fit."""
    if config.depth > len(state):  # before as many blocks are made
        raise CheckpointError(
            f"{source}: {len(state)} tensors cannot be a net of {config.depth} blocks"
        )
    with torch.device("meta"):  # a hostile config allocates nothing
        net = VisionTransformer(config)
    expected = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in state.items()}
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in expected]
    problems += [
        f"{name} is {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointError(f"{source}: the weights do not fit the net: "
                              + "; ".join(problems[:6]) + more)  # fmt: skip
    net.load_state_dict({name: t.float() for name, t in state.items()}, assign=True)
    return net.requires_grad_(True).eval()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a bundle, its outline checked."""
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder}: not a bundle: {' and '.join(missing)} missing")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: not readable as JSON: {error}") from error
    if not isinstance(config, dict) or config.get("format") != "vitkit":
        raise CheckpointError(f'{folder / CONFIG}: not of a vitkit bundle (no "format": "vitkit")')
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / CONFIG}: bundle format {config.get('format_version')!r}; this version of "
            f"vitkit reads {FORMAT_VERSION}; install a newer vitkit"
        )
    kinds = {
        "architecture": dict,
        "class_names": list,
        "preprocessing": dict,
        "weights_sha256": str,
    }
    wrong = [name for name, kind in kinds.items() if not isinstance(config.get(name), kind)]
    if wrong:
        raise CheckpointError(f"{folder / CONFIG}: {', '.join(wrong)} missing or malformed")
    return config


def from_json(kind: type, values: dict[str, Any], folder: Path):
    """A dataclass from JSON, strictly: lists become tuples, unknown fields are an error."""
    known = {f.name for f in fields(kind)}
    unknown = set(values) - known
    if unknown:
        raise CheckpointError(
            f"{folder / CONFIG}: unknown {kind.__name__} fields {sorted(unknown)}"
        )
    try:
        tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return kind(**tuples)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {kind.__name__}: {error}") from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
