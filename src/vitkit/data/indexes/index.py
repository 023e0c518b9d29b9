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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array, vstack

from vitkit.data.checks import DataError
from vitkit.data.indexes.columns import Texts, write_numbers, write_texts
from vitkit.data.indexes.content import (
    Content,
    Rows,
    all_files,
    file_content,
    leaves_of_words,
    resolved,
    row_content,
    signature,
    tar_content,
)
from vitkit.data.indexes.places import INFO, found_place, found_words, trust
from vitkit.data.indexes.sources import (
    Columns,
    IndexedFiles,
    IndexedRows,
    Part,
    TarSource,
    stays_below,
)
from vitkit.data.source import Source, Splits, splits_of
from vitkit.data.tars.shards import Shard, Shards, ends_of, is_url, local_shard
from vitkit.files import whole_folder

FORMAT, VERSION = "vitkit index", 1
LARGEST_INFO = 2**28  # bytes
SPLIT_NAMES = ("train", "val", "test")


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
    parts = {name: part for name, part in splits.parts().items() if len(part)}
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


def write_columns(out: Path, title: str, rows: Sequence[Rows], content: Content) -> Path:
    """Write an index, complete or not at all; gives its path. Raises DataError.

    An older index is replaced, and nothing else.
    """
    if os.path.lexists(out) and not is_index(out):
        raise DataError(
            f"{out}: exists and is no index; give a name that is free, as {out.name}.index"
        )
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
    return splits_of(str(path), by_name)


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
