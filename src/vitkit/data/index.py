"""An index: the list of a data set's images in a folder of its own, NAME.index.

index.json says what it is; every column of it is a plain .npy file as long as the data:

  keys, keys-starts   what each image is called, as `Source.key` says: UTF-8, end to end
  labels              int32; of several labels each, all of them end to end, and label-starts
  files               nothing more; paths, paths-starts where the keys are not the paths
  tar                 offsets (int64) and sizes (uint32) in the shards, which index.json lists
  rows                rows (int64) of other DATA, whose words are in index.json

The rows of a split follow one another, and within it those of a shard. An index is complete or
absent, holds no code, and is DATA itself.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, vstack

from vitkit.data.cache import cache_folder
from vitkit.data.checks import DataError, digest
from vitkit.data.columns import Texts, write_numbers, write_texts
from vitkit.data.indexed import Columns, IndexedFiles, IndexedRows, Part, TarSource, stays_below
from vitkit.data.shards import (
    Shard,
    Shards,
    ends_of,
    file_sha256,
    is_url,
    local_shard,
    without_secrets,
)
from vitkit.data.source import Concatenated, Source, Splits, Subset, Without, label_bytes
from vitkit.files import whole_folder, write_whole

FORMAT, VERSION = "vitkit index", 1
INFO = "index.json"
LARGEST_INFO = 2**28  # bytes
LOOKED_AT = 64  # rows whose keys tell whether other DATA is still the same
SPLIT_NAMES = ("train", "val", "test")


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


def build_index(words: Any, out: str | Path, hash: bool = False) -> Path:
    """Write an index of any DATA to the folder `out` (by custom NAME.index); gives its path.

    With `hash` it holds the SHA-256 of every tar shard, against which shards that are fetched from
    afar are checked. Raises DataError, OSError.
    """
    from vitkit.data.opening import open_data

    return write_index(out, open_data(words), words, hash)


def write_index(out: str | Path, splits: Splits, words: Any = None, hash: bool = False) -> Path:
    """Write an index of these splits, or of what was chosen from them, to the folder `out`.

    The splits may be made of `Subset`, `Without` and `Concatenated`. Images that are files, or
    members of tar shards, are listed one by one; of all else the rows of the DATA that was opened
    are listed, and `words` must be the words it was opened by. Raises DataError, OSError.
    """
    out = Path(out).expanduser()
    given = zip(SPLIT_NAMES, (splits.train, splits.val, splits.test), strict=True)
    parts = {name: part for name, part in given if part is not None and len(part)}
    if not parts:
        raise DataError(f"{splits.name}: holds no images; an index needs at least one")
    leaves: list[Source] = []
    chosen = {name: resolved(part, np.arange(len(part)), leaves) for name, part in parts.items()}
    if all(isinstance(leaf, TarSource) for leaf in leaves):
        rows, content = tar_content(out, parts, chosen, leaves, hash)
    elif all(part.file(0) is not None for part in parts.values()) and all_files(leaves):
        rows, content = file_content(out, parts)
    else:
        rows, content = row_content(out, parts, chosen, leaves, words)
    return write_columns(out, splits.name, rows, content)


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
    for part in (splits.train, splits.val, splits.test):
        if part is not None:
            resolved(part, np.arange(len(part)), leaves)
    return leaves


def signature(source: Source) -> str:
    """A hash that takes no reading of images, and changes when rows come, go or change places."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int))
    keys = [source.key(int(row)) for row in rows]
    return digest([str(len(source)), *source.class_names, label_bytes(source.labels), *keys])


# The folder


