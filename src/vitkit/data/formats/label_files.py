"""Images that a file of labels names: found, checked, and made a source."""

from __future__ import annotations

import os
import posixpath
import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from vitkit.data.checks import DataError, some
from vitkit.data.formats.folders import IMAGE_FOLDERS, SPLITS, followed, has_image_suffix, scanned
from vitkit.data.formats.image_files import FileSource
from vitkit.data.formats.label_rows import OtherListError, Rows


def found_images(rows: Rows, root: Path) -> tuple[Rows, set[str]]:
    """(the same rows with the paths of their images below `root`, each image once; the paths of
    all images that lie in their folders).

    Raises DataError where an image is absent, lies elsewhere, has no label or two different ones.
    """
    start = os.path.relpath(rows.file.parent, root).replace(os.sep, "/")
    start = "" if start == "." else f"{start}/"
    names = [posixpath.normpath(name.replace("\\", "/")) for name in rows.images]
    require_inside(rows, names)
    require_labels(rows)
    base, present = best_base(rows, names)
    places = [present.get(name) for name in names]
    absent = [rows.images[n] for n, place in enumerate(places) if place is None]
    if absent:
        where = rows.file.parent / base
        raise DataError(
            f"{rows.file}: {len(absent)} of {len(names)} rows name images that are not in {where}: "
            f"{some(absent)}; remove the rows, or put the images there"
        )
    images = {start + base + path for path in present.values() if has_image_suffix(path)}
    named = [f"{start}{base}{place}" for place in places]
    return once_each(replace(rows, images=named)), images


def require_images(rows: Rows) -> Rows:
    """OtherListError where none of the first images is there."""
    first = replace(rows, images=rows.images[:1000])
    names = [posixpath.normpath(name.replace("\\", "/")) for name in first.images]
    require_inside(first, names)
    base, present = best_base(first, names)
    if not any(name in present for name in names):
        raise OtherListError(
            f"{rows.file}: names images of which none is in {rows.file.parent / base}: "
            f"{some(rows.images, 3)}; put the images there, or correct the paths"
        )
    return rows


def require_inside(rows: Rows, names: Sequence[str]) -> None:
    outside = [
        rows.images[n]
        for n, name in enumerate(names)
        if name.startswith(("../", "/")) or name == ".." or name[1:2] == ":"
        or "\0" in name
    ]  # fmt: skip
    if outside:
        raise DataError(
            f"{rows.file}: {len(outside)} of {len(names)} paths lead out of its folder: "
            f"{some(outside)}; write them relative to {rows.file.parent}"
        )


def require_labels(rows: Rows) -> None:
    """Every image needs a label, or may have none where it may have several."""
    empty = [rows.images[n] for n, label in enumerate(rows.labels) if not label]
    unnamed = sum(not name for name in rows.images)
    if unnamed:
        raise DataError(f"{rows.file}: {unnamed} of {len(rows.images)} rows name no image")
    if empty and rows.several:
        warnings.warn(
            f"{rows.file}: {len(empty)} of {len(rows.images)} images have no label, which is taken "
            f"for none of the classes: {some(empty)}",
            stacklevel=2,
        )
    elif empty:
        raise DataError(
            f"{rows.file}: {len(empty)} of {len(rows.images)} labels are empty: {some(empty)}; "
            "write labels or remove the rows"
        )


