"""Sources that read an index: what is as long as the data stays on disk."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from vitkit.data.checks import DataError
from vitkit.data.indexes.columns import Numbers, Texts, let_go, mapped
from vitkit.data.source import Source, chosen_in_each, prefetch_in
from vitkit.data.tars.shards import Shards, is_url


@dataclass(frozen=True)
class Part:
    """One split of an index: its rows follow those of the split before."""

    split: str
    first: int
    samples: int
    class_names: list[str]
    fingerprint: str
    flip_keeps_class: bool = True
    folder: str = ""  # of files: where the keys begin, below the root
    shard_lengths: Sequence[int] = ()  # of shards: how many samples lie in each


class Columns:
    """The columns of an index that all splits share."""

    def __init__(self, folder: Path, samples: int, multi_label: bool) -> None:
        self.folder, self.samples, self.multi_label = folder, samples, multi_label
        self.keys = Texts(folder, "keys", samples)

    def numbers(self, name: str, dtype: str) -> Numbers:
        return Numbers(self.folder, name, dtype, self.samples)

    def labels(self, part: Part) -> Any:
        """The labels of one split: (N,), mapped into memory, or csr_array (N, K) bool."""
        end, classes = part.first + part.samples, len(part.class_names)
        path = self.folder / "labels.npy"
        if not self.multi_label:
            labels = mapped(self.folder, "labels", "<i4", self.samples)[part.first : end]
            check_range(labels, classes, path)
            return labels
        begins = mapped(self.folder, "label-starts", "<i8", self.samples + 1)
        chosen = mapped(self.folder, "labels", "<i4")
        begins = np.array(begins[part.first : end + 1])
        # One entry stands behind the last, so that the column is never empty.
        if not 0 <= begins[0] <= begins[-1] < len(chosen) or (np.diff(begins) < 0).any():
            raise DataError(f"{self.folder}/label-starts.npy: is damaged; build the index again")
        chosen = chosen[begins[0] : begins[-1]]
        check_range(chosen, classes, path)
        ones = np.ones(len(chosen), dtype=bool)
        return csr_array((ones, chosen, begins - begins[0]), shape=(part.samples, classes))


def check_range(labels: np.ndarray, classes: int, path: Path) -> None:
    least, most = int(labels.min(initial=0)), int(labels.max(initial=0))
    let_go(labels)
    if least < 0 or most >= classes:
        wrong = least if least < 0 else most
        raise DataError(
            f"{path}: holds the label {wrong}; expected 0 to {classes - 1} for {classes} classes; "
            "build the index again"
        )


class Indexed(Source):
    """One split of an index."""

    def __init__(self, columns: Columns, part: Part) -> None:
        self.columns, self.part, self.first = columns, part, part.first
        self.class_names, self.flip_keeps_class = part.class_names, part.flip_keeps_class
        self.labels = columns.labels(part)

    def row(self, index: int) -> int:
        """The row of the index that holds this image."""
        if not 0 <= index < self.part.samples:
            raise IndexError(index)
        return self.first + int(index)

    def key(self, index: int) -> str:
        return self.columns.keys[self.row(index)]

    def fingerprint(self) -> str:
        return self.part.fingerprint


class IndexedFiles(Indexed):
    """Images that are files below a root; their paths are the keys, or a column of their own."""

    def __init__(self, columns: Columns, part: Part, root: str, paths: Texts | None) -> None:
        super().__init__(columns, part)
        self.root = f"{root}/{part.folder}" if part.folder else root
        self.paths = columns.keys if paths is None else paths

    def file(self, index: int) -> str:
        below = self.paths[self.row(index)]
        if not stays_below(below):
            raise DataError(
                f"{self.columns.folder}: the path {below!r} leads out of {self.root}; build the "
                "index again"
            )
        return f"{self.root}/{below}"

    def encoded(self, index: int) -> bytes:
        place = self.file(index)
        if is_url(place):
            from vitkit.data.remote.reading import read_whole

            return read_whole(place)
        with open(place, "rb") as file:
            return file.read()

    def name(self, index: int) -> str:
        return self.file(index)


class IndexedRows(Indexed):
    """Chosen rows of other data."""

    def __init__(self, columns: Columns, part: Part, leaves: Sequence[Source]) -> None:
        super().__init__(columns, part)
        self.leaves = list(leaves)
        self.starts = np.cumsum([0, *(len(leaf) for leaf in leaves)]).tolist()
        self.rows = columns.numbers("rows", "<i8")
        lengths = [leaf.shard_lengths for leaf in leaves if leaf.shard_lengths is not None]
        if len(lengths) == len(leaves):  # else some images are at hand, in any order
            rows = mapped(columns.folder, "rows", "<i8", columns.samples)
            rows = rows[part.first : part.first + part.samples]
            if (np.diff(rows) >= 0).all():
                for row in rows[[0, -1]].tolist():
                    self.require_row(row)
                self.shard_lengths = chosen_in_each(rows, [n for leaf in lengths for n in leaf])
                self.shards_at_once = min(leaf.shards_at_once for leaf in leaves)
            let_go(rows)

    def prefetch(self, shards: Sequence[int]) -> None:
        prefetch_in(self.leaves, [len(leaf.shard_lengths or ()) for leaf in self.leaves], shards)

    def locate(self, index: int) -> tuple[Source, int]:
        row = self.rows[self.row(index)]
        self.require_row(row)
        leaf = bisect_right(self.starts, row) - 1
        return self.leaves[leaf], row - self.starts[leaf]

    def require_row(self, row: int) -> None:
        if not 0 <= row < self.starts[-1]:
            raise DataError(
                f"{self.rows.path}: holds row {row} of data with {self.starts[-1]}; build the "
                "index again"
            )

    def encoded(self, index: int) -> bytes | None:
        leaf, inner = self.locate(index)
        return leaf.encoded(inner)

    def image(self, index: int) -> Any:
        leaf, inner = self.locate(index)
        return leaf.image(inner)

    def file(self, index: int) -> str | None:
        leaf, inner = self.locate(index)
        return leaf.file(inner)

    def name(self, index: int) -> str:
        leaf, inner = self.locate(index)
        return leaf.name(inner)


class TarSource(Indexed):
    """Members of tar shards, read where they lie; nothing is unpacked."""

    def __init__(self, columns: Columns, part: Part, shards: Shards) -> None:
        super().__init__(columns, part)
        self.shards = shards
        self.offsets = columns.numbers("offsets", "<i8")
        self.sizes = columns.numbers("sizes", "<u4")
        self.starts = np.cumsum([0, *part.shard_lengths]).tolist()
        if shards.remote:
            self.shard_lengths = part.shard_lengths

    def shard_of(self, index: int) -> int:
        return bisect_right(self.starts, index) - 1

    def encoded(self, index: int) -> bytes:
        row = self.row(index)
        return self.shards.read(self.shard_of(index), self.offsets[row], self.sizes[row])

    def name(self, index: int) -> str:
        return f"{self.shards.title(self.shard_of(index))} {self.key(index)}"

    def prefetch(self, shards: Sequence[int]) -> None:
        self.shards.prefetch(shards)

    def shard_numbers(self) -> np.ndarray:
        """(N,) the shard of each image."""
        return np.repeat(np.arange(len(self.part.shard_lengths)), self.part.shard_lengths)


def stays_below(path: str) -> bool:
    """Whether a relative path leads to a place below where it begins."""
    pure = PurePosixPath(path)
    outside = pure.is_absolute() or ".." in pure.parts or "\0" in path or not pure.parts
    return not outside and (os.name != "nt" or not set(path) & {":", "\\"})