def write_columns(out: Path, title: str, rows: Sequence[Rows], content: Content) -> Path:
    """Write an index, complete or not at all; gives its path."""
    labels = [part.labels for part in rows]
    multi_label = not isinstance(labels[0], np.ndarray)
    if len({isinstance(part, np.ndarray) for part in labels}) > 1:
        raise DataError(f"{title}: only some of the splits have several labels for an image")
    info = {
        "format": FORMAT, "version": VERSION, "kind": content.kind, "name": title,
        "multi_label": multi_label, "paths": content.paths is not None, **content.info,
        "splits": [part.info() for part in rows],
    }  # fmt: skip
    with whole_folder(out) as fresh:
        if multi_label:
            widest = max(part.shape[1] for part in labels)
            joined: Any = vstack([widened(part, widest) for part in labels], "csr")
            write_numbers(fresh, "label-starts", joined.indptr, "<i8")
            write_numbers(fresh, "labels", np.append(joined.indices, 0), "<i4")
        else:
            write_numbers(fresh, "labels", np.concatenate(labels), "<i4")
        write_texts(fresh, "keys", (key for part in rows for key in part.keys))
        if content.paths is not None:
            write_texts(fresh, "paths", content.paths)
        for name, (values, dtype) in content.numbers.items():
            write_numbers(fresh, name, values, dtype)
        (fresh / INFO).write_text(json.dumps(info, indent=1), encoding="utf-8")
    if "url" in content.info.get("root", {}) or any(
        ":" in word.get("word", "") for word in content.info.get("words", ())
    ):
        trust(out)
    return out


def widened(labels: csr_array, classes: int) -> csr_array:
    """The same labels of more classes."""
    shape = (labels.shape[0], classes)  # pyright: ignore[reportOptionalSubscript]
    return csr_array((labels.data, labels.indices, labels.indptr), shape=shape)


def is_index(path: Path) -> bool:
    return (path / INFO).is_file() and (path / "keys.npy").is_file()


def open_index(
    path: str | Path, places: Sequence[Shard] | None = None, beside: str | None = None
) -> Splits:
    """The splits of an index. Raises DataError where it is damaged or does not fit its data.

    `places`: where the shards of a tar index lie, in its order, rather than where it says.
    `beside`: the URL of the folder that it was fetched from.
    """
    path = Path(path).expanduser()
    info = read_info(path)
    try:
        parts = read_parts(info)
        samples = sum(part.samples for part in parts)
        columns = Columns(path, samples, bool(info["multi_label"]))
        sources = opened_parts(path, info, columns, parts, places, beside)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    by_name = {part.split: source for part, source in zip(parts, sources, strict=True)}
    first = next(name for name in SPLIT_NAMES if name in by_name)
    train = by_name.pop("train") if "train" in by_name else by_name.pop(first)
    return Splits(str(path), train, by_name.get("val"), by_name.get("test"))


def read_info(path: Path) -> dict[str, Any]:
    file = path / INFO
    try:
        if file.stat().st_size > LARGEST_INFO:
            raise damaged(path, f"{INFO} is too large")
        info = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no index, {INFO} is not there") from error
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"{INFO}: {error}") from error
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise damaged(path, f"{INFO} does not say {FORMAT!r}")
    if info.get("version") != VERSION:
        raise DataError(
            f"{path}: an index of version {info.get('version')}; this vitkit reads {VERSION}; "
            "build it again"
        )
    return info


def damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path}: a damaged index ({why[:200]}); build it again")


def read_parts(info: dict[str, Any]) -> list[Part]:
    parts: list[Part] = []
    for entry in info["splits"]:
        first = parts[-1].first + parts[-1].samples if parts else 0
        names = [str(name) for name in entry["class_names"]]
        lengths = [int(length) for length in entry["shard_lengths"]]
        part = Part(
            entry["split"], first, int(entry["samples"]), names, str(entry["fingerprint"]),
            bool(entry["flip_keeps_class"]), str(entry["folder"]), lengths,
        )  # fmt: skip
        if part.split not in SPLIT_NAMES or part.split in {other.split for other in parts}:
            raise ValueError(f"a split {part.split!r}")
        if part.samples < 1 or not names or (part.folder and not stays_below(part.folder)):
            raise ValueError(f"the split {part.split}")
        parts.append(part)
    if not parts:
        raise ValueError("no splits")
    return parts


def opened_parts(
    path: Path,
    info: dict[str, Any],
    columns: Columns,
    parts: Sequence[Part],
    places: Sequence[Shard] | None,
    beside: str | None,
) -> list[Any]:
    if info["kind"] == "files":
        root = found_place(path, info["root"], beside)
        paths = Texts(path, "paths", columns.samples) if info["paths"] else None
        return [IndexedFiles(columns, part, root, paths) for part in parts]
    if info["kind"] == "tar":
        shards = Shards(
            read_shards(path, info, beside)
            if places is None
            else [
                replace(place, ends=str(entry["ends"]))
                for place, entry in zip(places, info["shards"], strict=True)
            ]
        )
        for part in parts:
            lengths = part.shard_lengths
            if len(lengths) != len(shards.all) or min(lengths) < 0 or sum(lengths) != part.samples:
                raise ValueError("the shards")
        return [TarSource(columns, part, shards) for part in parts]
    if info["kind"] == "rows":
        words = found_words(path, info["words"])
        leaves = leaves_of_words(words, str(path))
        if [signature(leaf) for leaf in leaves] != info["signatures"]:
            raise DataError(
                f"{path}: chooses rows of {' '.join(words)}, which has changed since; build the "
                "index again"
            )
        return [IndexedRows(columns, part, leaves) for part in parts]
    raise ValueError(f"a kind {info['kind']!r}")


