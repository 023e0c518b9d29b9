"""ImageNet's 1,000 classes by whatever name, and the classes of the sets that go with ImageNet.

`imagenet.txt` has a line for each class, in the order of its numbers: the WordNet number, the
letters of the smaller sets that have it (R, A), and the words of ILSVRC2012's list. The 200 classes
of ImageNet-R are those of hendrycks/imagenet-r (eval.py), the 200 of ImageNet-A those of
hendrycks/natural-adv-examples (eval.py). `objectnet.txt` has ObjectNet's 313 folders with the
ImageNet classes that each stands for, as its authors map them (the metadata in
mlfoundations/wise-ft, src/datasets/objectnet_metadata); 200 folders stand for none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from vitkit.data.checks import DataError, some

CLASSES = 1000
IN_PLACE = 900  # of 1,000 names, from which on they are taken to stand in ImageNet's order
# A WordNet number at the beginning of a name, or in brackets at its end.
WNID = re.compile(r"(n\d{8})(?!\d)|.*\((n\d{8})\)$")
SETS = ("imagenet-r", "imagenet-a", "imagenet-v2", "imagenet-sketch", "objectnet")
LETTERS = {"imagenet-r": "R", "imagenet-a": "A"}


@dataclass(frozen=True)
class ImageNetClass:
    wnid: str
    sets: str  # the letters of the smaller sets that have it
    names: str  # "tench, Tinca tinca"


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The 1,000, in the order of their numbers."""
    return tuple(ImageNetClass(*line.split("\t")) for line in lines_of("imagenet.txt"))


@cache
def objectnet_folders() -> dict[str, tuple[int, ...]]:
    """{folder: the ImageNet classes that it stands for}; () where ImageNet has no such class."""
    pairs = (line.split("\t") for line in lines_of("objectnet.txt"))
    return {
        folder: tuple(map(int, numbers.split())) if numbers != "-" else ()
        for folder, numbers in pairs
    }


def lines_of(name: str) -> list[str]:
    return files("vitkit.data.classes").joinpath(name).read_text("utf-8").splitlines()


def imagenet_numbers(names: Sequence[str]) -> list[int | None]:
    """For each class name the number 0..999 of the ImageNet class that it means, None if unknown.

    A name may be a WordNet number, all the words of a class ("tench, Tinca tinca"), its first word
    or one that no other class has, with spaces or underscores. A thousand names of which nearly
    all stand at their own number are all taken to do so, and so are "0" to "999" where all of them
    are there: a lone "7" may mean anything. Where several names would be one class, the one that
    says it best has it (a WordNet number before all the words before one of them), or else none.
    """
    if set(names) == {str(number) for number in range(CLASSES)}:
        return [int(name) for name in names]
    found = [place_of(name) for name in names]
    in_place = sum(hit is not None and hit[1] == place for place, hit in enumerate(found))
    if len(names) == CLASSES and in_place >= IN_PLACE:
        return list(range(CLASSES))
    claims: dict[int, list[int]] = {}
    for hit in found:
        if hit is not None:
            claims.setdefault(hit[1], []).append(hit[0])
    return [
        hit[1] if hit is not None and is_best(hit[0], claims[hit[1]]) else None for hit in found
    ]


def is_best(rank: int, claims: list[int]) -> bool:
    return rank == min(claims) and claims.count(rank) == 1


def place_of(name: str) -> tuple[int, int] | None:
    """(how well the name says it, 0 the best; the number of the class)."""
    texts = by_text()
    wnid = WNID.match(name)
    words = name.replace("_", " ").strip()
    keys = ((wnid[1] or wnid[2]) if wnid else None, words, words, words, words.casefold())
    for rank, (key, known) in enumerate(zip(keys, texts, strict=True)):
        numbers = known.get(key, ()) if key else ()
        if numbers:
            return (rank, numbers[0]) if len(numbers) == 1 else None
    return None


@cache
def by_text() -> tuple[dict[str, tuple[int, ...]], ...]:
    """The numbers of the classes by WordNet number, by all their words, by the first (torchvision's
    names), by each, and by each in small letters: "Cardigan" is a dog, "cardigan" a jacket."""
    texts: tuple[dict[str, set[int]], ...] = ({}, {}, {}, {}, {})
    for number, known in enumerate(imagenet_classes()):
        words = known.names.split(", ")
        small = [text.casefold() for text in (known.names, *words)]
        each = ([known.wnid], [known.names], words[:1], words, small)
        for place, keys in zip(texts, each, strict=True):
            for key in keys:
                place.setdefault(key, set()).add(number)
    return tuple({key: tuple(found) for key, found in place.items()} for place in texts)


def same_imagenet_classes(known: Sequence[str], given: Sequence[str]) -> list[int | None]:
    """For each given class the place in `known` of the same ImageNet class, None where none is."""
    place = {number: i for i, number in enumerate(imagenet_numbers(known)) if number is not None}
    return [None if number is None else place.get(number) for number in imagenet_numbers(given)]


def classes_of_set(title: str) -> list[tuple[int, ...]]:
    """What can be predicted in a set of SETS: for each of its classes its ImageNet numbers, in
    their order; several only in ObjectNet."""
    if title == "objectnet":
        return [numbers for numbers in objectnet_folders().values() if numbers]
    letter = LETTERS.get(title, "")
    return [(n,) for n, known in enumerate(imagenet_classes()) if letter in known.sets]


def places_in_set(title: str, names: Sequence[str]) -> list[int | None]:
    """For each class of DATA its place in `classes_of_set`; None for a folder of ObjectNet that
    ImageNet has no class for. Raises DataError for a class that the set has not."""
    if title == "objectnet":
        numbers: list = [objectnet_folders().get(name) for name in names]
    elif title == "imagenet-v2" and all(name.isdecimal() for name in names):
        numbers = [(int(name),) for name in names]  # its folders are "0" to "999"
    else:
        numbers = [None if n is None else (n,) for n in imagenet_numbers(names)]
    place = {numbers: i for i, numbers in enumerate(classes_of_set(title))} | {(): None}
    unknown = [name for name, found in zip(names, numbers, strict=True) if found not in place]
    if unknown:
        raise DataError(
            f"{some(unknown)}: {len(unknown)} of {len(names)} classes of the data are none of "
            f"{title}; give the folder with its class folders, or leave --classes out"
        )
    return [place[found] for found in numbers]


def looks_like(names: Sequence[str]) -> str | None:
    """The set of SETS whose class folders are exactly these: ImageNet-R's or -A's 200 WordNet
    numbers, or ObjectNet's 313 folders or the 113 that ImageNet has classes for."""
    given = set(names)
    for title, letter in LETTERS.items():
        if given == {known.wnid for known in imagenet_classes() if letter in known.sets}:
            return title
    folders = objectnet_folders()
    overlapping = {folder for folder, numbers in folders.items() if numbers}
    return "objectnet" if given in (set(folders), overlapping) else None
