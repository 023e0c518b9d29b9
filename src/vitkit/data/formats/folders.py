"""Folders on disk: which files count, and which folders are splits rather than classes."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
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
    "dev": "val",
    "test": "test",
    "testing": "test",
}
# Folders that images lie in without being of a class.
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpg", "jpeg", "photos", "pictures", "data")


def existing(word: str | Path) -> Path:
    path = Path(word).expanduser()
    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder; DATA is a folder of images, a CSV or JSON file of "
            "labels, parquet files, tar shards, an index, a URL, hf:owner/name or 'digits'"
        )
    return path


def is_parquet(word: str | Path) -> bool:
    return str(word).endswith(".parquet")


def table_files(folder: Path) -> list[str]:
    """The parquet files in a folder or, of a copy by `datasets`, its arrow files."""
    names = files_in(folder)
    parquet = [name for name in names if is_parquet(name)]
    if parquet:
        return parquet
    if "state.json" in names:  # which also tells them from what is cached beside them
        try:
            state = json.loads((folder / "state.json").read_bytes())
            listed = [entry["filename"] for entry in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder / 'state.json'}: not as `save_to_disk` of datasets writes it; save again"
            ) from error
        absent = [name for name in listed if name not in names]
        if absent:
            raise DataError(
                f"{folder}: {len(absent)} of {len(listed)} arrow files are missing: "
                f"{some(absent)}; copy the whole folder again"
            )
        return listed
    return [name for name in names if name.endswith(".arrow") and not name.startswith("cache-")]


def has_image_suffix(name: str) -> bool:
    return name[name.rfind(".") :].lower() in IMAGE_SUFFIXES


def scanned(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """The entries of a folder but for hidden ones, in no order. Raises DataError."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name != "__MACOSX":
                    yield entry
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be read: {error.strerror}") from error


def followed(question: Callable[[], bool]) -> bool:
    """Whether an entry is a file, or a folder; a link that leads in a circle is neither."""
    try:
        return question()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def is_image(entry: os.DirEntry[str]) -> bool:
    """Whether a file is an image by its name; a link that leads nowhere is one that is missing."""
    if not has_image_suffix(entry.name):
        return False
    return followed(entry.is_file) or (entry.is_symlink() and not os.path.exists(entry.path))


def subfolders(folder: str | Path) -> list[str]:
    return sorted(entry.name for entry in scanned(folder) if followed(entry.is_dir))


def files_in(folder: str | Path) -> list[str]:
    return sorted(entry.name for entry in scanned(folder) if followed(entry.is_file))


def images_below(folder: str | Path, start: str = "") -> Iterator[str]:
    """`start` and the path of each image at any depth, in order, but for hidden ones.

    Links to files are followed, links to folders are not: they could lead in a circle.
    """
    names, folders = [], set()
    for entry in scanned(folder):
        if is_image(entry):
            names.append(entry.name)
        elif entry.is_dir(follow_symlinks=False):
            names.append(entry.name)
            folders.add(entry.name)
    names.sort()
    for name in names:
        if name in folders:
            yield from images_below(os.path.join(folder, name), f"{start}{name}/")
        else:
            yield start + name


def images_in(folder: Path) -> list[Path]:
    """Every image at any depth, in order, but for hidden ones."""
    return [folder / name for name in images_below(folder)]


def has_images(folder: str | Path) -> bool:
    """Whether images lie right in the folder."""
    return any(is_image(entry) for entry in scanned(folder))


def holds_images(folder: str | Path) -> bool:
    """Whether there is an image at any depth."""
    inner = []
    for entry in scanned(folder):
        if is_image(entry):
            return True
        if entry.is_dir(follow_symlinks=False):
            inner.append(entry.path)
    return any(holds_images(path) for path in inner)


def has_class_folders(folder: str | Path, no_classes: Collection[str] = ()) -> bool:
    """Whether a folder in it holds images, but for folders of these names."""
    return any(
        holds_images(os.path.join(folder, name))
        for name in subfolders(folder)
        if name.lower() not in no_classes
    )


def split_folders(root: Path) -> dict[str, str]:
    """{"train", "val", "test": the name of the folder in root}; {} where they are classes.

    COCO's and Pascal's classes have a "train" among them. It is a class where images lie right in
    it and beside it is a folder of images that is no split.
    """
    names = subfolders(root)
    splits: dict[str, str] = {}
    for name in names:
        split = SPLITS.get(name.lower())
        if split is not None:
            splits.setdefault(split, name)
    if "train" not in splits and (longer := longer_splits(root, names)):
        return longer
    others = [name for name in names if name.lower() not in SPLITS]
    train = splits.get("train")
    if train is None or has_images(root / train):
        return {} if any(holds_images(root / name) for name in others) else splits
    return splits


def longer_splits(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Splits by a word of their folders' names, training_set and test_set, say; {} without a
    train and another: "bullet train" and "test tube" may be classes."""
    splits: dict[str, str] = {}
    for name in names:
        found = {SPLITS[word] for word in re.split(r"[-_. ]", name.lower()) if word in SPLITS}
        if len(found) == 1:
            splits.setdefault(found.pop(), name)
    if len(splits) < 2 or "train" not in splits:
        return {}
    return {} if any(has_images(root / name) for name in splits.values()) else splits


def inner_folder(root: Path, name: str, wrappers: Collection[str]) -> str:
    """The path of a split's folder in root, or of the one in it where that is all it holds and is
    called the same or by one of these names."""
    inner = subfolders(root / name)
    if len(inner) == 1 and inner[0].lower() in (name.lower(), *wrappers):
        path = f"{name}/{inner[0]}"
        if not has_images(root / path) and has_class_folders(root / path):
            return path
    return name


def split_named(file: str) -> str | None:
    """The split that the first word of a file's name says: val for "validation-00000.parquet"."""
    return SPLITS.get(re.split(r"[-_. ]", file.lower())[0])
