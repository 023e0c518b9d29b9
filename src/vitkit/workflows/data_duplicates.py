"""`vitkit data dedup` and `split`: near-duplicates found, listed, left out, and kept together."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from vitkit.data import duplicates
from vitkit.data.audit import (
    Part,
    Seen,
    best_first,
    look_through,
    same_bytes,
    usual_threads,
)
from vitkit.data.checks import DataError, some
from vitkit.data.duplicates import THRESHOLD, Pairs, groups_of
from vitkit.data.indexes.index import write_index
from vitkit.data.opening import open_data
from vitkit.data.source import Concatenated, Source, Splits, Subset, Without, strata
from vitkit.errors import UsageError
from vitkit.files import write_whole
from vitkit.prediction.model import Model, load
from vitkit.reports.data import draw_pairs
from vitkit.training.precision import choose_device
from vitkit.workflows.data import output_folder, picture, progress, write_quarantine

FEATURES_ALIKE = 0.95  # cosine; how near copies lie depends on the net
SMALLEST = 16  # pixels of the shorter side; digits of 8x8 all look alike
SHOWN_PAIRS = 60  # on a sheet, the most doubtful first
LARGEST_GROUPS = 2**30  # bytes of a groups.json
BATCH = 64


class Found(NamedTuple):
    """Duplicates by one way of looking."""

    kind: str  # "same bytes", "look" or "features"
    pairs: Pairs


def dedup(
    data: Any,
    *,
    against: Iterable[Any] = (),
    checkpoint: str | Path | Model | None = None,
    threshold: float = THRESHOLD,
    features_threshold: float = FEATURES_ALIKE,
    out: str | Path = "runs/data-dedup",
    device: str = "auto",
    threads: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Find near-duplicates in DATA, across its splits, and between DATA and each of `against`.

    By looks always; by a checkpoint's features too, if one is given. Writes to `out`:
    duplicates.csv, groups.json, quarantine.txt (all of a group but the best, and all that have a
    duplicate in `against`, whose own images are never left out), clean.index (DATA without those)
    and pairs.png (the most doubtful pairs first). Raises DataError, UsageError.
    """
    for name, value in (("threshold", threshold), ("features_threshold", features_threshold)):
        if not 0 < value <= 1:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is {value}; it must be above 0 and at most 1")
    splits = open_data(data)
    parts = list(splits.parts().items())
    others = [
        (f"{other.name} {name}", source)
        for other in map(open_data, against)
        for name, source in other.parts().items()
    ]
    model = checkpoint if isinstance(checkpoint, Model | None) else load(checkpoint)
    folder = output_folder(out)
    seen, found = all_duplicates(
        [*parts, *others], sum(len(source) for _, source in parts), threshold,
        model and model.to(choose_device(device)), features_threshold, threads, quiet,
        folder,
    )  # fmt: skip
    own = int(seen.starts[len(parts)])
    groups = groups_of(len(seen), *joined(found))
    groups = [group for group in groups if group[0] < own]
    dropped = left_out(seen, groups, own)
    write_pairs(folder / "duplicates.csv", seen, found)
    write_groups(folder / "groups.json", seen, groups, own, splits.name)
    write_quarantine(folder / "quarantine.txt", {seen.key(i): why for i, why in dropped.items()})
    shown = doubtful(seen, found)
    if shown:
        draw_pairs(folder / "pairs.png", shown)
    clean = cleaned(splits, seen, list(dropped), len(parts))
    index = None if clean is None else write_index(folder / "clean.index", clean, data)
    return {
        "data": splits.name,
        "images": {name: len(source) for name, source in parts},
        "against": {name: len(source) for name, source in others},
        "unusable": len(seen.problems),
        "small": int((seen.usable & (np.minimum(seen.heights, seen.widths) < SMALLEST)).sum()),
        "pairs": {kind: len(pairs.first) for kind, pairs in found},
        "leaks": leaks(seen, found),
        "groups": len(groups),
        "largest_group": max(map(len, groups), default=0),
        "quarantined": len(dropped),
        "out": str(folder),
        "quarantine": str(folder / "quarantine.txt"),
        "index": None if index is None else str(index),
        "sheet": str(folder / "pairs.png") if shown else None,
    }


