"""What a self-training is told beside how its nets are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitkit.errors import UsageError, named
from vitkit.models.variants import variant
from vitkit.workflows.pseudo_labels import Kind, per_class_by


@dataclass(frozen=True)
class SelfTrainWords:
    """UsageError for words that cannot be."""

    rounds: int = 3
    students: tuple[str, ...] = ()
    pseudo: Any = "soft"
    threshold: float = 0.3
    per_class: int | str = "auto"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"--rounds is {self.rounds}; it must be at least 1")
        named("pseudo", self.pseudo, Kind.__args__)
        if not 0 <= self.threshold < 1:
            raise UsageError(f"--threshold is {self.threshold}; it must be at least 0 and below 1")
        if len(self.students) > self.rounds:
            raise UsageError(
                f"{len(self.students)} nets are given for the students of {self.rounds} rounds; "
                "give --rounds as many, or fewer nets"
            )
        for name in self.students:
            variant(name)
        if self.per_class in ("auto", "all"):
            return
        if not str(self.per_class).isdecimal() or int(self.per_class) < 1:
            raise UsageError(
                f"--per-class is {self.per_class}; it must be a number of images from 1 on, auto "
                "or all"
            )

    def wanted(self, labels: np.ndarray) -> int | None:
        """How many images of each class a student learns, of those that passed (P,); None for
        all."""
        if self.per_class == "auto":
            return per_class_by(labels)
        return None if self.per_class == "all" else int(self.per_class)
