"""ImageNet as torchvision, the authors' archives or Kaggle lay it out: folders called by WordNet
numbers to train on, and images to validate on that may lie side by side."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitkit.data.checks import DataError, first_line, some
from vitkit.data.formats.folders import files_in, subfolders
from vitkit.data.formats.image_files import FileSource, FolderSource
from vitkit.data.source import Splits

WNID = re.compile(r"n\d{8}")
BASES = ("", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
DEVKIT = "ILSVRC2012_devkit_t12/data"
LABELLED = re.compile(r"ILSVRC2012_val_0*(\d{1,8})(_n\d{8})?\.jpe?g", re.IGNORECASE)
LARGEST = 2**26  # bytes of a list


def open_imagenet(root: Path) -> Splits | None:
    """The splits of ImageNet in this folder; None for any other folder. Raises DataError."""
    for base in BASES:
        folder = root / base if base else root
        if not (folder / "train").is_dir():
            continue
        classes = subfolders(folder / "train")
        if not classes or not all(WNID.fullmatch(name) for name in classes):
            continue
        val = folder / "val"
        images = (
            [name for name in files_in(val) if LABELLED.fullmatch(name)] if val.is_dir() else []
        )
        names = human_names(places_beside(folder))
        if not images and not set(classes) <= names.keys():
            return None  # class folders like any others
        return imagenet(folder, classes, images, names)
    return None


def imagenet(
    folder: Path, classes: Sequence[str], images: Sequence[str], names: Mapping[str, str]
) -> Splits:
    train, val = FolderSource(folder, "train"), None
    if images:
        number = {wnid: place for place, wnid in enumerate(classes)}
        labels = [number.get(wnid) for wnid in val_wnids(folder, images)]
        if None in labels:
            raise DataError(
                f"{folder / 'val'}: {labels.count(None)} of {len(images)} images are of classes "
                f"that train/ has no folder of; unpack all {len(classes)} of it"
            )
        val = FileSource(
            folder, [f"val/{name}" for name in images], np.array(labels, np.int32), classes
        )
    elif (folder / "val").is_dir() and subfolders(folder / "val"):
        val = FolderSource(folder, "val")
    for source in (train, val):
        if source is not None:
            source.class_names = unique_names(source.class_names, names)
    return Splits(str(folder), train, val)


def places_beside(folder: Path) -> list[Path]:
    """Where lists may lie: in the folder, and above it as Kaggle has them."""
    above = [folder, *folder.absolute().parents[:3]]
    return above if folder.name == "CLS-LOC" else above[:2]


def unique_names(wnids: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The first word for each class, with its number where two have the same: "crane" is a bird
    and a machine."""
    words = [names.get(wnid, wnid) for wnid in wnids]
    twice = {word for word in words if words.count(word) > 1}
    return [
        f"{word} ({wnid})" if word in twice else word
        for word, wnid in zip(words, wnids, strict=True)
    ]


def human_names(places: Sequence[Path]) -> dict[str, str]:
    """{WordNet number: the first word for it} of the first list found; {} without one."""
    for place in places:
        if (place / "meta.bin").is_file():
            names, _ = meta(place / "meta.bin")
            return {str(wnid): str(words[0]) for wnid, words in names.items() if words}
        for file in ("LOC_synset_mapping.txt", "words.txt"):
            if (place / file).is_file():
                lines = text(place / file).splitlines()
                pairs = (re.split(r"\s", line.strip(), maxsplit=1) for line in lines)
                return {pair[0]: pair[1].split(",")[0] for pair in pairs if len(pair) == 2}
    return {}


def val_wnids(folder: Path, images: Sequence[str]) -> list[str]:
    """The class of each image that lies flat in val/, from the first list found."""
    for place in places_beside(folder):
        if (place / "LOC_val_solution.csv").is_file():
            return by_solution(place / "LOC_val_solution.csv", images)
        if (place / DEVKIT / "meta.mat").is_file():
            return by_devkit(place / DEVKIT, images)
        if (place / "meta.bin").is_file():
            return by_number([str(wnid) for wnid in meta(place / "meta.bin")[1]], images, place)
    raise DataError(
        f"{folder / 'val'}: found {len(images)} images such as {images[0]} without labels; put "
        f"meta.bin, the folder {DEVKIT.split('/')[0]} or LOC_val_solution.csv into {folder}"
    )


def by_solution(file: Path, images: Sequence[str]) -> list[str]:
    """Kaggle's list: ImageId,PredictionString, where the class and a box are the prediction."""
    rows = csv.reader(io.StringIO(text(file)))
    found = {row[0]: row[1].split()[0] for row in rows if len(row) == 2 and row[1].strip()}
    absent = [name for name in images if Path(name).stem not in found]
    if absent:
        raise DataError(f"{file}: {len(absent)} images of val/ are not in it: {some(absent)}")
    return [found[Path(name).stem] for name in images]


def by_devkit(folder: Path, images: Sequence[str]) -> list[str]:
    """The authors' list: line i is the number, by their own count, of image i's class."""
    file = folder / "ILSVRC2012_validation_ground_truth.txt"
    wnids = devkit_wnids(folder / "meta.mat")
    try:
        listed = [wnids[int(line)] for line in text(file).split()]
    except (ValueError, KeyError) as error:
        raise DataError(
            f"{file}: found {error} where a class number is expected; unpack the devkit again"
        ) from error
    return by_number(listed, images, file)


def devkit_wnids(file: Path) -> dict[int, str]:
    from scipy.io import loadmat

    try:
        synsets = loadmat(file, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {int(entry["ILSVRC2012_ID"]): str(entry["WNID"]) for entry in synsets}
    except Exception as error:  # scipy raises many kinds on hostile bytes
        raise DataError(
            f"{file}: not readable as the devkit's list of classes: {first_line(error)}; unpack "
            "the devkit again"
        ) from error


def by_number(listed: Sequence[str], images: Sequence[str], title: Path) -> list[str]:
    """Image number i, counted from 1 in its name, has the i-th class of the list."""
    found = [LABELLED.fullmatch(name) for name in images]
    numbers = [int(match.group(1)) for match in found if match]
    if not numbers or min(numbers) < 1 or max(numbers) > len(listed):
        raise DataError(
            f"{title}: has labels for {len(listed)} images, but val/ holds {len(images)}; fetch it "
            "again"
        )
    return [listed[number - 1] for number in numbers]


def meta(file: Path) -> tuple[dict[str, Any], list[str]]:
    """torchvision's meta.bin: ({WordNet number: words}, the class of each validation image)."""
    import torch

    try:
        names, wnids = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(names, dict) and isinstance(wnids, list):
            return names, wnids
        raise ValueError("holds other things")
    except Exception as error:  # torch raises many kinds on hostile bytes
        raise DataError(
            f"{file}: not readable as torchvision's list of ImageNet's classes: "
            f"{first_line(error)}; remove it or fetch it again"
        ) from error


def text(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST:
            raise DataError(f"{file}: has more than {LARGEST} bytes; expected ImageNet's list")
        return file.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise DataError(f"{file}: the file cannot be read: {error.strerror}") from error
