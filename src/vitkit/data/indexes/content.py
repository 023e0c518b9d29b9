"""What an index lists of a source: files, members of tar shards, or rows of other data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitkit.data.checks import DataError, digest
from vitkit.data.indexes.places import kept_place, kept_words
from vitkit.data.indexes.sources import IndexedRows, TarSource, stays_below
from vitkit.data.source import Concatenated, Source, Splits, Subset, Without, label_bytes
from vitkit.data.tars.shards import Shard, Shards, file_sha256, is_url, without_secrets

LOOKED_AT = 64  # rows whose keys tell whether other DATA is still the same


@dataclass
class Rows:
    """What is written of one split."""

    split: str
    class_names: Sequence[str]
    labels: Any  # (N,) integers, or csr_array (N, K)
    keys: Iterable[str]
    fingerprint: str
    flip_keeps_class: bool = True
    folder: str = ""
    shard_lengths: Sequence[int] = ()

    def info(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "samples": self.labels.shape[0],
            "class_names": list(self.class_names),
            "fingerprint": self.fingerprint,
            "flip_keeps_class": self.flip_keeps_class,
            "folder": self.folder,
            "shard_lengths": list(self.shard_lengths),
        }


@dataclass
class Content:
    """What is written beside keys and labels: fields of index.json, and columns."""

    kind: str
    info: dict[str, Any]
    numbers: dict[str, tuple[np.ndarray, str]] = field(default_factory=dict)
    paths: Iterable[str] | None = None


def all_files(leaves: Sequence[Source]) -> bool:
    return all(len(leaf) == 0 or leaf.file(0) is not None for leaf in leaves)


def resolved(
    source: Source, indices: np.ndarray, leaves: list[Source]
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) which of the leaves, the sources that are made of no others, and (N,) where in it.

    Leaves that are met for the first time are added to the list.
    """
    if isinstance(source, Subset):
        return resolved(source.source, source.indices[indices], leaves)
    if isinstance(source, Without):
        before = np.searchsorted(source.kept_before, indices, side="right")
        return resolved(source.source, indices + before, leaves)
    if isinstance(source, Concatenated):
        return resolved_parts(source.parts, source.starts, indices, leaves)
    if isinstance(source, IndexedRows):
        first = source.first
        rows = source.rows.part(first, first + len(source))[indices]
        return resolved_parts(source.leaves, source.starts, rows, leaves)
    place = next((n for n, leaf in enumerate(leaves) if leaf is source), len(leaves))
    if place == len(leaves):
        leaves.append(source)
    return np.full(len(indices), place, dtype=np.int32), np.asarray(indices, dtype=np.int64)


def resolved_parts(
    parts: Sequence[Source], starts: Sequence[int], indices: np.ndarray, leaves: list[Source]
) -> tuple[np.ndarray, np.ndarray]:
    which, inner = np.empty(len(indices), np.int32), np.empty(len(indices), np.int64)
    part_of = np.searchsorted(starts, indices, side="right") - 1
    for number, part in enumerate(parts):
        mine = part_of == number
        which[mine], inner[mine] = resolved(part, indices[mine] - starts[number], leaves)
    return which, inner


def rows_of(split: str, source: Source, keys: Iterable[str]) -> Rows:
    return Rows(
        split, source.class_names, source.labels, keys, source.fingerprint(),
        source.flip_keeps_class,
    )  # fmt: skip


def keys_of(source: Source, order: Iterable[int] | None = None) -> Iterator[str]:
    return (source.key(int(index)) for index in (range(len(source)) if order is None else order))


# Images that are files


def file_content(out: Path, parts: dict[str, Source]) -> tuple[list[Rows], Content]:
    """A list of files: below a common root, for each split a folder, and in it the keys."""
    folders = {name: key_folder(part) for name, part in parts.items()}
    keyed = all(folder is not None for folder in folders.values())
    if not keyed:
        folders = dict.fromkeys(parts, common_folder(parts.values()))
    root = os.path.commonpath([str(folder) for folder in folders.values()])
    rows = []
    for name, part in parts.items():
        below = os.path.relpath(str(folders[name]), root).replace(os.sep, "/")
        rows.append(
            replace(rows_of(name, part, keys_of(part)), folder="" if below == "." else below)
        )
    content = Content("files", {"root": kept_place(out, root)})
    if not keyed:
        content.paths = (
            os.path.relpath(file_of(part, index), root).replace(os.sep, "/")
            for part in parts.values()
            for index in range(len(part))
        )
    return rows, content


def key_folder(source: Source) -> str | None:
    """The folder below which every file of a source lies where its key says; None without one."""
    first, key = file_of(source, 0).replace(os.sep, "/"), source.key(0)
    folder = first.removesuffix("/" + key)
    if folder == first or not stays_below(key):
        return None
    for index in range(1, len(source)):
        key = source.key(index)
        if file_of(source, index).replace(os.sep, "/") != f"{folder}/{key}":
            return None
    return os.path.abspath(folder)


def common_folder(sources: Iterable[Source]) -> str:
    folders = {
        os.path.dirname(os.path.abspath(file_of(source, index)))
        for source in sources
        for index in range(len(source))
    }
    return os.path.commonpath(sorted(folders))


def file_of(source: Source, index: int) -> str:
    path = source.file(index)
    if path is None:
        raise DataError(f"{source.name(index)}: is no file of its own, unlike {source.name(0)}")
    return path


# Members of tar shards


