"""Tar shards as DATA: which shards words name, and the index that is made of their headers.

The convention is WebDataset's: members with one name up to the first dot belong together, as
`0001.jpg`, `0001.cls`, `0001.json`. Tars of class folders are read too.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vitkit.data.cache import cache_folder
from vitkit.data.checks import MOST_SHARDS, DataError, digest, first_line, gaps, some
from vitkit.data.formats.folders import IMAGE_SUFFIXES, SPLITS, followed
from vitkit.data.indexes.content import Content, Rows, shards_info
from vitkit.data.indexes.index import SPLIT_NAMES, open_index, read_info, write_columns
from vitkit.data.remote.locks import locked, unwritable
from vitkit.data.source import Splits, label_bytes
from vitkit.data.tars.members import Problems
from vitkit.data.tars.samples import (
    Samples,
    Values,
    classes_of,
    label_all,
    note_duplicates,
    samples_in,
)
from vitkit.data.tars.shards import (
    FILES,
    Shard,
    Shards,
    ends_of,
    is_url,
    local_shard,
    without_secrets,
)
from vitkit.errors import UsageError

PACKED_SUFFIXES = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
NAME_FILES = ("classes.txt", "class_names.json")
VERSION = 1  # of what is read from tars; another makes all indexes again
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
FIX = (
    "expected plain files, each image with a label (0001.jpg and 0001.cls) and a name of its own; "
    "write the shards again"
)


def is_tar(word: str | Path) -> bool:
    """Whether a word names tar files; compressed ones too, which are refused when opened."""
    word = str(word).lower().split("?")[0]
    return word.endswith((".tar", *PACKED_SUFFIXES))


def tar_files(folder: Path) -> list[str]:
    """The tar files in a folder, or in its folders train/, val/ and test/.

    None where other folders or images are beside them: those are what was packed into them.
    """
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name.lower()
            if name.startswith("."):
                continue
            if followed(entry.is_dir):
                inner = tar_files(Path(entry.path)) if name in SPLITS else []
                if not inner:
                    return []
                found += inner
            elif name.endswith(tuple(IMAGE_SUFFIXES)):
                return []
            elif name.endswith(".tar"):
                found.append(entry.path)
    return sorted(found)


def open_tars(words: Sequence[str | Path]) -> Splits:
    """Paths, patterns or URLs of tar shards -> splits, through an index that is made when needed.

    The index is kept in the cache folder and made again when a shard's size or time has changed.
    Files that begin with train, val or test, or lie in folders of these names, are splits.
    """
    places = named_places(words)
    title = without_secrets(str(words[0]))
    shards = found_shards(places, title)
    missing = gaps([without_secrets(shard.place) for shard in shards])
    if missing:
        warnings.warn(
            f"{title}: {len(missing)} shards are missing between the others: {some(missing)}; "
            "going on without them",
            stacklevel=2,
        )
    splits = [split_of(shard.place) for shard in shards]
    names = class_names_beside(shards)
    made_of = digest(
        [*itertools.chain(*map(identity, shards)), *splits, json.dumps(names), str(VERSION)]
    )
    where = digest([without_secrets(shard.place) for shard in shards])[:32]
    folder = cache_folder() / "indexes"
    path = folder / f"{where}.index"
    try:
        with locked(folder / f"{where}.lock"):
            opened = fitting(path, made_of, in_order(shards, splits))
            if opened is None:
                make_index(path, title, shards, splits, names, made_of)
                opened = open_index(path, in_order(shards, splits))
    except OSError as error:
        raise unwritable(error) from error
    return replace(opened, name=title)


def fitting(path: Path, made_of: str, shards: Sequence[Shard]) -> Splits | None:
    """What an index says of these shards; None where it is stale, damaged or not there."""
    try:
        return open_index(path, shards) if read_info(path).get("made_of") == made_of else None
    except DataError:
        return None


def named_places(words: Iterable[str | Path]) -> list[str]:
    """Every shard that words name, in order. DataError for what is not there or is compressed."""
    places = [place for word in words for place in expanded(str(word))]
    packed = [place for place in places if not place.lower().split("?")[0].endswith(".tar")]
    if packed:
        raise DataError(
            f"{packed[0]}: a compressed tar file; images are read at random from plain ones: "
            "unpack it to a .tar with gunzip, or unzstd, bunzip2, unxz"
        )
    twice = [place for place, number in counted(places).items() if number > 1]
    if twice:
        raise DataError(f"{len(twice)} shards are named twice: {some(twice)}; name each once")
    return places


def counted(values: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return counts


def expanded(word: str) -> list[str]:
    """The files of one word: {000..099} and {a,b} written out, then * and ? looked up."""
    words = without_braces(word)
    if is_url(word):
        from vitkit.data.remote.reading import matching

        return [url for one in words for url in (matching(one) if "*" in one else [one])]
    words = [str(Path(one).expanduser()) for one in words]
    found = [
        path for one in words for path in (sorted(glob.glob(one)) if is_pattern(one) else [one])
    ]
    if not found:
        raise DataError(f"{word}: matches no files; expected tar shards, such as 000.tar")
    return found


def is_pattern(word: str) -> bool:
    return glob.has_magic(word) and not Path(word).exists()


def without_braces(word: str) -> list[str]:
    words = [word]
    while (match := BRACES.search(words[0])) is not None:
        low, high, listed = match.groups()
        if listed is None:
            count = int(high) - int(low) + 1
            width = len(low) if low.startswith("0") or len(low) == len(high) else 0
            inner = [f"{n:0{width}d}" for n in range(int(low), int(low) + min(count, MOST_SHARDS))]
        else:
            count, inner = 1, listed.split(",")
        if count < 1 or len(words) * max(count, len(inner)) > MOST_SHARDS:
            raise UsageError(
                f"{word}: names {max(0, len(words) * count):,} shards; expected 1 to "
                f"{MOST_SHARDS:,}, as in {{000..099}}.tar"
            )
        # The same braces stand at the same place in all, those before them being as long.
        words = [one.replace(match.group(), part, 1) for one in words for part in inner]
    return words


def found_shards(places: Sequence[str], title: str) -> list[Shard]:
    """What each shard is like now. DataError that counts and names those that are not there."""
    if is_url(places[0]):
        from vitkit.data.remote.reading import remote_shards

        return remote_shards(places)
    shards, missing = [], []
    for place in places:
        try:
            shards.append(local_shard(Path(place)))
        except OSError:
            missing.append(place)
    if missing:
        raise DataError(
            f"{title}: {len(missing)} of {len(places)} shards are not there: {some(missing)}; "
            "bring them, or name only those that are there"
        )
    return shards


def identity(shard: Shard) -> list[str]:
    return [without_secrets(shard.place), str(shard.size), str(shard.changed), shard.version]


def split_of(place: str) -> str:
    """The split that the name of a shard, or of its folder, says; else to train on."""
    path = PurePosixPath(without_secrets(place).replace("\\", "/"))
    start = re.split(r"[-_.]", path.name.lower())[0]
    return SPLITS.get(start) or SPLITS.get(path.parent.name.lower()) or "train"


def in_order(shards: Sequence[Shard], splits: Sequence[str]) -> list[Shard]:
    """The shards as the index lists them: those of a split beside each other."""
    return [s for name in SPLIT_NAMES for s, split in zip(shards, splits, strict=True)
            if split == name]  # fmt: skip


def class_names_beside(shards: Sequence[Shard]) -> list[str] | None:
    """The names in classes.txt or class_names.json beside the shards or in the folder above."""
    first = without_secrets(shards[0].place)
    folder = first.rpartition("/")[0]
    for place in (f"{folder}/{name}" for name in NAME_FILES):
        content = small_file(place)
        if content is not None:
            return read_names(content, place)
    above, _, name = folder.rpartition("/")
    if name.lower() in SPLITS and above:
        return class_names_beside([replace(shards[0], place=f"{above}/x.tar")])
    return None


def small_file(place: str) -> bytes | None:
    if is_url(place):
        from vitkit.data.remote.reading import small_remote_file

        return small_remote_file(place)
    path = Path(place)
    return path.read_bytes() if path.is_file() else None


def read_names(content: bytes, place: str) -> list[str]:
    """Names of classes: one a line, or a JSON list, or an object by number."""
    try:
        text = content.decode()
        if not place.endswith(".json"):
            return [line.strip() for line in text.splitlines() if line.strip()]
        names = json.loads(text)
        if isinstance(names, dict):
            names = [names[str(number)] for number in range(len(names))]
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    except (ValueError, KeyError, RecursionError):
        pass
    raise DataError(
        f"{place}: expected the names of the classes, one a line in classes.txt, or as a list in "
        "class_names.json"
    )


def make_index(
    path: Path,
    title: str,
    shards: Sequence[Shard],
    splits: Sequence[str],
    names: list[str] | None,
    made_of: str,
) -> None:
    """Read the headers of all shards and write the index."""
    problems, values = Problems(), Values()
    read = Shards(shards)
    titles = [read.title(number) for number in range(len(shards))]
    found, looked_at = [], []
    for number, shard in enumerate(shards):
        try:
            with read.on_disk(number) as file:
                found.append(samples_in(file, titles[number], problems, values))
                looked_at.append(replace(shard, ends=ends_of(file)))
                FILES.forget(str(file))
        except OSError as error:
            raise DataError(f"{titles[number]}: cannot be read: {first_line(error)}") from error
    found = without_unlabelled_test(found, splits, title)
    label_all(found, titles, problems, values)
    for name in SPLIT_NAMES:  # an image may have a namesake in another split
        mine = [number for number, split in enumerate(splits) if split == name]
        note_duplicates([found[n] for n in mine], [titles[n] for n in mine], problems)
    problems.check(title, FIX)
    if not any(samples.keys for samples in found):
        raise DataError(f"{title}: found no images in {len(shards)} shards; {FIX}")
    class_names, labels = classes_of(found, values, names, title)
    write_tar_index(path, title, looked_at, splits, found, class_names, labels, made_of)


def without_unlabelled_test(
    found: list[Samples], splits: Sequence[str], title: str
) -> list[Samples]:
    """Many a test split is published without labels; that must not keep anyone from training."""
    labelled = {split for samples, split in zip(found, splits, strict=True) if samples.labelled}
    if not labelled or "test" in labelled or "test" not in splits:
        return found
    warnings.warn(f"{title}: the test split is passed over, it has no labels", stacklevel=4)
    return [
        Samples() if split == "test" else samples
        for samples, split in zip(found, splits, strict=True)
    ]


def write_tar_index(
    path: Path,
    title: str,
    shards: Sequence[Shard],
    splits: Sequence[str],
    found: Sequence[Samples],
    class_names: list[str],
    labels: Sequence[Any],
    made_of: str,
) -> None:
    """The index of what was found, its splits one after the other."""
    from scipy.sparse import vstack

    order = [n for name in SPLIT_NAMES for n, split in enumerate(splits) if split == name]
    rows = []
    for split in SPLIT_NAMES:
        mine = [n for n in order if splits[n] == split and found[n].keys]
        if not mine:
            continue
        parts = [labels[n] for n in mine]
        joined: Any = (
            np.concatenate(parts) if isinstance(parts[0], np.ndarray) else vstack(parts, "csr")
        )
        ends = [shards[n].ends for n in mine]
        rows.append(
            Rows(
                split, class_names, joined,
                itertools.chain.from_iterable(found[n].keys for n in mine),
                digest([*class_names, *ends, label_bytes(joined)]),
                shard_lengths=[len(found[n].keys) if splits[n] == split else 0 for n in order],
            )
        )  # fmt: skip
    columns = {
        "offsets": (np.concatenate([np.asarray(found[n].offsets) for n in order]), "<i8"),
        "sizes": (np.concatenate([np.asarray(found[n].sizes) for n in order]), "<u4"),
    }
    info = shards_info(path, [shards[n] for n in order]) | {"made_of": made_of}
    write_columns(path, title, rows, Content("tar", info, columns))
