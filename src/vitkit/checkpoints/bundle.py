"""vitkit's own format: a folder with model.safetensors and config.json, and nothing executable."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from vitkit.checkpoints.containers import JSON_AT_MOST, read_json
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.safetensors_files import read_safetensors
from vitkit.data.transforms import Preprocessing
from vitkit.files import whole_folder
from vitkit.models.nets import KINDS, Net, NetConfig, kind_of, make_meta
from vitkit.values import fits

FORMAT_VERSION = 1
WEIGHTS, CONFIG = "model.safetensors", "config.json"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # read as float32


@dataclass(frozen=True)
class Bundle:
    """A net with everything a consumer needs to use it."""

    net: Net
    class_names: list[str]
    preprocessing: Preprocessing
    provenance: dict[str, Any] = field(default_factory=dict)  # where the weights come from


def write_bundle(path: str | Path, bundle: Bundle) -> None:
    """Write a bundle; `path` is then the whole new one, or what it was before.

    Raises CheckpointError where `path` is there and is neither a bundle nor an empty folder.
    """
    refuse_to_replace(Path(path))
    with whole_folder(Path(path)) as folder:
        state = {name: t.detach().cpu().contiguous() for name, t in bundle.net.state_dict().items()}
        try:
            save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
        except SafetensorError as error:  # of the disk
            raise CheckpointError(f"{path}: cannot be written: {error}") from error
        config = {
            "format": "vitkit",
            "format_version": FORMAT_VERSION,
            "architecture": {"kind": kind_of(bundle.net.config), **asdict(bundle.net.config)},
            "class_names": bundle.class_names,
            "preprocessing": asdict(bundle.preprocessing),
            "provenance": bundle.provenance,
            "weights_sha256": sha256(folder / WEIGHTS),
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        if len(text.encode(errors="backslashreplace")) > JSON_AT_MOST:  # which nobody would read
            raise CheckpointError(
                f"{path}: its {CONFIG} would have more than {JSON_AT_MOST >> 20} MiB; give shorter "
                "class names, or less provenance"
            )
        # UTF-8 has no lone surrogates (names of odd files have); as \udce9 they are right JSON.
        (folder / CONFIG).write_text(text, encoding="utf-8", errors="backslashreplace")


def refuse_to_replace(path: Path) -> None:
    """CheckpointError unless `path` is free, empty or a bundle: model.save("photos") is a slip."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    with suppress(CheckpointError):
        read_config(path)  # Hugging Face's folders have files of the same two names
        if {entry.name for entry in path.iterdir()} == {WEIGHTS, CONFIG}:
            return
    raise CheckpointError(
        f"{path}: is there and is not a bundle, so no bundle replaces it; choose another path, "
        "or move it away"
    )


def is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle, sound or damaged, and not one of timm's or Hugging Face's."""
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        return False
    try:
        config = read_json(folder / CONFIG)
    except CheckpointError:
        return True  # read_bundle says what is wrong
    if config.get("format") == "vitkit":
        return True
    return "model_type" not in config and not isinstance(config.get("architecture"), str)


def read_bundle(path: str | Path) -> Bundle:
    """Read a bundle, its hash verified before a tensor is used. Raises CheckpointError."""
    folder = Path(path)
    config = read_config(folder)
    architecture = dict(config["architecture"])
    kind = architecture.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise CheckpointError(
            f"{folder}: holds a net of kind {kind!r}; this version knows {', '.join(KINDS)}"
        )
    net_config = from_json(KINDS[kind].config, architecture, folder)
    preprocessing = from_json(Preprocessing, config["preprocessing"], folder)
    if preprocessing.image_size != net_config.image_size:
        raise CheckpointError(
            f"{folder / CONFIG}: the preprocessing makes images of {preprocessing.image_size} "
            f"pixels, the net reads {net_config.image_size}"
        )
    state = read_weights(folder / WEIGHTS, config["weights_sha256"])
    class_names = config["class_names"]
    if len(class_names) != net_config.classes:
        raise CheckpointError(
            f"{folder / CONFIG}: {len(class_names)} class names for {net_config.classes} classes"
        )
    net = net_from_state(net_config, state, str(folder))
    return Bundle(net, class_names, preprocessing, config["provenance"])


def read_weights(path: Path, expected: str) -> dict[str, torch.Tensor]:
    """The tensors of the weights' file, whose SHA-256 is that of the bytes that they came from."""
    digest, problem, state = hashlib.sha256(), None, {}
    try:
        state = read_safetensors(path, digest)
        found = digest.hexdigest()
    except CheckpointError as error:
        problem, found = error, sha256(path)
    if found != expected:
        raise CheckpointError(
            f"{path}: damaged: its SHA-256 is {found[:12]}..., {CONFIG} says {expected[:12]}...; "
            "copy the bundle again, or use another one"
        )
    if problem is not None:
        raise problem
    return state


