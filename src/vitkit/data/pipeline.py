"""The Grain pipeline: a source becomes batches.

Order and augmentation are pure functions of (seed, global position in the stream), so a run can
go on from any position, and the number of loader threads changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitkit.data.checks import DataError
from vitkit.data.decode import ImageError
from vitkit.data.source import Source
from vitkit.data.transforms import Preprocessing

logging.getLogger("absl").setLevel(logging.ERROR)  # grain warns that jax is not installed
import grain  # noqa: E402  (after the line that quiets it)

PREFETCHED_BATCHES = 2  # grain's default of 500 images or more costs gigabytes at 224 pixels
ENDLESS = 10**9  # batches
REMEMBERED_BYTES = 2**28  # a source whose decoded images need no more is decoded only once
ATTEMPTS = 20  # replacements tried for one bad image


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W), uint8 for training and float for evaluation, and labels: (B,)
    int64, or (B, K) float shares of the classes."""

    images: Tensor
    labels: Tensor


@dataclass
class BadImages:
    """Images that could not be decoded while training: counted, named, and limited."""

    limit: int
    reasons: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, name: str, reason: str) -> None:
        with self.lock:
            self.reasons[name] = reason
            if len(self.reasons) <= self.limit:
                return
        shown = "; ".join(f"{name}: {why}" for name, why in list(self.reasons.items())[:3])
        raise DataError(
            f"{len(self.reasons)} images cannot be used, more than the {self.limit} tolerated: "
            f"{shown}; remove or repair them"
        )


class TrainingStream:
    """An endless stream of augmented training batches, from any position on.

    `transform` takes (uint8 image, generator) and gives a uint8 image of fixed size. A bad image
    is replaced by another, drawn by (seed, position, attempt); more bad images than 10 and 0.1 %
    of the source raise DataError. Of several processes each has its `rank` and gets its share of
    every batch, which their number must divide: together they see the stream of a single one.
    """

    def __init__(
        self,
        source: Source,
        transform: Callable[[Tensor, np.random.Generator], Tensor],
        batch_size: int,
        seed: int,
        threads: int = 2,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size % ranks:
            raise ValueError(f"{ranks} processes do not divide a batch of {batch_size}")
        self.source, self.transform = source, transform
        self.batch_size, self.seed, self.threads = batch_size, seed, threads
        self.rank, self.ranks = rank, ranks
        self.remembered: dict[int, Tensor] = {}
        self.bad = BadImages(limit=max(1, max(10, len(source) // 1000) // ranks))

    def batches(self, first: int = 0) -> Generator[Batch, None, None]:
        """Batches from number `first` on; closing the iterator ends its threads."""
        samples: Any = (
            grain.MapDataset.range(len(self.source))
            .seed(self.seed)
            .shuffle()
            .repeat()
            .random_map(self.load)
        )

        # A thread loads a batch, not an image, which for small images costs more in grain than the
        # image itself. The draws are made by the position in the stream of all processes.
        def batch(number: int) -> Batch:
            begin = (first + number) * self.batch_size
            places = range(begin + self.rank, begin + self.batch_size, self.ranks)
            return stack([samples[place] for place in places])

        ahead = PREFETCHED_BATCHES if self.threads else 0
        options = grain.ReadOptions(num_threads=self.threads, prefetch_buffer_size=ahead)
        loaded = grain.MapDataset.range(ENDLESS).map(batch)
        return closing(iter(loaded.to_iter_dataset(options)))

    def load(self, index: int, random: np.random.Generator) -> tuple[Tensor, int | np.ndarray]:
        for _ in range(ATTEMPTS):
            try:
                image = self.transform(self.image(index), random)
                return image, self.source.target(index)
            except (ImageError, OSError) as error:
                self.bad.add(self.source.name(index), str(error))
                index = int(random.integers(len(self.source)))
        raise DataError(f"{ATTEMPTS} images in a row cannot be used; check the data")

    def image(self, index: int) -> Tensor:
        found = self.remembered.get(index)
        if found is None:
            found = self.source.image(index)
            if found.nbytes * len(self.source) <= REMEMBERED_BYTES:
                self.remembered[index] = found
        return found


def evaluation_batches(
    source: Source,
    preprocessing: Preprocessing,
    batch_size: int,
    threads: int = 2,
    bad: BadImages | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Generator[Batch, None, None]:
    """Every image once, in order, the last batch as long as it comes.

    A bad image is a DataError; where `bad` is given, it is left out, counted and named there. Of
    several processes each, by its `rank`, gets every `ranks`-th image.
    """

    def load(index: int) -> tuple[Tensor, int | np.ndarray] | None:
        try:
            return preprocessing(source.image(index)), source.target(index)
        except (ImageError, OSError) as error:
            if bad is None:
                raise DataError(f"{source.name(index)}: {error}") from error
            bad.add(source.name(index), str(error))
            return None  # grain leaves it out

    samples = grain.MapDataset.range(len(source))[rank::ranks]
    return read(samples.map(load), batch_size, threads)


def read(samples: grain.MapDataset, batch_size: int, threads: int) -> Generator[Batch, None, None]:
    """Samples (image, label) -> batches, `threads` threads working ahead."""
    ahead = PREFETCHED_BATCHES * batch_size if threads else 0
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return closing(iter(samples.to_iter_dataset(options).batch(batch_size, batch_fn=stack)))


def closing(iterator: Any) -> Generator[Batch, None, None]:
    """The same, and closing it closes grain's."""
    try:
        yield from iterator
    finally:
        iterator.close()  # an unclosed one keeps its threads


def stack(samples: Sequence[tuple[Tensor, int | np.ndarray]]) -> Batch:
    images, labels = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.from_numpy(np.stack(labels)))
