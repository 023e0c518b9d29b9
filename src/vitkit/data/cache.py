"""Where vitkit keeps what it can make or fetch again, and how much of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from vitkit.errors import UsageError

MOST = 100 * 10**9  # bytes


def cache_folder() -> Path:
    """VITKIT_CACHE, else vitkit/ in XDG_CACHE_HOME, else ~/.cache/vitkit."""
    if given := os.environ.get("VITKIT_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "vitkit"


def cache_limit() -> int:
    """Bytes: VITKIT_CACHE_GB, else the smaller of 100 GB and half of what the disk has free."""
    given = os.environ.get("VITKIT_CACHE_GB")
    if given is not None:
        try:
            return max(0, int(float(given) * 10**9))
        except (ValueError, OverflowError) as error:
            raise UsageError(f"VITKIT_CACHE_GB is {given!r}; expected a number") from error
    folder = cache_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return min(MOST, shutil.disk_usage(there).free // 2)
