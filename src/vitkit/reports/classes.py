"""The recall of each class: the lowest in a terminal, all of them on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vitkit.data.checks import some
from vitkit.terminal import print_columns, printable

ALL_SHOWN = 10  # classes; of more the LOWEST are printed
LOWEST = 5  # of them


class OfClass(NamedTuple):
    """How a class was recognised."""

    name: str
    recall: float  # the share of its images that were given the class
    images: int


def by_name(metrics: dict[str, Any], class_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What `top_k` found of each class, by name: {"class_recall": {...}, "class_images": {...}}.

    Both are empty where it was found by a version that did not look.
    """
    names = ("class_recall", "class_images")
    return {name: dict(zip(class_names, metrics.get(name, ()), strict=False)) for name in names}


def lowest_first(
    class_recall: Mapping[str, float | None], class_images: Mapping[str, int]
) -> list[OfClass]:
    """The classes that have images."""
    rows = [
        OfClass(name, recall, class_images[name])
        for name, recall in class_recall.items()
        if recall is not None
    ]
    return sorted(rows, key=lambda row: row.recall)


def print_recalls(
    class_recall: Mapping[str, float | None], class_images: Mapping[str, int], several: bool
) -> None:
    """What people see of the classes: the lowest recalls, and which could not be scored."""
    print_lowest(lowest_first(class_recall, class_images), several)
    without = [name for name, recall in class_recall.items() if recall is None]
    if without:
        print(printable(f"no image to score was of {len(without):,} classes: {some(without)}"))


def print_lowest(rows: Sequence[OfClass], several: bool) -> None:
    """A table of the classes with the lowest recall, of few classes all; `several` labels each."""
    if not rows:
        return
    shown = rows if len(rows) <= ALL_SHOWN else rows[:LOWEST]
    recall = "recall at 0.5" if several else "recall"
    print_columns(
        ("label" if several else "class", recall, "images"),
        [(row.name, f"{row.recall:.2%}", f"{row.images:,}") for row in shown],
        right=(1, 2),
    )
    if len(rows) > len(shown):
        print(f"the lowest {len(shown)} of {len(rows):,} classes; --json lists all")
