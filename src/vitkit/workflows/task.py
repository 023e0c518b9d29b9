"""DATA, opened and split: what a run trains on and what it is validated on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vitkit.data.audit import class_counts
from vitkit.data.checks import DataError, some
from vitkit.data.facts import DataFacts
from vitkit.data.mixing import listed_in, subset
from vitkit.data.opening import held_out, image_side, open_data, require_classes
from vitkit.data.source import Source, Splits, Without
from vitkit.data.unlabelled import open_unlabelled
from vitkit.errors import UsageError, VitkitError
from vitkit.training.config import DataConfig, TrainConfig, override

SUBSET_SEED = 0  # the same subset for every run: runs with other seeds must train on the same one
SKEWED = 10  # times as many images of one class as of another are worth a note


@dataclass(frozen=True)
class Task:
    """Data opened, checked and split."""

    train: Source
    val: Source
    name: str
    val_given: bool  # by the data, rather than held out here
    scored: str = "held-out images"  # what those to validate on are called
    unlabelled: DataError | None = None  # why its images can only be learned from without labels

    @property
    def labelled(self) -> bool:
        return self.unlabelled is None

    @cached_property
    def fingerprint(self) -> str:
        """Of the images trained on."""
        return self.train.fingerprint()

    @cached_property
    def held_out_fingerprint(self) -> str:
        return self.val.fingerprint()

    @cached_property
    def class_images(self) -> tuple[int, ...]:
        """How many images to train on each class has; each of several labels counts."""
        labels = self.train.labels
        numbers = labels.indices if self.train.multi_label else np.asarray(labels)
        return tuple(np.bincount(numbers, minlength=len(self.train.class_names)).tolist())

    @property
    def read_by(self) -> str:
        """By which the order of the images differs: shards afar are read one after another."""
        return "images" if self.train.shard_lengths is None else "shards"

    def facts(self) -> DataFacts:
        return DataFacts(
            len(self.train), len(self.train.class_names), image_side(self.train),
            self.train.multi_label, self.train.flip_keeps_class,
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "held_out_fingerprint": self.held_out_fingerprint,
            "read_by": self.read_by,
            "train_images": len(self.train),
            "held_out_images": len(self.val),
            "held_out": "given by the data" if self.val_given else "split.json",
            "class_names": self.train.class_names if self.labelled else [],
        }


def open_task(data: Any, config: DataConfig | None = None, *, labelled: bool = True) -> Task:
    """DATA -> images to train on and to validate on; a stratified tenth is held out if need be.

    Quarantined images are left out of both, and a subset is one of those to train on. With
    `labelled` False images without classes are taken as well.
    """
    if isinstance(data, Task):
        return data
    config = config or DataConfig()
    splits, problem = opened(data, config, labelled)
    given = splits.val is not None
    if not given:
        splits = held_out(splits.train, splits.name)
    assert splits.val is not None
    if splits.val.class_names != splits.train.class_names:
        raise VitkitError(
            f"{splits.name}: found the classes {some(splits.val.class_names)} to validate on, but "
            f"{some(splits.train.class_names)} to train on; expected the same names in both"
        )
    train = splits.train
    if config.subset is not None:
        train = subset(train, config.subset, SUBSET_SEED)
    if problem is None:
        note_empty_classes(train, splits.name)
    return Task(train, splits.val, splits.name, given, unlabelled=problem)


def opened(data: Any, config: DataConfig, labelled: bool) -> tuple[Splits, DataError | None]:
    """The splits without quarantined images, and what is wrong with their labels, where those are
    not needed."""
    problem = None
    try:
        splits = without_quarantined(open_data(data), config.quarantine)
        require_classes(splits.train, splits.name)
    except DataError as error:
        if labelled:
            raise
        problem = error
        try:
            source = open_unlabelled(data)
        except DataError:
            raise error from None  # what it says is of use whatever is learned
        splits = without_quarantined(Splits(name_of(data), source), config.quarantine)
    return splits, problem


def name_of(data: Any) -> str:
    """DATA without classes, named as the user did."""
    if isinstance(data, Splits):
        return data.name
    if isinstance(data, Source):
        return data.name(0)
    return str(data) if isinstance(data, str | Path) else " ".join(map(str, data))


def note_empty_classes(train: Source, title: str) -> None:
    """Warn of classes that no image to train on is of; a net would never learn them."""
    counts = class_counts([("train", train)])["train"]
    empty = [name for name, images in counts.items() if not images]
    if empty:
        warnings.warn(
            f"{title}: {len(empty)} of {len(train.class_names)} classes have no image to train "
            f"on: {some(empty)}",
            stacklevel=3,
        )


def note_skew(task: Task, config: TrainConfig) -> None:
    """Warn where some classes have many times the images of others and nothing is done about it."""
    if config.loss_balance or config.data.balance or config.self_supervised:
        return
    counts = sorted(
        (images, name)
        for images, name in zip(task.class_images, task.train.class_names, strict=True)
        if images
    )
    (fewest, rare), (most, common) = counts[0], counts[-1]
    if most < SKEWED * fewest:
        return
    drawing = not task.train.multi_label and task.train.shard_lengths is None
    warnings.warn(
        f"{task.name}: of the images to train on {most:,} are of {common}, the commonest class, "
        f"and {fewest:,} of {rare}, the rarest; --loss-balance 1 "
        + ("or --data.balance 1 " if drawing else "")
        + "makes classes count alike, and a number below 1 goes part of the way",
        stacklevel=2,
    )


def without_quarantined(splits: Splits, lists: tuple[str, ...]) -> Splits:
    """The same splits but for the images in these lists."""
    if not lists:
        return splits
    parts = splits.parts()
    chosen = zip(parts.items(), listed_in(list(parts.values()), lists), strict=True)
    cleaned = {name: Without(part, left) if left else part for (name, part), left in chosen}
    return Splits(splits.name, **cleaned)


def refuse_with_config(
    config: TrainConfig | None, recipe: str, regularisation: str | None, any_net: bool
) -> None:
    """UsageError where a whole config comes with what makes another one."""
    if config is not None and (recipe != "quickstart" or regularisation or any_net):
        raise UsageError(
            "config is given, which says all; leave out recipe, regularisation and any_net"
        )


def data_config(config: TrainConfig | None, fields: Mapping[str, Any]) -> DataConfig:
    """The part of a config that says which images are trained on, with the fields changed."""
    of_data = {name: value for name, value in fields.items() if name.startswith("data.")}
    return override(config or TrainConfig(), of_data).data
