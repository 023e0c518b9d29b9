"""What torch.save wrote (.pth, .pt, .bin, .ckpt), read without running what the file says.

Such a file is a pickle: a program for a small machine that can call any function by its name.
torch.load(weights_only=True) replaces that machine by one that knows a few functions. Before it
starts, the program is listed here, not run, and refused if it names anything that weights do not
need: of what torch allows, builtins.bytearray alone can take all memory with 60 bytes of file.
"""

from __future__ import annotations

import argparse
import pickle
import pickletools
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from vitkit.checkpoints.archives import SMALL, explained, open_zip, unpacked_size, verify
from vitkit.checkpoints.problems import CheckpointError

KIND = "a file of torch.save"
PARTS = (  # where training programs keep the weights; the first that is there is taken
    "model", "state_dict", "model_state_dict", "state_dict_ema", "model_ema", "teacher", "student",
)  # fmt: skip

# Functions and classes that a file may call with whatever it likes. They make tensors that share
# a storage, and small things.
CALLABLE = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch.nn.parameter.Parameter",
    "torch.device",
}
# Classes that copy what they are called with: called with nothing, or a few times (a Counter in a
# MultiStepLR). Many copies of one large list are a bomb.
COLLECTIONS = {"collections.OrderedDict", "collections.Counter", "builtins.set"}
COPIES_AT_MOST = 8
CREATABLE = {"torch.nn.parameter.Parameter", "argparse.Namespace"}  # by __new__
DTYPES = {f"torch.{name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
NAMES = CALLABLE | COLLECTIONS | CREATABLE | DTYPES
STORAGE = re.compile(r"torch\.(cuda\.)?[A-Z]\w*Storage|torch\.storage\.UntypedStorage")
MAGIC = pickle.dumps(torch.serialization.MAGIC_NUMBER, protocol=2)  # before torch 1.6
DOS_FOLDER = 0x10  # among the attributes of a member of a zip
STEPS_AT_MOST = 1_000_000  # of a pickle; a ViT-H with its optimizer has 50,000

ALLOWING = threading.Lock()  # torch keeps one list of allowed classes for the whole process


def read_torch(path: Path) -> tuple[dict[str, Tensor], str]:
    """The weights in a file of torch.save, and where in it they were.

    They are mapped from the file where it is a zip (torch >= 1.6), its checksums verified, else
    read. Raises CheckpointError, for code with the name of the function that it would call.
    """
    with explained(path, KIND):
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"PK\x03\x04":
            mapped, size = check_zip(path)
        elif start[:1] == pickle.PROTO:
            mapped, size = False, check_pickles(path)
        else:
            raise CheckpointError(
                f"{path}: begins neither like a zip archive nor like a pickle, so it is not "
                f"{KIND}; if it is of another kind, give it that suffix (.safetensors, .npz)"
            )
        part, note = weights_part(load_weights_only(path, mapped), path)
        check_sizes(part, size, path)
        # Without history, hooks, and the attributes that a file can give to a tensor.
        plain = {name: Tensor.detach(t).resolve_conj().resolve_neg() for name, t in part.items()}
        return plain, note


def check_zip(path: Path) -> tuple[bool, int]:
    """Whether the archive can be mapped, and its size unpacked."""
    with open_zip(path) as archive:
        members = archive.infolist()
        names = [member.filename.lower() for member in members]  # torch's reader ignores case
        if any(name.endswith("constants.pkl") for name in names):
            raise CheckpointError(
                f"{path}: TorchScript, which is a program and not weights; save the state_dict() "
                "of the module that it was made from"
            )
        if not any(name.endswith("/data.pkl") for name in names):
            raise CheckpointError(f"{path}: a zip archive, but not {KIND} (no data.pkl in it)")
        # Python's reader would allow for it, torch's would read from the wrong places.
        if min(member.header_offset for member in members) != 0:
            raise ValueError("something lies before the archive")
        # Of a member marked as a folder it would take as many bytes of unused memory.
        if any(member.external_attr & DOS_FOLDER for member in members):
            raise ValueError("one of its parts is marked as a folder")
        for member, name in zip(members, names, strict=True):
            if name.endswith(".pkl"):
                if member.file_size > SMALL:
                    raise ValueError(f"{member.filename} has {member.file_size:,} bytes")
                with archive.open(member) as file:
                    check_pickle(file, path)
        verify(archive)  # torch.load does not: bits that flipped would be other weights
        # torch maps members that are packed as if they were not.
        mapped = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        return mapped, unpacked_size(archive)


def check_pickles(path: Path) -> int:
    """The five pickles of a file from before torch 1.6, checked; the size of the file."""
    with path.open("rb") as file:
        check_pickle(file, path)
        file.seek(0)
        if file.read(len(MAGIC)) != MAGIC:
            raise CheckpointError(
                f"{path}: a pickle that torch.save did not write, which cannot be read without "
                "running it; save the weights by torch.save"
            )
        for _ in ("version", "machine", "the object", "keys of storages"):
            check_pickle(file, path)
    return path.stat().st_size


def check_pickle(file: IO[bytes], path: Path) -> None:
    """Follow a pickle's calls without making them, to the end of the pickle.

    Raises CheckpointError for a call that weights do not need. Of the machine's stack and memo
    only names are kept, and empty tuples.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    strings = ["", ""]  # the last two, of which the newer opcode makes a name
    protocol, copies = 0, 0
    for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if step > STEPS_AT_MOST:
            raise ValueError(f"a pickle of more than {STEPS_AT_MOST:,} steps")
        if isinstance(argument, str):
            strings = [strings[1], argument]
        kind = opcode.name
        protocol = argument if kind == "PROTO" else protocol
        if kind in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if kind == "MEMOIZE" else argument] = stack[-1]
        elif kind in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif kind == "MARK":
            stack.append(pickletools.markobject)
        else:
            below = take(stack, opcode.stack_before)
            made: Any = () if kind == "EMPTY_TUPLE" else None
            if kind in ("GLOBAL", "INST", "STACK_GLOBAL"):
                made = ".".join(strings if kind == "STACK_GLOBAL" else str(argument).split(" "))
                made = re.sub("^__builtin__", "builtins", made)  # protocol 2 is Python 2's
                if made not in NAMES and not STORAGE.fullmatch(made):
                    raise CheckpointError(refusal(path, made))
            elif kind in ("REDUCE", "NEWOBJ"):
                called, arguments = below
                copies += called in COLLECTIONS and arguments != ()
                allowed = CALLABLE | COLLECTIONS if kind == "REDUCE" else CREATABLE
                if called not in allowed or copies > COPIES_AT_MOST:
                    raise CheckpointError(refusal(path, called))
            stack += [made] * len(opcode.stack_after)
    if protocol != 2:
        raise CheckpointError(
            f"{path}: pickled by protocol {protocol}, which torch reads only by running it; "
            "save the weights by torch.save's own protocol, which is 2"
        )


def take(stack: list[Any], before: list[pickletools.StackObject]) -> list[Any]:
    """Pop what an opcode takes off the stack: so many things, and all above a mark, if it says."""
    count = len(before)
    if pickletools.markobject in before:
        while stack.pop() is not pickletools.markobject:
            pass
        count = before.index(pickletools.markobject)
    taken = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return taken


def refusal(path: Path, called: object) -> str:
    name = repr(called[:100]) if isinstance(called, str) else "something that it made itself"
    return (
        f"{path}: refused, and nothing was run: the file would call {name}, which "
        "weights do not need; take a .safetensors file of the same weights, or, if you trust it, "
        "save only its state_dict() where it comes from"
    )


def load_weights_only(path: Path, mapped: bool) -> Any:
    try:
        with allowing_options():
            return torch.load(str(path), map_location="cpu", mmap=mapped, weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's text advises weights_only=False, which runs the code.
        found = re.search(r"(Unsupported|Trying to|Can only|Only) [^\n]{1,120}", str(error))
        what = found[0] if found else "its pickle is malformed"
        raise CheckpointError(f"{path}: not weights as torch.save keeps them: {what}") from error


@contextmanager
def allowing_options() -> Iterator[None]:
    """Training files of MAE, DeiT and timm hold their options, an argparse.Namespace.

    It is an object with attributes, which nothing here reads. Its class has neither __setstate__
    nor __reduce__. A file can give the object itself a __setstate__ and have that called, but has
    nothing to put there except what it may call anyway; no class that it can name has the layout
    that the object's __class__ could be set to.
    """
    with ALLOWING:
        known = argparse.Namespace in torch.serialization.get_safe_globals()
        # Leaving takes it off the list, on which somebody else may have put it.
        with torch.serialization.safe_globals([] if known else [argparse.Namespace]):
            yield


def weights_part(loaded: Any, path: Path) -> tuple[dict[str, Tensor], str]:
    """The named tensors in what was loaded, and a note of where they were."""
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, not tensors with names")
    whole = tensors_in(loaded)
    # The methods of dict, since a file can give an OrderedDict attributes of the same names.
    parts = {name: tensors_in(value) for name, value in dict.items(loaded)}
    parts = {name: part for name, part in parts.items() if part}
    known = [name for name in PARTS if name in parts]
    if not known and not whole and len(parts) == 1:
        known = list(parts)
    if known:
        others = f" ({', '.join(map(repr, known[1:]))} also there)" if known[1:] else ""
        return parts[known[0]], f"taken from {known[0]!r}{others}"
    if whole:
        return whole, ""
    found = ", ".join(str(name)[:40] for name in list(dict.keys(loaded))[:6]) or "nothing"
    raise CheckpointError(
        f"{path}: holds {found}, and weights neither there nor in one of {', '.join(PARTS)}"
    )


def tensors_in(value: Any) -> dict[str, Tensor]:
    if not isinstance(value, dict):
        return {}
    return {k: t for k, t in dict.items(value) if type(k) is str and isinstance(t, Tensor)}


def check_sizes(part: dict[str, Tensor], size: int, path: Path) -> None:
    """CheckpointError where tensors claim more bytes than the file has for them."""
    for name, tensor in part.items():
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {name} claims {tensor.nbytes:,} bytes and the file has "
                f"{tensor.untyped_storage().nbytes():,} for it; save a contiguous copy of it"
            )
    claimed = sum(tensor.nbytes for tensor in part.values())
    if claimed > 2 * size:  # a tensor may have two names
        raise CheckpointError(f"{path}: tensors of {claimed:,} bytes in a file of {size:,}")
