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
import re
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch._utils import _rebuild_parameter

import vitkit
from vitkit.checkpoints.containers import read_tensors
from vitkit.checkpoints.problems import CheckpointError


def load(path: Path) -> Any:
    """What a user calls."""
    return vitkit.load(path)


# What Python reports to audit hooks when a pickle looks code up or a program is started; torch's
# restricted reader does neither.
AUDITED = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
seen: list[str] | None = None


def watch(event: str, _: Any) -> None:
    if seen is not None and event in AUDITED:
        seen.append(event)


sys.addaudithook(watch)


def refused(path: Path) -> str:
    """The message with which the file is refused; while it was read, nothing was run."""
    global seen
    seen = []
    try:
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert seen == []
    finally:
        seen = None
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


# Right files, from which the hostile ones differ by one thing


@cache
def weights() -> dict[str, Tensor]:
    """A small ViT with timm's names."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=64, depth=1, num_heads=1, num_classes=4
    )
    for parameter in net.parameters():  # no two alike, so that none can take another's place
        torch.nn.init.normal_(parameter)
    return {name: tensor.detach() for name, tensor in net.state_dict().items()}


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def saved_as_before_1_6(content: Any) -> bytes:
    return saved(content, _use_new_zipfile_serialization=False)


def npz(arrays: dict[str, Any], write: Callable = np.savez) -> bytes:
    file = io.BytesIO()
    write(file, **arrays)
    return file.getvalue()


def arrays() -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in weights().items()}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def training_state() -> dict[str, Any]:
    return {"model": weights(), "args": argparse.Namespace(lr=0.1), "epoch": 3}


CONTAINERS: dict[str, Callable[[], bytes]] = {
    "a.pth": lambda: saved(training_state()),
    "old.bin": lambda: saved_as_before_1_6(training_state()),
    "a.safetensors": lambda: to_safetensors(weights()),
    "a.npz": lambda: npz(arrays()),
    "packed.npz": lambda: npz(arrays(), np.savez_compressed),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_the_files_that_the_hostile_ones_are_made_from_are_right(tmp_path, name):
    path = written(tmp_path / name, CONTAINERS[name]())
    assert load(path).net.config.width == 64
    assert is_right(read_tensors(path))


def is_right(tensors: dict[str, Tensor]) -> bool:
    expected = weights()
    return tensors.keys() == expected.keys() and all(
        torch.equal(tensor, expected[name]) for name, tensor in tensors.items()
    )


# Pickles that call


class Call:
    """Pickled, it is a call of any function."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


