"""What a self-training learns from: labelled images, and unlabelled ones that leak nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitkit.data.checks import DataError, some
from vitkit.data.mixing import listed_in
from vitkit.data.opening import open_data
from vitkit.data.overlap import in_common
from vitkit.data.source import Concatenated, Source, Splits, Without
from vitkit.data.unlabelled import open_unlabelled
from vitkit.errors import UsageError
from vitkit.training.config import DataConfig
from vitkit.workflows.data import write_quarantine
from vitkit.workflows.task import Task, open_task

TITLE = "unlabelled"  # what the keys of unlabelled images begin with in a list of both kinds


@dataclass(frozen=True)
class Images:
    """Labelled images, and the unlabelled ones that are none of them."""

    task: Task
    unlabelled: Source
    name: str  # of the unlabelled ones
    labelled_too: int  # unlabelled images that were left out: they are labelled ones to train on

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "fingerprint": self.unlabelled.fingerprint(),
            "images": len(self.unlabelled),
            "labelled_too": self.labelled_too,
        }


def open_images(labelled: Any, unlabelled: Any, config: DataConfig, leaks_to: Path) -> Images:
    """Both kinds of images, checked against each other.

    Unlabelled images that are labelled ones to train on are left out. UsageError where some are
    held out to validate or test on: what is measured on them would not be of new images. A list of
    them is then written to `leaks_to`, for `--data.quarantine`. DataError for data that cannot be.
    """
    splits, images = open_data(labelled), open_unlabelled(unlabelled)
    if config.quarantine:
        splits, images = without_listed(splits, images, config.quarantine)
    task = open_task(splits, replace(config, quarantine=()))
    if task.train.multi_label:
        raise UsageError(
            f"{task.name}: its images may have several labels each, and a pseudo-label is one class"
        )
    name = unlabelled_name(unlabelled, images)
    held = [task.val, *([splits.test] if splits.test is not None else [])]
    in_train, *in_held = in_common(images, [task.train, *held])
    leaks = {
        images.key(index): f"held out as {source.name(there)}"
        for source, found in zip(held, in_held, strict=True)
        for index, there in found.items()
    }
    if leaks:
        refuse_leaks(name, task.name, leaks, leaks_to)
    left = Without(images, list(in_train)) if in_train else images
    if not len(left):
        raise UsageError(
            f"{name}: all {len(images):,} images are labelled ones to train on already; give others"
        )
    return Images(task, left, name, len(in_train))


def unlabelled_name(words: Any, images: Source) -> str:
    if isinstance(words, str | Path):
        return str(words)
    if isinstance(words, Splits):
        return words.name
    return images.name(0) if isinstance(words, Source) else ", ".join(map(str, words))


def refuse_leaks(name: str, labelled: str, leaks: dict[str, str], path: Path) -> None:
    write_quarantine(path, {f"{TITLE}/{key}": why for key, why in leaks.items()})
    shown = some([f"{key} ({why})" for key, why in leaks.items()], 3)
    raise UsageError(
        f"{name}: {len(leaks):,} of its images are among those of {labelled} that are held out to "
        f"measure by: {shown}; leave them out by --data.quarantine {path}, which names them"
    )


def without_listed(splits: Splits, images: Source, files: tuple[str, ...]) -> tuple[Splits, Source]:
    """Both without the images in these lists. A key may be of either kind; "unlabelled/KEY" is an
    unlabelled image. UsageError for a key that could be both."""
    parts = splits.parts()
    marked = Concatenated([images], [TITLE])
    *of_labelled, plain, by_title = listed_in([*parts.values(), images, marked], files)
    listed = {part.key(index) for part, found in zip(parts.values(), of_labelled, strict=True)
              for index in found}  # fmt: skip
    both = [images.key(index) for index in plain if images.key(index) in listed]
    if both:
        raise UsageError(
            f"--data.quarantine names {some(both, 3)}, which are images of {splits.name} and "
            f"unlabelled ones; write {TITLE}/{both[0]} for the latter, and give the data other "
            "folders for the former"
        )
    cleaned = {name: Without(part, left) if left else part
               for (name, part), left in zip(parts.items(), of_labelled, strict=True)}  # fmt: skip
    left_out = sorted({*plain, *by_title})
    if len(left_out) == len(images):
        raise DataError(f"the lists leave out all {len(images)} unlabelled images; shorten them")
    return Splits(splits.name, **cleaned), Without(images, left_out) if left_out else images
