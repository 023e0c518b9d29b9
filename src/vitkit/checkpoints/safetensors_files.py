"""Reads .safetensors: each tensor straight from the file into memory of its own.

The library maps the file instead. Then what happens to the file happens to the tensors: written
over, they are not those whose hash was verified; cut short, the process is killed.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from vitkit.checkpoints.archives import explained

AXES_AT_MOST = 64  # of a tensor, as many as torch's own limit
HEADER_AT_MOST = 2 << 20  # bytes; it has 130 for a tensor
CHUNK = 1 << 18  # bytes that are read and hashed at once
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}  # fmt: skip


class Digest(Protocol):
    """What hashlib's constructors give."""

    def update(self, data: Any, /) -> None: ...


def read_safetensors(path: Path, digest: Digest | None = None) -> dict[str, torch.Tensor]:
    """The tensors by name, in the file's order of bytes; nothing stays open or mapped.

    `digest` is fed with every byte of the file as it is read, so that what it says in the end is
    said of these very tensors. Raises CheckpointError where the header is not that of this file.
    """
    with explained(path, "a .safetensors file"), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = read_exactly(file, bytearray(8), digest)
        (length,) = struct.unpack("<Q", start)
        if length > min(HEADER_AT_MOST, size - 8):
            raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
        header = read_exactly(file, bytearray(length), digest)
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=without_repeats)
        entries.pop("__metadata__", None)
        tensors = {}
        for name, (dtype, shape) in checked(entries, size - 8 - length).items():
            memory = torch.empty(math.prod(shape) * dtype.itemsize, dtype=torch.uint8)
            read_exactly(file, memory.numpy(), digest)
            tensors[name] = memory.view(dtype).view(shape)
        return tensors


def checked(entries: dict[str, Any], size: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """(dtype, shape) of each tensor in the order that they lie in, which fills `size` bytes.

    ValueError where that cannot be, before memory is taken for any of them.
    """
    described, place = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (begin, end) = (
            DTYPES.get(entry["dtype"]),
            entry["shape"],
            entry["data_offsets"],
        )
        if dtype is None:
            raise ValueError(f"{name[:80]!r} holds {str(entry['dtype'])[:20]}, which is not known")
        if len(shape) > AXES_AT_MOST:  # whose product would take a minute
            raise ValueError(f"{name[:80]!r} has {len(shape):,} axes")
        if not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end)):
            raise ValueError(f"{name[:80]!r} has a shape or a place that is no whole number")
        if begin != place or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(
                f"{name[:80]!r} lies at bytes {begin:,} to {end:,}, where it cannot be"
            )
        described[name] = dtype, tuple(shape)
        place = end
    if place != size:
        raise ValueError(f"{size:,} bytes of tensors, where its header says {place:,}")
    return described


def read_exactly(file: IO[bytes], memory: Any, digest: Digest | None) -> Any:
    """Fill `memory`, a buffer of bytes, from the file; ValueError where that ends before."""
    view = memoryview(memory)
    for begin in range(0, len(view), CHUNK):
        part = view[begin : begin + CHUNK]
        if file.readinto(part) != len(part):  # type: ignore[attr-defined]
            raise ValueError("it ended while it was read")
        if digest is not None:
            digest.update(part)
    return memory


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict; ValueError for a name that is there twice, of which others take the last."""
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"{repeated[0][:80]!r} is there more than once")
    return dict(pairs)
