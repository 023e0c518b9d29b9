"""translations: whether predictions stay when a picture moves by a few pixels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from torch import Tensor

from vitkit.data.changed import Changed
from vitkit.evaluation.findings import Findings
from vitkit.evaluation.shifts import DIRECTIONS, as_it_is, same, usual_distances, window
from vitkit.models.vit_config import ViTConfig
from vitkit.plain import Curve, Table
from vitkit.prediction.model import Model
from vitkit.workflows.protocols.choices import one_label, whole_numbers
from vitkit.workflows.protocols.classes import class_numbers
from vitkit.workflows.protocols.job import Job


def run(job: Job) -> Findings:
    """{"consistency": the share of shifted pictures that are predicted as the unshifted one is,
    over all shifts, "top1_unshifted": of the windows in the middle, "top1_shifted": over all}."""
    source, side = job.scored, min(job.model.preprocessing.image_size)
    one_label(source, "translations")
    number = class_numbers(job.model.class_names, source.class_names, job.splits.name)
    distances = list(usual_distances(side))
    if job.options.shifts:
        distances = whole_numbers(job.options.shifts, "shifts", 1, max(1, side // 2))
    moving, most = neutral(job), max(distances)
    unshifted, labels = predicted(job, moving, most, (0, 0))
    wanted = number[labels].numpy()
    kept, right = np.zeros((2, len(distances), len(DIRECTIONS)))
    for row, distance in enumerate(distances):
        for column, (down, across) in enumerate(DIRECTIONS.values()):
            moved, _ = predicted(job, moving, most, (down * distance, across * distance))
            kept[row, column] = same(moved, unshifted)
            right[row, column] = same(moved, wanted)
    plain = same(unshifted, wanted)
    metrics = {
        "consistency": float(kept.mean()), "top1_unshifted": plain,
        "top1_shifted": float(right.mean()),
    }  # fmt: skip
    by_distance = {"consistency": kept.mean(axis=1), "top-1": right.mean(axis=1)}
    return Findings(
        metrics,
        tables=(table(distances, by_distance, plain),),
        curves=(curve(distances, by_distance, plain),),
        notes=notes(job, most),
        images=len(source),
    )


def neutral(job: Job) -> Job:
    """The same, for pictures that have the net's size already."""
    model = job.model
    reading = Model(model.net, model.class_names, as_it_is(model.preprocessing), model.provenance)
    return replace(job, model=reading)


def predicted(
    job: Job, moving: Job, most: int, shift: tuple[int, int]
) -> tuple[np.ndarray, Tensor]:
    """Predicted classes (N,) of the pictures moved by (rows, columns), and their labels."""
    preprocessing = job.model.preprocessing
    change = partial(moved_by, preprocessing=preprocessing, most=most, shift=shift)
    title = f"shift {shift} of {most} by {preprocessing!r}"
    logits, labels = moving.logits(Changed(job.scored, change, title))
    return logits.argmax(dim=1).numpy(), labels


def moved_by(image: Tensor, index: int, preprocessing, most: int, shift: tuple[int, int]) -> Tensor:
    return window(image, preprocessing, most, shift)


def notes(job: Job, most: int) -> tuple[str, ...]:
    said = [
        f"Every picture is a window of a larger resized one with {most} more "
        f"pixel{'s' if most > 1 else ''} at each side, so that nothing in it is made up: the "
        "unshifted one is the middle, and its top-1 is not that of --protocol top-k. Nets compare "
        "at the same shifts, on the same images."
    ]
    config = job.model.net.config
    if isinstance(config, ViTConfig):
        said.append(
            f"The net's patches are {config.cell} pixels wide: at multiples of that patches hold "
            "what their neighbours held."
        )
    return tuple(said)


def table(distances: list[int], found: dict[str, np.ndarray], plain: float) -> Table:
    rows = [("0", f"{1:.2%}", f"{plain:.2%}")]
    rows += [
        (str(distance), f"{found['consistency'][i]:.2%}", f"{found['top-1'][i]:.2%}")
        for i, distance in enumerate(distances)
    ]
    return Table(
        "Predictions of shifted pictures",
        ("shift (pixels of the net's input)", "predicted as unshifted", "top-1"),
        tuple(rows),
        f"Means over shifts {', '.join(DIRECTIONS)}.",
    )


def curve(distances: list[int], found: dict[str, np.ndarray], plain: float) -> Curve:
    lines = {
        "predicted as unshifted": np.array([1, *found["consistency"]]),
        "top-1": np.array([plain, *found["top-1"]]),
    }
    x = np.array([0, *distances])
    return Curve(
        "Predictions of shifted pictures", "shift (pixels of the net's input)", "share",
        x, lines, share=True,
    )  # fmt: skip
