"""real: accuracy by the ReaL labels of ImageNet's validation images, beside plain top-1."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitkit.data.checks import DataError, some
from vitkit.data.classes.imagenet import imagenet_numbers
from vitkit.data.formats.imagenet import LABELLED
from vitkit.data.source import Source
from vitkit.errors import UsageError
from vitkit.evaluation.findings import Findings
from vitkit.evaluation.real import CLASSES, read_real, right_by_real
from vitkit.workflows.protocols.choices import one_label
from vitkit.workflows.protocols.classes import class_numbers
from vitkit.workflows.protocols.job import Job


def run(job: Job) -> Findings:
    """{"real", "top1"} over the images that have ReaL labels, "top1_all" over all."""
    if not job.options.real:
        raise UsageError(
            "real compares with the ReaL labels; add --real FILE, real.json of "
            "google-research/reassessed-imagenet"
        )
    listed, source = read_real(job.options.real), job.scored
    one_label(source, "real")
    labels = labels_of(source, listed, job.options.real)
    of_net = class_numbers(job.model.class_names, source.class_names, job.splits.name).numpy()
    numbers = np.array([-1 if n is None else n for n in imagenet_numbers(job.model.class_names)])
    if (numbers < 0).all():
        raise DataError(
            f"the classes of the net ({some(job.model.class_names)}) are none of ImageNet's, which "
            "ReaL labels are of; evaluate a net that was trained on ImageNet"
        )
    logits, own = job.logits(source)
    best = logits.argmax(dim=1).numpy()
    right = right_by_real(numbers[best], labels)
    plain = best == of_net[own.numpy()]
    labelled = ~np.isnan(right)
    if not labelled.any():
        raise DataError(
            f"{job.splits.name}: none of the {len(source)} images has a ReaL label; evaluate on "
            "more of ImageNet's validation images"
        )
    metrics = {
        "real": float(right[labelled].mean()),
        "top1": float(plain[labelled].mean()),
        "top1_all": float(plain.mean()),
    }
    return Findings(metrics, notes=notes(labelled, numbers), images=int(labelled.sum()))


def labels_of(source: Source, listed: list[list[int]], file: str) -> list[list[int]]:
    """Each image's labels, by the number in its file's name. Raises DataError."""
    found = []
    for index in range(len(source)):
        match = LABELLED.fullmatch(Path(source.key(index)).name)
        number = int(match[1]) if match else 0
        if not match or not 1 <= number <= len(listed):
            raise DataError(
                f"{source.name(index)}: expected an image of ImageNet's validation set, "
                f"ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_{len(listed):08}.JPEG as {file} "
                "has labels of"
            )
        found.append(listed[number - 1])
    return found


def notes(labelled: np.ndarray, numbers: np.ndarray) -> tuple[str, ...]:
    said = [
        f"{len(labelled) - int(labelled.sum()):,} of {len(labelled):,} images have no ReaL label "
        "and are left out of real and top1; top1_all is over all."
    ]
    known = len(set(numbers.tolist()) - {-1})
    if known < CLASSES:
        said.append(f"The net knows {known} of ImageNet's {CLASSES:,} classes.")
    return tuple(said)
