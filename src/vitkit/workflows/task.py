"""DATA, opened and split: what a run trains on and what it is validated on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vitkit.data.checks import some
from vitkit.data.facts import DataFacts
from vitkit.data.opening import held_out, image_side, open_data, require_classes
from vitkit.data.source import Source, Splits
from vitkit.errors import VitkitError


@dataclass(frozen=True)
class Task:
    """Data opened, checked and split."""

    train: Source
    val: Source
    name: str
    val_given: bool  # by the data, rather than held out here

    @cached_property
    def fingerprint(self) -> str:
        """Of the images trained on."""
        return self.train.fingerprint()

    @cached_property
    def held_out_fingerprint(self) -> str:
        return self.val.fingerprint()

    def facts(self) -> DataFacts:
        return DataFacts(
            len(self.train), len(self.train.class_names), image_side(self.train),
            self.train.flip_keeps_class,
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "held_out_fingerprint": self.held_out_fingerprint,
            "train_images": len(self.train),
            "held_out_images": len(self.val),
            "held_out": "given by the data" if self.val_given else "split.json",
            "class_names": self.train.class_names,
        }


def open_task(data: Any) -> Task:
    """DATA -> images to train on and to validate on; a stratified tenth is held out if need be."""
    if isinstance(data, Task):
        return data
    splits: Splits = open_data(data)
    require_classes(splits.train, splits.name)
    given = splits.val is not None
    if not given:
        splits = held_out(splits.train, splits.name)
    assert splits.val is not None
    if splits.val.class_names != splits.train.class_names:
        raise VitkitError(
            f"{splits.name}: found the classes {some(splits.val.class_names)} to validate on, but "
            f"{some(splits.train.class_names)} to train on; expected the same names in both"
        )
    return Task(splits.train, splits.val, splits.name, given)