def all_duplicates(
    parts: Sequence[Part],
    among: int,
    threshold: float,
    model: Model | None = None,
    features_threshold: float = FEATURES_ALIKE,
    threads: int | None = None,
    quiet: bool = False,
    scratch: Path | None = None,
) -> tuple[Seen, list[Found]]:
    """The duplicates among the images of several splits, one at least of the first `among`.

    Of files that are the same byte for byte one is looked at, and each other is paired with it;
    images of fewer than SMALLEST pixels are compared by their bytes alone. Thumbnails lie in the
    folder `scratch` meanwhile, 1.2 kB an image.
    """
    images = sum(len(source) for _, source in parts)
    with tempfile.TemporaryDirectory(prefix=".vitkit-", dir=scratch) as place:
        thumbnails = np.lib.format.open_memmap(
            Path(place) / "thumbnails.npy", "w+", np.uint8, (images, duplicates.BYTES)
        )
        with progress("images", quiet) as shown:
            seen = look_through(parts, threads=threads, thumbnails=thumbnails, progress=shown)
        copies = same_bytes(seen)
        searched = np.minimum(seen.heights, seen.widths) >= SMALLEST
        for group in copies:
            searched[group[1:]] = False
        found = [Found("same bytes", copied(copies, among))]
        with progress("comparisons", quiet) as shown:
            alike = duplicates.near_duplicates(thumbnails, searched, among, threshold, shown)
        found.append(Found("look", alike))
        del thumbnails  # Windows removes no file that is mapped
        if model is not None:
            features = features_of(model, seen, searched, Path(place), quiet)
            with progress("comparisons", quiet) as shown:
                alike = duplicates.alike_by_features(
                    features, searched, features_threshold, among, shown
                )
            found.append(Found("features", alike))
            del features
    return seen, found


def copied(groups: Sequence[np.ndarray], among: int) -> Pairs:
    """The first of each group of the same files with each other one."""
    pairs = [(group[0], other) for group in groups if group[0] < among for other in group[1:]]
    first, second = np.array(pairs, np.int64).reshape(-1, 2).T
    return Pairs(first, second, np.ones(len(first), np.float32), np.zeros(len(first), bool))


def features_of(
    model: Model, seen: Seen, searched: np.ndarray, place: Path, quiet: bool
) -> np.ndarray:
    """(N, D) float16, on disk; zeros for images that are not searched."""
    places = np.flatnonzero(searched)
    features = None

    def prepared(index: int) -> torch.Tensor:
        source, inner = seen.located(index)
        return model.preprocessing(source.image(inner))

    with progress("features", quiet) as shown, ThreadPoolExecutor(usual_threads()) as pool:
        for begin in range(0, len(places), BATCH):
            chosen = places[begin : begin + BATCH]
            images = torch.stack(list(pool.map(prepared, chosen.tolist())))
            rows = model.run(model.net.features, images).numpy()
            if features is None:
                shape = (len(seen), rows.shape[1])
                path = place / "features.npy"
                features = np.lib.format.open_memmap(path, "w+", np.float16, shape)
            rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            features[chosen] = rows
            shown(begin + len(chosen), len(places))
    return np.zeros((len(seen), 1), np.float16) if features is None else features


def joined(found: Sequence[Found]) -> tuple[np.ndarray, np.ndarray]:
    first = np.concatenate([pairs.first for _, pairs in found])
    return first, np.concatenate([pairs.second for _, pairs in found])


def leaks(seen: Seen, found: Sequence[Found]) -> dict[str, int]:
    """ "train-test" -> how many different pairs lie across these two splits."""
    first, second = joined(found)
    pairs = np.unique(np.stack([first, second], axis=1), axis=0).reshape(-1, 2)
    splits = seen.splits()
    counts: dict[str, int] = {}
    for a, b in np.sort(splits[pairs], axis=1).tolist():
        if a != b:
            between = f"{seen.parts[a][0]}-{seen.parts[b][0]}"
            counts[between] = counts.get(between, 0) + 1
    return counts


