"""Runs and evaluations side by side: the page, and what it and the terminal say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vitkit.reports.drawing import Drawing
from vitkit.reports.evaluation import shown
from vitkit.reports.figures import lines
from vitkit.reports.page import Drawings, Notes, Part, Rows, Section, Text, write_page
from vitkit.reports.training import GIB, differences_of, line_of, shares_of


@dataclass(frozen=True)
class Compared:
    """A run, or an evaluation, of which only name, metrics and some facts are known."""

    name: str
    metrics: dict[str, float]  # of a run its best on the held-out images
    config: dict[str, Any] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl
    facts: dict[str, Any] = field(default_factory=dict)
    data: str = ""
    trained_on: str = ""  # fingerprint
    scored_on: str = ""  # of the held-out images
    steps: int | None = None
    best_step: int | None = None
    images_per_second: float | None = None  # median
    memory: int | None = None  # bytes, the most


def write_comparison(page: Path, found: Sequence[Compared], figures: Path | None = None) -> Path:
    """Write the page; every figure also into the folder `figures`, as PNG and SVG."""
    runs = [one for one in found if one.config]
    notes = apart(found)
    sections = [
        Section("Not like for like", [Notes(notes)] if notes else []),
        Section("Metrics", [Rows(*metric_rows(found))]),
        Section("Curves", [Drawings(curves(runs))] if runs else []),
        Section("Speed", [Rows(*speed_rows(runs))] if runs else []),
        Section("Config", config_parts(runs)),
    ]
    kinds = f"{len(runs)} runs" if len(runs) == len(found) else f"{len(found)} results"
    return write_page(page, f"Comparison of {kinds}", ", ".join(one.name for one in found),
                      sections, figures)  # fmt: skip


def apart(found: Sequence[Compared]) -> list[str]:
    """Sentences on why scores cannot simply be compared; none where the data are the same."""
    runs = [one for one in found if one.config]
    notes = []
    if len({one.scored_on for one in runs}) > 1:
        notes.append(
            "The runs are scored on different held-out images, so their metrics are not like for "
            f"like: {groups(runs, lambda one: one.scored_on)}."
        )
    if len({one.trained_on for one in runs}) > 1:
        notes.append(
            f"The runs are trained on different images: {groups(runs, lambda one: one.trained_on)}."
        )
    for one in runs:
        done = max((r["step"] for r in one.records), default=0)
        early = any(r["kind"] == "early_stop" for r in one.records)
        if one.steps is not None and done < one.steps and not early:
            notes.append(f"{one.name} has done {done:,} of its {one.steps:,} steps.")
    unscored = [one.name for one in runs if not one.metrics]
    if unscored:
        notes.append(f"Nothing was evaluated yet in {', '.join(unscored)}.")
    if runs and len(runs) < len(found):
        notes.append(
            "Runs are scored on held-out images, evaluations on what they were given: whether "
            "these are the same images is not known here."
        )
    return notes + evaluations_apart([one for one in found if not one.config])


def evaluations_apart(found: Sequence[Compared]) -> list[str]:
    """The same of evaluations."""
    notes = []
    protocols = {one.name: one.facts.get("protocol", "an unknown protocol") for one in found}
    if len(set(protocols.values())) > 1:
        each = ", ".join(f"{name} by {protocol}" for name, protocol in protocols.items())
        notes.append(f"The evaluations are of different protocols: {each}.")
    if len({one.scored_on for one in found}) > 1:
        notes.append(
            "The evaluations are of different images, so their metrics are not like for like: "
            f"{groups(found, lambda one: one.scored_on)}."
        )
    if len({one.metrics.get("images") for one in found}) > 1:
        notes.append("The evaluations are of different numbers of images.")
    return notes


def groups(runs: Sequence[Compared], key: Callable[[Compared], str]) -> str:
    """Which runs are of the same data."""
    names: dict[str, list[str]] = {}
    for one in runs:
        names.setdefault(key(one), []).append(one.name)
    data = {key(one): one.data for one in runs}
    return "; ".join(
        f"{', '.join(some)} on {data[print_]} ({print_[:8]})" for print_, some in names.items()
    )


def metric_rows(found: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each, a column for each metric that any of them has."""
    names = metric_names(one.metrics for one in found)
    rows = [
        [one.name, *(shown(name, one.metrics[name]) if name in one.metrics else ""
                     for name in names)]
        for one in found
    ]  # fmt: skip
    return ["", *names], rows


def metric_names(metrics: Iterable[Mapping[str, float]]) -> list[str]:
    """Every metric that any of them has, the number of images last."""
    names = list(dict.fromkeys(name for one in metrics for name in one))
    return sorted(names, key=lambda name: name == "images")


def speeds(one: Compared) -> dict[str, Any]:
    """What a run took."""
    return {
        **one.facts, "steps": one.steps, "best_step": one.best_step,
        "images_per_second": one.images_per_second, "memory_bytes": one.memory,
    }  # fmt: skip


def speed_rows(runs: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Header and a row for each run."""
    header = ["", "what", "device", "precision", "steps", "best step", "images a second", "memory"]
    rows = [
        [one.name, str(one.facts["kind"]), str(one.facts["device"]), str(one.facts["precision"]),
         whole(one.steps), whole(one.best_step), whole(one.images_per_second),
         "" if one.memory is None else f"{one.memory / GIB:.2f} GiB"]
        for one in runs
    ]  # fmt: skip
    return header, rows


def whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def config_parts(runs: Sequence[Compared]) -> list[Part]:
    """The fields in which the runs differ, a column for each run."""
    if len(runs) < 2:
        return []
    rows = [[name, *values] for name, values in differences_of(
        {one.name: one.config for one in runs}).items()]  # fmt: skip
    if not rows:
        return [Text("The configs are the same.")]
    return [Rows(["field", *(one.name for one in runs)], rows, "Only what differs")]


def curves(runs: Sequence[Compared]) -> list[Drawing]:
    """Every run a line over one axis."""
    losses = {one.name: line_of(one.records, "train", "loss") for one in runs}
    held = {one.name: line_of(one.records, "evaluation", "loss") for one in runs}
    rates = {one.name: line_of(one.records, "train", "learning_rate") for one in runs}
    scores = {}
    for one in runs:
        for steps, values in shares_of(one.records).values():
            scores[one.name] = steps, np.array(values, float)
    right = "share that is right"
    return [
        *([lines("score", "Held-out images", "step", right, scores, share=True)] if scores else []),
        lines("held-out-loss", "Held-out images", "step", "loss", held),
        lines("training-loss", "Training", "step", "loss", losses),
        lines("learning-rate", "Learning rate", "step", "learning rate", rates, from_zero=True),
    ]