def tar_content(
    out: Path,
    parts: dict[str, Source],
    chosen: dict[str, tuple[np.ndarray, np.ndarray]],
    leaves: Sequence[Source],
    hash: bool,
) -> tuple[list[Rows], Content]:
    """Offsets and sizes, by shard; samples of one shard in the order in which they lie there."""
    shards, numbers = joined_shards(leaves)
    rows, offsets, sizes = [], [], []
    for name, part in parts.items():
        which, inner = chosen[name]
        shard, offset, size = (np.empty(len(part), np.int64) for _ in range(3))
        for place, leaf in enumerate(leaves):
            assert isinstance(leaf, TarSource)
            mine, first, end = which == place, leaf.first, leaf.first + len(leaf)
            shard[mine] = numbers[place][leaf.shard_numbers()[inner[mine]]]
            offset[mine] = leaf.offsets.part(first, end)[inner[mine]]
            size[mine] = leaf.sizes.part(first, end)[inner[mine]]
        order = np.lexsort((offset, shard))
        written = rows_of(name, part, keys_of(part, order))
        lengths = np.bincount(shard, minlength=len(shards)).tolist()
        rows.append(replace(written, labels=part.labels[order], shard_lengths=lengths))
        offsets.append(offset[order])
        sizes.append(size[order])
    if hash:
        shards = [with_sha256(shard) for shard in shards]
    columns = {"offsets": (np.concatenate(offsets), "<i8"), "sizes": (np.concatenate(sizes), "<u4")}
    return rows, Content("tar", shards_info(out, shards), columns)


def joined_shards(leaves: Sequence[Source]) -> tuple[list[Shard], list[np.ndarray]]:
    """All shards once, and for each leaf the places in that list of its own shards."""
    places: dict[str, int] = {}
    shards, numbers = [], []
    for leaf in leaves:
        assert isinstance(leaf, TarSource)
        for shard in leaf.shards.all:
            if places.setdefault(shard.place, len(shards)) == len(shards):
                shards.append(shard)
        numbers.append(np.array([places[shard.place] for shard in leaf.shards.all]))
    return shards, numbers


def with_sha256(shard: Shard) -> Shard:
    if shard.sha256:
        return shard
    with Shards([shard]).on_disk(0) as path:
        return replace(shard, sha256=file_sha256(path))


def shards_info(out: Path, shards: Sequence[Shard]) -> dict[str, Any]:
    """The shards as index.json lists them, their names below a common root."""
    places = [os.path.dirname(without_secrets(shard.place)) for shard in shards]
    remote = is_url(places[0])
    if not remote:
        places = [os.path.abspath(place) for place in places]
    root = common_prefix(places) if remote else os.path.commonpath(places)

    def name(shard: Shard) -> str:
        place = without_secrets(shard.place) if remote else os.path.abspath(shard.place)
        return place[len(root) :].lstrip("/" + os.sep).replace(os.sep, "/")

    listed = [
        {
            "name": name(shard), "size": shard.size, "changed": shard.changed,
            "version": shard.version, "ends": shard.ends, "sha256": shard.sha256,
        }
        for shard in shards
    ]  # fmt: skip
    return {"root": {"url": root} if remote else kept_place(out, root), "shards": listed}


def common_prefix(urls: Sequence[str]) -> str:
    """The longest URL of a folder that all of these begin with."""
    parts = [url.split("/") for url in urls]
    same = 0
    for pieces in zip(*parts, strict=False):
        if len(set(pieces)) > 1:
            break
        same += 1
    if same < 3:  # scheme, nothing, host
        raise DataError(f"the shards lie on several servers, {urls[0]} and {urls[-1]}; index each")
    return "/".join(parts[0][:same])


# Rows of other data


def row_content(
    out: Path,
    parts: dict[str, Source],
    chosen: dict[str, tuple[np.ndarray, np.ndarray]],
    leaves: Sequence[Source],
    words: Any,
) -> tuple[list[Rows], Content]:
    """Row numbers over all leaves of the DATA that `words` name."""
    base = leaves_of_words(words, leaves[0].name(0))
    signatures = [signature(leaf) for leaf in base]
    starts = np.cumsum([0, *(len(leaf) for leaf in base)])
    begins = []
    for leaf in leaves:
        same = [n for n, other in enumerate(base) if other is leaf]
        if not same:
            wanted = signature(leaf)
            same = [n for n, known in enumerate(signatures) if known == wanted]
        if not same:
            raise DataError(
                f"{leaf.name(0)}: is not in the data that {words!r} name; give the words that it "
                "was opened by"
            )
        begins.append(starts[same[0]])
    numbers = [np.asarray(begins)[which] + inner for which, inner in chosen.values()]
    rows = [rows_of(name, part, keys_of(part)) for name, part in parts.items()]
    info = {"words": kept_words(out, words), "signatures": signatures}
    return rows, Content("rows", info, {"rows": (np.concatenate(numbers), "<i8")})


def leaves_of_words(words: Any, title: str) -> list[Source]:
    from vitkit.data.opening import open_data

    listed = words if isinstance(words, list | tuple) else [words]
    if not listed or not all(isinstance(word, str | Path) for word in listed):
        raise DataError(
            f"{title}: an index of images that are neither files nor members of tar shards needs "
            "the words of their DATA"
        )
    return leaves_of(open_data(list(listed)))


def leaves_of(splits: Splits) -> list[Source]:
    leaves: list[Source] = []
    for part in splits.parts().values():
        resolved(part, np.arange(len(part)), leaves)
    return leaves


def signature(source: Source) -> str:
    """A hash that takes no reading of images, and changes when rows come, go or change places."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int))
    keys = [source.key(int(row)) for row in rows]
    return digest([str(len(source)), *source.class_names, label_bytes(source.labels), *keys])
