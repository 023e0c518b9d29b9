"""The images and labels in tar shards, and the classes that the labels of a set are."""

from __future__ import annotations

import itertools
import json
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from vitkit.data.checks import DataError, some
from vitkit.data.formats.folders import IMAGE_SUFFIXES, SPLITS
from vitkit.data.tars.members import Member, Problems, members
from vitkit.data.tars.shards import FILES

LABEL_FIELDS = ("label", "labels", "class", "cls", "target", "class_id", "class_name", "category")
MOST_VALUES = 1_000_000  # different labels
LARGEST_LABEL = {"cls": 1 << 12, "txt": 1 << 12, "json": 1 << 20}  # bytes; the first kind is taken


@dataclass
class Samples:
    """What was found in one shard."""

    keys: list[str] = field(default_factory=list)
    offsets: array = field(default_factory=lambda: array("q"))
    sizes: array = field(default_factory=lambda: array("q"))
    values: array = field(
        default_factory=lambda: array("q")
    )  # places in Values; -1 without a label
    labelled: bool = False

    def add(self, key: str, image: Member, value: int) -> None:
        self.keys.append(key)
        self.offsets.append(image.offset)
        self.sizes.append(image.size)
        self.values.append(value)


class Values:
    """The different labels of a set, numbered as they are met."""

    def __init__(self) -> None:
        self.places: dict[Any, int] = {}

    def place(self, value: Any) -> int:
        if value is None:
            return -1
        if len(self.places) >= MOST_VALUES:
            raise DataError(
                f"found more than {MOST_VALUES:,} different labels; expected names or numbers of "
                "classes in .cls, .json or .txt members"
            )
        return self.places.setdefault(value, len(self.places))


def samples_in(path: Path, title: str, problems: Problems, values: Values) -> Samples:
    """The images of a shard, each with its label, if any has one; else by their whole names."""
    images: dict[str, list[Member]] = {}
    labels: dict[str, dict[str, Member]] = {}
    for member in members(path, title, problems):
        folder, _, base = member.name.rpartition("/")
        stem, _, kind = base.partition(".")
        if base.startswith(".") or "__MACOSX" in folder:
            continue
        key, kind = (f"{folder}/{stem}" if folder else stem), kind.lower()
        if "." + kind.rpartition(".")[2] in IMAGE_SUFFIXES:
            images.setdefault(key, []).append(member)
        elif kind in LARGEST_LABEL:
            if kind in labels.setdefault(key, {}):
                problems.note("labels that come twice", f"{title} {member.name}")
            labels[key][kind] = member
    read = {
        key: values.place(label_in(path, title, labels[key], problems))
        for key in images
        if key in labels
    }
    samples = Samples(labelled=any(value >= 0 for value in read.values()))
    for key, group in images.items():
        if not samples.labelled:
            for image in group:
                samples.add(image.name, image, -1)
            continue
        image = image_of(group)
        if image is None:
            problems.note("names with several images", f"{title} {key}")
        else:
            samples.add(key, image, read.get(key, -1))
    for key, group in labels.items():
        if "cls" in group and key not in images:
            problems.note("labels without an image", f"{title} {group['cls'].name}")
    return samples


def image_of(group: Sequence[Member]) -> Member | None:
    """Of an image and such as 0001.mask.png the one without a further word; None if unclear."""
    plain = [member for member in group if member.name.rpartition("/")[2].count(".") == 1]
    chosen = plain or group
    return chosen[0] if len(chosen) == 1 else None


def label_in(path: Path, title: str, group: dict[str, Member], problems: Problems) -> Any:
    """A number, a name, a tuple of these for several labels, or None for no label."""
    for kind, largest in LARGEST_LABEL.items():
        member = group.get(kind)
        if member is None:
            continue
        if member.size > largest:
            problems.note(f"labels of more than {largest} bytes", f"{title} {member.name}")
            return None
        try:
            text = FILES.read(str(path), member.size, member.offset).decode().strip()
            value = label_in_json(text) if kind == "json" else label_in_text(text)
        except (ValueError, RecursionError):
            problems.note("labels that cannot be read", f"{title} {member.name}")
            return None
        if value is not None:
            return value
    return None


def label_in_text(text: str) -> int | str | None:
    return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else text or None


def label_in_json(text: str) -> Any:
    content = json.loads(text)
    if isinstance(content, dict):
        content = next((content[name] for name in LABEL_FIELDS if name in content), None)
    if isinstance(content, list):
        return tuple(sorted({plain_label(value) for value in content}, key=str))
    return None if content is None else plain_label(content)


