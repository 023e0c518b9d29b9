"""few-shot: a linear classifier solved in closed form on 1 to 25 images of each class."""

from __future__ import annotations

from math import log2

import numpy as np

from vitkit.data.checks import some
from vitkit.data.holding_out import held_out_indices
from vitkit.errors import VitkitError
from vitkit.evaluation.fewshot import SWEEP, few_shot_accuracies, possible_shots
from vitkit.evaluation.findings import Findings
from vitkit.plain import Curve, Table
from vitkit.workflows.protocols.job import Job
from vitkit.workflows.protocols.pools import learning_and_scored

HELD_OUT, AT_MOST = 0.2, 2_000  # of the training images, that a penalty is chosen by


def run(job: Job) -> Findings:
    pool, scored = learning_and_scored(job, "few-shot")
    x, y = (tensor.numpy() for tensor in job.features(pool))
    x_test, y_test = (tensor.numpy() for tensor in job.features(scored))
    options, seeds = job.options, range(job.options.seeds)
    notes: list[str] = []
    if options.sweep_l2:
        apart = held_out(y)
        rest = np.setdiff1d(np.arange(len(y)), apart)
        x_apart, y_apart, x, y = x[apart], y[apart], x[rest], y[rest]
        wanted, shots = shots_of(options.shots, y)
        chosen = few_shot_accuracies(x, y, x_apart, y_apart, shots, seeds, SWEEP)
        penalties = {shot: SWEEP[int(chosen[shot].mean(0).argmax())] for shot in shots}
        notes.append(
            "The penalty was chosen for each number of shots among powers of two from "
            f"2^{log2(SWEEP[0]):g} to 2^{log2(SWEEP[-1]):g} by {len(apart):,} training images held "
            "apart, of which no shots were taken; the scored images had no part in it."
        )
    else:
        wanted, shots = shots_of(options.shots, y)
        penalties = dict.fromkeys(shots, options.l2)
    found = {
        shot: few_shot_accuracies(x, y, x_test, y_test, [shot], seeds, [l2])[shot][:, 0]
        for shot, l2 in penalties.items()
    }
    notes += left_out(wanted, shots, y, pool.class_names)
    return Findings(
        {f"{shot}shot": float(values.mean()) for shot, values in found.items()},
        tables=(table_of(found, penalties),), curves=(curve_of(found),), notes=tuple(notes),
        images=len(scored),
    )  # fmt: skip


def shots_of(asked: tuple[int, ...], labels: np.ndarray) -> tuple[list[int], list[int]]:
    """Those asked for, each once, and those of them that there are images for."""
    wanted = sorted(set(asked))
    return wanted, possible_shots(labels, wanted)


def held_out(labels: np.ndarray) -> np.ndarray:
    """Indices of the training images to choose a penalty by; VitkitError where there are none."""
    apart = held_out_indices(labels, HELD_OUT, AT_MOST, seed=0)
    if not len(apart):
        raise VitkitError(
            f"few-shot: {len(labels)} training images are too few to choose a penalty by; leave "
            "out --sweep-l2"
        )
    return apart


def left_out(
    wanted: list[int], shots: list[int], labels: np.ndarray, class_names: list[str]
) -> list[str]:
    """A note on the shots that were asked for and cannot be had."""
    missing = [shot for shot in wanted if shot not in shots]
    if not missing:
        return []
    classes, images = np.unique(labels, return_counts=True)
    small = [class_names[n] for n in classes[images < min(missing)]]
    return [
        f"{' and '.join(map(str, missing))} images of each class are left out: {some(small)} "
        f"{'has' if len(small) == 1 else 'have'} fewer, the smallest class {images.min()}."
    ]


def table_of(found: dict[int, np.ndarray], penalties: dict[int, float]) -> Table:
    seeds = len(next(iter(found.values())))
    rows = tuple(
        (
            str(shot), f"{values.mean():.2%}", f"{values.std():.2%}",
            *(f"{value:.2%}" for value in values), f"{penalties[shot]:g}",
        )
        for shot, values in found.items()
    )  # fmt: skip
    header = ("shots", "accuracy", "deviation", *(f"seed {seed}" for seed in range(seeds)), "l2")
    return Table(
        "Few-shot accuracy", header, rows,
        "Mean and standard deviation over draws of the shots; l2 is the penalty.",
    )  # fmt: skip


def curve_of(found: dict[int, np.ndarray]) -> Curve:
    values = np.stack(list(found.values()), axis=1)  # (seeds, shots)
    lines = {"mean": values.mean(0)}
    lines |= {f"seed {seed}": line for seed, line in enumerate(values)} if len(values) > 1 else {}
    return Curve(
        "Few-shot accuracy", "images of each class", "accuracy", np.array(list(found)), lines,
        share=True, log_x=True,
    )  # fmt: skip