def left_out(seen: Seen, groups: Sequence[np.ndarray], own: int) -> dict[int, str]:
    """Index -> reason for each image that is to be left out."""
    found = {}
    for group in groups:
        best, *others = best_first(seen, group).tolist()
        for index in others:
            if index < own:
                where = seen.parts[seen.split(best)][0]
                found[index] = f"a near-duplicate of {seen.key(best)} ({where})"
    return found


def cleaned(splits: Splits, seen: Seen, dropped: Sequence[int], own: int) -> Splits | None:
    """DATA without the images dropped; None where nothing to train on is left."""
    kept: dict[str, Source] = {}
    for number, (name, source) in enumerate(seen.parts[:own]):
        begin, end = seen.starts[number], seen.starts[number + 1]
        without = Without(source, [index - begin for index in dropped if begin <= index < end])
        if len(without):
            kept[name] = without
    if "train" not in kept:
        return None
    return Splits(splits.name, kept["train"], kept.get("val"), kept.get("test"))


def doubtful(seen: Seen, found: Sequence[Found]) -> list[tuple[np.ndarray, np.ndarray, list[str]]]:
    """Pairs for a sheet, the least alike first: how alike they are, their classes, their keys."""
    rows = []
    for kind, pairs in found:
        if kind == "same bytes":
            continue
        for place in np.argsort(pairs.similarity, kind="stable")[:SHOWN_PAIRS].tolist():
            a, b = int(pairs.first[place]), int(pairs.second[place])
            mirrored = " mirrored" if pairs.mirrored[place] else ""
            line = f"{pairs.similarity[place]:.3f} {kind}{mirrored}"
            rows.append((float(pairs.similarity[place]), a, b, line))
    sheet = []
    for _, a, b, line in sorted(rows)[:SHOWN_PAIRS]:
        first, second = picture(*seen.located(a)), picture(*seen.located(b))
        between = " - ".join(f"{seen.parts[seen.split(i)][0]} {label_of(seen, i)}" for i in (a, b))
        if first is not None and second is not None:
            sheet.append((first, second, [line, between, seen.key(a), seen.key(b)]))
    return sheet


def label_of(seen: Seen, index: int) -> str:
    source, inner = seen.located(index)
    target = source.target(inner)
    numbers = [target] if isinstance(target, int) else np.flatnonzero(target).tolist()
    return "|".join(source.class_names[number] for number in numbers)


def write_pairs(path: Path, seen: Seen, found: Sequence[Found]) -> None:
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["similarity", "kind", "mirrored", "split_a", "split_b", "label_a", "label_b",
                    "image_a", "image_b"])  # fmt: skip
    for kind, pairs in found:
        for place in np.argsort(-pairs.similarity, kind="stable").tolist():
            both = int(pairs.first[place]), int(pairs.second[place])
            table.writerow([
                f"{pairs.similarity[place]:.4f}", kind, int(pairs.mirrored[place]),
                *(seen.parts[seen.split(index)][0] for index in both),
                *(label_of(seen, index) for index in both), *(seen.key(index) for index in both),
            ])  # fmt: skip
    write_whole(path, text.getvalue().encode("utf-8", "surrogateescape"))


def write_groups(
    path: Path, seen: Seen, groups: Sequence[np.ndarray], own: int, title: str
) -> None:
    rows = []
    for group in groups:
        images = best_first(seen, group).tolist()
        rows.append({
            "images": [{"key": seen.key(i), "split": seen.parts[seen.split(i)][0]}
                       for i in images if i < own],
            "against": [{"key": seen.key(i), "in": seen.parts[seen.split(i)][0]}
                        for i in images if i >= own],
        })  # fmt: skip
    write_whole(path, json.dumps({"data": title, "groups": rows}, indent=1) + "\n")


