"""Data sets as torchvision's classes download and unpack them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitkit.data.checks import DataError, first_line, some
from vitkit.data.formats.image_files import FileSource
from vitkit.data.formats.imagenet import open_imagenet
from vitkit.data.formats.plain_pickle import PickleError, array_of, load_plain
from vitkit.data.source import ArraySource, Splits

LARGEST = 2**29  # bytes of one file that is read into memory


def open_published(root: Path) -> Splits | None:
    """The splits of a published data set in this folder or, alone, in one of its folders; None for
    any other folder. Raises DataError."""
    for name, opened in SETS.items():
        for folder in (root, root / name):
            if folder.name == name and folder.is_dir():
                splits = opened(folder)
                if splits is not None:
                    return splits
    return open_imagenet(root)


def read(path: Path) -> bytes:
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(
                f"{path}: has {path.stat().st_size} bytes; a file of this set has at most {LARGEST}"
            )
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: the file cannot be read ({error.strerror}); fetch and unpack the set again"
        ) from error


# CIFAR


def open_cifar10(folder: Path) -> Splits:
    names = texts(read_pickle(folder / "batches.meta"), "label_names", folder / "batches.meta")
    train = [folder / f"data_batch_{number}" for number in range(1, 6)]
    parts = {"train": train, "test": [folder / "test_batch"]}
    return cifar(folder, parts, names, lambda file: pickled(file, "labels"))


def open_cifar100(folder: Path) -> Splits:
    names = texts(read_pickle(folder / "meta"), "fine_label_names", folder / "meta")
    parts = {"train": [folder / "train"], "test": [folder / "test"]}
    return cifar(folder, parts, names, lambda file: pickled(file, "fine_labels"))


def open_cifar10_bin(folder: Path) -> Splits:
    names = read(folder / "batches.meta.txt").decode("utf-8", "replace").split()
    train = [folder / f"data_batch_{number}.bin" for number in range(1, 6)]
    parts = {"train": train, "test": [folder / "test_batch.bin"]}
    return cifar(folder, parts, names, lambda file: records(file, labels=1))


def open_cifar100_bin(folder: Path) -> Splits:
    names = read(folder / "fine_label_names.txt").decode("utf-8", "replace").split()
    parts = {"train": [folder / "train.bin"], "test": [folder / "test.bin"]}
    return cifar(folder, parts, names, lambda file: records(file, labels=2))


def cifar(
    folder: Path,
    parts: Mapping[str, Sequence[Path]],
    names: Sequence[str],
    batch: Callable[[Path], tuple[np.ndarray, np.ndarray]],
) -> Splits:
    """`batch` gives (pixels (N, 3072) uint8, plane by plane, and labels (N,)) of a file."""
    sources = {}
    for split, files in parts.items():
        batches = [batch(file) for file in files]
        images = np.empty((sum(len(pixels) for pixels, _ in batches), 32, 32, 3), np.uint8)
        first = 0
        for pixels, _ in batches:  # straight to its place: the only copy of the images
            planes = pixels.reshape(-1, 3, 32, 32)
            images[first : first + len(planes)] = planes.transpose(0, 2, 3, 1)
            first += len(planes)
        labels = np.concatenate([labels for _, labels in batches])
        sources[split] = ArraySource(images, labels, names, f"{folder} {split}", keys=f"{split}/")
    return Splits(str(folder), sources["train"], test=sources["test"])


def read_pickle(file: Path) -> dict[str, Any]:
    try:
        content = load_plain(read(file))
    except PickleError as error:
        raise DataError(
            f"{file}: not as CIFAR is published, {error}; nothing in it was run; fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds a {type(content).__name__}; expected a dict as in CIFAR")
    return content


def pickled(file: Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    content = read_pickle(file)
    pixels, labels = array_of(content.get("data")), content.get(label_key)
    right = isinstance(labels, list) and all(type(label) is int for label in labels)
    if pixels is None or pixels.shape != (len(labels or ()), 3072) or not right:
        raise DataError(
            f"{file}: expected 'data', uint8 (N, 3072), and {label_key!r}, N integers, as CIFAR "
            f"has them; found {some(list(map(str, content)))}; fetch it again"
        )
    return pixels, np.array(labels, dtype=np.int64)


def texts(content: dict[str, Any], key: str, file: Path) -> list[str]:
    names = content.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: expected {key!r}, the names of the classes; fetch it again")
    return names


def records(file: Path, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Records of so many labels, of which the last counts, and 3072 pixels."""
    data = np.frombuffer(read(file), np.uint8)
    length = labels + 3072
    if not len(data) or len(data) % length:
        raise DataError(
            f"{file}: {len(data)} bytes are no multiple of {length}, the bytes of a labelled "
            "image; fetch it again"
        )
    rows = data.reshape(-1, length)
    return rows[:, labels:], rows[:, labels - 1].astype(np.int64)


