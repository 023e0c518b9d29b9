"""report.html of a run: one self-contained page, no network."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, select_autoescape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vitkit.files import write_whole
from vitkit.reports.classes import OfClass
from vitkit.training.log import bound_by, headline

TRAIN, HELD_OUT = "#4c72b0", "#c44e52"

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .8rem .2rem 0;
       text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }
td.number, th.number { text-align: right } summary { cursor: pointer }
svg { max-width: 100%; height: auto } code { background: #f4f4f4; padding: 0 .2rem }
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ summary }}</p>
{{ figure | safe }}
{% if classes %}
<h2>Recall of each {{ class }}</h2>
<details{% if classes|length <= 20 %} open{% endif %}><summary>{{ mean }}; lowest first</summary>
<table><tr><th>{{ class }}</th><th class="number">{{ recall }}</th>
<th class="number">held-out images</th></tr>
{% for row in classes %}<tr><td>{{ row.name }}</td>
<td class="number">{{ "{:.2%}".format(row.recall) }}</td>
<td class="number">{{ "{:,}".format(row.images) }}</td></tr>
{% endfor %}</table></details>{% endif %}
{% for heading, rows in tables.items() %}
<h2>{{ heading }}</h2>
<table>{% for name, value in rows.items() %}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>{% endfor %}
</table>{% endfor %}
</body></html>
"""


def write_report(run: Path, classes: Sequence[OfClass] = (), several: bool = False) -> Path:
    """Write report.html from a run's config.json and metrics.jsonl.

    `classes` are those of the best evaluation, the lowest recall first; with `several` they are
    labels, of which an image may have several.
    """
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    records = read_metrics(run)
    evaluations = [r for r in records if r["kind"] == "evaluation"]
    best = max(evaluations, key=lambda r: headline(r)[1])
    what, value = headline(best)
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_loss(left, records)
    draw_accuracy(right, records)
    data = config["data"]
    early = next((r for r in records if r["kind"] == "early_stop"), None)
    page = Environment(autoescape=select_autoescape(default=True)).from_string(PAGE).render(
        title=f"{config['kind']} of {config['config']['model']} on {data['name']}",
        summary=f"Best {what} {value:.2%} on {best['images']:,} held-out images, at step "
        f"{best['step']:,} of {config['resolved']['steps']:,}." + ended_early(early),
        figure=as_svg(figure),
        classes=classes,
        **heads(classes, several),
        tables={
            "Best evaluation": {k: v for k, v in best.items() if k != "kind"},
            **incidents(records),
            **speed(records),
            "Data": {k: v for k, v in data.items() if k != "class_names"}
            | {"classes": ", ".join(data["class_names"])},
            "Chosen on this machine": config["resolved"],
            "Config": config["config"],
            "Versions": config["versions"],
        },
    )  # fmt: skip
    write_whole(run / "report.html", page)
    return run / "report.html"


def ended_early(record: dict[str, Any] | None) -> str:
    if record is None:
        return ""
    return (
        f" The run ended at step {record['step']:,}: {record['without_better']} evaluation(s) in a "
        "row found none better."
    )


def heads(classes: Sequence[OfClass], several: bool) -> dict[str, str]:
    """The words of the table of classes."""
    mean = sum(row.recall for row in classes) / max(1, len(classes))
    kind, kinds = ("label", "labels") if several else ("class", "classes")
    recall = "recall, sigmoid above 0.5" if several else "recall"
    return {"class": kind, "recall": recall, "mean": f"mean {mean:.2%} of {len(classes):,} {kinds}"}


def incidents(records: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
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
    return {"Incidents": rows} if rows else {}


def speed(records: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """A table of how fast the run was, and whether data or computing held it up."""
    train = [r for r in records if r["kind"] == "train" and "data_share" in r]
    if not train:
        return {}
    images = median(r["images_per_second"] for r in train)
    share = median(r["data_share"] for r in train)
    return {"Speed (medians)": {"images a second": f"{images:,.0f}", "bound by": bound_by(share)}}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; what is no record, as after damage, is left out."""
    records = []
    for line in (run / "metrics.jsonl").read_bytes().splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "kind" in record and "step" in record:
                records.append(record)
    return records


def draw_loss(axes: Axes, records: list[dict[str, Any]], title: str = "Loss") -> None:
    for kind, label, colour in (("train", "training", TRAIN), ("evaluation", "held out", HELD_OUT)):
        chosen = [r for r in records if r["kind"] == kind]
        mark = "." if kind == "evaluation" or len(chosen) < 3 else None
        axes.plot([r["step"] for r in chosen], [r["loss"] for r in chosen], color=colour,
                  label=label, marker=mark)  # fmt: skip
    axes.set(title=title, xlabel="step", ylabel="cross-entropy", ylim=(0, None))
    axes.legend(frameon=False)


def draw_accuracy(axes: Axes, records: list[dict[str, Any]], title: str = "Accuracy") -> None:
    chosen = [r for r in records if r["kind"] == "evaluation"]
    values = [headline(r)[1] for r in chosen]
    what = headline(chosen[0])[0] if chosen else "top-1"
    axes.plot([r["step"] for r in chosen], values, color=HELD_OUT, marker=".")
    axes.set(title=title, xlabel="step", ylabel=f"{what} on held-out images", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)


def as_svg(figure: Figure) -> str:
    """The figure as an <svg> element to put into a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
