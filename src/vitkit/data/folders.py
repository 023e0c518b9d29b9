"""Folders of images: which files count, and which folders are splits rather than classes."""

from __future__ import annotations

import os
from pathlib import Path

from vitkit.data.checks import DataError, some

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
