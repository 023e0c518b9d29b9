"""A bounded folder of files fetched from afar, which any number of processes share.

A file in it is whole and was checked; it is removed, the longest unused first, when another needs
the room, but never while a process reads it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from vitkit.data.cache import cache_folder, cache_limit
from vitkit.data.checks import DataError, digest
from vitkit.data.remote import reading as remote
from vitkit.data.remote.locks import held, locked, unused, unwritable
from vitkit.data.tars.shards import OpenFiles, Shard, without_secrets
from vitkit.files import sync

WHOLE_TRIES = 3  # of a file whose hash is wrong
SINGLE_READS = 4  # of a shard, from afar, before it is worth fetching
FETCHERS = 2  # threads that fetch ahead


class HeldFiles(OpenFiles):
    """Files of the cache, each marked as in use while it is open."""

    def opened(self, path: str) -> int:
        descriptor = super().opened(path)
        held(descriptor)
        return descriptor


CACHED = HeldFiles(limit=8)
reads: dict[str, int] = {}
wanted: queue.Queue[Shard] = queue.Queue()
waiting: set[str] = set()
fetchers: list[threading.Thread] = []
KEPT: list[Any] = []  # files that must not be removed while this process runs
LOCK = threading.Lock()


def files_folder() -> Path:
    return cache_folder() / "files"


def cached_path(shard: Shard) -> Path:
    """Where a file from afar is kept: by its address, its version and what its hash must be."""
    url = without_secrets(shard.place)
    entry = digest([url, str(shard.size), shard.version, shard.sha256])[:32]
    return files_folder() / entry / (url.rpartition("/")[2] or "file")


def entries() -> list[tuple[float, int, Path]]:
    """(when last used, bytes, path) of every file, also of those that are being fetched."""
    found = []
    files_folder().mkdir(parents=True, exist_ok=True)
    for path in files_folder().glob("*/*"):
        with suppress(OSError):
            status = path.stat()
            found.append((status.st_mtime, status.st_size, path))
    return sorted(found)


def read(shard: Shard, offset: int, size: int) -> bytes:
    """A part of a file from afar, through the cache where it is worth it. Raises DataError."""
    try:
        return read_cached(shard, offset, size)
    except FileNotFoundError as error:
        raise DataError(
            f"{without_secrets(shard.place)}: is not there any more; bring it back"
        ) from error
    except OSError as error:
        raise unwritable(error) from error


def read_cached(shard: Shard, offset: int, size: int) -> bytes:
    path = cached_path(shard)
    for attempt in range(3):
        try:
            data = CACHED.read(str(path), size, offset)
        except FileNotFoundError:
            if not worth_fetching(shard, path) or not fetch(shard, path):
                break
            continue  # it may have been removed again by another process
        if len(data) == size:
            with suppress(OSError):
                os.utime(path)  # used now: what was not for the longest time goes first
            return data
        CACHED.forget(str(path))  # cut short by someone else
        if attempt == 0:
            path.unlink(missing_ok=True)
    return remote.read_range(shard.place, offset, size)


def worth_fetching(shard: Shard, path: Path) -> bool:
    """Not for the first few reads of a large shard: a look at images here and there is cheaper.

    Where a hash is known, only a whole shard can be checked.
    """
    if shard.sha256 or shard.size <= remote.RANGE:
        return True
    with LOCK:
        reads[str(path)] = reads.get(str(path), 0) + 1
        return reads[str(path)] > SINGLE_READS


@contextmanager
def on_disk(shard: Shard) -> Iterator[Path]:
    """The path of the whole file, which stays while the block lasts. DataError."""
    path = cached_path(shard)
    for _ in range(3):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            if not fetch(shard, path):
                break
            continue
        with file:
            held(file.fileno())
            yield path
        return
    raise DataError(
        f"{without_secrets(shard.place)}: {shard.size:,} bytes do not fit into the cache of "
        f"{cache_limit():,}; raise VITKIT_CACHE_GB"
    )


def kept_on_disk(shard: Shard) -> Path:
    """The path of the whole file, which stays as long as this process. DataError."""
    block = on_disk(shard)
    path = block.__enter__()
    KEPT.append(block)
    return path


def fetch(shard: Shard, path: Path) -> bool:
    """Bring a whole file into the cache; False where it does not fit. Raises DataError."""
    with locked(cache_folder() / "locks" / path.parent.name):
        if path.exists():  # another process was quicker
            return True
        file = reserved(shard, path)
        if file is None:
            return False
        fresh = Path(file.name)
        try:
            with file:
                download(shard, file)
                sync(fresh)
                fresh.replace(path)
        except BaseException as error:
            fresh.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                return False  # others fill the disk too
            raise
        return True


def reserved(shard: Shard, path: Path) -> IO[bytes] | None:
    """A file of the right size to fill, after room was made for it; None where there is none."""
    files_folder().mkdir(parents=True, exist_ok=True)
    with locked(cache_folder() / "locks" / "room"):
        if not make_room(shard.size):
            return None
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f".{uuid.uuid4().hex[:8]}.part").open("w+b")
        unused(file.fileno())  # locks it: whoever makes room leaves it alone
        file.truncate(shard.size)
        return file


def make_room(size: int) -> bool:
    """Remove what was not used for the longest time until so many bytes fit; whether they do."""
    most, found = cache_limit(), entries()
    total = sum(size for _, size, _ in found)
    if size > most:
        return False
    for _, length, path in found:
        if total + size <= most:
            break
        CACHED.forget(str(path))
        with suppress(OSError), path.open("rb") as file:
            if unused(file.fileno()):
                path.unlink()
                total -= length
                with suppress(OSError):
                    path.parent.rmdir()
    return total + size <= most


def download(shard: Shard, file: IO[bytes]) -> None:
    """Fill an open file with one from afar, and check its hash where it is known. DataError."""
    found = ""
    for _ in range(WHOLE_TRIES):
        file.seek(0)
        hashed = hashlib.sha256()
        for offset in range(0, shard.size, remote.RANGE):
            size = min(remote.RANGE, shard.size - offset)
            data = remote.read_range(shard.place, offset, size)
            file.write(data)
            hashed.update(data)
        file.flush()
        found = hashed.hexdigest()
        if shard.sha256 in ("", found):
            return
    raise DataError(
        f"{without_secrets(shard.place)}: came {WHOLE_TRIES} times with the SHA-256 {found[:12]} "
        f"rather than {shard.sha256[:12]}; it was changed or damaged: upload it again, or its "
        "list of hashes"
    )


def prefetch(shards: list[Shard]) -> None:
    """Fetch these in the background, in order; what fails is met again when it is read."""
    for shard in shards:
        path = cached_path(shard)
        with LOCK:
            if str(path) in waiting or path.exists():
                continue
            waiting.add(str(path))
            if len(fetchers) < FETCHERS:
                fetchers.append(threading.Thread(target=fetch_waiting, daemon=True))
                fetchers[-1].start()
        wanted.put(shard)


def fetch_waiting() -> None:
    while True:
        shard = wanted.get()
        path = cached_path(shard)
        with suppress(Exception):
            fetch(shard, path)
        with LOCK:
            waiting.discard(str(path))
