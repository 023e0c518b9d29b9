"""Files that mean harm: each is refused by a CheckpointError, nothing is run, memory stays."""

import argparse
import builtins
import functools
import importlib
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

import vitkit
from vitkit.checkpoints.containers import read_json
from vitkit.checkpoints.problems import CheckpointError

GOLDEN_NPZ = Path(__file__).parents[1] / "golden" / "vit-token-prelogits" / "checkpoint.npz"
ZIP_OF_TORCH = [".pth", ".pt", ".bin", ".ckpt", ".pth.tar"]


def load(path: Path) -> Any:
    """What a user calls."""
    return vitkit.load(path)


# What Python itself reports (sys.addaudithook) when code is looked up or a program is started.
# torch's restricted reader uses none of it.
AUDITED = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
seen: list[str] | None = None


def watch(event: str, _: Any) -> None:
    if seen is not None and event in AUDITED:
        seen.append(event)


sys.addaudithook(watch)


def refused(path: Path, opened: Callable[[Path], Any] = load) -> str:
    """The message with which the file is refused; while it was read, nothing was run."""
    global seen
    seen = []
    try:
        with pytest.raises(CheckpointError) as caught:
            opened(path)
        assert seen == []
    finally:
        seen = None
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# Right files, which differ from the hostile ones only by what makes these hostile


@cache
def weights() -> dict[str, Tensor]:
    """A small ViT with timm's names."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1, num_classes=4
    )
    return dict(net.state_dict())


def zipped(**members: bytes) -> bytes:
    """A zip archive, names with __ for /."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return file.getvalue()


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def legacy(content: Any) -> bytes:
    return saved(content, _use_new_zipfile_serialization=False)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@cache
def right(kind: str) -> bytes:
    return {
        "zip": lambda: saved({"model": weights(), "args": argparse.Namespace(lr=0.1)}),
        "legacy": lambda: legacy({"model": weights(), "args": argparse.Namespace(lr=0.1)}),
        "safetensors": lambda: to_safetensors(weights()),
        "npz": GOLDEN_NPZ.read_bytes,
    }[kind]()


CONTAINERS = {"zip": ".pth", "legacy": ".bin", "safetensors": ".safetensors", "npz": ".npz"}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_the_files_that_the_hostile_ones_are_made_from_are_right(tmp_path, kind):
    assert load(write(tmp_path / f"right{CONTAINERS[kind]}", right(kind))).net.config.depth >= 1


# Pickles that run code


class Call:
    """Pickled, it is a call of any function."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


class OptionsOfAnEnemy(argparse.Namespace):
    """A Namespace by name, with a __setstate__ of its own."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(state["marker"]).touch()


def calls(marker: Path) -> dict[str, Any]:
    """Objects that, unpickled in full, make the marker, each in another way."""
    code = f"open({str(marker)!r}, 'w').close()"
    inner = pickle.dumps(Call(Path.touch, marker))
    return {
        "posix.system" if os.name == "posix" else "nt.system": Call(
            os.system, f'{sys.executable} -c "{code}"'
        ),
        "builtins.exec": Call(exec, code),
        "builtins.eval": Call(eval, code),
        "builtins.open": Call(open, str(marker), "w"),
        "builtins.getattr": Call(getattr(marker, "touch")),  # noqa: B009
        "subprocess.call": Call(subprocess.call, [sys.executable, "-c", code]),
        "functools.partial": Call(functools.partial(exec, code)),
        "importlib.import_module": [
            Call(importlib.import_module, "os"), Call(exec, code),
        ],
        "torch.storage._load_from_bytes": Call(torch.storage._load_from_bytes, legacy_of(inner)),
        f"{__name__}.OptionsOfAnEnemy": OptionsOfAnEnemy(marker=str(marker)),
        "pickle.loads": Call(pickle.loads, inner),
    }  # fmt: skip


def legacy_of(pickled: bytes) -> bytes:
    """A file of torch.save from before torch 1.6 whose object is this pickle."""
    head = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}]
    parts = [pickle.dumps(part, protocol=2) for part in head]
    return b"".join([*parts, pickled, pickle.dumps([], protocol=2)])


NAMES = list(calls(Path("marker")))

PLACES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda call: call,
    "beside the weights": lambda call: {"model": weights(), "epoch": call},
    "among the weights": lambda call: {**weights(), "zzz": call},
    "deep in the options": lambda call: {
        "model": weights(), "args": argparse.Namespace(transforms=[{"crop": (call,)}])
    },
    "in the metadata of a state dict": lambda call: with_metadata(call),
    "as a name": lambda call: {"model": weights(), "ema": {"a": 1, (call,): 2}},
}  # fmt: skip


def with_metadata(value: Any) -> OrderedDict:
    state = OrderedDict(weights())
    state._metadata = value  # pyright: ignore[reportAttributeAccessIssue]
    return state


@pytest.fixture
def marker(tmp_path) -> Iterator[Path]:
    yield tmp_path / "marker"


def trusting_load(path: Path) -> None:
    """What the files are made for."""
    try:
        torch.load(path, weights_only=False)
    except Exception:  # after the code has run, most are no weights
        pass


@pytest.mark.parametrize("called", NAMES)
@pytest.mark.parametrize("write_as", [saved, legacy])
def test_a_call_is_refused_by_name_and_is_not_made(tmp_path, marker, called, write_as):
    path = write(tmp_path / "evil.pth", write_as({"model": weights(), "x": calls(marker)[called]}))
    message = refused(path)
    assert not marker.exists()
    if called != f"{__name__}.OptionsOfAnEnemy":
        assert called in message or "getattr" in message
    assert "nothing was run" in message
    trusting_load(path)
    assert marker.exists()  # the file does what it is made for
