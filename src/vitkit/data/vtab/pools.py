"""What a reader finds of a task: the images that its 1,000 are drawn from, and those to test on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitkit.data.checks import DataError, checked_labels, digest
from vitkit.data.formats.image_files import FileSource, ends_of
from vitkit.data.source import Source, Subset, label_bytes

SEED = 0  # of every draw


@dataclass(frozen=True)
class Pools:
    train: Source
    test: Source
    val: Source | None = None  # where the data set has one; else both draws are from `train`
    same_test: bool = True  # whether the test images are the published ones
    note: str = ""  # a sentence on what else is not as published


class PixelSource(Source):
    """Some rows of a file of arrays: `pixels(row)` is an image, uint8 (H, W) or (H, W, 3)."""

    def __init__(
        self,
        file: Path,
        pixels: Callable[[int], np.ndarray],
        rows: np.ndarray,  # (N,)
        labels: np.ndarray,  # (N,)
        class_names: Sequence[str],
    ) -> None:
        self.path, self.pixels, self.rows = file, pixels, rows.astype(np.int64)
        self.class_names = list(class_names)
        self.labels = checked_labels(labels, self.class_names, str(file))

    def encoded(self, index: int) -> None:
        return None

    def image(self, index: int) -> Tensor:
        pixels = np.asarray(self.pixels(int(self.rows[index])))
        if pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)).copy())

    def key(self, index: int) -> str:
        return f"{self.path.name}/{self.rows[index]}"

    def name(self, index: int) -> str:
        return f"{self.path} row {self.rows[index]}"

    def fingerprint(self) -> str:
        parts = label_bytes(self.labels), self.rows.tobytes(), ends_of(self.path)
        return digest([*self.class_names, *parts])


def file_source(
    root: Path, names: Sequence[str], labels: Sequence[int], class_names: Sequence[str]
) -> FileSource:
    """Images by their paths below a folder. Raises DataError for a path that leads out of it, and
    for one that no file can have."""
    for name in names:
        # A surrogate may stand for an odd byte of a path, but half a pair for nothing.
        if re.search("[\0\ud800-\udc7f\udd00-\udfff]", name):
            raise DataError(f"{root}: {name[:60]!r} is no path; fetch the lists again")
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{root}: {name[:60]!r} leads out of the folder; fetch the lists again")
    return FileSource(root, names, checked_labels(labels, class_names, str(root)), class_names)


def chosen(source: Source, indices: Sequence[int] | np.ndarray) -> Source:
    """Those images; of files a source of their own, whose hash need not read all the others."""
    if isinstance(source, FileSource):
        names = [source.names[int(index)] for index in indices]
        return FileSource(source.root, names, source.labels[indices], source.class_names)
    return Subset(source, indices)


def parted(number: int, shares: Sequence[float]) -> list[np.ndarray]:
    """0..number in chance order, cut into parts of these shares, the last of which is the rest."""
    order = np.random.default_rng(SEED).permutation(number)
    ends = np.cumsum([int(number * share) for share in shares[:-1]])
    return [np.sort(part) for part in np.split(order, ends)]


def divided(source: Source, shares: Sequence[float]) -> Pools:
    """A data set without splits: to train on, to validate on, to test on, by chance."""
    train, val, test = (chosen(source, part) for part in parted(len(source), shares))
    return Pools(train, test, val, same_test=False)


def drawn(source: Source, number: int, title: str) -> Source:
    """So many images, by chance. Raises DataError where there are fewer."""
    if len(source) < number:
        raise DataError(
            f"{title}: {len(source)} images are too few to draw {number} from; fetch the data set "
            "again"
        )
    order = np.random.default_rng(SEED).permutation(len(source))
    return chosen(source, np.sort(order[:number]))


def found(root: Path, *paths: str) -> Path:
    """The first of these that is in the folder. Raises DataError."""
    for path in paths:
        if (root / path).exists():
            return root / path
    raise DataError(f"{root}: found no {' or '.join(paths)}; fetch and unpack the data set again")
