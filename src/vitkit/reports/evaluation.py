"""The page of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.ticker import PercentFormatter

from vitkit.data.checks import some
from vitkit.evaluation.findings import Calibration, Confusion, Findings, Mistake, Reliability
from vitkit.plain import Table
from vitkit.reports.classes import lowest_first
from vitkit.reports.colours import MUTED, SERIES
from vitkit.reports.drawing import Drawing
from vitkit.reports.figures import HEAT, HEIGHT, WIDTH, bar, blank, curve, headed, plain, word
from vitkit.reports.page import (
    Drawings,
    Facts,
    Fold,
    Notes,
    Part,
    Picture,
    Pictures,
    Rows,
    Section,
    Text,
    counted,
    filled,
    table,
    write_page,
)

# Classes: of more a confusion matrix is too wide for a phone, has no numbers, is no figure.
SMALL, NUMBERED, MAPPED = 10, 20, 200
CONFUSIONS = 25  # that are listed
CONFUSED = "Most frequent confusions"
OPENED = 20  # classes; a longer table is folded


def write_evaluation(
    page: Path, findings: Findings, about: dict[str, Any], figures: Path | None = None
) -> Path:
    """Write what an evaluation found as one page.

    `about` are facts for a table: checkpoint, data, protocol, device, versions, seconds; its
    "checkpoint", "protocol" and "data", where they are given, are in the title. Every figure is
    also written into the folder `figures`, as PNG and SVG.
    """
    of = about.get("checkpoint", "a net")
    on = f" on {about['data']}" if "data" in about else ""
    protocol = f"{about['protocol']} of " if "protocol" in about else "Evaluation of "
    return write_page(page, f"{protocol}{of}{on}", summary(findings), sections(findings, about),
                      figures)  # fmt: skip


def summary(findings: Findings) -> str:
    """The first metrics and the number of images, as a sentence."""
    said = [f"{name.replace('_', ' ')} {shown(name, value)}"
            for name, value in list(findings.metrics.items())[:3] if name != "images"]  # fmt: skip
    on = f" on {counted(findings.images, 'image')}" if findings.images else ""
    return f"{', '.join(said)}{on}." if said else "No metric."


def shown(name: str, value: float) -> str:
    """A share in per cent; a loss, and what is no share, as a number."""
    if not np.isfinite(value):
        return "none"
    if name == "images" or name.endswith("loss") or not 0 <= value <= 1:
        return f"{value:,.4f}".rstrip("0").rstrip(".")
    return f"{value:.2%}"


def sections(findings: Findings, about: Mapping[str, Any]) -> list[Section]:
    metrics = [(name, shown(name, value)) for name, value in findings.metrics.items()]
    metrics = [row for row in metrics if not in_a_table(*row, findings.tables)]
    rows = [Rows(("metric", "value"), metrics)] if metrics else []
    return [
        Section("Metrics", [*([Notes(findings.notes)] if findings.notes else []), *rows]),
        *tables_and_curves(findings),
        Section("Classes", class_parts(findings)),
        Section("Confusion", confusion_parts(findings.confusion, listed(findings))),
        Section("Calibration", calibration_parts(findings.calibration)),
        Section("Worst mistakes", mistake_parts(
            "worst", "The true class had the smallest probability.", findings.worst)),
        Section("Most confident mistakes", mistake_parts(
            "confident", "The wrong class had the largest probability.", findings.confident)),
        Section("About", [Facts(filled(about))] if filled(about) else []),
    ]  # fmt: skip


def in_a_table(name: str, value: str, tables: Sequence[Table]) -> bool:
    """Whether a row of that name has the number already."""
    return any(row[:1] == (name,) and value in row for one in tables for row in one.rows)


def tables_and_curves(findings: Findings) -> list[Section]:
    """One table or curve has its own title as the heading, and both one if it is the same."""
    tables, found = findings.tables, findings.curves
    one_table, one_curve = len(tables) == 1, len(found) == 1
    rows = [table(replace(one, title="") if one_table else one) for one in tables]
    drawn = [curve(f"curve-{n}", one, not one_curve) for n, one in enumerate(found, start=1)]
    figures: list[Part] = [Drawings(drawn)] if drawn else []
    over_tables = tables[0].title if one_table else "Tables"
    over_curves = found[0].title if one_curve else "Curves"
    if over_tables == over_curves:
        return [Section(over_tables, [*rows, *figures])]
    return [Section(over_tables, rows), Section(over_curves, figures)]


def class_parts(findings: Findings) -> list[Part]:
    """The recall of each class, the lowest first, and which had no image."""
    rows = lowest_first(findings.class_recall, findings.class_images)
    if not rows:
        return []
    mean = sum(row.recall for row in rows) / len(rows)
    lines = [(row.name, f"{row.recall:.2%}", f"{row.images:,}") for row in rows]
    without = [name for name, recall in findings.class_recall.items() if recall is None]
    parts: list[Part] = [
        Fold(
            f"mean recall {mean:.2%} of {counted(len(rows), 'class', 'classes')}; lowest first",
            [Rows(("class", "recall", "images"), lines)],
            opened=len(rows) <= OPENED,
        )
    ]
    said = f"No image was of {len(without):,} of the classes: {some(without)}"
    return [*parts, Text(said)] if without else parts


def listed(findings: Findings) -> bool:
    """Whether the most frequent confusions are among the tables already."""
    return any(one.title == CONFUSED for one in findings.tables)


def confusion_parts(found: Confusion | None, listed: bool = False) -> list[Part]:
    """The matrix as a figure where it can be seen, and the most frequent confusions."""
    if found is None:
        return []
    parts: list[Part] = []
    if len(found.class_names) <= MAPPED:
        parts.append(Drawings([draw_confusion(found)]))
    if NUMBERED < len(found.class_names) <= MAPPED:
        numbers = [(str(n), name) for n, name in enumerate(found.class_names)]
        parts.append(Fold("Classes by their numbers in the figure", [Rows(("", "class"), numbers)]))
    if listed:
        return parts
    rows = frequent(found)
    if not rows:
        return [*parts, Text("No image was taken for another class.")]
    most = Rows(("true class", "taken for", "images", "of the class"), rows, CONFUSED)
    return [*parts, most]


def frequent(found: Confusion) -> list[tuple[str, str, str, str]]:
    """Which class was most often taken for which other one."""
    wrong = found.counts.copy()
    np.fill_diagonal(wrong, 0)
    totals = found.counts.sum(axis=1)
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    names = found.class_names
    places = zip(*np.unravel_index(order, wrong.shape), strict=True)
    return [
        (names[t], names[p], f"{wrong[t, p]:,}", f"{wrong[t, p] / totals[t]:.1%}")
        for t, p in places
        if wrong[t, p]
    ]


def draw_confusion(found: Confusion) -> Drawing:
    """Shares of the true class; numbers of images in the cells of few classes."""
    counts, names = found.counts, found.class_names
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = len(names) <= NUMBERED
    labels = [word(name) for name in names]
    a_class = 0.28 if len(names) <= SMALL else 0.36  # inches
    side = 1.6 + 0.06 * max(map(len, labels)) + a_class * len(names) if few else 7.0
    figure, axes = blank(side, side * 0.86)
    # Of many classes most shares are small: by their square roots they can be seen.
    norm = Normalize(0, 1) if few else PowerNorm(0.5, 0, max(float(shares.max()), 1e-6))
    drawn = axes.imshow(shares, cmap=HEAT, norm=norm, interpolation="nearest")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    if few:
        axes.set_xticks(range(len(names)), labels, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), labels)
        for (row, column), share in np.ndenumerate(shares):
            if counts[row, column]:
                tone = "black" if sum(colormaps[HEAT](share)[:3]) > 1.5 else "white"
                axes.text(column, row, f"{counts[row, column]:,}", ha="center", va="center",
                          color=tone, fontsize=7)  # fmt: skip
    bar(figure, drawn, axes, "share of the true class")
    right = np.trace(counts) / max(1, counts.sum())
    alt = f"Confusion matrix of {len(names)} classes; {right:.1%} of the images are on its diagonal"
    caption = "" if few else "Colours go by the square root of the share."
    return Drawing("confusion", figure, alt, caption, wide=len(names) > SMALL)


def calibration_parts(found: Calibration | None) -> list[Part]:
    """Reliability diagrams, before and after the temperature."""
    if found is None:
        return []
    drawn = [draw_reliability("reliability", "All images", found.before)]
    said = f"Expected calibration error {found.before.ece:.2%} over all images."
    if found.apart_before is not None:
        drawn.append(draw_reliability("reliability-apart", "Images apart", found.apart_before))
    if found.temperature is not None and found.apart_after is not None:
        title = f"Images apart, temperature {found.temperature:.3g}"
        drawn.append(draw_reliability("reliability-after", title, found.apart_after))
        before = "" if found.apart_before is None else f" from {found.apart_before.ece:.2%}"
        said += (
            f" One temperature for all, {found.temperature:.3g}, takes it{before} to "
            f"{found.apart_after.ece:.2%} over images that it was not fitted on."
        )
    return [Text(said), Drawings(drawn)]


def draw_reliability(name: str, title: str, found: Reliability) -> Drawing:
    """Accuracy over confidence, and below it how many images there are of each confidence."""
    figure, axes = blank(WIDTH, HEIGHT * 1.3)
    figure.delaxes(axes)
    above, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    plain(above)
    plain(below)
    bins = len(found.images)
    middles = (np.arange(bins) + 0.5) / bins
    above.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle="--")
    above.bar(middles, np.nan_to_num(found.accuracy), 0.9 / bins, color=SERIES[0])
    above.plot(found.confidence, found.accuracy, "o", color=SERIES[1], markersize=3)
    headed(above, f"{title}: ECE {found.ece:.1%}")
    above.set(ylabel="accuracy", ylim=(0, 1))
    below.bar(middles, found.images / max(1, found.images.sum()), 0.9 / bins, color=MUTED)
    below.set(xlabel="probability of the predicted class", ylabel="images", xlim=(0, 1))
    for axis in (above.yaxis, below.yaxis, below.xaxis):
        axis.set_major_formatter(PercentFormatter(1))
    alt = f"Reliability diagram, {title}: expected calibration error {found.ece:.2%}"
    return Drawing(name, figure, alt, "On the dashed line probabilities mean what they say.")


def mistake_parts(name: str, said: str, mistakes: Sequence[Mistake]) -> list[Part]:
    if not mistakes:
        return []
    pictures = [
        Picture(
            f"{name}-{n}", found.picture,
            f"{found.name}: {found.true}, taken for {found.predicted}",
            (f"{found.true} ({found.true_probability:.1%})",
             f"taken for {found.predicted} ({found.probability:.1%})", found.name),
        )
        for n, found in enumerate(mistakes, start=1)
    ]  # fmt: skip
    return [Text(said), Pictures(pictures)]
