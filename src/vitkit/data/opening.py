"""DATA as users name it -> splits of labelled images."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vitkit.data.checks import DataError, some
from vitkit.data.decode import ImageError
from vitkit.data.folders import (
    FolderSource,
    existing,
    is_parquet,
    parquet_files,
    split_files,
    split_folders,
)
from vitkit.data.holding_out import held_out_indices
from vitkit.data.index import is_index, open_index
from vitkit.data.source import ArraySource, Concatenated, Source, Splits, Subset, Without, strata


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

    "digits"; a folder of class folders, of train/, val/ and test/ with class folders in them, or
    of parquet files; one or more parquet files; several of these. Raises DataError.
    """
    if isinstance(data, Splits):
        return data
    if isinstance(data, Source):
        return Splits(data.name(0), data)
    words = [data] if isinstance(data, str | Path) else list(data)
    if not words:
        raise DataError("no data given; expected a folder, parquet files or 'digits'")
    if all(is_parquet(word) for word in words):
        return Splits(str(words[0]), parquet_source([existing(word) for word in words]))
    opened = [open_one(word) for word in words]
    if len(opened) == 1:
        return opened[0]
    return Splits(
        opened[0].name,
        Concatenated([splits.train for splits in opened]),
        joined(splits.val for splits in opened),
        joined(splits.test for splits in opened),
    )


def joined(parts: Iterable[Source | None]) -> Source | None:
    given = [part for part in parts if part is not None]
    return Concatenated(given) if given else None


def open_one(word: str | Path) -> Splits:
    if str(word) == "digits":
        return digits()
    path = existing(word)
    if is_index(path):
        return open_index(path)
    if path.is_file():
        if not is_parquet(path):
            raise DataError(f"{path}: a file, but not parquet; expected a folder or parquet files")
        return Splits(str(path), parquet_source([path]))
    parts: dict[str, Path | list[Path]] = {**(split_folders(path) or split_files(path))}
    if not parts:
        return Splits(str(path), FolderSource(path))
    if "train" not in parts:  # only to evaluate on, say; then it is all there is
        parts["train"] = parts.pop("val" if "val" in parts else "test")
    train, val = open_part(parts["train"]), parts.get("val")
    test = open_test(parts["test"]) if "test" in parts else None
    return Splits(str(path), train, open_part(val) if val else None, test)


def open_part(part: Path | list[Path]) -> Source:
    """One split: its parquet files, or a folder that has parquet files or class folders in it."""
    files = part if isinstance(part, list) else parquet_files(part)
    return parquet_source(files) if files or isinstance(part, list) else FolderSource(part)


def parquet_source(files: Sequence[Path]) -> Source:
    from vitkit.data.parquet import ParquetSource  # pyarrow takes a while to import

    return ParquetSource(files)


def open_test(part: Path | list[Path]) -> Source | None:
    """Many a test split is published without labels; that must not keep anyone from training."""
    try:
        return open_part(part)
    except DataError as error:
        warnings.warn(f"the test split is passed over: {error}", stacklevel=2)
        return None


def image_side(source: Source, looked_at: int = 16) -> int:
    """The median shorter side of a few images spread over the source, in pixels."""
    sides = []
    for index in np.linspace(0, len(source) - 1, min(looked_at, len(source))).astype(int):
        try:
            sides.append(min(source.image(int(index)).shape[-2:]))
        except ImageError:
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
            "expected at least two classes"
        )