class Options(argparse.Namespace):
    """A Namespace by name, with a __setstate__ that does something."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(state["marker"]).touch()


def code(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


def shell(marker: Path) -> str:
    return f'"{sys.executable}" -c "{code(marker)}"'


def pickled(marker: Path) -> bytes:
    return pickle.dumps(Call(Path.touch, marker), protocol=2)


# By the name that the file has for what it would call first: all make the marker.
CALLS: dict[str, Callable[[Path], Any]] = {
    f"{os.name}.system": lambda marker: Call(os.system, shell(marker)),
    "builtins.eval": lambda marker: Call(builtins.eval, code(marker)),
    "builtins.exec": lambda marker: Call(builtins.exec, code(marker)),
    "io.open": lambda marker: Call(open, str(marker), "w"),
    "builtins.getattr": lambda marker: Call(Path.touch, marker),
    "commands.call": lambda marker: Call(subprocess.call, [sys.executable, "-c", code(marker)]),
    "functools.partial": lambda marker: {1: Call(functools.partial(exec, code(marker)))},
    "importlib.import_module": lambda marker: [
        Call(importlib.import_module, "os"), Call(exec, code(marker)),
    ],
    "torch.storage._load_from_bytes": lambda marker: Call(
        torch.storage._load_from_bytes, before_1_6(pickled(marker))
    ),
    "pickle.loads": lambda marker: Call(pickle.loads, pickled(marker)),
    "builtins.bytearray": lambda marker: [bytearray(b"allowed by torch"), Call(exec, code(marker))],
    "test_hostile_files.Options": lambda marker: Options(marker=str(marker)),
}  # fmt: skip


def before_1_6(content: bytes, first: bytes = b"", system: bytes = b"", keys: bytes = b"") -> bytes:
    """The five pickles of a file from before torch 1.6, some of them given."""
    parts = [
        first or pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2),
        pickle.dumps(torch.serialization.PROTOCOL_VERSION, protocol=2),
        system or pickle.dumps({"little_endian": True}, protocol=2),
        content,
        keys or pickle.dumps([], protocol=2),
    ]
    return b"".join(parts)


def trusting(path: Path) -> None:
    """Read the file as it is made to be read; after its code has run most are no weights."""
    with suppress(Exception):
        torch.load(path, weights_only=False)


@pytest.mark.parametrize("write", [saved, saved_as_before_1_6])
@pytest.mark.parametrize("called", CALLS)
def test_a_call_is_named_and_not_made(tmp_path, called, write):
    marker = tmp_path / "marker"
    path = written(tmp_path / "a.pth", write({**training_state(), "x": CALLS[called](marker)}))
    assert f"nothing was run: the file would call {called!r}" in refused(path)
    assert not marker.exists()
    trusting(path)
    assert marker.exists()  # the file does what it is made for


PLACES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda call: call,
    "among the weights": lambda call: {**weights(), "zzz": call},
    "instead of a weight": lambda call: {**weights(), "norm.bias": call},
    "in the options": lambda call: {
        "model": weights(), "args": argparse.Namespace(crops=[{"size": (call,)}])
    },
    "as an attribute of a state dict": lambda call: with_metadata(call),
    "as a name": lambda call: {"model": weights(), "ema": {call: 2}},
    "as the hooks of a parameter": lambda call: {**weights(), "w": with_hooks(call)},
}  # fmt: skip


def with_metadata(value: Any) -> OrderedDict:
    state = OrderedDict(weights())
    state._metadata = value  # pyright: ignore[reportAttributeAccessIssue]
    return state


def with_hooks(value: Any) -> Call:
    return Call(_rebuild_parameter, torch.ones(3), True, value)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar"])
def test_a_call_is_not_made_wherever_it_hides(tmp_path, place, suffix):
    marker = tmp_path / "marker"
    content = PLACES[place](Call(Path.touch, marker))
    path = written(tmp_path / f"a{suffix}", saved(content))
    assert "'builtins.getattr'" in refused(path)
    assert not marker.exists()
    trusting(path)
    assert marker.exists()


@pytest.mark.parametrize("part", ["first", "system", "keys"])
def test_a_call_is_not_made_in_any_of_the_pickles_of_an_old_file(tmp_path, part):
    marker = tmp_path / "marker"
    content = pickle.dumps({"a": 1}, protocol=2)
    path = written(tmp_path / "old.bin", before_1_6(content, **{part: pickled(marker)}))
    assert "'builtins.getattr'" in refused(path)
    assert not marker.exists()
    trusting(path)
    assert marker.exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors", ".npz"])
def test_a_bare_pickle_is_refused_under_every_name(tmp_path, suffix, protocol):
    marker = tmp_path / "marker"
    path = written(
        tmp_path / f"a{suffix}", pickle.dumps(Call(os.system, shell(marker)), protocol=protocol)
    )
    message = refused(path)
    assert not marker.exists()
    if suffix in (".pth", ".bin") and protocol >= 2:
        assert f"'{os.name}.system'" in message
    pickle.loads(path.read_bytes())
    assert marker.exists()


def test_weights_pickled_without_torch_save_are_refused_though_they_call_nothing(tmp_path):
    path = written(tmp_path / "a.pth", pickle.dumps({"lr": 0.1}, protocol=2))
    assert "a pickle that torch.save did not write" in refused(path)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_protocols_of_pickle_are_refused_with_the_one_that_is_read(tmp_path, protocol):
    path = written(tmp_path / "a.pth", saved(training_state(), pickle_protocol=protocol))
    assert f"protocol {protocol}, " in refused(path)


def test_a_whole_module_is_refused_by_the_name_of_its_class(tmp_path):
    path = written(tmp_path / "a.pth", saved(torch.nn.Linear(2, 2)))
    message = refused(path)
    assert "'torch.nn.modules.linear.Linear'" in message
    assert "save only its state_dict()" in message


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_torchscript_is_refused_as_a_program(tmp_path):
    class Net(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    torch.jit.save(torch.jit.trace(Net(), torch.ones(1)), str(tmp_path / "a.pt"))
    assert "TorchScript, which is a program" in refused(tmp_path / "a.pt")


# Pickles that use what is allowed


def program(*steps: bytes, storage: int = 16, method: int = zipfile.ZIP_STORED) -> bytes:
    """A pickle of these opcodes, in a zip of torch with one storage of so many bytes."""
    members = {
        "a/data.pkl": b"\x80\x02" + b"".join(steps) + b".", "a/byteorder": b"little",
        "a/data/0": bytes(storage), "a/version": b"3\n",
    }  # fmt: skip
    return zipped(members, method)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def tensor(size: int, stride: int, claimed: int = 4) -> bytes:
    """float32 of one axis over the storage, which is said to have so many elements."""
    storage = b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu")
    return b"".join([
        named("torch._utils", "_rebuild_tensor_v2"), b"(", storage, number(claimed), b"tQ",
        number(0), number(size), b"\x85", number(stride), b"\x85\x89",
        named("collections", "OrderedDict"), b")R", b"tR",
    ])  # fmt: skip


def test_a_program_of_opcodes_is_read_where_it_is_right(tmp_path):
    path = written(tmp_path / "a.pth", program(b"}", text("w"), tensor(4, 1), b"s"))
    assert torch.equal(read_tensors(path)["w"], torch.zeros(4))


NAMESPACE = named("argparse", "Namespace") + b")\x81"


def test_a_namespace_with_attributes_of_ill_will_runs_nothing(tmp_path):
    """A file can give it a __setstate__, but has only classes that are allowed to put there."""
    steps = b"}" + text("w") + tensor(4, 1) + b"s"
    steps += text("args") + NAMESPACE + b"}" + text("__setstate__")
    steps += named("torch.nn.parameter", "Parameter") + b"sb" + tensor(4, 1) + b"bs"
    path = written(tmp_path / "a.pth", program(steps))
    assert torch.equal(read_tensors(path)["w"], torch.zeros(4))


@pytest.mark.parametrize(
    ("module", "name"),
    [("collections", "OrderedDict"), ("torch.nn.parameter", "Parameter"), ("builtins", "set"),
     ("torch", "FloatStorage")],
)  # fmt: skip
def test_a_namespace_cannot_become_another_class(tmp_path, module, name):
    attributes = b"N}" + text("__class__") + named(module, name) + b"s\x86b"
    path = written(tmp_path / "a.pth", program(b"}", text("args"), NAMESPACE, attributes, b"s"))
    assert "__class__" in refused(path)


@pytest.mark.parametrize(
    ("called", "name"),
    [
        (named("argparse", "Namespace") + b")R", "argparse.Namespace"),
        (named("torch", "FloatStorage") + b")R", "torch.FloatStorage"),
        (named("torch.storage", "UntypedStorage") + number(9) + b"\x85\x81", "UntypedStorage"),
        (named("torch", "float32") + b")R", "torch.float32"),
        (named("torch._tensor", "_rebuild_from_type_v2"), "_rebuild_from_type_v2"),
        (named("torch._utils", "_rebuild_meta_tensor_no_storage"), "_rebuild_meta_tensor"),
        (named("torch._utils", "_rebuild_sparse_tensor"), "_rebuild_sparse_tensor"),
        (named("numpy.core.multiarray", "scalar"), "numpy.core.multiarray.scalar"),
        (b")R", "something that it made itself"),
        (b"(iposix\nsystem\n", "posix.system"),
        (text("posix") + text("system") + b"\x93", "posix.system"),
    ],
)
def test_calls_that_torch_knows_and_weights_do_not_need_are_refused(tmp_path, called, name):
    path = written(tmp_path / "a.pth", program(b"}", text("w"), b"N" + called, b"0"))
    assert name in refused(path)


@pytest.mark.parametrize(
    "odd",
    [
        tensor(4, 1, claimed=10**9), tensor(4, 1, claimed=-4), tensor(10**9, 1), tensor(4, -1),
        tensor(-1, 1), tensor(10**9, 0), tensor(5, 0),
    ],
)  # fmt: skip
def test_a_tensor_that_claims_more_than_the_file_has_is_refused(tmp_path, odd):
    path = written(tmp_path / "a.pth", program(b"}", text("w"), odd, b"s"))
    assert refused(path)


def test_one_storage_under_many_names_is_refused(tmp_path):
    """Converted, it would be as many copies."""
    tensors = [text(f"w{i}") + tensor(250_000, 1, claimed=250_000) for i in range(20)]
    path = written(tmp_path / "a.pth", program(b"}(", *tensors, b"u", storage=1_000_000))
    assert "tensors of 20,000,000 bytes in a file of 1,00" in refused(path)


# Other containers


def test_an_array_of_objects_is_refused(tmp_path):
    marker = tmp_path / "marker"
    objects = np.array([Call(Path.touch, marker)], dtype=object)
    path = written(tmp_path / "a.npz", npz({**arrays(), "norm.bias": objects}))
    assert "norm.bias.npy holds pickled objects, which are never loaded" in refused(path)
    assert not marker.exists()
    np.load(path, allow_pickle=True)["norm.bias"]
    assert marker.exists()


def test_a_pickle_among_arrays_is_refused(tmp_path):
    marker = tmp_path / "marker"
    members = {f"{name}.npy": pickled(marker) for name in weights()}
    path = written(tmp_path / "a.npz", zipped(members))
    assert "not an .npz file" in refused(path)
    assert not marker.exists()
    pickle.loads(np.load(path)["norm.bias.npy"])  # numpy gives bytes, which some would unpickle
    assert marker.exists()


def test_a_file_of_torch_that_is_called_npz_is_refused(tmp_path):
    marker = tmp_path / "marker"
    path = written(tmp_path / "a.npz", saved({**weights(), "x": Call(Path.touch, marker)}))
    assert "data.pkl in it is no array (a file of torch.save must end in .pth)" in refused(path)
    assert not marker.exists()


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("right", ["a.npz", "a.safetensors"])
def test_another_kind_of_file_that_is_called_pth_is_refused(tmp_path, suffix, right):
    path = written(tmp_path / f"a{suffix}", CONTAINERS[right]())
    assert "not a file of torch.save" in refused(path)


@pytest.mark.parametrize("right", ["a.pth", "old.bin", "a.npz"])
def test_another_kind_of_file_that_is_called_safetensors_is_refused(tmp_path, right):
    path = written(tmp_path / "a.safetensors", CONTAINERS[right]())
    assert "not a .safetensors file" in refused(path)


@pytest.mark.parametrize("suffix", [".pth", ".tar", ".pth.tar"])
def test_a_tar_is_not_unpacked(tmp_path, suffix):
    """The format of torch's first years: every part of it is a pickle."""
    marker = tmp_path / "marker"
    path = tmp_path / f"a{suffix}"
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle", "../escaped"):
            member = tarfile.TarInfo(name)
            member.size = len(pickled(marker))
            archive.addfile(member, io.BytesIO(pickled(marker)))
    assert "neither like a zip archive nor like a pickle" in refused(path)
    assert not marker.exists()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    trusting(path)
    assert marker.exists()


