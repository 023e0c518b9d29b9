"""report.html of a run: one self-contained page, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from vitkit.evaluation.collapse import ABOUT
from vitkit.reports.classes import OfClass
from vitkit.reports.drawing import Drawing
from vitkit.reports.figures import lines
from vitkit.reports.learned import learned_parts
from vitkit.reports.page import (
    Drawings,
    Facts,
    Fold,
    Part,
    Rows,
    Section,
    Text,
    counted,
    write_page,
)
from vitkit.training.config import TrainConfig, to_json
from vitkit.training.log import FEW_SHOT, NEGATIVE_LOSS, bound_by, headline, told

POINTS = 800  # of a line; of more, means of neighbours are drawn
OPENED = 20  # classes; a longer table is folded
GIB = 2**30


def write_report(
    run: Path,
    classes: Sequence[OfClass] = (),
    several: bool = False,
    recipe: TrainConfig | None = None,
    figures: Path | None = None,
    examples: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write report.html from a run's config.json and metrics.jsonl.

    `classes` are those of the best evaluation, the lowest recall first; with `several` they are
    labels, of which an image may have several. `recipe` is what the run's recipe says for its data
    and net; what the run does otherwise is then shown. `examples` are what a net that learned
    without labels makes of images (vitkit.workflows.examples). Every figure is also written into
    the folder `figures`, as PNG and SVG.
    """
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    records = read_metrics(run)
    scored = evaluations(records)
    best = max(scored, key=lambda r: headline(r)[1])
    data = config["data"]
    objective = config["config"].get("objective", "supervised")
    early = next((r for r in records if r["kind"] == "early_stop"), None)
    facts = {k: v for k, v in data.items() if k != "class_names"}
    named = []
    if data["class_names"]:
        facts["classes"] = f"{len(data['class_names']):,}"
        named = [Fold("Names of the classes", [Text(", ".join(data["class_names"]))])]
    sections = [
        Section("Curves", [Drawings(draw_run(records))]),
        Section("What it has learned", learned_parts(examples or {}, objective)),
        Section("Incidents", incidents(records)),
        Section(f"Recall of each {'label' if several else 'class'}", recalls(classes, several)),
        Section("Best evaluation", [
            Facts({k: v for k, v in best.items() if k != "kind"}), *of_features(scored[0], best),
        ]),
        Section("Speed (medians)", speed(records)),
        Section("Config", config_parts(config["config"], recipe)),
        Section("Data", [Facts(facts), *named]),
        Section("Machine", [Facts(config["resolved"], "Chosen on this machine"),
                            Facts(config["versions"], "Versions")]),
    ]  # fmt: skip
    return write_page(
        run / "report.html",
        f"{config['kind']} of {config['config']['model']} on {data['name']}",
        f"Best {told(best, 2)} on {counted(best['images'], 'held-out image')}, at step "
        f"{best['step']:,} of {config['resolved']['steps']:,}." + ended_early(early),
        sections,
        figures,
    )


def of_features(first: dict[str, Any], best: dict[str, Any]) -> list[Part]:
    """What the figures of a net that learns without labels mean."""
    if "feature_spread" not in best:
        return []
    parts: list[Part] = [Text(ABOUT)]
    if first["step"] == 0 and "few_shot" in first and "few_shot" in best:
        more = best["few_shot"] > first["few_shot"]
        parts.append(Text(
            f"{FEW_SHOT.capitalize()} was {first['few_shot']:.1%} before the first step and is "
            f"{best['few_shot']:.1%} at step {best['step']:,}: the features are "
            + ("worth more than those the run began with." if more
               else "not worth more than those the run began with.")
        ))  # fmt: skip
    return parts


