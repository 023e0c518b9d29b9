"""Labelled images by index: what a source of images is, and what is made of sources."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor

from vitkit.data.checks import DataError, checked_labels, digest, some
from vitkit.data.decode import decode


class Source(ABC):
    """Labelled images by index.

    `labels` is (N,) of integers, or where an image may have several labels (multi-label) a
    `scipy.sparse.csr_array` (N, K) of bool. Of a large source it lies on disk and is mapped into
    memory: look at parts of it.
    """

    class_names: list[str]
    labels: Any  # np.ndarray or csr_array
    flip_keeps_class = True  # False where a mirrored image would mean something else
    # Whether `target` gives shares of the classes, float32 (K,), of which `labels` are the largest.
    soft_targets = False
    # How many images lie in each shard, in order, where shards are to be read one after another
    # because they are fetched from afar; None where any order costs the same.
    shard_lengths: Sequence[int] | None = None
    # How many of those shards are read together, their images shuffled among each other. It
    # decides the order of a run, so it may depend on the data but never on the machine.
    shards_at_once: int = 8
    # How many images come from each of several DATA, in order.
    part_lengths: Sequence[int] | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def multi_label(self) -> bool:
        return not isinstance(self.labels, np.ndarray)

    def target(self, index: int) -> int | np.ndarray:
        """The label, or for multi-label a float32 (K,) of zeros and ones, or shares of classes."""
        if self.multi_label:
            return self.labels[[index]].toarray()[0].astype(np.float32)
        return int(self.labels[index])

    @abstractmethod
    def encoded(self, index: int) -> bytes | None:
        """The image file as it is stored; None where only pixels are kept. Raises OSError."""

    def image(self, index: int) -> Tensor:
        """The image as uint8 (3, H, W). Raises ImageError, OSError."""
        return decode(self.encoded(index) or b"")

    @abstractmethod
    def key(self, index: int) -> str:
        """What this image is called in lists that are kept: the same wherever the data lies."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What to call this image in a message: its path, or file and row."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes when the images or labels change."""

    def file(self, index: int) -> str | None:
        """The path of the file that is this image and nothing else; None where there is none."""
        return None

    def prefetch(self, shards: Sequence[int]) -> None:
        """Fetch these shards, by their places in `shard_lengths`, while other work goes on."""
        return None


@dataclass(frozen=True)
class Splits:
    """What a user's DATA holds: images to train on and, where it has them, to validate on while
    training and to test on at the end."""

    name: str
    train: Source
    val: Source | None = None
    test: Source | None = None

    def parts(self) -> dict[str, Source]:
        """Those that are there, by name: "train", "val", "test"."""
        given = {"train": self.train, "val": self.val, "test": self.test}
        return {name: source for name, source in given.items() if source is not None}


def splits_of(name: str, found: Mapping[str, Source]) -> Splits:
    """Splits by their names; a lone one, to evaluate on, say, is all there is."""
    found = dict(found)
    if "train" not in found:
        found["train"] = found.pop("val" if "val" in found else "test")
    return Splits(name, found["train"], found.get("val"), found.get("test"))


class ArraySource(Source):
    """Images in memory: uint8 (N, H, W) or (N, H, W, 3).

    `keys` is what their keys begin with; the rest is their number.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int] | np.ndarray,  # (N,), or of several each (N, K) of zeros and ones
        class_names: Sequence[str],
        name: str = "array",
        flip_keeps_class: bool = True,
        keys: str = "",
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
        checked = checked_label_table if np.ndim(labels) == 2 else checked_labels
        self.labels = checked(np.asarray(labels), self.class_names, name)
        self.title, self.flip_keeps_class, self.keys = name, flip_keeps_class, keys
        if len(self) != len(images):
            raise DataError(f"{name}: {len(images)} images but {len(self)} labels")

    def encoded(self, index: int) -> None:
        return None

    def image(self, index: int) -> Tensor:
        return self.images[index].contiguous()

    def key(self, index: int) -> str:
        return f"{self.keys}{index}"

    def name(self, index: int) -> str:
        return f"{self.title} {index}"

    def fingerprint(self) -> str:
        shape = str(tuple(self.images.shape))
        pixels = self.images.numpy().tobytes()
        return digest([shape, pixels, label_bytes(self.labels), *self.class_names])


