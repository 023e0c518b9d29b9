"""Where labelled images come from: digits, class folders, parquet files, arrays.

A source gives random access, its length, its labels and the names of its classes.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitkit.data.checks import DataError as DataError
from vitkit.data.checks import checked_labels, digest
from vitkit.data.checks import some as some
from vitkit.data.decode import ImageError, decode
from vitkit.data.folders import (
    class_folders,
    ends_of,
    existing,
    found_in,
    images_in,
    is_parquet,
    parquet_files,
    split_files,
    split_folders,
)
from vitkit.data.holding_out import held_out_indices


class Source(ABC):
    """Labelled images by index: `len(source)`, `source.labels` (N,) int64, `source.class_names`."""

    class_names: list[str]
    labels: np.ndarray
    flip_keeps_class = True  # False where a mirrored image would mean something else

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """The image as uint8 (3, H, W). Raises ImageError."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call this image in a message: its path, or file and row."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes when the images or labels change."""


@dataclass(frozen=True)
class Splits:
    """What a user's DATA holds: images to train on and, where it has them, to validate on while
    training and to test on at the end."""

    name: str
    train: Source
    val: Source | None = None
    test: Source | None = None


class ArraySource(Source):
    """Images in memory: uint8 (N, H, W) or (N, H, W, 3)."""

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        name: str = "array",
        flip_keeps_class: bool = True,
    ) -> None:
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or images.shape[3:] not in ((), (3,))
        ):
            raise DataError(
                f"{name}: images are {images.dtype} of shape {images.shape}; expected uint8 "
                "(N, H, W) or (N, H, W, 3)"
            )
        if images.ndim == 3:
            images = np.repeat(images[..., None], 3, axis=-1)
        # Torch knows no mirrored views; anything else that is contiguous is not copied.
        self.images = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)
        self.class_names = list(class_names)
        self.labels = checked_labels(labels, self.class_names, name)
        self.title, self.flip_keeps_class = name, flip_keeps_class
        if len(self.labels) != len(images):
            raise DataError(f"{name}: {len(images)} images but {len(self.labels)} labels")

    def image(self, index: int) -> Tensor:
        return self.images[index].contiguous()

    def name(self, index: int) -> str:
        return f"{self.title} {index}"

    def fingerprint(self) -> str:
        shape = str(tuple(self.images.shape))
        pixels = self.images.numpy().tobytes()
        return digest([shape, pixels, self.labels.tobytes(), *self.class_names])


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

    def image(self, index: int) -> Tensor:
        return decode(self.paths[index].read_bytes())

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def fingerprint(self) -> str:
        return digest([*self.class_names, self.content])

    @cached_property
    def content(self) -> str:
        """A hash of all files, kept because both halves of a split ask for it."""
        parts = ((p.relative_to(self.root).as_posix(), ends_of(p)) for p in self.paths)
        return digest(part for pair in parts for part in pair)


class ParquetSource(Source):
    """Parquet files with an image column (bytes, or Hugging Face's {bytes, path}) and labels."""

    def __init__(self, paths: Sequence[Path]) -> None:
        from vitkit.data.parquet import read_parquet  # pyarrow takes a while to import

        self.paths = list(paths)
        self.images, self.labels, self.class_names = read_parquet(self.paths, self.title())

    def title(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{self.paths[0]}{more}"

    def image(self, index: int) -> Tensor:
        return decode(self.images[index].as_py() or b"")

    def name(self, index: int) -> str:
        return f"{self.title()} row {index}"

    def fingerprint(self) -> str:
        return digest([*self.class_names, self.labels.tobytes(), self.content])

    @cached_property
    def content(self) -> str:
        """A hash of all images, kept because both halves of a split ask for it."""
        return digest(memoryview(value.as_buffer() or b"") for value in self.images)


class Concatenated(Source):
    """Several sources with the same classes, one after the other."""

    def __init__(self, parts: Sequence[Source]) -> None:
        for part in parts[1:]:
            if part.class_names != parts[0].class_names:
                raise DataError(
                    f"the classes of {part.name(0)} ({some(part.class_names)}) differ from those "
                    f"of {parts[0].name(0)} ({some(parts[0].class_names)}); give data with one "
                    "set of classes"
                )
        self.parts = list(parts)
        self.class_names = parts[0].class_names
        self.labels = np.concatenate([part.labels for part in parts])
        self.flip_keeps_class = all(part.flip_keeps_class for part in parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()

    def locate(self, index: int) -> tuple[Source, int]:
        part = bisect_right(self.starts, index) - 1
        return self.parts[part], index - self.starts[part]

    def image(self, index: int) -> Tensor:
        part, inner = self.locate(index)
        return part.image(inner)

    def name(self, index: int) -> str:
        part, inner = self.locate(index)
        return part.name(inner)

    def fingerprint(self) -> str:
        return digest([part.fingerprint() for part in self.parts])


class Subset(Source):
    """Chosen images of a source, by index, with the same classes or a smaller set of them."""

    def __init__(self, source: Source, indices: Sequence[int] | np.ndarray) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.labels = source.labels[self.indices]
        self.class_names = source.class_names
        self.flip_keeps_class = source.flip_keeps_class

    def image(self, index: int) -> Tensor:
        return self.source.image(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def fingerprint(self) -> str:
        return digest(
            [
                self.source.fingerprint(),
                self.indices.tobytes(),
                self.labels.tobytes(),
                *self.class_names,
            ]
        )


def only_classes(source: Source, classes: Sequence[str]) -> Subset:
    """The images of the named classes, renumbered in the order given."""
    missing = [name for name in classes if name not in source.class_names]
    if missing:
        raise DataError(f"no classes {some(missing)} among {some(source.class_names)}")
    number = {source.class_names.index(name): new for new, name in enumerate(classes)}
    subset = Subset(source, np.flatnonzero(np.isin(source.labels, list(number))))
    subset.labels = np.array([number[label] for label in subset.labels.tolist()], dtype=np.int64)
    subset.class_names = list(classes)
    return subset


def digits() -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; a stratified fifth is held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)  # 0..16 -> 0..255
    names = [str(digit) for digit in range(10)]
    source = ArraySource(images, np.asarray(labels), names, name="digit", flip_keeps_class=False)
    return held_out(source, "digits", share=0.2, at_most=len(source), seed=0)


def held_out(
    source: Source, name: str, share: float = 0.1, at_most: int = 10_000, seed: int = 0
) -> Splits:
    """Split off about `share` of every class for validation, `at_most` images in all.

    A pure function of the labels and the seed; every class keeps at least one training image.
    """
    val = held_out_indices(source.labels, share, at_most, seed)
    if len(val) == 0:
        raise DataError(
            f"{name}: {len(source)} images of {len(source.class_names)} classes are too few to "
            "hold any out; give more images, or a val/ folder"
        )
    train = np.setdiff1d(np.arange(len(source)), val)
    return Splits(name, Subset(source, train), Subset(source, val))


def open_data(data: str | Path | Splits | Source | Sequence[str | Path]) -> Splits:
    """DATA as users name it -> its splits.

    "digits"; a folder of class folders, of train/, val/ and test/ with class folders in them, or
    of parquet files; one or more parquet files; several of these. Raises DataError.
    """
    if isinstance(data, Splits):
        return data
    if isinstance(data, Source):
        return Splits(data.name(0), data)
    words = [data] if isinstance(data, str | Path) else list(data)
    if not words:
        raise DataError("no data given; expected a folder, parquet files or 'digits'")
    if all(is_parquet(word) for word in words):
        return Splits(str(words[0]), ParquetSource([existing(word) for word in words]))
    opened = [open_one(word) for word in words]
    if len(opened) == 1:
        return opened[0]
    return Splits(
        opened[0].name,
        Concatenated([splits.train for splits in opened]),
        joined(splits.val for splits in opened),
        joined(splits.test for splits in opened),
    )


def joined(parts: Iterable[Source | None]) -> Source | None:
    given = [part for part in parts if part is not None]
    return Concatenated(given) if given else None


def open_one(word: str | Path) -> Splits:
    if str(word) == "digits":
        return digits()
    path = existing(word)
    if path.is_file():
        if not is_parquet(path):
            raise DataError(f"{path}: a file, but not parquet; expected a folder or parquet files")
        return Splits(str(path), ParquetSource([path]))
    parts: dict[str, Path | list[Path]] = {**(split_folders(path) or split_files(path))}
    if not parts:
        return Splits(str(path), FolderSource(path))
    if "train" not in parts:  # only to evaluate on, say; then it is all there is
        parts["train"] = parts.pop("val" if "val" in parts else "test")
    train, val = open_part(parts["train"]), parts.get("val")
    test = open_test(parts["test"]) if "test" in parts else None
    return Splits(str(path), train, open_part(val) if val else None, test)


def open_part(part: Path | list[Path]) -> Source:
    """One split: its parquet files, or a folder that has parquet files or class folders in it."""
    files = part if isinstance(part, list) else parquet_files(part)
    return ParquetSource(files) if files or isinstance(part, list) else FolderSource(part)


def open_test(part: Path | list[Path]) -> Source | None:
    """Many a test split is published without labels; that must not keep anyone from training."""
    try:
        return open_part(part)
    except DataError as error:
        warnings.warn(f"the test split is passed over: {error}", stacklevel=2)
        return None


def image_side(source: Source, looked_at: int = 16) -> int:
    """The median shorter side of a few images spread over the source, in pixels."""
    sides = []
    for index in np.linspace(0, len(source) - 1, min(looked_at, len(source))).astype(int):
        try:
            sides.append(min(source.image(int(index)).shape[-2:]))
        except ImageError:
            continue
    if not sides:
        raise DataError(f"none of the images looked at can be decoded, {source.name(0)} first")
    return int(np.median(sides))


def require_classes(source: Source, title: str) -> None:
    """DataError unless there are images of at least two classes."""
    present = np.unique(source.labels)
    if len(present) < 2:
        names = some([source.class_names[label] for label in present]) or "none"
        raise DataError(
            f"{title}: found {len(source)} images of {len(present)} class ({names}); "
            "expected at least two classes"
        )