def header(shape: tuple[int, ...], descr: str = "<f4", fortran: bool = False) -> bytes:
    file = io.BytesIO()
    content = {"descr": descr, "fortran_order": fortran, "shape": shape}
    np.lib.format.write_array_header_1_0(file, content)
    return file.getvalue()


@pytest.mark.parametrize(
    "shape", [(10**10,), (10**30,), (2**31, 2**33), (26,), (24,), (), (-25,), (-5, -5), (0,)]
)
def test_an_array_that_lies_about_its_shape_is_refused(tmp_path, shape):
    path = written(tmp_path / "a.npz", zipped({"cls.npy": header(shape) + bytes(100)}))
    assert "a.npz: truncated, damaged or not an .npz file" in refused(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65_535,
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
        b"\x93NUMPY\x01\x00\x24\x00{'descr': __import__('os').getcwd()}\n",
        header((25,), "|O8") + bytes(100),
        header((1,), "<M8[s]") + bytes(8),
        header((1,), "|S8") + bytes(8),
    ],
    ids=["deep", "long", "code", "objects", "dates", "bytes"],
)
def test_an_array_with_a_hostile_header_is_refused(tmp_path, data):
    path = written(tmp_path / "a.npz", zipped({"cls.npy": data}))
    assert "a.npz: truncated, damaged or not an .npz file" in refused(path)


