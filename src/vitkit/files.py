"""Folders and files that are complete or absent, whatever happens while they are written."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitkit.errors import UsageError


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A fresh folder to write into; it appears at `path` only when the block has ended well.

    Every file is fsynced, then the folder takes the place of an older one by renames, and the
    parent is fsynced: after a crash at any time `path` is the old folder, the new one or absent.
    After an error it is the old one. Where `path` is a link, all this is done where it leads.
    UsageError for the current folder and those above it, which cannot be replaced.
    """
    try:
        path = path.resolve()
    except (OSError, RuntimeError) as error:  # links in a loop
        raise UsageError(f"{path}: {error}") from error
    with suppress(FileNotFoundError):  # of a current folder that was removed
        if Path.cwd().is_relative_to(path):
            raise UsageError(f"{path}: is the current folder, or above it; choose another path")
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


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; when the block has ended well it takes the place of `path` by a rename.

    The file is fsynced before, the folder after: after a crash `path` is the old file or the new.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield fresh
        sync(fresh)
        fresh.replace(path)
    except BaseException as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        # A full disk names no file, and nobody knows the name that this one has for a while.
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(fresh)):
            error.filename = str(path)
        raise
    sync(path.parent)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is the old one or the new one, never a part; text as UTF-8."""
    with whole_file(path) as fresh:
        fresh.write_bytes(content.encode() if isinstance(content, str) else content)


def leave_cache(path: Path) -> None:
    """Let the system drop a synced file from its page cache, where it can.

    The next file is then written into the same pages, in half the time that new ones take, and what
    is read again and again, as a data set, stays cached.
    """
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            with suppress(OSError):  # a hint, which a file system need not know
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder to fsync it
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
