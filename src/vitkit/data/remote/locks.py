"""Files that processes share: one writes, others read, none removes what is in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitkit.data.cache import cache_folder
from vitkit.data.checks import DataError, first_line

try:
    import fcntl
except ImportError:  # Windows: processes may do the same work twice, but break nothing
    fcntl = None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process and thread at a time is in this block for this path, a file made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def held(descriptor: int) -> bool:
    """Mark an open file as in use until it is closed; whether it could be."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def unused(descriptor: int) -> bool:
    """Whether no process has marked this file as in use; then it is locked until it is closed."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def unwritable(error: OSError) -> DataError:
    """What to say when the cache folder cannot be used."""
    return DataError(
        f"{cache_folder()}: cannot be used to keep files ({first_line(error)}); set VITKIT_CACHE "
        "to a folder that can be written"
    )
