"""report.html of a self-training: its rounds, what was learned of each class, some images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitkit.data.checks import some
from vitkit.plain import Table
from vitkit.reports.page import (
    Fold,
    Heading,
    Part,
    Picture,
    Pictures,
    Section,
    Text,
    counted,
    table,
    write_page,
)
from vitkit.training.log import headline

OFTEN = 5  # repeats of a class's images from which they are worth a line
OPENED = 20  # classes; a longer table is folded


@dataclass(frozen=True)
class Example:
    """An unlabelled image that a student learned."""

    label: str
    name: str
    confidence: float  # 0 to 1
    image: np.ndarray | None  # (h, w, 3) uint8; None where it cannot be read


def write_selftraining(folder: Path, record: dict[str, Any], examples: Sequence[Example]) -> Path:
    """Write report.html from a selftrain.json that has come to its end."""
    best = record["rounds"][record["best"]]
    what, value = headline(best["metrics"])
    images = record["unlabelled"]["images"]
    return write_page(
        folder / "report.html",
        f"Self-training on {record['data']['name']} and {record['unlabelled']['name']}",
        f"Best {what} {value:.2%} on {counted(best['metrics']['images'], 'held-out image')}, in "
        f"round {best['round']} of {len(record['rounds']) - 1}; {counted(images, 'image')} without "
        "labels.",
        [
            Section("Rounds", [table(rounds_table(record))]),
            Section("Pseudo-labels of each class", classes_parts(record)),
            Section("Some that the last student learned", example_parts(examples)),
        ],
    )


def rounds_table(record: dict[str, Any]) -> Table:
    """A row for the teacher and for each student; the best is marked."""
    what = headline(record["rounds"][0]["metrics"])[0]
    rows = []
    for row in record["rounds"]:
        pseudo = row.get("pseudo", {})
        same = pseudo.get("same_as_before")
        rows.append((
            f"{row['round']} {'student' if row['round'] else 'teacher'}", row["model"],
            *(f"{pseudo[name]:,}" if pseudo else "" for name in ("passed", "different", "learned")),
            "" if same is None else f"{same:.1%}",
            f"{headline(row['metrics'])[1]:.2%}",
            f"{row['seconds']:,.0f}" if "seconds" in row else "",
            "best" if row["round"] == record["best"] else "",
        ))  # fmt: skip
    header = ("round", "net", "passed", "different", "learned", "as before", what, "seconds", "")
    note = (
        f"passed: unlabelled images above a confidence of {record['threshold']:g}; learned: those "
        "that the student learned, with repeats; different: each of them counted once; as before: "
        "labels that are those of the round before."
    )
    note = " ".join([note, *(rare(row) for row in record["rounds"] if rare(row))])
    return Table("", header, tuple(rows), note)


def rare(row: dict[str, Any]) -> str:
    """A sentence on the classes of which a student learned no image, or few again and again."""
    pseudo = row.get("pseudo", {"passed_of_class": {}})
    passed = pseudo["passed_of_class"]
    none = [name for name, count in passed.items() if not count]
    often = [f"{name} ({counted(count, 'image')} {pseudo['learned_of_class'][name]:,} times in all)"
             for name, count in passed.items()
             if count and pseudo["learned_of_class"][name] > OFTEN * count]  # fmt: skip
    said = [f"no image passed of {some(none)}"] if none else []
    said += [f"few passed, and were repeated, of {some(often)}"] if often else []
    return f"Round {row['round']}: {'; '.join(said)}." if said else ""


def classes_parts(record: dict[str, Any]) -> list[Part]:
    """For each class how many images passed and how many were learned, by round."""
    students = [row for row in record["rounds"] if "pseudo" in row]
    names = list(students[0]["pseudo"]["passed_of_class"])
    header = ("class", *(f"round {row['round']}" for row in students))
    rows = [
        (name, *(f"{row['pseudo']['learned_of_class'][name]:,} of "
                 f"{row['pseudo']['passed_of_class'][name]:,} that passed" for row in students))
        for name in names
    ]  # fmt: skip
    summary = f"{counted(len(names), 'class', 'classes')}; more than passed are repeats"
    return [Fold(summary, [table(Table("", header, tuple(rows)))], opened=len(names) <= OPENED)]


def example_parts(examples: Sequence[Example]) -> list[Part]:
    parts: list[Part] = []
    for label in dict.fromkeys(example.label for example in examples):
        own = [example for example in examples if example.label == label]
        pictures = [
            Picture(f"{label}-{number}", example.image, f"{example.name}, labelled {label}",
                    (f"{example.confidence:.1%}",))
            for number, example in enumerate(own, 1)
        ]  # fmt: skip
        parts += [Heading(label), Pictures(pictures)]
    return [Text("From the most certain to the least of each class."), *parts] if parts else []