class Concatenated(Source):
    """Several sources with the same classes, one after the other.

    Where images of different parts could have the same key, `titles` are what the keys of each
    part begin with.
    """

    def __init__(self, parts: Sequence[Source], titles: Sequence[str] | None = None) -> None:
        self.titles = titles
        for part in parts[1:]:
            if part.class_names != parts[0].class_names:
                raise DataError(
                    f"the classes of {part.name(0)} ({some(part.class_names)}) differ from those "
                    f"of {parts[0].name(0)} ({some(parts[0].class_names)}); give data with one "
                    "set of classes"
                )
        self.parts = list(parts)
        self.class_names = parts[0].class_names
        if len({part.multi_label for part in parts}) > 1:
            raise DataError(
                f"the images of {parts[0].name(0)} and those of {parts[-1].name(0)} differ in that "
                "one kind may have several labels each; give data of one kind"
            )
        labels = [part.labels for part in parts]
        self.labels = vstack(labels, "csr") if parts[0].multi_label else np.concatenate(labels)
        self.flip_keeps_class = all(part.flip_keeps_class for part in parts)
        self.soft_targets = any(part.soft_targets for part in parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        self.part_lengths = [len(part) for part in parts]
        if any(part.shard_lengths is not None for part in parts):
            sharded = [part for part in parts if part.shard_lengths is not None]
            lengths = [length for part in sharded for length in part.shard_lengths or ()]
            mean = max(1, sum(lengths) // max(1, len(lengths)))
            # What is at hand is cut alike, or all of it would come in one stretch of the stream.
            self.shards_of = [part.shard_lengths or pieces(len(part), mean) for part in parts]
            self.shard_lengths = [length for of_part in self.shards_of for length in of_part]
            self.shards_at_once = min(part.shards_at_once for part in sharded)

    def locate(self, index: int) -> tuple[Source, int]:
        part = bisect_right(self.starts, index) - 1
        return self.parts[part], index - self.starts[part]

    def target(self, index: int) -> int | np.ndarray:
        if not self.soft_targets:
            return super().target(index)
        part, inner = self.locate(index)
        found = part.target(inner)
        # A label among shares is a whole one, so that a batch can hold both.
        whole = isinstance(found, int)
        return np.eye(1, len(self.class_names), found, np.float32)[0] if whole else found

    def encoded(self, index: int) -> bytes | None:
        part, inner = self.locate(index)
        return part.encoded(inner)

    def image(self, index: int) -> Tensor:
        part, inner = self.locate(index)
        return part.image(inner)

    def key(self, index: int) -> str:
        part, inner = self.locate(index)
        if self.titles is None:
            return part.key(inner)
        return f"{self.titles[bisect_right(self.starts, index) - 1]}/{part.key(inner)}"

    def file(self, index: int) -> str | None:
        part, inner = self.locate(index)
        return part.file(inner)

    def name(self, index: int) -> str:
        part, inner = self.locate(index)
        return part.name(inner)

    def prefetch(self, shards: Sequence[int]) -> None:
        prefetch_in(self.parts, [len(lengths) for lengths in self.shards_of], shards)

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
        self.soft_targets = source.soft_targets
        self.shards_at_once = source.shards_at_once
        if (np.diff(self.indices) >= 0).all():
            if source.shard_lengths is not None:
                self.shard_lengths = chosen_in_each(self.indices, source.shard_lengths)
            if source.part_lengths is not None:
                self.part_lengths = chosen_in_each(self.indices, source.part_lengths)

    def target(self, index: int) -> int | np.ndarray:
        if not self.soft_targets:
            return super().target(index)
        return self.source.target(int(self.indices[index]))

    def encoded(self, index: int) -> bytes | None:
        return self.source.encoded(int(self.indices[index]))

    def image(self, index: int) -> Tensor:
        return self.source.image(int(self.indices[index]))

    def key(self, index: int) -> str:
        return self.source.key(int(self.indices[index]))

    def file(self, index: int) -> str | None:
        return self.source.file(int(self.indices[index]))

    def prefetch(self, shards: Sequence[int]) -> None:
        self.source.prefetch(shards)

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def fingerprint(self) -> str:
        return digest(
            [
                self.source.fingerprint(),
                self.indices.tobytes(),
                label_bytes(self.labels),
                *self.class_names,
            ]
        )


class Without(Source):
    """A source but for a few images: what is kept in memory is the few, not the many.

    `left_out` are indices of the source, in any order.
    """

    def __init__(self, source: Source, left_out: Sequence[int] | np.ndarray) -> None:
        self.source = source
        self.left_out = np.unique(np.asarray(left_out, dtype=np.int64))
        # How many images are kept before each that is left out.
        self.kept_before = self.left_out - np.arange(len(self.left_out))
        self.class_names = source.class_names
        self.flip_keeps_class = source.flip_keeps_class
        self.soft_targets = source.soft_targets
        self.shards_at_once = source.shards_at_once
        self.shard_lengths = without_chosen(self.left_out, source.shard_lengths)
        self.part_lengths = without_chosen(self.left_out, source.part_lengths)

    def __len__(self) -> int:
        return len(self.source) - len(self.left_out)

    @property
    def multi_label(self) -> bool:
        return self.source.multi_label

    @property
    def labels(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        kept = np.ones(len(self.source), dtype=bool)
        kept[self.left_out] = False
        return self.source.labels[kept]

    def inner(self, index: int) -> int:
        """The index in the source."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return index + int(np.searchsorted(self.kept_before, index, side="right"))

    def target(self, index: int) -> int | np.ndarray:
        return self.source.target(self.inner(index))

    def encoded(self, index: int) -> bytes | None:
        return self.source.encoded(self.inner(index))

    def image(self, index: int) -> Tensor:
        return self.source.image(self.inner(index))

    def key(self, index: int) -> str:
        return self.source.key(self.inner(index))

    def file(self, index: int) -> str | None:
        return self.source.file(self.inner(index))

    def prefetch(self, shards: Sequence[int]) -> None:
        self.source.prefetch(shards)

    def name(self, index: int) -> str:
        return self.source.name(self.inner(index))

    def fingerprint(self) -> str:
        return digest([self.source.fingerprint(), "without", self.left_out.tobytes()])


def prefetch_in(parts: Sequence[Source], shards_in: Sequence[int], shards: Sequence[int]) -> None:
    """Have each of several sources, one after the other, fetch those of the shards that it has."""
    first = 0
    for part, number in zip(parts, shards_in, strict=True):
        wanted = [shard - first for shard in shards if first <= shard < first + number]
        if wanted and part.shard_lengths is not None:
            part.prefetch(wanted)
        first += number


def pieces(number: int, length: int) -> list[int]:
    """A number of images in pieces of this length, the last as long as it comes."""
    return [min(length, number - begin) for begin in range(0, number, length)]


def chosen_in_each(indices: np.ndarray, lengths: Sequence[int]) -> list[int]:
    """How many of the sorted indices fall into each of the shards of these lengths."""
    return np.diff(np.searchsorted(indices, np.cumsum([0, *lengths]))).tolist()


def without_chosen(indices: np.ndarray, lengths: Sequence[int] | None) -> list[int] | None:
    """How many remain in each."""
    if lengths is None:
        return None
    fewer = chosen_in_each(indices, lengths)
    return [number - few for number, few in zip(lengths, fewer, strict=True)]


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


def checked_label_table(values: np.ndarray, class_names: Sequence[str], title: str) -> csr_array:
    """(N, K) zeros and ones -> the labels of a multi-label source. Raises DataError."""
    if values.shape[1] != len(class_names) or not np.isin(values, (0, 1)).all():
        raise DataError(
            f"{title}: labels are {values.dtype} of shape {values.shape}; expected zeros and ones, "
            f"a column for each of {len(class_names)} classes"
        )
    return csr_array(values.astype(bool))


def label_bytes(labels: Any) -> bytes:
    """Labels for a hash; the same ones give the same bytes, however they are kept."""
    if isinstance(labels, np.ndarray):
        return labels.astype(np.int64).tobytes()
    return labels.indptr.astype(np.int64).tobytes() + labels.indices.astype(np.int64).tobytes()


def strata(source: Source) -> np.ndarray:
    """(N,) integers by which a share of every class is taken: the label, or of several labels the
    rarest, and -1 for an image without any."""
    if not source.multi_label:
        return np.asarray(source.labels)
    labels = source.labels
    counts = labels.sum(axis=0)
    order = np.argsort(counts, kind="stable")  # the rarest class first
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    rarest = np.full(len(source), len(order), dtype=np.int64)
    rows = np.repeat(np.arange(len(source)), np.diff(labels.indptr))
    np.minimum.at(rarest, rows, rank[labels.indices])
    return np.append(order, -1)[rarest]