def ended_early(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    return (
        f" The run ended at step {record['step']:,}: "
        f"{counted(record['without_better'], 'evaluation')} in a row found none better."
    )


def recalls(classes: Sequence[OfClass], several: bool) -> list[Part]:
    """The table of classes, folded where it is long."""
    if not classes:
        return []
    mean = sum(row.recall for row in classes) / len(classes)
    kind, kinds = ("label", "labels") if several else ("class", "classes")
    recall = "recall, sigmoid above 0.5" if several else "recall"
    rows = [(row.name, f"{row.recall:.2%}", f"{row.images:,}") for row in classes]
    summary = f"mean {mean:.2%} of {counted(len(classes), kind, kinds)}; lowest first"
    table = Rows((kind, recall, "held-out images"), rows)
    return [Fold(summary, [table], opened=len(classes) <= OPENED)]


def incidents(records: list[dict[str, Any]]) -> list[Part]:
    """A table of what went wrong and was seen to, where something did."""
    rows = {}
    for record in records:
        if record["kind"] == "skipped":
            rows[f"step {record['step']:,}"] = "the gradient was not finite; nothing was changed"
        if record["kind"] == "rewind":
            first, last = record["left_out"]
            rows[f"step {record['spike_at']:,}"] = (
                f"the loss shot up; back to step {record['step']:,}, without batches {first:,} to "
                f"{last:,}"
            )
    return [Facts(rows)] if rows else []


def speed(records: list[dict[str, Any]]) -> list[Part]:
    """How fast the run was, and whether data or computing held it up."""
    train = [r for r in records if r["kind"] == "train" and "data_share" in r]
    if not train:
        return []
    rows = {
        "images a second": f"{median(r['images_per_second'] for r in train):,.0f}",
        "bound by": bound_by(median(r["data_share"] for r in train)),
    }
    memory = [r["memory_bytes"] for r in train if r.get("memory_bytes")]
    if memory:
        rows["memory, at most"] = f"{max(memory) / GIB:.2f} GiB"
    return [Facts(rows)]


def config_parts(config: dict[str, Any], recipe: TrainConfig | None) -> list[Part]:
    """What differs from the recipe, then all."""
    whole = Fold("The whole config", [Facts(flat_json(config))])
    if recipe is None:
        return [whole]
    found = differences_of({"recipe": to_json(recipe), "here": config})
    rows = [(name, *values) for name, values in found.items() if name != "recipe"]
    if not rows:
        return [Text(f"As the recipe {recipe.recipe} says for these data and this net."), whole]
    said = f"What differs from what the recipe {recipe.recipe} says for these data and this net"
    return [Rows(("field", "recipe", "here"), rows, said), whole]


def differences_of(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Field by its dotted name: its value in each config, where they are not all the same.

    A field that one of them, of another version, has not is "" there and makes no difference.
    """
    flat = [flat_json(config) for config in configs.values()]
    names = dict.fromkeys(name for config in flat for name in config)
    found = {
        name: [spelt(config[name]) if name in config else "" for config in flat] for name in names
    }
    return {name: row for name, row in found.items() if len({*row} - {""}) > 1}


def flat_json(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every field of a config by its dotted name."""
    values: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            values.update(flat_json(value, f"{prefix}{name}."))
        else:
            values[prefix + name] = value
    return values


def spelt(value: Any) -> str:
    """As the command line takes it."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return " ".join(map(spelt, value)) or "none"
    return str(value)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; what is no record, as after damage, is left out."""
    records = []
    for line in (run / "metrics.jsonl").read_bytes().splitlines():
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            whole = isinstance(record, dict) and isinstance(record.get("step"), int)
            if whole and isinstance(record.get("kind"), str):
                records.append(record)
    return records


def evaluations(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in records if r["kind"] == "evaluation"]


def line_of(
    records: list[dict[str, Any]], kind: str, name: str, unit: float = 1
) -> tuple[list[float], list[float]]:
    """(steps, values) of what was recorded; of very many points means of neighbours."""
    chosen = [r for r in records if r["kind"] == kind and r.get(name) is not None]
    every = -(-len(chosen) // POINTS) or 1
    groups = [chosen[at : at + every] for at in range(0, len(chosen), every)]
    steps = [float(group[-1]["step"]) for group in groups]
    return steps, [sum(r[name] / unit for r in group) / len(group) for group in groups]


def shares_of(records: list[dict[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    """The share by which nets of a run are judged: {its name: (steps, values)}; nothing where that
    is a loss, and nobody knows labels."""
    scored = evaluations(records)
    what = headline(scored[0])[0] if scored else NEGATIVE_LOSS
    if what != NEGATIVE_LOSS:
        return {what: ([r["step"] for r in scored], [headline(r)[1] for r in scored])}
    few = line_of(records, "evaluation", "few_shot")
    return {FEW_SHOT: few} if few[0] else {}


def draw_run(records: list[dict[str, Any]]) -> list[Drawing]:
    """What changed over the steps."""
    by_name = shares_of(records)
    if "top-1" in by_name and "top5" in evaluations(records)[0]:
        by_name["top-5"] = line_of(records, "evaluation", "top5")
    losses = {
        "training": line_of(records, "train", "loss"),
        "held out": line_of(records, "evaluation", "loss"),
    }
    drawn = [lines("loss", "Loss", "step", "loss", losses, from_zero=True)]
    if by_name:
        title, y = "On held-out images", "share" if len(by_name) > 1 else next(iter(by_name))
        drawn.append(lines("accuracy", title, "step", y, by_name, share=True, from_zero=True))
    for name, title, y_name, field, unit in (
        ("learning-rate", "Learning rate", "learning rate", "learning_rate", 1),
        ("throughput", "Speed", "images a second", "images_per_second", 1),
        ("memory", "Memory", "GiB", "memory_bytes", GIB),
    ):
        line = line_of(records, "train", field, unit)
        if line[0]:
            drawn.append(lines(name, title, "step", y_name, {y_name: line}, from_zero=True))
    return drawn
