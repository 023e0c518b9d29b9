"""Where vitkit keeps what it could make or fetch again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: processes may do the same work twice, but break nothing
    fcntl = None


def cache_folder() -> Path:
    """VITKIT_CACHE, or `vitkit` in XDG_CACHE_HOME or ~/.cache; made if it is not there."""
    named = os.environ.get("VITKIT_CACHE")
    if not named:
        named = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "vitkit")
    folder = Path(named).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