# Sets of image files with lists


def open_pets(folder: Path) -> Splits | None:
    """37 breeds; trainval is to train on."""
    if not (folder / "annotations").is_dir():
        return None
    names: dict[int, str] = {}
    parts: dict[str, tuple[list[str], list[int]]] = {}
    for split, file in (("train", "trainval.txt"), ("test", "test.txt")):
        images, labels = parts[split] = ([], [])
        for line in read(folder / "annotations" / file).decode("utf-8", "replace").splitlines():
            fields = line.split()
            if not fields or line.startswith("#"):
                continue
            if len(fields) < 2 or not re.fullmatch(r"\w[\w-]*_\d+ \d{1,3}", " ".join(fields[:2])):
                raise DataError(
                    f"{folder / 'annotations' / file}: found {line[:60]!r}; expected lines such as "
                    "'Abyssinian_100 1 1 1'"
                )
            images.append(f"images/{fields[0]}.jpg")
            labels.append(int(fields[1]))
            names.setdefault(int(fields[1]), fields[0].rsplit("_", 1)[0].replace("_", " "))
    number = {label: place for place, label in enumerate(sorted(names))}
    sources = {
        split: FileSource(
            folder, images, np.array([number[label] for label in labels], np.int32),
            [names[label] for label in number],
        )
        for split, (images, labels) in parts.items()
    }  # fmt: skip
    require_files(folder, sources)
    return Splits(str(folder), sources["train"], test=sources["test"])


def open_flowers(folder: Path) -> Splits | None:
    """102 flowers, called by their numbers where there is no cat_to_name.json."""
    if not (folder / "jpg").is_dir():
        return None
    all_labels = matlab(folder / "imagelabels.mat", "labels")
    if all_labels.min(initial=1) < 1 or all_labels.max(initial=1) > 102:
        raise DataError(f"{folder / 'imagelabels.mat'}: expected labels from 1 to 102")
    names = flower_names(folder)
    sources = {}
    for split, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid")):
        ids = matlab(folder / "setid.mat", key)
        if ids.min(initial=1) < 1 or ids.max(initial=1) > len(all_labels):
            raise DataError(
                f"{folder / 'setid.mat'}: {key} names images that have no label; expected 1 to "
                f"{len(all_labels)}"
            )
        images = [f"jpg/image_{number:05}.jpg" for number in ids.tolist()]
        sources[split] = FileSource(
            folder, images, (all_labels[ids - 1] - 1).astype(np.int32), names
        )
    require_files(folder, sources)
    return Splits(str(folder), sources["train"], sources["val"], sources["test"])


def matlab(file: Path, key: str) -> np.ndarray:
    """An array of integers in a file of MATLAB, flat."""
    from scipy.io import loadmat

    try:
        return np.asarray(loadmat(file, variable_names=[key])[key]).astype(np.int64).ravel()
    except Exception as error:  # scipy raises many kinds on hostile bytes
        raise DataError(
            f"{file}: not readable as a MATLAB file with {key!r}: {first_line(error)}; fetch it "
            "again"
        ) from error


def flower_names(folder: Path) -> list[str]:
    numbers = [str(number) for number in range(1, 103)]
    file = next((f for f in (folder / "cat_to_name.json", folder.parent / "cat_to_name.json")
                 if f.is_file()), None)  # fmt: skip
    if file is None:
        return numbers
    try:
        names = [str(json.loads(read(file))[number]) for number in numbers]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: expected a name for each of 1 to 102, as JSON") from error
    return names if len(set(names)) == 102 else numbers


def require_files(folder: Path, sources: Mapping[str, FileSource]) -> None:
    from vitkit.data.formats.folders import images_below

    present = set(images_below(folder))
    named = [name for source in sources.values() for name in source.names]
    absent = [name for name in named if name not in present]
    if absent:
        raise DataError(
            f"{folder}: {len(absent)} of {len(named)} images are missing: {some(absent)}; fetch "
            "and unpack the set again"
        )


SETS: dict[str, Callable[[Path], Splits | None]] = {
    "cifar-10-batches-py": open_cifar10,
    "cifar-100-python": open_cifar100,
    "cifar-10-batches-bin": open_cifar10_bin,
    "cifar-100-binary": open_cifar100_bin,
    "oxford-iiit-pet": open_pets,
    "flowers-102": open_flowers,
}
