"""Folders of images: which files count, and which folders are splits rather than classes."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import numpy as np

from vitkit.data.checks import DataError, digest, some
from vitkit.data.source import Source

IMAGE_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".tif",
    ".tiff",
    ".bmp",
    ".avif",
    ".ppm",
}
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
HASHED = 16 * 1024  # bytes at each end of a file


class FolderSource(Source):
    """A folder of class folders, each holding images at any depth."""

    def __init__(self, root: Path) -> None:
        folders = class_folders(root)
        files = [images_in(folder) for folder in folders]
        if not any(files):
            raise DataError(
                f"{root}: found {found_in(root)}; expected class folders with images in them "
                f"({root.name}/cat/1.jpg), train/ and val/ of such folders, or parquet files"
            )
        self.root = root
        # An empty folder is still a class: train/ and val/ must agree on the numbers.
        self.class_names = [f.name for f in folders]
        self.paths = [path for group in files for path in group]
        self.labels = np.repeat(np.arange(len(folders)), [len(group) for group in files])

    def encoded(self, index: int) -> bytes:
        return self.paths[index].read_bytes()

    def key(self, index: int) -> str:
        return self.paths[index].relative_to(self.root).as_posix()

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def file(self, index: int) -> str:
        return str(self.paths[index])

    def fingerprint(self) -> str:
        return digest([*self.class_names, self.content])

    @cached_property
    def content(self) -> str:
        """A hash of all files, kept because both halves of a split ask for it."""
        parts = ((p.relative_to(self.root).as_posix(), ends_of(p)) for p in self.paths)
        return digest(part for pair in parts for part in pair)


def existing(word: str | Path) -> Path:
    path = Path(word).expanduser()
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; DATA is a folder, parquet files or 'digits'"
        )
    return path


def is_parquet(word: str | Path) -> bool:
    return str(word).endswith(".parquet")


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def is_hidden(path: Path, root: Path) -> bool:
    """Whether the path, or a folder between it and `root`, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def images_in(folder: Path) -> list[Path]:
    """Every image at any depth, in order, but for hidden ones."""
    return [p for p in sorted(folder.rglob("*")) if not is_hidden(p, folder) and is_image(p)]


def parquet_files(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.glob("*.parquet")) if not is_hidden(p, folder)]


def class_folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_hidden(p, folder))


def split_folders(root: Path) -> dict[str, Path]:
    """The folders "train", "val" and "test" in root by these names; {} where they are classes.

    COCO's and Pascal's classes have a "train" among them. It is a class where images lie right in
    it and beside it is a folder of images that is no split.
    """
    splits: dict[str, Path] = {}
    others = []
    for folder in class_folders(root):
        split = SPLITS.get(folder.name.lower())
        if split is None:
            others.append(folder)
        else:
            splits.setdefault(split, folder)
    train = splits.get("train")
    if train is None or any(is_image(path) for path in train.iterdir()):
        return {} if any(images_in(folder) for folder in others) else splits
    return splits


def split_files(root: Path) -> dict[str, list[Path]]:
    """The parquet files in root by split; those whose names say none are to train on."""
    splits: dict[str, list[Path]] = {}
    for file in parquet_files(root):
        start = file.name.lower().split("-")[0].split(".")[0]
        splits.setdefault(SPLITS.get(start, "train"), []).append(file)
    return splits


def found_in(folder: Path) -> str:
    """A few words on what a folder holds, for messages."""
    entries = sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir())
    return some(entries) if entries else "an empty folder"


def ends_of(path: Path) -> bytes:
    """The length of a file and its first and last bytes, which tell it from others.

    Its middle is left out, so that a fingerprint of a million photographs takes a minute rather
    than an hour; its time of change too, which differs in a copy. An unreadable file is a bad
    image, which is counted when it is used.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            start = file.read(HASHED)
            file.seek(max(len(start), size - HASHED))
            return size.to_bytes(8, "little") + start + file.read()
    except OSError:
        return b""