def test_two_arrays_of_one_name_are_refused(tmp_path):
    file = io.BytesIO(npz(arrays()))
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("norm.bias.npy", header((64,)) + bytes(256))
    path = written(tmp_path / "a.npz", file.getvalue())
    assert "'norm.bias.npy' is there more than once" in refused(path)


def test_bytes_before_an_archive_are_refused(tmp_path):
    """Two readers of zip files would find two different archives."""
    data = CONTAINERS["a.pth"]()
    path = written(tmp_path / "a.pth", data[:1000] + data)
    assert "something lies before the archive" in refused(path)


def test_a_part_that_is_marked_as_a_folder_is_refused(tmp_path):
    """For it torch gives memory that nothing was read into."""
    file = io.BytesIO()
    members = zipfile.ZipFile(io.BytesIO(saved(weights())))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for old in members.infolist():
            new = zipfile.ZipInfo(old.filename)
            new.external_attr = 0x10 if "/data/" in old.filename else 0
            archive.writestr(new, members.read(old), zipfile.ZIP_DEFLATED)
    path = written(tmp_path / "a.pth", file.getvalue())
    assert "marked as a folder" in refused(path)
    assert not is_right(torch.load(path, weights_only=True))


def safetensors(table: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None):
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape: tuple[int, ...] = (4,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


TWICE = b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},' * 1 + (
    b'"\\u0077":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
)

