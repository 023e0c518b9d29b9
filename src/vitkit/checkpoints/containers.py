"""Named tensors in and out of every kind of file that weights come in; no file is trusted.

Nothing in a file is run, nothing that it claims is believed before it is checked, and what is
wrong with it is a CheckpointError of one sentence.
"""

from __future__ import annotations

import json
import math
import reprlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from vitkit.checkpoints.archives import explained, open_zip
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.safetensors_files import read_safetensors, without_repeats
from vitkit.checkpoints.torch_files import read_torch
from vitkit.files import whole_file

Tensors = dict[str, torch.Tensor]

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
INDEX = ".index.json"  # of a model in several files: which tensor is in which
FOLDER_FILES = (
    "model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)  # fmt: skip
WRAPPERS = ("module.", "_orig_mod.", "backbone.", "model.")  # DDP, compile, DINO, Lightning
HALF = (torch.bfloat16, torch.float16)  # written to .npz as float32
BFLOAT16 = np.dtype("V2")  # how numpy stores JAX's: two bytes of no type
JSON_AT_MOST = 8 << 20  # bytes; 21,843 class names, there and back, are below 2 MiB


@dataclass(frozen=True)
class Read:
    """Tensors with the names of the file, and a note of what was chosen or taken off, if any."""

    tensors: Tensors
    note: str = ""


def read_tensors(path: Path) -> Tensors:
    """The named tensors of a file or folder, on the CPU, in the dtype and layout they lie in.

    `path` is an .npz; a .safetensors; a file of torch.save (.pth, .pt, .bin, .ckpt, .tar), where
    the weights may be under "model", "state_dict" and the like; the index of a model in several
    files (.index.json); or a folder with one of FOLDER_FILES. A wrapper's prefix ("module.") that
    all names have is taken off. Tensors of zipped .pth are mapped, not copied: a file that is cut
    short later kills who reads them. Raises CheckpointError.
    """
    return read(path).tensors


def read(path: Path) -> Read:
    """`read_tensors`, with a note."""
    with explained(path, "a checkpoint"):
        if path.is_dir():
            path = weights_in(path)
        tensors, note = read_file(path)
        if not tensors:
            raise CheckpointError(f"{path}: holds no tensors")
        notes = [note] if note else []
        while prefix := next((w for w in WRAPPERS if all(n.startswith(w) for n in tensors)), None):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            notes.append(f"{prefix!r} taken off the names")
        return Read(tensors, ", ".join(notes))


def weights_in(folder: Path) -> Path:
    """The weights in a folder of Hugging Face's or timm's layout: a file, or an index of files."""
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: a folder without weights; expected {', '.join(FOLDER_FILES)}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file that lies beside weights. Raises CheckpointError."""
    with explained(path, "readable as JSON"):
        with path.open("rb") as file:
            data = file.read(JSON_AT_MOST + 1)
        if len(data) > JSON_AT_MOST:
            raise CheckpointError(f"{path}: more than {JSON_AT_MOST >> 20} MiB of JSON")
        content = json.loads(data.decode("utf-8"))
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: holds {type(content).__name__}, not an object")
        return content


# Reading


def read_file(path: Path) -> tuple[Tensors, str]:
    """The tensors of one file, or of the files of an index, and where in it they were."""
    if not path.is_file():
        raise CheckpointError(f"{path}: {'is no regular' if path.exists() else 'no such'} file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: empty; copy or download it again")
    suffix = path.suffix.lower()
    if path.name.endswith(INDEX):
        return read_shards(path), ""
    if suffix == ".npz":
        return read_npz(path), ""
    if suffix == ".safetensors":
        return read_safetensors(path), ""
    if suffix in TORCH_SUFFIXES:
        return read_torch(path)
    known = ", ".join((".npz", ".safetensors", *TORCH_SUFFIXES))
    raise CheckpointError(f"{path}: not a known kind of file; the known suffixes: {known}")


def read_shards(index: Path) -> Tensors:
    """A model in several files of one folder."""
    suffix = Path(index.name.removesuffix(INDEX)).suffix
    files = read_json(index).get("weight_map")
    if suffix not in (".safetensors", ".bin") or not isinstance(files, dict):
        raise CheckpointError(f"{index}: not an index of weights (no weight_map)")
    for file in files.values():
        name = file if isinstance(file, str) else ""
        if Path(name).name != name or "\\" in name or Path(name).suffix != suffix:
            raise CheckpointError(
                f"{index}: names {reprlib.repr(file)}, which is no {suffix} file of its own folder"
            )
    tensors: Tensors = {}
    for file in dict.fromkeys(files.values()):
        shard, _ = read_file(index.with_name(file))
        for name in (name for name, of in files.items() if of == file):
            if name not in shard:
                raise CheckpointError(f"{index.with_name(file)}: has no {name}, as {index} says")
            tensors[name] = shard[name]
    return tensors


def read_npz(path: Path) -> Tensors:
    with explained(path, "an .npz file"), open_zip(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        without_repeats([(member.filename, None) for member in members])
        return {
            member.filename.removesuffix(".npy"): read_array(archive, member) for member in members
        }


def read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> torch.Tensor:
    """One array; the size that its header claims is checked before memory is taken for it."""
    name = member.filename
    if not name.endswith(".npy"):
        raise ValueError(f"{name} in it is no array (a file of torch.save must end in .pth)")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        # Versions 2 and 3 differ only in how they encode the names of a struct's fields.
        first = version == (1, 0)
        header = (
            np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = header(file)
        if dtype.hasobject:
            raise ValueError(f"{name} holds pickled objects, which are never loaded")
        expected, found = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if expected != found:
            raise ValueError(f"{name} has {found} bytes of data instead of {expected}")
        file.seek(0)
        array = np.lib.format.read_array(file, allow_pickle=False)
    if dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    try:
        return torch.from_numpy(array.astype(dtype.newbyteorder("="), copy=False))
    except TypeError as error:
        raise ValueError(f"{name} holds {dtype}, which torch has no type for") from error


# Writing


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write .npz, .safetensors, .pth or .bin; `path` is then the whole new file, or as before.

    .npz is numpy's: uncompressed, readable by numpy and the authors' code, without metadata;
    bfloat16 and float16 become float32, one tensor at a time. The others keep dtypes, and only
    tensors that are not contiguous, or that share memory, are copied. `metadata` goes into
    .safetensors alone. Raises CheckpointError.
    """
    suffix = path.suffix.lower()
    if suffix not in (".npz", ".safetensors", ".pth", ".bin"):
        raise CheckpointError(f"{path}: written are .npz, .safetensors, .pth and .bin")
    if metadata and suffix != ".safetensors":
        raise CheckpointError(f"{path}: only .safetensors has a place for metadata")
    try:
        with whole_file(path) as fresh:
            if suffix == ".npz":
                write_npz(fresh, tensors)
            elif suffix == ".safetensors":
                save_file(separate(tensors), fresh, metadata={"format": "pt", **(metadata or {})})
            else:
                with fresh.open("wb") as file:  # a path would be written into the file
                    torch.save(separate(tensors), file)
    except Exception as error:  # of the disk, from Python, C++ or Rust; or of a dtype
        # torch.save raises its own error over that of the file, which says what happened.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        what = (str(cause) or type(cause).__name__).split("\n")[0]
        raise CheckpointError(f"{path}: cannot be written: {what}") from error


def separate(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """On the CPU, contiguous, each the only one of its storage, of which it is the whole."""
    alone: Tensors = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        storage = tensor.untyped_storage()
        if (
            not tensor.is_contiguous()
            or storage.nbytes() != tensor.nbytes
            or storage.data_ptr() in storages
        ):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        if tensor.nbytes:
            storages.add(tensor.untyped_storage().data_ptr())
        alone[name] = tensor
    return alone


def write_npz(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    halves = [tensor.numel() for tensor in tensors.values() if tensor.dtype in HALF]
    scratch = torch.empty(max(halves, default=0), dtype=torch.float32)
    with zipfile.ZipFile(path, "w") as archive:
        for name, tensor in tensors.items():
            tensor = tensor.detach()
            if tensor.dtype in HALF:
                tensor = scratch[: tensor.numel()].view(tensor.shape).copy_(tensor)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, tensor.cpu().numpy(), allow_pickle=False)
