"""Tasks whose images are files: in class folders, or named in lists of their publisher.

Tested on made-up files in the publishers' layouts alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from vitkit.data.checks import DataError
from vitkit.data.formats.folders import images_below
from vitkit.data.formats.image_files import FileSource, FolderSource
from vitkit.data.formats.torchvision_sets import read
from vitkit.data.opening import open_data
from vitkit.data.vtab.pools import SEED, Pools, chosen, divided, file_source, found

CALTECH_TRAIN = 30  # images of each class: tensorflow/datasets, image_classification/caltech.py
SIXTY_TWENTY = (0.6, 0.2, 0.2)  # google-research/task_adaptation, data/eurosat.py and resisc45.py
SEVENTY_TEN = (0.7, 0.1, 0.2)  # tensorflow/datasets, image_classification/sun.py
SUN397_BROKEN = "c/church/outdoor/sun_bhenjvsvrtumjuri.jpg"  # left out there: decoders differ on it
GRADES = ("none", "mild", "moderate", "severe", "proliferative")


def opened(folder: Path) -> Pools:
    """CIFAR-100, Flowers and Pets: any DATA of vitkit.data.opening with a test split."""
    splits = open_data(folder)
    if splits.test is None or splits.train.multi_label:
        raise DataError(
            f"{folder}: found no images of one class each to test on; give the data set as its "
            "publisher or torchvision has it"
        )
    return Pools(splits.train, splits.test, splits.val)


def caltech101(folder: Path) -> Pools:
    """101_ObjectCategories with BACKGROUND_Google: 30 images of each class, by chance, to train on,
    the others to test on."""
    source = FolderSource(
        found(folder, "101_ObjectCategories", "caltech-101/101_ObjectCategories", ".")
    )
    chance, train = np.random.default_rng(SEED), []
    for label in range(len(source.class_names)):
        members = chance.permutation(np.flatnonzero(source.labels == label))
        train.append(members[:CALTECH_TRAIN])
    train = np.sort(np.concatenate(train))
    test = np.setdiff1d(np.arange(len(source)), train)
    return Pools(chosen(source, train), chosen(source, test), same_test=False)


def dtd(folder: Path) -> Pools:
    """images/CLASS/*.jpg, and labels/train1.txt, val1.txt and test1.txt, the first of its ten
    divisions."""
    root = found(folder, "labels", "dtd/labels").parent
    lists = {
        split: lines_of(root / "labels" / f"{split}1.txt") for split in ("train", "val", "test")
    }
    names = sorted({first_part(line) for lines in lists.values() for line in lines})
    sources = {
        split: of_classes(root / "images", lines, names, first_part)
        for split, lines in lists.items()
    }
    return Pools(sources["train"], sources["test"], sources["val"])


def sun397(folder: Path) -> Pools:
    """SUN397/LETTER/CLASS.../*.jpg. Beside it may lie the lists sun397_tfds_tr.txt, _va and _te of
    tensorflow/datasets: then the test images are the published ones."""
    root = found(folder, "SUN397", ".")
    lists = [folder / f"sun397_tfds_{split}.txt" for split in ("tr", "va", "te")]
    if all(file.is_file() for file in lists):
        paths = [[line.lstrip("/") for line in lines_of(file)] for file in lists]
        names = sorted({folder_of(path) for part in paths for path in part})
        train, val, test = (of_classes(root, part, names, folder_of) for part in paths)
        return Pools(train, test, val)
    paths = [path for path in images_below(root) if path != SUN397_BROKEN]
    names = sorted({folder_of(path) for path in paths})
    return divided(of_classes(root, paths, names, folder_of), SEVENTY_TEN)


def eurosat(folder: Path) -> Pools:
    """The RGB images: 2750/CLASS/*.jpg, or EuroSAT_RGB/CLASS/*.jpg."""
    root = found(folder, "2750", "EuroSAT_RGB", "EuroSAT/2750", ".")
    return divided(FolderSource(root), SIXTY_TWENTY)


def resisc45(folder: Path) -> Pools:
    """NWPU-RESISC45/CLASS/*.jpg."""
    return divided(FolderSource(found(folder, "NWPU-RESISC45", ".")), SIXTY_TWENTY)


def diabetic_retinopathy(folder: Path) -> Pools:
    """trainLabels.csv with train/*.jpeg, and retinopathy_solution.csv with test/*.jpeg, whose usage
    is Public, to validate on, or Private, to test on."""
    train = graded(folder, "trainLabels.csv", "train")
    val = graded(folder, "retinopathy_solution.csv", "test", "Public")
    test = graded(folder, "retinopathy_solution.csv", "test", "Private")
    note = (
        "images as they lie there; those of the benchmark are scaled to one radius of the eye, "
        "less their local mean, and cropped (btgraham-300)"
    )
    return Pools(train, test, val, note=note)


def graded(root: Path, file: str, images: str, usage: str | None = None) -> FileSource:
    """The rows of a table "image,level" or "image,level,Usage"."""
    names, labels = [], []
    table = csv.DictReader(io.StringIO(read(root / file).decode("utf-8", "replace")))
    try:
        for row in table:
            if usage is None or row["Usage"] == usage:
                names.append(f"{images}/{row['image']}.jpeg")
                labels.append(int(row["level"]))
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{root / file}: row {table.line_num} is not as in 'image,level"
            f"{'' if usage is None else ',Usage'}'; fetch it again"
        ) from error
    return file_source(root, names, labels, GRADES)


# Lists of paths


def lines_of(file: Path) -> list[str]:
    """The lines of a text that are not empty. Raises DataError."""
    lines = read(file).decode("utf-8", "replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def first_part(path: str) -> str:
    return path.split("/")[0]


def folder_of(path: str) -> str:
    return path.rpartition("/")[0]


def of_classes(
    root: Path, paths: Iterable[str], names: Sequence[str], class_of: Callable[[str], str]
) -> FileSource:
    """Images whose path tells their class."""
    paths, number = list(paths), {name: place for place, name in enumerate(names)}
    return file_source(root, paths, [number[class_of(path)] for path in paths], names)


def with_lists(folder: Path, classes: int) -> tuple[FileSource, FileSource, FileSource]:
    """The layout of copies of the benchmark: train800.txt, val200.txt and test.txt of lines "path
    label" -> images to fit on, to choose by, to test on."""
    return tuple(list_of(folder, f"{name}.txt", classes) for name in ("train800", "val200", "test"))  # pyright: ignore[reportReturnType]


def list_of(folder: Path, file: str, classes: int) -> FileSource:
    names, labels = [], []
    for line in lines_of(folder / file):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdecimal() or int(label) >= classes:
            raise DataError(
                f"{folder / file}: found {line[:60]!r}; expected a path and a label from 0 to "
                f"{classes - 1}"
            )
        names.append(name)
        labels.append(int(label))
    return file_source(folder, names, labels, [str(label) for label in range(classes)])