SAFETENSORS: dict[str, bytes] = {
    "no header": b"\x08\x00",
    "header beyond the file": safetensors({"w": entry(0, 16)}, bytes(16), length=1 << 20),
    "header of all memory": safetensors({"w": entry(0, 16)}, bytes(16), length=1 << 62),
    "header of 2^64 - 1": safetensors({"w": entry(0, 16)}, bytes(16), length=(1 << 64) - 1),
    "no JSON": safetensors(b"hello", bytes(16)),
    "a list": safetensors(b"[1, 2]", bytes(16)),
    "deep JSON": safetensors(b'{"a":' * 100_000),
    "not UTF-8": safetensors(b'{"\xff": 1}'),
    "overlap": safetensors({"w": entry(0, 16), "v": entry(8, 24)}, bytes(24)),
    "the same bytes": safetensors({"w": entry(0, 16), "v": entry(0, 16)}, bytes(16)),
    "hole": safetensors({"w": entry(0, 16), "v": entry(20, 36)}, bytes(36)),
    "beyond the end": safetensors({"w": entry(0, 1 << 40, (1 << 38,))}, bytes(16)),
    "before the start": safetensors({"w": entry(-16, 0)}, bytes(16)),
    "backwards": safetensors({"w": entry(16, 0)}, bytes(16)),
    "more than it covers": safetensors({"w": entry(0, 16)}, bytes(20)),
    "shape that is not its size": safetensors({"w": entry(0, 16, (5,))}, bytes(16)),
    "shape that overflows": safetensors({"w": entry(0, 16, (1 << 62, 1 << 62))}, bytes(16)),
    "shape below zero": safetensors({"w": entry(0, 16, (-4,))}, bytes(16)),
    "empty and huge": safetensors({"w": entry(0, 0, (0, (1 << 64) - 1))}),
    "unknown type": safetensors({"w": entry(0, 16, dtype="F33")}, bytes(16)),
    "type without a tensor": safetensors({"w": entry(0, 12, (16,), "F6_E2M3")}, bytes(12)),
    "a name twice": safetensors(TWICE, bytes(8)),
    "no tensors": safetensors({}),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_a_safetensors_with_a_hostile_header_is_refused(tmp_path, kind):
    path = written(tmp_path / "a.safetensors", SAFETENSORS[kind])
    message = refused(path)
    assert "not a .safetensors file" in message or "no tensors" in message


# Folders


INDEX = "model.safetensors.index.json"
BAD_SHARDS = {
    "above": "../a.safetensors",
    "far above": "../../../../etc/passwd",
    "below": "sub/a.safetensors",
    "absolute": "/etc/passwd",
    "absolute right": "{folder}/a.safetensors",
    "Windows": "..\\a.safetensors",
    "itself": INDEX,
    "a pickle": "pytorch_model.bin",
    "a right pickle": "right.bin",
    "no suffix": "model",
    "dots": "..",
    "nothing": "",
    "missing": "b.safetensors",
    "a folder": "sub.safetensors",
    "zero byte": "a\0.safetensors",
    "long": "a" * 5000 + ".safetensors",
    "number": 7,
    "list": ["a.safetensors"],
    "null": None,
}


@pytest.mark.parametrize("kind", BAD_SHARDS)
def test_an_index_that_names_anything_but_a_file_beside_it_is_refused(tmp_path, kind):
    folder = tmp_path / "model"
    (folder / "sub.safetensors").mkdir(parents=True)
    for place in (tmp_path, folder):
        written(place / "a.safetensors", CONTAINERS["a.safetensors"]())
    marker = tmp_path / "marker"
    written(folder / "pytorch_model.bin", saved(Call(Path.touch, marker)))
    written(folder / "right.bin", saved(weights()))
    bad = BAD_SHARDS[kind]
    bad = bad.replace("{folder}", str(folder)) if isinstance(bad, str) else bad
    names = dict.fromkeys(weights(), "a.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    assert is_right(read_tensors(folder))
    (folder / INDEX).write_text(json.dumps({"weight_map": names | {"norm.bias": bad}}))
    message = refused(folder)
    if kind not in ("missing", "a folder", "zero byte", "long"):
        assert "no .safetensors file of its own folder" in message
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}',
     b'{"weight_map": "a.safetensors"}', b"\x80\x02}.", b"[" * 100_000],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(tmp_path, content):
    written(tmp_path / INDEX, content)
    assert refused(tmp_path)