def best_base(rows: Rows, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Below which folder beside the file the images lie, and {path in the list: path in there}."""
    folder = rows.file.parent
    best: tuple[int, str, dict[str, str]] = (-1, "", {})
    for base in bases(folder, rows.split or "train"):
        present = listing(folder / base, names)
        number = sum(name in present for name in names)
        if number > best[0]:
            best = (number, base, present)
        if number == len(names):
            break
    return best[1], best[2]


def bases(folder: Path, split: str) -> list[str]:
    """The file's own folder, and what folders of images beside it may be called."""
    beside = {entry.name.lower(): entry.name for entry in scanned(folder) if followed(entry.is_dir)}
    of_split = [beside[word] for word, known in SPLITS.items() if known == split and word in beside]
    images = [beside[word] for word in IMAGE_FOLDERS if word in beside]
    deeper = [f"{name}/{inner}" for name in of_split for inner in ("images", "data")]
    deeper += [f"{name}/{word}" for name in images for word in (split, *SPLITS)]
    deeper = [path for path in deeper if (folder / path).is_dir()]
    return ["", *(f"{path}/" for path in [*of_split, *images, *deeper])]


def listing(base: Path, names: Sequence[str]) -> dict[str, str]:
    """{path: path} of the files in the folders that the names lie in, without suffixes where the
    names have none ("0a1b" for "0a1b.jpg")."""
    folders = dict.fromkeys(name.rpartition("/")[0] for name in names)
    bare = not any(has_image_suffix(name) for name in names[:100])
    present: dict[str, str] = {}
    for folder in folders:
        if not (base / folder).is_dir():
            continue
        start = f"{folder}/" if folder else ""
        for entry in scanned(base / folder):
            if followed(entry.is_file):
                path = start + entry.name
                present[path] = path
                if bare and has_image_suffix(entry.name):
                    present.setdefault(os.path.splitext(path)[0], path)
    return present


def once_each(rows: Rows) -> Rows:
    """The rows without repetitions. DataError where an image has two different labels."""
    first: dict[str, int] = {}
    again, other = [], []
    for number, name in enumerate(rows.images):
        place = first.setdefault(name, number)
        if place != number:
            same = rows.labels[place] == rows.labels[number]
            (again if same else other).append((name, place, number))
    if other:
        name, place, number = other[0]
        ways = [f"{rows.labels[n]} in row {n + 1}" for n in (place, number)]
        raise DataError(
            f"{rows.file}: {len(other)} images have rows with different labels: "
            f"{some(sorted({name for name, _, _ in other}))} ({name} is {' and '.join(ways)}); "
            "keep one row for each, or write all its labels into one cell, between |"
        )
    if not again:
        return rows
    warnings.warn(
        f"{rows.file}: {len(again)} rows repeat an image with the same label and are left out: "
        f"{some(sorted({name for name, _, _ in again}))}",
        stacklevel=2,
    )
    keep = list(first.values())
    return replace(
        rows, images=[rows.images[n] for n in keep], labels=[rows.labels[n] for n in keep]
    )


# Sources


def sources_of(
    parts: dict[str, Rows], root: Path, class_names: Sequence[str] | None = None
) -> dict[str, FileSource]:
    """A source for each split, all with the same classes: those given, else all in the rows."""
    found: dict[str, Rows] = {}
    present: set[str] = set()
    for split, rows in parts.items():
        found[split], images = found_images(rows, root)
        present |= images
    warn_of_unnamed(found, present)
    warn_of_shared(found)
    several = any(rows.several for rows in found.values())
    texts = {split: set(label_texts(rows)) for split, rows in found.items()}
    names = list(class_names or sorted_names(set().union(*texts.values())))
    number = {name: place for place, name in enumerate(names)}
    sources = {}
    for split, rows in found.items():
        unknown = sorted(texts[split] - number.keys())
        if unknown:
            raise DataError(
                f"{rows.file}: the labels {some(unknown)} are none of the classes to train on "
                f"({some(names)}); correct them"
            )
        if several:
            lists = rows.labels if rows.several else [[label] for label in rows.labels]
            labels: Any = multi_label(lists, number)
        else:
            labels = np.array([number[label] for label in rows.labels], dtype=np.int32)
        sources[split] = FileSource(root, rows.images, labels, names)
    return sources


def label_texts(rows: Rows) -> Iterable[str]:
    return chain.from_iterable(rows.labels) if rows.several else rows.labels


def sorted_names(names: Collection[str]) -> list[str]:
    """In the order of the alphabet or, where all are numbers, of those."""
    if all(re.fullmatch(r"-?\d{1,18}", name) for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def multi_label(lists: list[list[str]], number: dict[str, int]) -> csr_array:
    """(N, K) of bool."""
    starts = np.cumsum([0, *(len(labels) for labels in lists)], dtype=np.int64)
    places = np.array([number[label] for labels in lists for label in labels], dtype=np.int32)
    ones = np.ones(len(places), dtype=bool)
    return csr_array((ones, places, starts), shape=(len(lists), len(number)))


def warn_of_unnamed(found: dict[str, Rows], present: set[str]) -> None:
    unnamed = sorted(present.difference(*(rows.images for rows in found.values())))
    if unnamed:
        warnings.warn(
            f"{next(iter(found.values())).file}: {len(unnamed)} images beside it are in no row and "
            f"are left out: {some(unnamed)}",
            stacklevel=2,
        )


def warn_of_shared(found: dict[str, Rows]) -> None:
    """A score on images that were trained on means nothing."""
    trained = set(found["train"].images) if "train" in found else set()
    for split, rows in found.items():
        shared = [] if split == "train" else [name for name in rows.images if name in trained]
        if shared:
            warnings.warn(
                f"{rows.file}: {len(shared)} images are to train on and in {split} as well: "
                f"{some(shared)}; remove them from one of the two",
                stacklevel=2,
            )
