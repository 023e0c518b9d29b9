"""DATA as users name it -> splits of labelled images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from vitkit.data.checks import DataError, missing_shards, require_all_shards, some
from vitkit.data.decode import ImageError
from vitkit.data.formats.folders import (
    IMAGE_FOLDERS,
    SPLITS,
    existing,
    has_class_folders,
    has_images,
    holds_images,
    inner_folder,
    is_parquet,
    scanned,
    split_folders,
    split_named,
    subfolders,
    table_files,
)
from vitkit.data.formats.image_files import FolderSource
from vitkit.data.formats.label_files import require_images, sources_of
from vitkit.data.formats.label_rows import (
    LIST_SUFFIXES,
    OtherListError,
    Rows,
    divided,
    label_files,
    read_rows,
)
from vitkit.data.formats.torchvision_sets import open_published
from vitkit.data.holding_out import held_out_indices
from vitkit.data.indexes.index import is_index, open_index
from vitkit.data.source import (
    ArraySource,
    Concatenated,
    Source,
    Splits,
    Subset,
    Without,
    splits_of,
    strata,
)
from vitkit.data.tars.opening import is_tar, open_tars, tar_files
from vitkit.data.tars.shards import is_url

WRAPPERS = 8  # folders within each other that are looked through


def digits() -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey; a stratified fifth is held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = (pixels.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)  # 0..16 -> 0..255
    names = [str(digit) for digit in range(10)]
    source = ArraySource(images, np.asarray(labels), names, name="digit", flip_keeps_class=False)
    return held_out(source, "digits", share=0.2, at_most=len(source), seed=0)


def held_out(
    source: Source, name: str, share: float = 0.1, at_most: int = 10_000, seed: int = 0
) -> Splits:
    """Split off about `share` of every class for validation, `at_most` images in all.

    A pure function of the labels and the seed; every class keeps at least one training image.
    """
    val = held_out_indices(strata(source), share, at_most, seed)
    if len(val) == 0:
        raise DataError(
            f"{name}: {len(source)} images of {len(source.class_names)} classes are too few to "
            "hold any out; give more images, or a val/ folder"
        )
    return Splits(name, Without(source, val), Subset(source, val))


def open_data(data: str | Path | Splits | Source | Sequence[str | Path]) -> Splits:
    """DATA as users name it -> its splits.

    One of these words, or several:
    - "digits";
    - a folder of class folders, or of train/, val/ and test/ with class folders in them. Images at
      any depth below a class folder are of that class. Folders that hold nothing but another
      folder are looked through;
    - a CSV, TSV, JSON or JSON lines file that names images and their labels, or a folder with one;
    - parquet files, a folder of them, or what `save_to_disk` of `datasets` writes;
    - CIFAR-10, CIFAR-100, Oxford-IIIT Pets, Flowers-102 and ImageNet as they are published;
    - "hf:owner/name" with, where needed, "@revision" and ":config" after it;
    - tar shards, patterns of their names, or a folder of them;
    - an index that `build_index` wrote;
    - a URL of one of the last, of parquet files, or of a folder.
    Keys begin with what tells several DATA apart; those of the splits of one DATA differ.
    Raises DataError.
    """
    if isinstance(data, Splits):
        return data
    if isinstance(data, Source):
        return Splits(data.name(0), data)
    words = [data] if isinstance(data, str | Path) else list(data)
    if not words:
        raise DataError("no data given; expected a folder, parquet files or 'digits'")
    if all(is_parquet(word) for word in words):
        return open_parquet([on_disk(word) for word in words])
    if all(is_tar(word) for word in words):
        return open_tars(words)
    opened = [open_one(word) for word in words]
    if len(opened) == 1:
        return opened[0]
    titles = short_names([str(word) for word in words])
    return Splits(
        opened[0].name,
        Concatenated([splits.train for splits in opened], titles),
        joined([splits.val for splits in opened], titles),
        joined([splits.test for splits in opened], titles),
    )


def joined(parts: Sequence[Source | None], titles: Sequence[str]) -> Source | None:
    given = [(part, title) for part, title in zip(parts, titles, strict=True) if part is not None]
    return (
        Concatenated([part for part, _ in given], [title for _, title in given]) if given else None
    )


def short_names(words: Sequence[str]) -> list[str]:
    """The last parts of paths, as few as tell them apart; of equal paths the later are numbered."""
    parts = [Path(word).parts for word in words]
    for number in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-number:]).strip("/") for part in parts]
        if len(set(names)) == len(set(parts)):
            break
    else:
        names = [f"{place}" for place in range(len(words))]
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique


def open_one(word: str | Path) -> Splits:
    if str(word) == "digits":
        return digits()
    if str(word).startswith("hf:"):
        from vitkit.data.formats.hub import open_hub

        return open_hub(str(word))
    if is_tar(word):
        return open_tars([word])
    if is_url(word):
        return open_url(str(word))
    path = existing(word)
    if is_index(path):
        return open_index(path)
    if path.is_file() and path.name.lower().endswith(LIST_SUFFIXES):
        return open_list(path)
    if path.is_file():
        if not is_parquet(path):
            raise DataError(
                f"{path}: a file, but not parquet; expected a folder or parquet files, or a list "
                f"of images and labels ({', '.join(LIST_SUFFIXES)})"
            )
        return open_parquet([path])
    inner = looked_through(path)
    splits = open_published(inner)
    # Archives that were unpacked where they lie are no shards.
    if splits is None and (tars := tar_files(path)) and not has_class_folders(path):
        return open_tars(tars)
    return replace(splits or open_folder(inner), name=str(word))


def open_parquet(files: Sequence[Path]) -> Splits:
    missing = missing_shards([str(file) for file in files]) if len(files) > 1 else []
    if missing:
        warnings.warn(
            f"{len(missing)} files of a numbered set are not among those given: {some(missing)}",
            stacklevel=2,
        )
    return Splits(str(files[0]), parquet_source(files, short_names([str(file) for file in files])))


def on_disk(word: str | Path) -> Path:
    """A file that is there, or was fetched from its URL."""
    if not is_url(word):
        return existing(word)
    from vitkit.data.remote.opening import fetched

    return fetched(str(word))


def open_url(url: str) -> Splits:
    from vitkit.data.remote.opening import open_remote

    return open_remote(url)


def open_list(file: Path) -> Splits:
    return splits_of(str(file), sources_of(divided(read_rows(file)), file.parent))


def open_folder(root: Path) -> Splits:
    """The splits of a folder: by its table files, its files of labels and its split folders."""
    found: dict[str, Source] = {}
    tables = split_tables(root)
    if tables:
        for split, names in tables.items():
            found |= opened_split(split, partial(table_source, root, names), len(tables) > 1)
        return splits_of(str(root), found)
    folders = split_folders(root)
    lists = listed_rows(root, folders)
    whole = any(rows.split is None or rows.whole for rows in lists.values())
    for split, name in folders.items():
        if split not in lists and (not whole or has_class_folders(root / name)):
            found |= opened_split(split, partial(folder_source, root, name), len(folders) > 1)
    if lists:
        found |= sources_of(lists, root, found["train"].class_names if "train" in found else None)
    return splits_of(str(root), found) if found else Splits(str(root), FolderSource(root))


def opened_split(split: str, opened: Callable[[], Source], others: bool) -> dict[str, Source]:
    """{split: source}. Many a test split is published without labels; that must not keep anyone
    from training, so beside others it may be passed over."""
    try:
        return {split: opened()}
    except DataError as error:
        if split != "test" or not others:
            raise
        warnings.warn(f"the test split is passed over: {error}", stacklevel=2)
        return {}


def folder_source(root: Path, name: str) -> Source:
    """One split folder: its table files, or the class folders in it."""
    files = table_files(root / name)
    if files:
        return table_source(root, [f"{name}/{file}" for file in files])
    return FolderSource(root, inner_folder(root, name, IMAGE_FOLDERS))


def table_source(root: Path, names: Sequence[str]) -> Source:
    require_all_shards(names, str(root))
    return parquet_source([root / name for name in names], names)


def parquet_source(files: Sequence[Path], names: Sequence[str]) -> Source:
    from vitkit.data.formats import large_parquet  # pyarrow takes a while to import

    return large_parquet.parquet_source(files, names)


def split_tables(root: Path) -> dict[str, list[str]]:
    """The parquet or arrow files in root by split; those whose names say none are to train on."""
    splits: dict[str, list[str]] = {}
    for name in table_files(root):
        splits.setdefault(split_named(name) or "train", []).append(name)
    return splits


def listed_rows(root: Path, folders: Mapping[str, str]) -> dict[str, Rows]:
    """The rows of a folder's files of labels by split: of one for all images, else of those that
    lie beside the split folders, or in one that has no class folders.

    A file that lists something else than the images here, or a test split without labels, is
    passed over with a warning where there are other images to use.
    """
    files = label_files(root)
    files = {"": files[""]} if "" in files else files
    for split, name in folders.items():
        inner = {} if {"", split} & files.keys() else label_files(root / name)
        file = inner.get("") or inner.get(split)
        if file is not None and not has_class_folders(root / name, IMAGE_FOLDERS):
            files[split] = file
    parts: dict[str, Rows] = {}
    for split, file in files.items():
        try:
            parts |= divided(require_images(read_rows(file, split or None)))
        except OtherListError as error:
            if split != "test" and not is_sorted(root):
                raise
            warnings.warn(f"passed over as a list of images: {error}", stacklevel=2)
    return parts


def is_sorted(root: Path) -> bool:
    """Whether there are class folders, in the folder or in its train/, whatever lists say."""
    folders = split_folders(root)
    if folders:
        return "train" in folders and has_class_folders(root / folders["train"], IMAGE_FOLDERS)
    return has_class_folders(root, IMAGE_FOLDERS)


def looked_through(root: Path) -> Path:
    """The folder that DATA is about, below folders that hold nothing but another: a zip file
    unpacked into a folder of its own name, say."""
    for _ in range(WRAPPERS):
        inner = only_folder(root)
        if inner is None:
            return root
        root = inner
    return root


def only_folder(root: Path) -> Path | None:
    """The one folder in root that is no class and no split but holds them."""
    names = subfolders(root)
    if not 1 <= len(names) <= 5 or any(name.lower() in SPLITS for name in names):
        return None
    if has_images(root) or table_files(root) or label_files(root):
        return None
    used = [name for name in names if holds_images(root / name)]
    if not used and len(names) == 1 and any(True for _ in scanned(root / names[0])):
        return root / names[0]  # it may hold parquet files, say
    if len(used) != 1 or (has_images(root / used[0]) and not label_files(root / used[0])):
        return None
    return root / used[0]


def image_side(source: Source, looked_at: int = 16) -> int:
    """The median shorter side of a few images spread over the source, in pixels."""
    sides = []
    for index in np.linspace(0, len(source) - 1, min(looked_at, len(source))).astype(int):
        try:
            sides.append(min(source.image(int(index)).shape[-2:]))
        except (ImageError, OSError):
            continue
    if not sides:
        raise DataError(f"none of the images looked at can be decoded, {source.name(0)} first")
    return int(np.median(sides))


def require_classes(source: Source, title: str) -> None:
    """DataError unless there are images of at least two classes."""
    present = np.unique(strata(source))
    if len(present) < 2:
        names = some([source.class_names[label] for label in present]) or "none"
        raise DataError(
            f"{title}: found {len(source)} images of {len(present)} class ({names}); "
            "expected at least two classes, each in a folder of its own or in a list of labels"
        )