def split(
    data: Any,
    out: str | Path,
    *,
    val: float = 0.1,
    test: float = 0.1,
    seed: int = 0,
    groups: str | Path | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Split all images of DATA anew into train, val and test: an index, which is itself DATA.

    Of every class about the shares `val` and `test`; near-duplicates stay together. These are those
    of a groups.json that `dedup` wrote, or are looked for. A pure function of labels, duplicates
    and seed. Raises DataError, UsageError.
    """
    for name, share in (("val", val), ("test", test)):
        if not 0 <= share < 1:
            raise UsageError(f"--{name} is {share}; it must be a share, at least 0 and below 1")
    if not 0 < val + test < 1:
        raise UsageError(f"--val and --test add up to {val + test:g}; they must leave something")
    splits = open_data(data)
    sources = list(splits.parts().values())
    pool = sources[0] if len(sources) == 1 else Concatenated(sources)
    unusable = 0  # nothing is known of it where the groups are given
    if groups is not None:
        together = read_groups(Path(groups), pool)
    else:
        seen, found = all_duplicates(
            [("all", pool)], len(pool), THRESHOLD, threads=threads, quiet=quiet
        )
        together, unusable = groups_of(len(seen), *joined(found)), len(seen.problems)
    places = divided(strata(pool), together, {"test": test, "val": val}, seed)
    chosen = {name: Subset(pool, np.flatnonzero(places == number))
              for number, name in enumerate(("train", "val", "test"))}  # fmt: skip
    given = {name: part for name, part in chosen.items() if len(part)}
    path = write_index(out, Splits(splits.name, chosen["train"], given.get("val"),
                                   given.get("test")), data)  # fmt: skip
    return {
        "data": splits.name,
        "images": {name: len(part) for name, part in given.items()},
        "classes": len(pool.class_names),
        "groups": len(together),
        "unusable": unusable,
        "out": str(path),
    }


def divided(
    classes: np.ndarray, groups: Sequence[np.ndarray], shares: dict[str, float], seed: int
) -> np.ndarray:
    """(N,) 0 for train, 1 for val, 2 for test: whole groups, by the class of their first image.

    What a class owes or gets too much is carried to the next, so that the total is met as well.
    """
    leader = np.arange(len(classes))
    for group in groups:
        leader[group] = group[0]
    heads, sizes = np.unique(leader, return_counts=True)
    random = np.random.default_rng(seed)
    order = random.permutation(len(heads))
    order = order[np.argsort(classes[heads[order]], kind="stable")]
    ends = np.flatnonzero(np.diff(classes[heads[order]])) + 1
    of_leader = np.zeros(len(classes), np.int8)
    owed = dict.fromkeys(shares, 0.0)
    for members in np.split(order, ends):
        images, next_one = int(sizes[members].sum()), 0
        for name, number in (("test", 2), ("val", 1)):
            owed[name] += shares[name] * images
            while next_one < len(members) - 1 and sizes[members[next_one]] <= owed[name] + 0.5:
                of_leader[heads[members[next_one]]] = number
                owed[name] -= int(sizes[members[next_one]])
                next_one += 1
    return of_leader[leader]


def read_groups(path: Path, pool: Source) -> list[np.ndarray]:
    """The groups of a groups.json, as indices of the pool. Raises DataError."""
    try:
        if path.stat().st_size > LARGEST_GROUPS:
            raise ValueError("it is too large")
        given = json.loads(path.read_text("utf-8"))["groups"]
        named = [[str(image["key"]) for image in group["images"]] for group in given]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path}: not readable as groups of duplicates ({type(error).__name__}); give a "
            "groups.json that vitkit data dedup wrote"
        ) from error
    wanted = {key for keys in named for key in keys}
    number = {key: i for i in range(len(pool)) if (key := pool.key(i)) in wanted}
    missing = [key for key in wanted if key not in number]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of its images are not in this data ({some(sorted(missing))}); "
            "give the groups that were found in it"
        )
    return [np.unique([number[key] for key in keys]) for keys in named if len(keys) > 1]
