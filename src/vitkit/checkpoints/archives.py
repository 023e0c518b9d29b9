"""Zip archives of unknown origin: what they claim is checked before memory is taken for it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitkit.checkpoints.problems import CheckpointError

SMALL = 64 << 20  # bytes that any file may unpack to
GROWTH_AT_MOST = 16  # times its size that a larger file may; weights hardly shrink when packed


@contextmanager
def explained(path: Path, kind: str) -> Iterator[None]:
    """Every error in the block as a CheckpointError.

    On hostile bytes zipfile, zlib, numpy, torch and Python's own parsers raise a dozen kinds:
    NotImplementedError, zlib.error, TokenError, struct.error, MemoryError, RecursionError, ...
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        lookup = isinstance(error, LookupError)  # whose text is only the key
        what = "parts are missing" if lookup else (str(error) or type(error).__name__)
        what = what.split("\n")[0][:200]
        raise CheckpointError(f"{path}: truncated, damaged or not {kind}: {what}") from error


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, if it can be as large unpacked as it claims; else ValueError."""
    with zipfile.ZipFile(path) as archive:
        claimed, size = unpacked_size(archive), path.stat().st_size
        if claimed > max(SMALL, GROWTH_AT_MOST * size):
            raise ValueError(f"{size:,} bytes that claim to unpack to {claimed:,}")
        yield archive


def unpacked_size(archive: zipfile.ZipFile) -> int:
    return sum(member.file_size for member in archive.infolist())


def verify(archive: zipfile.ZipFile) -> None:
    """Compare every member with its checksum; BadZipFile names one that is damaged."""
    for member in archive.infolist():
        with archive.open(member) as file:
            while file.read(1 << 20):
                pass
