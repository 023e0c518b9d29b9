"""Parts of a source: a stratified subset, and a source without the images that lists name."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence
from heapq import heappop, heappush
from math import ceil
from pathlib import Path

import numpy as np

from vitkit.data.checks import DataError, some
from vitkit.data.holding_out import by_class
from vitkit.data.source import Source, Subset, Without, strata
from vitkit.errors import UsageError


def subset(source: Source, amount: float, seed: int) -> Source:
    """`amount` images (above 1), or that share of them (1 and below), the same of every class.

    Every class has its share to within one image, and with the same seed a larger subset holds
    the smaller ones. A pure function of the labels, the amount and the seed. Of several labels of
    an image the rarest counts. Raises UsageError, DataError.
    """
    if not amount > 0 or (amount > 1 and amount != int(amount)):
        raise UsageError(
            f"a subset of {amount:g} cannot be; give a whole number of images above 1, or a share "
            "of them up to 1"
        )
    count = int(amount) if amount > 1 else round(amount * len(source))
    if not 0 < count <= len(source):
        raise DataError(
            f"a subset of {amount:g} is {count} of {len(source)} images to train on; give 1 to "
            f"{len(source)} images, or a larger share"
        )
    if count == len(source):
        return source
    return Subset(source, stratified(strata(source), count, seed))


def stratified(classes: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Sorted indices of `count` of the images, by their classes ((N,) integers)."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(classes))
    grouped, sizes = by_class(classes[order])
    shuffled = random.permutation(len(sizes))  # chance decides between equal classes
    wanted = np.zeros(len(sizes), dtype=np.int64)
    wanted[shuffled] = shares(sizes[shuffled], count)
    place = np.arange(len(classes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[grouped[place < np.repeat(wanted, sizes)]])


def shares(sizes: np.ndarray, count: int) -> list[int]:
    """How many of `count` images each class of these sizes has; of more images none has fewer.

    Images are given out one by one, so that after each every class is less than one away from its
    share (Tijdeman 1980, "The chairman assignment problem"): of the classes that may have one more
    the one goes first that must have it soonest. Sorting by share alone would fail where one class
    stands beside many small ones.
    """
    period = (float(sizes.sum()) / sizes).tolist()  # images given out for each one of the class
    slack = 1 / (2 * len(sizes) - 2) if len(sizes) > 1 else 0.0
    given = [0] * len(sizes)
    able: list[tuple[float, int]] = []  # (the latest turn, class)
    later = defaultdict(list)  # turn -> the classes that may have one more from then on
    for number, length in enumerate(period):
        later[max(1, ceil(slack * length))].append(number)
    for turn in range(1, count + 1):
        for number in later.pop(turn, ()):
            heappush(able, ((given[number] + 1 - slack) * period[number], number))
        number = heappop(able)[1]
        given[number] += 1
        later[max(turn + 1, ceil((given[number] + slack) * period[number]))].append(number)
    return given


def without_listed(source: Source, files: Sequence[str | Path]) -> Source:
    """The source without the images whose keys are in the files, as `listed_in` finds them."""
    (left_out,) = listed_in([source], files)
    return Without(source, left_out) if left_out else source


def listed_in(sources: Sequence[Source], files: Sequence[str | Path]) -> list[list[int]]:
    """For each source the indices of the images whose keys are in the files.

    A file holds one key a line; a tab and a reason may follow; empty lines and those that begin
    with "# " do not count. A warning counts keys that are no image's. DataError where none of a
    file's keys is: it was written for other data.
    """
    lists = [(Path(file).expanduser(), listed_keys(Path(file).expanduser())) for file in files]
    wanted = set().union(*(keys for _, keys in lists))
    chosen: list[list[int]] = [[] for _ in sources]
    found: set[str] = set()
    for source, indices in zip(sources, chosen, strict=True):
        for index in range(len(source) if wanted else 0):
            key = source.key(index)
            if key in wanted:
                found.add(key)
                indices.append(index)
    for file, keys in lists:
        unknown = [key for key in keys if key not in found]
        if unknown and len(unknown) == len(keys):
            raise DataError(
                f"{file}: none of its {len(keys)} lines ({some(unknown, 3)}) names an image of "
                f"this data, whose first is {sources[0].key(0)}; give the list that was made for it"
            )
        if unknown:
            warnings.warn(
                f"{file}: {len(unknown)} of its {len(keys)} lines name no image to train on: "
                f"{some(unknown, 3)}",
                stacklevel=2,
            )
    for source, indices in zip(sources, chosen, strict=True):
        if 0 < len(source) == len(indices):
            raise DataError(
                f"the lists leave out all {len(source)} images of {source.name(0)} and its like; "
                "shorten them"
            )
    return chosen


def listed_keys(file: Path) -> dict[str, None]:
    """The keys in a list, in order, each once. Raises DataError."""
    try:
        text = file.read_text("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{file}: not readable as a list of images: {error.strerror}") from error
    lines = (line.split("\t")[0].strip() for line in text.split("\n"))
    return dict.fromkeys(line for line in lines if line and not line.startswith(("# ", "#\t")))