def net_from_state(
    config: NetConfig,
    state: dict[str, torch.Tensor],
    source: str,
    file_names: dict[str, str] | None = None,
) -> Net:
    """A net in eval mode with these weights; CheckpointError names each that does not fit.

    `file_names` says what our names are called in the file, where that is something else.
    """
    if layers(config) > len(state):  # before as many are made
        raise CheckpointError(
            f"{source}: {len(state)} tensors cannot be a net of {layers(config)} blocks"
        )
    try:
        net = make_meta(config)  # a hostile config allocates nothing
    except (RuntimeError, TypeError) as error:  # torch's two words for more than 64 bits
        raise CheckpointError(f"{source}: no net can be of this size: {error}") from error
    expected = net.state_dict()
    problems = misfits(expected, state, file_names or {})
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointError(f"{source}: the weights do not fit the net: "
                              + "; ".join(problems[:6]) + more)  # fmt: skip
    floats = {n: t.float() if expected[n].is_floating_point() else t for n, t in state.items()}
    net.load_state_dict(floats, assign=True)
    return net.requires_grad_(True).eval()


def misfits(
    expected: dict[str, torch.Tensor], state: dict[str, torch.Tensor], file_names: dict[str, str]
) -> list[str]:
    """What is wrong with a state, a few words for each tensor."""

    def called(name: str) -> str:
        return f"{file_names[name]} ({name})" if name in file_names else name

    problems = [f"missing {called(name)}" for name in expected if name not in state]
    problems += [f"unexpected {called(name)}" for name in state if name not in expected]
    for name, wanted in expected.items():
        if name not in state:
            continue
        found, shape = tuple(state[name].shape), tuple(wanted.shape)
        if found != shape:
            problems.append(f"{called(name)} is {found} instead of {shape}")
        dtypes = DTYPES if wanted.is_floating_point() else (wanted.dtype,)
        if state[name].dtype not in dtypes:
            problems.append(f"{called(name)} holds {state[name].dtype}")
    return problems


def layers(config: NetConfig) -> int:
    """Blocks, or units of a ResNet; 0 where a config cannot ask for many."""
    units = (*getattr(config, "units", ()), *(getattr(config, "stem", None) or ()))
    return getattr(config, "depth", 0) + sum(units)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a bundle, its outline checked."""
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"{folder}: not a bundle: {' and '.join(missing)} missing")
    config = read_json(folder / CONFIG)
    if config.get("format") != "vitkit":
        raise CheckpointError(f'{folder / CONFIG}: not of a vitkit bundle (no "format": "vitkit")')
    if config.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder / CONFIG}: bundle format {config.get('format_version')!r}; this version of "
            f"vitkit reads {FORMAT_VERSION}; install a newer vitkit"
        )
    config.setdefault("provenance", {})
    kinds = {
        "architecture": dict,
        "class_names": list[str],
        "preprocessing": dict,
        "provenance": dict,
        "weights_sha256": str,
    }
    wrong = [name for name, kind in kinds.items() if not fits(config.get(name), kind)]
    if wrong:
        raise CheckpointError(f"{folder / CONFIG}: {', '.join(wrong)} missing or malformed")
    return config


def from_json(kind: type, values: dict[str, Any], folder: Path):
    """A dataclass from JSON, strictly: no unknown fields; it checks the values itself."""
    unknown = set(values) - {field.name for field in fields(kind)}
    if unknown:
        raise CheckpointError(
            f"{folder / CONFIG}: unknown {kind.__name__} fields {sorted(unknown)}"
        )
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:  # TypeError: a field is missing
        raise CheckpointError(f"{folder / CONFIG}: {kind.__name__}: {error}") from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