def test_a_folder_of_pickles_runs_nothing(tmp_path):
    marker = tmp_path / "marker"
    written(tmp_path / "pytorch_model.bin", saved({**weights(), "x": Call(Path.touch, marker)}))
    assert "nothing was run" in refused(tmp_path)
    assert not marker.exists()


# Places that are no files


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".bin", ".ckpt", ".tar"])
def test_empty_files_and_folders_named_like_files_are_refused(tmp_path, suffix):
    assert "empty" in refused(written(tmp_path / f"empty{suffix}", b""))
    (tmp_path / f"folder{suffix}").mkdir()
    assert refused(tmp_path / f"folder{suffix}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    assert "no regular file" in refused(tmp_path / "a.pth")


# Right containers of wrong weights


def wrong(name: str, value: Tensor) -> dict[str, Tensor]:
    return {**weights(), name: value}


WRONG: dict[str, Callable[[], dict[str, Tensor]]] = {
    "another shape": lambda: wrong("head.weight", torch.zeros(4, 65)),
    "one axis less": lambda: wrong("head.weight", torch.zeros(4)),
    "no axis": lambda: wrong("pos_embed", torch.tensor(1.0)),
    "integers": lambda: wrong("norm.bias", torch.zeros(64, dtype=torch.int32)),
    "booleans": lambda: wrong("norm.bias", torch.zeros(64, dtype=torch.bool)),
    "a NaN's bits as integers": lambda: wrong(
        "norm.bias", torch.full((64,), float("nan")).view(torch.int32)
    ),
    "complex numbers": lambda: wrong("norm.bias", torch.zeros(64, dtype=torch.complex64)),
    "nothing in it": lambda: wrong("blocks.0.attn.qkv.weight", torch.zeros(0, 64)),
    "huge and empty": lambda: wrong("patch_embed.proj.weight", torch.zeros(0, 3, 8, 2**40)),
    "one more": lambda: wrong("surprise", torch.zeros(1)),
    "one less": lambda: {n: t for n, t in weights().items() if n != "norm.bias"},
}


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth"])
def test_weights_that_are_none_are_refused(tmp_path, kind, suffix):
    tensors = WRONG[kind]()
    if suffix == ".npz":
        data = npz({name: tensor.numpy() for name, tensor in tensors.items()})
    else:
        data = saved(tensors) if suffix == ".pth" else to_safetensors(tensors)
    assert refused(written(tmp_path / f"a{suffix}", data))


# Damage


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_file_that_was_cut_off_anywhere_is_refused(tmp_path, name):
    data = CONTAINERS[name]()
    draws = random.Random(0)
    places = [1, 2, 4, 7, 8, 9, 64, 300, len(data) // 2, len(data) - 23, len(data) - 22]
    places += [len(data) - 2, len(data) - 1, *draws.sample(range(len(data)), 15)]
    for place in places:
        refused(written(tmp_path / name, data[:place]))


def in_headers(name: str, data: bytes) -> list[int]:
    """Places that say what is where: of an archive, of a table of tensors, of a pickle."""
    if name.endswith(".safetensors"):
        return list(range(8 + struct.unpack("<Q", data[:8])[0]))
    if name == "old.bin":
        return list(range(1500))
    kinds = rb"PK(\x01\x02|\x03\x04|\x05\x06|\x06\x06|\x06\x07|\x07\x08)"
    starts = [match.start() for match in re.finditer(kinds, data)]
    return [place for start in starts for place in range(start, min(start + 90, len(data)))]


@pytest.mark.filterwarnings("ignore:invalid escape")  # of a flip that makes a string an older one
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_file_with_flipped_bits_in_its_headers_is_refused_or_still_right(tmp_path, name):
    """Not every bit means something: archives have dates. Where one does it is not believed.

    Of the files from before torch 1.6 the strides of a tensor may change: they have no checksums.
    """
    data = CONTAINERS[name]()
    draws, outcomes = random.Random(1), Counter()
    for place in draws.choices(in_headers(name, data), k=80):
        damaged = bytearray(data)
        damaged[place] ^= 1 << draws.randrange(8)
        path = written(tmp_path / name, bytes(damaged))
        try:
            load(path)
        except CheckpointError:
            outcomes["refused"] += 1
        else:
            assert name == "old.bin" or is_right(read_tensors(path)), f"byte {place}"
    assert outcomes["refused"] > 30


# Bombs


MB = 1_000_000


def copies(of: bytes) -> bytes:
    """A list of 100,000 numbers, copied 20,000 times."""
    numbers = b"](" + b"".join(number(i) for i in range(100_000)) + b"e\x85q\x01"
    return program(b"}", text("w"), b"(" + numbers + (of + b"h\x01R") * 20_000 + b"ts")


def repeated_member() -> bytes:
    """One array that the directory of the archive lists two thousand times."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w.npy", header((250_000,)) + bytes(1_000_000))
        archive.filelist *= 2000
    return file.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "bytes that torch allows.pth": lambda: program(
        b"}", text("w"), named("builtins", "bytearray"), number(500 * MB), b"\x85Rs"
    ),
    "sets.pth": lambda: copies(named("builtins", "set")),
    "counters.pth": lambda: copies(named("collections", "Counter")),
    "storages.pth": lambda: copies(named("torch.storage", "UntypedStorage")),
    "steps.pth": lambda: program(
        b"}", text("w"), b"(" + b"}" * 20_000_000 + b"ts", method=zipfile.ZIP_DEFLATED
    ),
    "packed pickle.pth": lambda: zipped(
        {"a/data.pkl": bytes(300 * MB), "a/version": b"3\n"}, zipfile.ZIP_DEFLATED
    ),
    "expanded.pth": lambda: program(b"}", text("w"), tensor(10**9, 0), b"s"),
    "not there.bin": lambda: before_1_6(
        b"\x80\x02}" + text("w") + tensor(10**9, 1, claimed=10**9).replace(b"tQ", b"NtQ") + b"s."
    ),
    "zeros.npz": lambda: zipped(
        {"w.npy": header((75 * MB,)) + bytes(300 * MB)}, zipfile.ZIP_DEFLATED
    ),
    "repeated.npz": repeated_member,
    "long string.bin": lambda: before_1_6(b"\x80\x02X\xff\xff\xff\x7fabc."),
    "names.safetensors": lambda: safetensors(
        {str(i): entry(0, 0, (0,)) for i in range(200_000)}
    ),
}  # fmt: skip

MEASURE = """
import re, sys
from pathlib import Path
import torch, vitkit


def peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) // 1000


right, *bombs = sys.argv[1:]
vitkit.load(right)
before = peak()
for bomb in bombs:
    try:
        vitkit.load(bomb)
        print(bomb, "was loaded")
    except vitkit.checkpoints.problems.CheckpointError as error:
        if (grown := peak() - before) > 150:
            print(bomb, "took", grown, "MB")
            before = peak()
torch.load(bombs[0], weights_only=True)
print("torch took", peak() - before, "MB")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_bombs_are_refused_and_take_no_memory(tmp_path):
    right = written(tmp_path / "a.pth", CONTAINERS["a.pth"]())
    bombs = [written(tmp_path / name, make()) for name, make in BOMBS.items()]
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(right), *map(str, bombs)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    *troubles, control = result.stdout.splitlines()
    assert troubles == []
    assert int(control.split()[2]) > 400  # the measure works: torch takes what the first wants


@pytest.mark.parametrize("shape", [[99999999] * 200_000, [10**4000] * 40, [1] * 100])
def test_a_shape_whose_product_takes_a_minute_is_refused_at_once(tmp_path, shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    began = time.process_time()
    with pytest.raises(CheckpointError, match=r"axes|no whole number"):
        read_tensors(tmp_path / "a.safetensors")
    assert time.process_time() - began < 2
