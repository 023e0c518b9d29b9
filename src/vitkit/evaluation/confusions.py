"""Which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitkit.evaluation.findings import Confusion
from vitkit.plain import Table

MOST_CLASSES = 200  # of more a matrix can neither be read nor shown
OTHERS = "another class"
SHOWN = 10  # confusions in the table


def confusion(
    labels: np.ndarray, predicted: np.ndarray, number: np.ndarray, class_names: Sequence[str]
) -> Confusion | None:
    """Labels and predictions (N,) of the net's numbering; `number` (K,) are the net's numbers of
    the data's classes, whose names are given. None of more than 200 classes.

    What the net takes for a class that the data lack is counted in a last column of its own.
    """
    if len(number) > MOST_CLASSES:
        return None
    size = int(max(labels.max(initial=0), predicted.max(initial=0), number.max(initial=0))) + 1
    of_data = np.full(size, len(number))
    of_data[number] = np.arange(len(number))
    names, width = list(class_names), len(number) + 1
    pairs = of_data[labels] * width + of_data[predicted]
    counts = np.bincount(pairs, minlength=width * width).reshape(width, width)
    if counts[:, -1].any():
        return Confusion((*names, OTHERS), counts.astype(np.int64))
    return Confusion(tuple(names), counts[:-1, :-1].astype(np.int64))


def most_frequent(
    labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]
) -> Table | None:
    """The pairs of different classes that were confused most often, all numbers being the net's;
    None where nothing was."""
    wrong = labels != predicted
    if not wrong.any():
        return None
    pairs = np.stack([labels[wrong], predicted[wrong]], axis=1)
    found, times = np.unique(pairs, axis=0, return_counts=True)
    images = np.bincount(labels)
    rows = []
    for place in np.argsort(-times, kind="stable")[:SHOWN]:
        true, taken = map(int, found[place])
        share = times[place] / images[true]
        rows.append((class_names[true], class_names[taken], f"{times[place]:,}", f"{share:.1%}"))
    header = ("class", "taken for", "images", "of the class")
    more = f"the first {len(rows)} of {len(found):,} pairs" if len(found) > len(rows) else ""
    return Table("Most frequent confusions", header, tuple(rows), more)
