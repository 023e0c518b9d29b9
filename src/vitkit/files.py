"""Folders that are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A fresh folder to write into; it appears at `path` only when the block has ended well.

    Every file is fsynced, then the folder takes the place of an older one by renames, and the
    parent is fsynced: after a crash at any time `path` is the old folder, the new one or absent.
    After an error it is the old one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    fresh.mkdir()
    replaced = None
    try:
        yield fresh
        for file in fresh.rglob("*"):
            sync(file)
        sync(fresh)
        if path.exists():
            replaced = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.old")
            path.rename(replaced)
        fresh.rename(path)
        sync(path.parent)
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        if replaced is not None and replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is the old one or the new one, never a part; text as UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        fresh.write_bytes(data)
        sync(fresh)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder to fsync it
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
