"""What a protocol works with: the net, the images, and what the net makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from vitkit.data.opening import open_data
from vitkit.data.pipeline import evaluation_batches
from vitkit.data.source import Source, Splits
from vitkit.evaluation.topk import features_of
from vitkit.prediction.model import Model
from vitkit.training.world import World
from vitkit.workflows.protocols.options import ProtocolOptions

BATCH = 256


@dataclass(frozen=True)
class Job:
    model: Model  # on its device
    data: Any  # DATA as it was given, or its splits
    train: Splits | None = None  # where to take shots or neighbours from; None: DATA's own
    options: ProtocolOptions = field(default_factory=ProtocolOptions)
    world: World = field(default_factory=World)  # every process sees all results
    threads: int = 2

    @cached_property
    def splits(self) -> Splits:
        """DATA opened, when a protocol asks: vtab's is a folder of many data sets."""
        return open_data(self.data)

    @property
    def folder(self) -> Path | None:
        """DATA where it is one folder."""
        words = [self.data] if isinstance(self.data, str | Path) else self.data
        if isinstance(words, list | tuple) and len(words) == 1 and Path(words[0]).is_dir():
            return Path(words[0])
        return None

    @property
    def name(self) -> str:
        return str(self.folder or self.splits.name)

    @property
    def scored(self) -> Source:
        """The images to score: to test on where there are some, else to validate on, else all."""
        return self.splits.test or self.splits.val or self.splits.train

    def features(self, source: Source) -> tuple[Tensor, Tensor]:
        """(N, D) float32 that the head reads, and labels (N,) or (N, K); every image once."""
        return self.seen(source, self.model.net.features)

    def logits(self, source: Source) -> tuple[Tensor, Tensor]:
        """(N, K) float32 and labels (N,) or (N, K) of the data's numbering; every image once."""
        return self.seen(source, self.model.net)

    def seen(self, source: Source, function) -> tuple[Tensor, Tensor]:
        batches = evaluation_batches(source, self.model.preprocessing, BATCH, self.threads)
        return features_of(lambda images: self.model.run(function, images), batches)