def plain_label(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or value != value:
        raise ValueError(f"{value!r} is no label")
    if isinstance(value, str):
        return label_in_text(value.strip()) or ""
    if value != int(value) or abs(value) > 10**18:
        raise ValueError(f"{value!r} is no number of a class")
    return int(value)


def label_all(
    found: Sequence[Samples], titles: Sequence[str], problems: Problems, values: Values
) -> None:
    """Labels from folders, where no image has one of its own; else each must have one."""
    if not any(samples.labelled for samples in found):
        by_folders(found, titles, problems, values)
        return
    for title, samples in zip(titles, found, strict=True):
        for place in np.flatnonzero(np.asarray(samples.values) < 0):
            problems.note("images without a label", f"{title} {samples.keys[place]}")


def by_folders(
    found: Sequence[Samples], titles: Sequence[str], problems: Problems, values: Values
) -> None:
    """Labels from folders: the first one below those that all images lie in."""
    folders = {key.rpartition("/")[0] for samples in found for key in samples.keys}
    paths = [folder.split("/") if folder else [] for folder in folders]
    shared = 0
    while paths and all(len(path) > shared + 1 for path in paths) and len(
        {path[shared] for path in paths}
    ) == 1:  # fmt: skip
        shared += 1
    first = {path[shared] for path in paths if len(path) > shared}
    if len(first) > 1 and all(name.lower() in SPLITS for name in first):
        raise DataError(
            f"{titles[0]}: found the folders {some(sorted(first))} in it; pack each split into "
            "shards of its own, train-000.tar and val-000.tar"
        )
    for number, samples in enumerate(found):
        for place, key in enumerate(samples.keys):
            parts = key.split("/")[shared:-1]
            if not parts:
                problems.note("images without a label", f"{titles[number]} {key}")
            samples.values[place] = values.place(parts[0] if parts else None)


def note_duplicates(found: Sequence[Samples], titles: Sequence[str], problems: Problems) -> None:
    """Names that come more than once in these shards, found by 64-bit hashes of all of them."""
    if not found:
        return
    hashes = np.concatenate([np.fromiter(map(hash, s.keys), np.int64, len(s.keys)) for s in found])
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    starts = np.cumsum([0, *(len(samples.keys) for samples in found)])

    def located(place: int) -> tuple[int, str]:
        shard = int(np.searchsorted(starts, place, side="right")) - 1
        return shard, found[shard].keys[place - starts[shard]]

    for place in same.tolist():
        (_, key), (shard, other) = located(order[place]), located(order[place + 1])
        if key == other:
            problems.note("names that come twice", f"{titles[shard]} {other}")


def classes_of(
    found: Sequence[Samples], values: Values, names: list[str] | None, title: str
) -> tuple[list[str], list[Any]]:
    """The names of the classes, and for each shard (N,) labels or csr_array (N, K)."""
    several = [value for value in values.places if isinstance(value, tuple)]
    plain = {
        v for value in values.places for v in (value if isinstance(value, tuple) else (value,))
    }
    images = sum(len(samples.keys) for samples in found)
    if several and len(several) < len(values.places):
        raise DataError(f"{title}: only some of the labels are lists; expected all or none")
    if len(plain) > images // 2 > 500:
        raise DataError(
            f"{title}: found {len(plain):,} different labels for {images:,} images, captions "
            "perhaps; expected classes in .cls or .json members"
        )
    class_names, number = numbered(plain, names, images, title)
    if several:
        width = len(class_names)
        rows = [[number[v] for v in value] for value in values.places]
        return class_names, [several_labels(samples, rows, width) for samples in found]
    table = np.array([number[value] for value in values.places], dtype=np.int32)
    return class_names, [table[np.asarray(samples.values)] for samples in found]


def numbered(
    plain: set[Any], names: list[str] | None, images: int, title: str
) -> tuple[list[str], dict[Any, int]]:
    """The names of the classes, and the number of each label that was found."""
    texts = sorted(value for value in plain if isinstance(value, str))
    numbers = sorted(value for value in plain if isinstance(value, int))
    if texts and names and set(names) >= set(map(str, plain)):
        return names, {value: names.index(str(value)) for value in plain}
    if texts and numbers:
        raise DataError(
            f"{title}: some labels are names ({some(texts)}) and some numbers "
            f"({some([str(number) for number in numbers])}); expected one kind"
        )
    if texts:
        unknown = sorted(set(texts) - set(names)) if names else []
        if unknown:
            raise DataError(
                f"{title}: {len(unknown)} labels are not among the names of the classes: "
                f"{some(unknown)}; add them to the list beside the shards"
            )
        return texts, {name: place for place, name in enumerate(texts)}
    most = len(names) if names else 10 * images + 1000
    wrong = [value for value in numbers if not 0 <= value < most]
    if wrong:
        raise DataError(
            f"{title}: {len(wrong)} labels are out of range, {some(list(map(str, wrong)))}; "
            f"expected the numbers of classes, 0 to {most - 1}"
        )
    class_names = names or [str(value) for value in range(max(numbers, default=0) + 1)]
    return class_names, {value: value for value in numbers}


def several_labels(samples: Samples, rows: Sequence[Sequence[int]], width: int) -> csr_array:
    chosen = [sorted(rows[value]) for value in samples.values]
    begins = np.cumsum([0, *map(len, chosen)])
    indices = np.fromiter(itertools.chain.from_iterable(chosen), np.int32, int(begins[-1]))
    ones = np.ones(len(indices), dtype=bool)
    return csr_array((ones, indices, begins), shape=(len(chosen), width))
