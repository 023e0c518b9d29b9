"""Shards: large files on disk or afar, of which parts are read, by any number of threads."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vitkit.data.checks import DataError, digest
from vitkit.data.indexes.columns import read_at

OPEN_FILES = 64  # kept open at most
SECRETS = re.compile(r"(?<=://)[^/@\s]*@|[?#][^\s'\")\]]*")
HASHED = 16 * 1024  # bytes at each end of a file


@dataclass(frozen=True)
class Shard:
    """A shard, and what tells whether it is still the one that was looked at."""

    place: str  # a path or a URL
    size: int
    changed: int = 0  # on disk: time of its last change, nanoseconds
    version: str = ""  # afar: what the server calls this version of it
    ends: str = ""  # a hash of its first and last bytes
    sha256: str = ""


@dataclass
class OpenFile:
    descriptor: int
    readers: int = 0


class OpenFiles:
    """Files kept open, a bounded number of them; those read last stay."""

    def __init__(self, limit: int = OPEN_FILES) -> None:
        self.limit = limit
        self.files: OrderedDict[str, OpenFile] = OrderedDict()
        self.lock = threading.Lock()

    def read(self, path: str, size: int, offset: int) -> bytes:
        """So many bytes, or fewer where the file ends. Raises OSError."""
        with self.lock:
            file = self.files.get(path)
            if file is None:
                file = OpenFile(self.opened(path))
                self.files[path] = file
            self.files.move_to_end(path)
            file.readers += 1
            self.close_some()
        try:
            return read_at(file.descriptor, size, offset)
        finally:
            with self.lock:
                file.readers -= 1

    def opened(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def close_some(self) -> None:
        idle = [path for path, file in self.files.items() if not file.readers]
        for path in idle[: max(0, len(self.files) - self.limit)]:
            os.close(self.files.pop(path).descriptor)

    def forget(self, path: str) -> None:
        """Close a file that is to be replaced or removed, unless it is being read."""
        with self.lock:
            file = self.files.get(path)
            if file is not None and not file.readers:
                os.close(self.files.pop(path).descriptor)


FILES = OpenFiles()


class Shards:
    """Shards by number."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.all = list(shards)

    @property
    def remote(self) -> bool:
        return any(is_url(shard.place) for shard in self.all)

    def title(self, number: int) -> str:
        """What to call a shard in a message."""
        return without_secrets(self.all[number].place)

    def read(self, number: int, offset: int, size: int) -> bytes:
        """A part of a shard. Raises OSError, and DataError for what cannot be fetched."""
        shard = self.all[number]
        if not 0 <= offset <= offset + size <= shard.size:
            raise DataError(
                f"{self.title(number)}: {size} bytes at {offset} are wanted of {shard.size}; the "
                "index does not fit it, build it again"
            )
        if is_url(shard.place):
            from vitkit.data.remote import cache as remote_cache

            return remote_cache.read(shard, offset, size)
        data = FILES.read(shard.place, size, offset)
        if len(data) != size:
            raise OSError(f"{shard.place}: ends before byte {offset + size}")
        return data

    @contextmanager
    def on_disk(self, number: int) -> Iterator[Path]:
        """A path at which the whole shard lies while the block lasts."""
        shard = self.all[number]
        if is_url(shard.place):
            from vitkit.data.remote import cache as remote_cache

            with remote_cache.on_disk(shard) as path:
                yield path
        else:
            yield Path(shard.place)

    def prefetch(self, numbers: Sequence[int]) -> None:
        """Fetch these shards in the background, where they lie afar."""
        wanted = [self.all[number] for number in numbers if is_url(self.all[number].place)]
        if wanted:
            from vitkit.data.remote import cache as remote_cache

            remote_cache.prefetch(wanted)


def is_url(place: object) -> bool:
    return "://" in str(place)


def without_secrets(place: str) -> str:
    """A path as it is; a URL without a password, and without a query that may be one."""
    return SECRETS.sub("", place) if is_url(place) else place


def local_shard(path: Path) -> Shard:
    """What a file on disk is like now. Raises OSError."""
    status = path.stat()
    return Shard(str(path), status.st_size, status.st_mtime_ns)


def ends_of(path: Path) -> str:
    """A hash of a file's length and of its first and last bytes. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        first = file.read(HASHED)
        file.seek(max(len(first), size - HASHED))
        return digest([str(size), first, file.read()])


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
