"""What a net made of images, kept on disk: features and logits, each computed once.

A file is `KEY-HASH.npy`: KEY says what was computed, HASH is of the numbers themselves. Whatever
does not fit its name, because it was cut short, damaged or put there by somebody else, is no entry:
it is removed and computed again. The folder is bounded; what was not used for the longest time
goes first.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np

from vitkit.data.cache import cache_folder, cache_limit
from vitkit.files import whole_file

MAPPED_FROM = 2**28  # bytes: larger files are mapped into memory rather than read


def folder() -> Path:
    return cache_folder() / "features"


def find(key: str, rows: int, width: int) -> np.ndarray | None:
    """(rows, width) finite float32, writable without changing the file; None where nothing whole is
    kept."""
    for path in sorted(folder().glob(f"{key}-*.npy")):
        found = read(path, rows, width)
        if found is not None:
            with suppress(OSError):
                os.utime(path)  # used now
            return found
        with suppress(OSError):
            path.unlink()
    return None


def read(path: Path, rows: int, width: int) -> np.ndarray | None:
    """The numbers of a file, if they are those that its name promises."""
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        # It reads plain arrays only, and refuses a header that promises more than there is.
        with np.errstate(over="ignore"):
            mapped = np.lib.format.open_memmap(path, mode="c")
        fits = mapped.dtype == np.dtype("<f4") and mapped.shape == (rows, width)
        if not fits or not mapped.flags.c_contiguous:
            return None
        found = mapped if mapped.nbytes >= MAPPED_FROM else np.array(mapped)
        named = path.stem.endswith(f"-{hash_of(found)}")
        return found if named and np.isfinite(found).all() else None
    except Exception:  # a header can be wrong in ways that numpy meets with errors of any kind
        return None


def keep(key: str, values: np.ndarray) -> None:
    """Keep (N, D) float32; where there is no room, or the disk refuses, only say so."""
    values = np.ascontiguousarray(values, "<f4")
    if not make_room(values.nbytes + 128):
        return
    try:
        with whole_file(folder() / f"{key}-{hash_of(values)}.npy") as fresh, fresh.open("wb") as to:
            np.save(to, values)
    except OSError as error:
        warnings.warn(
            f"{folder()}: features could not be kept ({error.strerror or error}); set VITKIT_CACHE "
            "to a folder that can be written",
            stacklevel=2,
        )


def hash_of(values: np.ndarray) -> str:
    shape = np.array(values.shape, "<i8").tobytes()
    hashed = hashlib.sha256(shape)
    hashed.update(values.data.cast("B") if values.size else b"")
    return hashed.hexdigest()[:32]


def make_room(size: int) -> bool:
    """Remove what was not used for the longest time until so many bytes fit; whether they do."""
    entries = []
    for path in folder().glob("*"):  # those that a crash left half written among them
        with suppress(OSError):
            status = path.stat()
            entries.append((status.st_mtime, status.st_size, path))
    most, total = cache_limit(), sum(length for _, length, _ in entries)
    if size > most:
        return False
    for _, length, path in sorted(entries):
        if total + size <= most:
            break
        with suppress(OSError):
            path.unlink()
            total -= length
    return total + size <= most
