"""CLEVR and KITTI: what is in a scene, and how far away.

Tested on made-up files in the publishers' formats alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vitkit.data.checks import DataError
from vitkit.data.vtab.files import lines_of
from vitkit.data.vtab.pools import Pools, file_source, found

LARGEST = 2**30  # bytes of a file of scenes
# google-research/task_adaptation, data/clevr.py and kitti.py: a class begins above each.
DEPTHS = np.array([0.0, 8.0, 8.5, 9.0, 9.5, 10.0], np.float32)
METERS = np.array([-100.0, 8.0, 20.0, 999.0], np.float32)
NO_VEHICLE = 1000.0
VEHICLES = ("Car", "Van", "Truck")
PERCENT, VIDEOS_SEED = 10, 123  # tensorflow/datasets, object_detection/kitti.py, _build_splits


def clevr_count(folder: Path) -> Pools:
    names = [f"{number} objects" for number in range(3, 11)]
    return clevr(folder, lambda objects: len(objects) - 3, names)


def clevr_distance(folder: Path) -> Pools:
    """The depth is the third of an object's pixel_coords."""
    names = ["below 8", "8 to 8.5", "8.5 to 9", "9 to 9.5", "9.5 to 10", "above 10"]

    def nearest(objects: list[Any]) -> int:
        return above(DEPTHS, min(float(thing["pixel_coords"][2]) for thing in objects))

    return clevr(folder, nearest, names)


def clevr(folder: Path, label: Callable[[list[Any]], int], names: list[str]) -> Pools:
    """scenes/CLEVR_train_scenes.json and images/train/*.png; those of val are to test on, since
    those of test have no scenes."""
    root = found(folder, "scenes", "CLEVR_v1.0/scenes").parent
    sources = []
    for split in ("train", "val"):
        file = root / "scenes" / f"CLEVR_{split}_scenes.json"
        try:
            scenes = json.loads(limited(file))["scenes"]
            images = [f"images/{split}/{scene['image_filename']}" for scene in scenes]
            labels = [label(scene["objects"]) for scene in scenes]
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise DataError(
                f"{file}: not as CLEVR v1.0 has its scenes ({type(error).__name__}); fetch it again"
            ) from error
        sources.append(file_source(root, images, labels, names))
    train, test = sources
    return Pools(train, test)


def limited(file: Path) -> bytes:
    try:
        if file.stat().st_size > LARGEST:
            raise DataError(f"{file}: larger than {LARGEST} bytes; fetch it again")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: the file cannot be read ({error.strerror})") from error


def above(limits: np.ndarray, distance: float) -> int:
    """The last limit that the distance is above, by its place; -1 where it is above none."""
    return int(np.searchsorted(limits, np.asarray(distance, limits.dtype), side="left")) - 1


def kitti_distance(folder: Path) -> Pools:
    """training/image_2/*.png and training/label_2/*.txt of the object benchmark, with mapping/ of
    its development kit, which tells the videos: no two splits share one.

    The videos to validate and to test on are drawn as tensorflow/datasets draws them.
    """
    names = ["up to 8 m", "8 to 20 m", "beyond 20 m", "no vehicle"]
    root = found(folder, "training").parent
    mapping = found(folder, "mapping", "devkit_object/mapping", "devkit/mapping")
    sources = []
    for numbers in kitti_splits(mapping):
        images = [f"training/image_2/{number:06}.png" for number in numbers]
        files = [root / "training" / "label_2" / f"{number:06}.txt" for number in numbers]
        sources.append(file_source(root, images, [vehicle_label(file) for file in files], names))
    train, val, test = sources
    return Pools(train, test, val)


def vehicle_label(file: Path) -> int:
    """The class of a file of objects: a line each, its type first, x, y and z at 11 to 13."""
    nearest = NO_VEHICLE
    for line in lines_of(file):
        parts = line.split()
        if parts[0] in VEHICLES:
            try:
                nearest = min(nearest, float(parts[13]))
            except (IndexError, ValueError) as error:
                raise DataError(
                    f"{file}: found {line[:60]!r}; expected 15 fields of an object"
                ) from error
    return above(METERS, nearest)


def kitti_splits(mapping: Path) -> tuple[list[int], list[int], list[int]]:
    """The numbers of the images to train, to validate and to test on.

    Line n of train_mapping.txt is "date video frame"; train_rand.txt has for each image, in order,
    the number of its line, from 1 on, between commas.
    """
    lines = [line.split() for line in lines_of(mapping / "train_mapping.txt")]
    images_of: dict[str, list[int]] = {}
    try:
        order = " ".join(lines_of(mapping / "train_rand.txt")).split(",")
        for image, place in enumerate(int(word) - 1 for word in order if word.strip()):
            if place < 0:
                raise IndexError
            images_of.setdefault(lines[place][1], []).append(image)
    except (ValueError, IndexError) as error:
        raise DataError(
            f"{mapping}: train_rand.txt and train_mapping.txt are not those of KITTI's development "
            "kit; fetch it again"
        ) from error
    chance = np.random.RandomState(VIDEOS_SEED)
    number = max(1, PERCENT * len(images_of) // 100)
    if len(images_of) < 3:
        raise DataError(f"{mapping}: {len(images_of)} videos are too few for three splits")
    test = set(chance.choice(sorted(images_of), number, replace=False).tolist())
    val = set(chance.choice(sorted(set(images_of) - test), number, replace=False).tolist())

    def images(videos: set[str]) -> list[int]:
        return sorted(image for video in videos for image in images_of[video])

    return images(set(images_of) - test - val), images(val), images(test)
