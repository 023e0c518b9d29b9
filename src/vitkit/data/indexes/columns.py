"""Columns of numbers and of texts that lie on disk and take no memory: .npy files, read in parts.

Pages of a mapped file count as memory of the process that touched them, so columns that are as
long as the data are read where they are wanted, not mapped.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vitkit.data.checks import DataError, first_line

LONGEST_TEXT = 1 << 16  # bytes
READ_LOCK = threading.Lock()


def write_numbers(folder: Path, name: str, values: np.ndarray, dtype: str) -> None:
    np.save(folder / f"{name}.npy", values.astype(dtype, copy=False), allow_pickle=False)


def write_texts(folder: Path, name: str, texts: Iterable[str]) -> None:
    """One column of bytes, and one of where in it each text begins; its end is the last entry."""
    content, lengths = bytearray(), [0]
    for text in texts:
        data = text.encode("utf-8", "surrogateescape")
        content += data
        lengths.append(len(data))
    write_numbers(folder, f"{name}-starts", np.cumsum(lengths, dtype=np.int64), "<i8")
    # A column of no bytes at all could not be mapped.
    write_numbers(folder, name, np.frombuffer(bytes(content) or b"\0", np.uint8), "u1")


def mapped(folder: Path, name: str, dtype: str, length: int | None = None) -> np.ndarray:
    """A column mapped into memory, its type and length checked. DataError."""
    path = folder / f"{name}.npy"
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, TypeError, OverflowError, SyntaxError, EOFError) as error:
        raise DataError(
            f"{path}: not a column of an index ({first_line(error)}); build the index again"
        ) from error
    right = "any number of" if length is None else str(length)
    if not isinstance(values, np.ndarray):  # an archive of several
        values = np.empty((0, 0))
    if values.dtype != np.dtype(dtype) or values.ndim != 1 or length not in (None, len(values)):
        raise DataError(
            f"{path}: holds {values.dtype} of shape {values.shape}; expected {right} {dtype}; "
            "build the index again"
        )
    return values


def let_go(values: np.ndarray) -> None:
    """Give back the pages of a mapped column that were touched; they are read again on demand."""
    pages = getattr(values, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


class Numbers:
    """A column read in parts, by any number of threads."""

    def __init__(self, folder: Path, name: str, dtype: str, length: int | None = None) -> None:
        checked = mapped(folder, name, dtype, length)
        self.dtype, self.length = checked.dtype, len(checked)
        self.begin = int(checked.offset)  # pyright: ignore[reportAttributeAccessIssue]
        self.path = folder / f"{name}.npy"
        self.file = self.path.open("rb", buffering=0)  # closed with this object

    def __len__(self) -> int:
        return self.length

    def part(self, first: int, end: int) -> np.ndarray:
        """The entries `first` to `end` (not included). OSError where the file has become short."""
        if not 0 <= first <= end <= self.length:
            raise IndexError(f"{first} to {end} of {self.length}")
        size = self.dtype.itemsize
        data = read_at(self.file.fileno(), (end - first) * size, self.begin + first * size)
        if len(data) != (end - first) * size:
            raise OSError(f"{self.path}: shorter than it was when opened")
        return np.frombuffer(data, self.dtype)

    def __getitem__(self, index: int) -> int:
        return int(self.part(index, index + 1)[0])


class Texts:
    """A column of texts as `write_texts` writes it, read one by one."""

    def __init__(self, folder: Path, name: str, length: int) -> None:
        self.starts = Numbers(folder, f"{name}-starts", "<i8", length + 1)
        self.content = Numbers(folder, name, "u1")

    def __getitem__(self, index: int) -> str:
        begin, end = self.starts.part(index, index + 2).tolist()
        if not 0 <= begin <= end <= len(self.content) or end - begin > LONGEST_TEXT:
            raise DataError(f"{self.starts.path}: row {index} is damaged; build the index again")
        return self.content.part(begin, end).tobytes().decode("utf-8", "surrogateescape")


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """So many bytes from a place in an open file; fewer only where it ends."""
    parts = []
    while size > 0:
        if hasattr(os, "pread"):
            data = os.pread(descriptor, size, offset)
        else:
            with READ_LOCK:  # Windows has one place in a file for all threads
                os.lseek(descriptor, offset, os.SEEK_SET)
                data = os.read(descriptor, size)
        if not data:
            break
        parts.append(data)
        size, offset = size - len(data), offset + len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)
