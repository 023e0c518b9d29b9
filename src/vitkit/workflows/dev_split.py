"""A dev split: images to train on, held apart to choose hyper-parameters by (appendix B.1.1)."""

from __future__ import annotations

import json
from pathlib import Path

from vitkit.data.audit import class_counts
from vitkit.data.checks import DataError, some
from vitkit.data.opening import held_out
from vitkit.data.source import Source, Splits, Subset
from vitkit.errors import UsageError
from vitkit.files import write_whole
from vitkit.workflows.task import Task

SEED = 0  # one dev split for every sweep of the same data: their scores can be compared
SHARES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)  # to propose


def dev_split(task: Task, share: float) -> Task:
    """A task that trains on the task's images but for about `share` of every class, its dev split.

    A pure function of the labels and the share; the images that the task validates on have no part
    in it. UsageError or DataError where a class that has images would have none to be scored on, or
    none to train on.
    """
    if not 0 < share < 1:
        raise UsageError(f"--dev-share is {share:g}; it must be above 0 and below 1")
    parts = split(task, share)
    for part, where in ((parts.val, "in the dev split"), (parts.train, "left to train on")):
        assert part is not None  # held_out makes one
        empty = classes_without(part, task.train)
        if empty:
            raise lacking(task, share, empty, where)
    assert parts.val is not None
    return Task(parts.train, parts.val, task.name, val_given=False, scored="dev images")


def split(task: Task, share: float) -> Splits:
    images = task.train
    return held_out(images, task.name, share=share, at_most=len(images), seed=SEED)


def classes_without(part: Source, whole: Source) -> list[str]:
    """The classes that images of the whole have, but none of the part."""
    counts = class_counts([("part", part), ("whole", whole)])
    return [name for name, images in counts["whole"].items()
            if images and not counts["part"][name]]  # fmt: skip


def lacking(task: Task, share: float, empty: list[str], where: str) -> Exception:
    """What to say of a dev split that is not of all classes: which share would do."""
    number = f"{len(empty)} of {len(task.train.class_names)} classes have"
    told = f"{task.name}: {number} no image {where} with --dev-share {share:g}: {some(empty)}"
    for other in sorted(SHARES, key=lambda s: (s < share, abs(s - share))):  # larger ones first
        parts = split(task, other)
        if not any(part and classes_without(part, task.train) for part in (parts.val, parts.train)):
            return UsageError(f"{told}; give --dev-share {other:g}")
    counts = class_counts([("train", task.train)])["train"]
    single = [name for name, images in counts.items() if images == 1]
    if not single:  # classes of several labels that come together
        return DataError(f"{told}; no share would do: give more images, or leave classes out")
    return DataError(
        f"{told}; no share would do, since {some(single)} {'has' if len(single) == 1 else 'have'} "
        "a single image to train on: give more images of these, or leave them out"
    )


def write_split(folder: Path, task: Task, trial: Task, share: float) -> None:
    """split.json: the places of the dev images among those to train on, and of those held out
    besides, where the data did not give them, in all of DATA."""
    assert isinstance(trial.val, Subset)
    content = {
        "dev": trial.val.indices.tolist(), "dev_of": "the images to train on",
        "dev_share": share, "seed": SEED, "fingerprint": task.fingerprint,
        "dev_fingerprint": trial.held_out_fingerprint,
    }  # fmt: skip
    if isinstance(task.val, Subset) and not task.val_given:
        content["held_out"] = task.val.indices.tolist()
    write_whole(folder / "split.json", json.dumps(content) + "\n")
