"""The demo's one figure: what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import PercentFormatter
from torch import Tensor

from vitkit.prediction.model import Prediction
from vitkit.reports.training import evaluations, read_metrics
from vitkit.training.log import headline

TRAIN, HELD_OUT = "#4c72b0", "#c44e52"


def draw_demo(
    path: Path,
    pretrain: Path,
    finetune: Path,
    few_shot: dict[str, tuple[float, float]],
    similarity: Tensor,
    grid: tuple[int, int],
    shown: Sequence[tuple[np.ndarray, str, Prediction]],
) -> None:
    """Write the figure as PNG.

    `pretrain` and `finetune` are run directories; `few_shot` maps shots to (pre-trained, untrained)
    accuracies; `similarity` is (N, N) between the positions of a grid (h, w); `shown` holds 20
    images (H, W, 3) with their true class and prediction.
    """
    figure = Figure(figsize=(11, 7), layout="constrained", facecolor="white")
    rows = figure.add_gridspec(2, 1, height_ratios=(1, 1.35))
    curves = figure.add_subfigure(rows[0]).subplots(1, 3)
    draw_loss(curves[0], read_metrics(pretrain), "Pre-training on digits 0-4")
    draw_accuracy(curves[1], read_metrics(finetune), "Fine-tuning on digits 5-9")
    draw_few_shot(curves[2], few_shot)
    below = rows[1].subgridspec(1, 2, width_ratios=(1, 1.5))
    draw_similarity(figure.add_subfigure(below[0]), similarity, grid)
    draw_predictions(figure.add_subfigure(below[1]), shown)
    figure.savefig(path, dpi=110)


def draw_loss(axes: Axes, records: list[dict[str, Any]], title: str = "Loss") -> None:
    for kind, label, colour in (("train", "training", TRAIN), ("evaluation", "held out", HELD_OUT)):
        chosen = [r for r in records if r["kind"] == kind]
        mark = "." if kind == "evaluation" or len(chosen) < 3 else None
        axes.plot([r["step"] for r in chosen], [r["loss"] for r in chosen], color=colour,
                  label=label, marker=mark)  # fmt: skip
    axes.set(title=title, xlabel="step", ylabel="cross-entropy", ylim=(0, None))
    axes.legend(frameon=False)


def draw_accuracy(axes: Axes, records: list[dict[str, Any]], title: str = "Accuracy") -> None:
    chosen = evaluations(records)
    values = [headline(r)[1] for r in chosen]
    what = headline(chosen[0])[0] if chosen else "top-1"
    axes.plot([r["step"] for r in chosen], values, color=HELD_OUT, marker=".")
    axes.set(title=title, xlabel="step", ylabel=f"{what} on held-out images", ylim=(0, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)


def draw_few_shot(axes, few_shot: dict[str, tuple[float, float]]) -> None:
    places = np.arange(len(few_shot))
    trained, untrained = zip(*few_shot.values(), strict=True)
    axes.bar(places - 0.2, trained, 0.4, color="#55a868", label="pre-trained")
    axes.bar(places + 0.2, untrained, 0.4, color="#bbbbbb", label="untrained")
    axes.set_xticks(places, list(few_shot))
    axes.set(title="Few-shot on 5-9, features frozen", ylabel="accuracy", ylim=(0, 1.02))
    axes.legend(frameon=False, loc="upper left")


def draw_similarity(panel: SubFigure, similarity: Tensor, grid: tuple[int, int]) -> None:
    """One tile a patch, each the cosine of its position embedding with all others (Figure 7)."""
    panel.suptitle("Position embeddings: a tile shows how\nsimilar one patch's is to all others'")
    height, width = grid
    space = 1
    canvas = np.full((height * (height + space), width * (width + space)), np.nan)
    for index, row in enumerate(similarity.numpy()):
        top, left = index // width * (height + space), index % width * (width + space)
        canvas[top : top + height, left : left + width] = row.reshape(height, width)
    axes = panel.subplots(1, 1)
    drawn = axes.imshow(canvas, vmin=-1, vmax=1, cmap="viridis")
    axes.set_axis_off()
    panel.colorbar(drawn, ax=axes, label="cosine", shrink=0.8)


def draw_predictions(panel: SubFigure, shown: Sequence[tuple[np.ndarray, str, Prediction]]) -> None:
    panel.suptitle(
        "Held-out digits: what the net says, how sure it is,\nand the truth where it errs"
    )
    for axes, (image, truth, prediction) in zip(panel.subplots(4, 5).flat, shown, strict=True):
        right = prediction.label == truth
        text = f"{prediction.label} {prediction.probability:.0%}"
        axes.imshow(image)
        axes.set_axis_off()
        axes.set_title(
            text if right else f"{text} (is {truth})",
            fontsize=9,
            color="#2a7a2a" if right else "#c02020",
        )