def read_shards(path: Path, info: dict[str, Any], beside: str | None) -> list[Shard]:
    """The shards of a tar index; those on this disk must be as large as they were. DataError."""
    root = found_place(path, info["root"], beside)
    shards = []
    for entry in info["shards"]:
        name = str(entry["name"])
        if not stays_below(name):
            raise ValueError(f"the name {name!r}")
        place = f"{root}/{name}"
        known = Shard(
            place, int(entry["size"]), int(entry["changed"]), str(entry["version"]),
            str(entry["ends"]), str(entry["sha256"]),
        )  # fmt: skip
        shards.append(known)
    if not is_url(root):
        check_shards(path, shards)
    return shards


def check_shards(path: Path, shards: Sequence[Shard]) -> None:
    changed, absent = [], []
    for shard in shards:
        try:
            now = local_shard(Path(shard.place))
        except OSError:
            absent.append(shard.place)
            continue
        touched = now.changed != shard.changed and bool(shard.ends)
        if now.size != shard.size or (touched and ends_of(Path(shard.place)) != shard.ends):
            changed.append(shard.place)
    for places, what in ((absent, "absent"), (changed, "changed since it was built")):
        if places:
            raise DataError(
                f"{path}: {len(places)} of {len(shards)} shards are {what}, {places[0]} first; "
                "bring them back or build the index again"
            )


def kept_place(out: Path, place: str | Path) -> dict[str, str]:
    """How a path on disk is kept in an index: as it is, and as it is seen from the index."""
    full = os.path.abspath(place)
    return {"path": full, "from_here": os.path.relpath(full, os.path.abspath(out.parent))}


def found_place(path: Path, kept: dict[str, str], beside: str | None = None) -> str:
    """The place that an index keeps: data and index may have been moved together, or only one."""
    if "url" in kept:
        check_trust(path, kept["url"], beside)
        return kept["url"]
    if beside is not None:
        host, place = re.fullmatch(r"(\w+://[^/]*)(.*)", beside).groups()  # pyright: ignore
        return host + posixpath.normpath(posixpath.join(place or "/", kept["from_here"]))
    for place in (path.absolute().parent / kept["from_here"], Path(kept["path"])):
        if place.exists():
            return os.path.normpath(place)
    raise DataError(
        f"{path}: its data, {kept['path']}, is not there; bring it back or build the index again"
    )


def trust(path: Path) -> None:
    """Remember that this index was made here: it may lead to places on the network."""
    write_whole(made_here(path), "")


def made_here(path: Path) -> Path:
    return cache_folder() / "made" / digest([(path / INFO).read_bytes()])


def check_trust(path: Path, url: str, beside: str | None = None) -> None:
    """DataError unless the user named the server of this URL, now or when the index was made."""
    named = beside is not None and beside.split("/")[:3] == url.split("/")[:3]
    if not named and not made_here(path).exists():
        raise DataError(
            f"{path}: leads to {without_secrets(url)}, but was not made on this machine; put it "
            "there and give its URL, or build it again"
        )


def kept_words(out: Path, words: Any) -> list[dict[str, str]]:
    listed = words if isinstance(words, list | tuple) else [words]
    return [
        kept_place(out, Path(word).expanduser())
        if Path(word).expanduser().exists()
        else {"word": without_secrets(str(word))}
        for word in listed
    ]


def found_words(path: Path, kept: Sequence[dict[str, str]]) -> list[str]:
    for entry in kept:
        if ":" in entry.get("word", ""):  # a URL, or a name on a hub
            check_trust(path, entry["word"])
    return [entry["word"] if "word" in entry else found_place(path, entry) for entry in kept]
