"""How many planted near-duplicates `vitkit data dedup` finds, and what a million images cost.

`python benchmarks/duplicates.py TINY_IMAGENET [--cifar CIFAR10] [--million]` plants 2,000 images
that are encoded anew (JPEG or WebP, quality 30 to 70), resized (0.5 to 2 times), cropped to 95 % of
both sides anywhere, mirrored, or 0.7 to 1.3 times as bright, 400 of each, beside the training
images; looks for the near-duplicates of all; and counts the plants whose origin was found, and the
pairs that join a plant with anything but its origin, its origin's own duplicates and their plants.
With --cifar it counts the test images that have a duplicate among those to train on or to test on.
With --million it looks through a million thumbnails, the images turned and rolled, in a process of
its own. Writes benchmarks/results/duplicates.json.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line sets it

import numpy as np
from PIL import Image, ImageEnhance

from vitkit.data import duplicates
from vitkit.data.audit import look_through
from vitkit.data.opening import open_data
from vitkit.data.source import Source
from vitkit.workflows.data_duplicates import all_duplicates

RESULTS = Path(__file__).with_name("results") / "duplicates.json"
KINDS = ("encoded", "resized", "cropped", "mirrored", "brightness")
EACH = 400


class Encoded(Source):
    """Image files in memory, all of one class."""

    def __init__(self, files: list[bytes], class_names: list[str]) -> None:
        self.files, self.class_names = files, class_names
        self.labels = np.zeros(len(files), np.int64)

    def encoded(self, index: int) -> bytes:
        return self.files[index]

    def key(self, index: int) -> str:
        return f"plant {index}"

    name = key

    def fingerprint(self) -> str:
        return ""


def planted(image: Image.Image, kind: str, random: np.random.Generator) -> bytes:
    if kind == "encoded":
        how = ("JPEG", "WEBP")[random.integers(2)]
        return saved(image, how, int(random.integers(30, 71)))
    if kind == "resized":
        scale = random.uniform(0.5, 2)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
    elif kind == "cropped":
        width, height = round(image.width * 0.95), round(image.height * 0.95)
        left = random.integers(image.width - width + 1)
        top = random.integers(image.height - height + 1)
        image = image.crop((left, top, left + width, top + height))
    elif kind == "mirrored":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    else:
        image = ImageEnhance.Brightness(image).enhance(random.uniform(0.7, 1.3))
    return saved(image, "JPEG", 90)


def saved(image: Image.Image, how: str, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, how, quality=quality)
    return file.getvalue()


def score(data: str, seed: int) -> dict[str, Any]:
    """Plant, look, and judge."""
    source = open_data(data).train
    random = np.random.default_rng(seed)
    origins = random.choice(len(source), len(KINDS) * EACH, replace=False)
    kinds = np.repeat(np.arange(len(KINDS)), EACH)
    pictures = (Image.fromarray(source.image(int(i)).permute(1, 2, 0).numpy()) for i in origins)
    files = [planted(p, KINDS[k], random) for p, k in zip(pictures, kinds, strict=True)]
    began = time.perf_counter()
    parts = [("train", source), ("plants", Encoded(files, source.class_names))]
    seen, found = all_duplicates(parts, len(source) + len(files), duplicates.THRESHOLD)
    seconds = time.perf_counter() - began
    first = np.concatenate([pairs.first for _, pairs in found])
    second = np.concatenate([pairs.second for _, pairs in found])
    stands_for = np.concatenate([np.arange(len(source)), origins])  # an image, a plant's origin
    a, b = stands_for[first], stands_for[second]
    plant = second >= len(source)
    right = plant & (a == b) & (first < len(source))
    hit = np.zeros(len(files), bool)
    hit[second[right] - len(source)] = True
    known = {(int(x), int(y)) for x, y in zip(a[~plant], b[~plant], strict=True)}
    wrong = [
        [seen.key(int(i)), seen.key(int(j))]
        for i, j, x, y in zip(first[plant], second[plant], a[plant], b[plant], strict=True)
        if x != y and (min(x, y), max(x, y)) not in known
    ]
    return {
        "data": len(source),
        "plants": len(files),
        "found": int(hit.sum()),
        "recall": float(hit.mean()),
        "recall_by_kind": {k: float(hit[kinds == n].mean()) for n, k in enumerate(KINDS)},
        "pairs": len(first),
        "pairs_with_a_plant": int(plant.sum()),
        "pairs_without": int((~plant).sum()),
        "false_pairs": wrong,
        "false_share": len(wrong) / len(first),
        "seconds": round(seconds, 1),
    }


def own_duplicates(data: str) -> dict[str, Any]:
    splits = open_data(data)
    assert splits.test is not None
    parts = [("train", splits.train), ("test", splits.test)]
    began = time.perf_counter()
    _, found = all_duplicates(parts, len(splits.train) + len(splits.test), duplicates.THRESHOLD)
    first = np.concatenate([pairs.first for _, pairs in found])
    second = np.concatenate([pairs.second for _, pairs in found])
    border = len(splits.train)
    leak = (first < border) & (second >= border)
    within = first >= border
    either = np.concatenate([second[leak], first[within], second[within]])
    return {
        "pairs": len(first),
        "leaking_pairs": int(leak.sum()),
        "test_images_with_a_duplicate_in_train": len(np.unique(second[leak])),
        "test_images_with_a_duplicate": len(np.unique(either)),
        "seconds": round(time.perf_counter() - began, 1),
    }


def million(data: str, images: int) -> dict[str, Any]:
    """Time and memory to look through thumbnails that lie on disk."""
    source = open_data(data).train
    with tempfile.TemporaryDirectory() as place:
        given = np.zeros((len(source), duplicates.BYTES), np.uint8)
        look_through([("train", source)], thumbnails=given)
        shape = (images, duplicates.BYTES)
        path = Path(place) / "thumbnails.npy"
        thumbnails = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
        for begin in range(0, images, len(given)):
            part = thumbnails[begin : begin + len(given)]
            part[:] = variant(given, begin // len(given))[: len(part)]
        thumbnails.flush()
        del given, part
        before = peak()
        began = time.perf_counter()
        pairs = duplicates.near_duplicates(thumbnails, np.ones(images, bool))
        return {
            "images": images,
            "pairs": len(pairs.first),
            "seconds": round(time.perf_counter() - began, 1),
            "cpu_seconds": round(time.process_time(), 1),
            "peak_resident_before_gb": before,
            "peak_resident_gb": peak(),  # pages of the mapped thumbnails among them
        }


def variant(given: np.ndarray, number: int) -> np.ndarray:
    """The thumbnails turned by a multiple of 90 degrees and rolled by half a side.

    They are no near-duplicates of each other, and as much alike as photographs are.
    """
    side = duplicates.SIDE
    seen = given[:, : side * side].reshape(-1, side, side)
    rolls = ((0, 0), (side // 2, side // 2), (side // 2, 0), (0, side // 2))[number // 4 % 4]
    seen = np.roll(np.rot90(seen, number % 4, axes=(1, 2)), rolls, axis=(1, 2))
    return np.concatenate([seen.reshape(len(given), -1), given[:, side * side :]], axis=1)


def peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--cifar")
    parser.add_argument("--million", type=int, nargs="?", const=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-million", action="store_true")
    words = parser.parse_args()
    if words.only_million:
        print(json.dumps(million(words.data, words.million)))
        return
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    result |= {"date": str(date.today()), "machine": platform.processor() or platform.machine(),
               "cores": os.cpu_count(), "planted": score(words.data, words.seed)}  # fmt: skip
    if words.cifar:
        result["cifar"] = own_duplicates(words.cifar)
    if words.million:
        command = [sys.executable, __file__, words.data, "--only-million", "--million",
                   str(words.million)]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        result["million"] = json.loads(done.stdout.splitlines()[-1])
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
