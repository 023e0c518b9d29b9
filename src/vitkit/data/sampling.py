"""Which image comes at each place of the endless stream that a run trains on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vitkit.data.checks import DataError
from vitkit.data.draws import Purpose, uniforms_at
from vitkit.data.order import mixed, shards_around, shuffled, windowed
from vitkit.data.source import Source

MIXTURE = 10_000  # places, among which every source of a mixture has its exact share


@dataclass(frozen=True)
class Order:
    """Places in the stream -> indices of the source, a pure function of the seed.

    By default every epoch holds every image once, in an order of its own. `repeats` is how often
    an image comes within a batch. `weights` are the shares of several DATA, each of which then has
    epochs of its own, to within 10,000 places. `balance` draws with replacement, a class of n
    images as often as n ** (1 - balance) says. Shards that come from afar are read one after
    another, some of them shuffled together.
    """

    source: Source
    batch_size: int
    seed: int
    repeats: int = 1
    weights: tuple[float, ...] = ()
    balance: float = 0.0

    def __post_init__(self) -> None:
        if self.batch_size % self.repeats:
            raise DataError(
                f"each image comes {self.repeats} times in a batch, which must divide the batch "
                f"size {self.batch_size}; change --data.repeats or --batch-size"
            )
        if self.weights and self.balance:
            raise DataError("--data.weights and --data.balance exclude each other; give one")
        if self.balance and self.source.multi_label:
            raise DataError(
                "--data.balance is for images of one class each, and these have several labels; "
                "--loss-balance is for both"
            )
        if self.balance and self.source.shard_lengths is not None:
            raise DataError(
                "--data.balance draws images in any order, and these are read one shard or row "
                "group after another; leave it out, or give them as files at hand"
            )
        if self.weights:
            parts = self.parts
            if len(parts) != len(self.weights):
                raise DataError(
                    f"--data.weights names {len(self.weights)} shares for {len(parts)} DATA; give "
                    "one for each (parquet files or tar shards named together are one)"
                )
            if not all(parts):
                raise DataError(
                    f"DATA number {parts.index(0) + 1} has no images left to train on, and "
                    "--data.weights gives it a share; leave it out"
                )

    @property
    def parts(self) -> list[int]:
        """How many images each of several DATA has."""
        return list(self.source.part_lengths or [len(self.source)])

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """Places (B,) int64 -> indices (B,) int64."""
        places = self.without_repeats(places)
        if self.balance:
            return self.balanced(places)
        if self.weights:
            return self.mixture(places)
        lengths = self.source.shard_lengths
        if lengths is None:
            return in_epochs(places, len(self.source), self.seed)
        return in_windows(places, lengths, self.source.shards_at_once, self.seed)

    def shards(self, place: int) -> list[int]:
        """The shards that images are read from at a place, and those read next."""
        lengths = self.source.shard_lengths
        if lengths is None or self.balance or self.weights:
            return []
        (place,) = self.without_repeats(np.array([place])).tolist()
        epoch, inside = divmod(place, len(self.source))
        at_once = self.source.shards_at_once
        return shards_around(inside, lengths, at_once, keyed(self.seed, epoch))

    def without_repeats(self, places: np.ndarray) -> np.ndarray:
        """Places in a stream in which every image comes once. Repeats lie far apart in a batch, so
        that MixUp does not pair an image with itself."""
        if self.repeats == 1:
            return places
        batch, inside = np.divmod(places, self.batch_size)
        different = self.batch_size // self.repeats
        return batch * different + inside % different

    def mixture(self, places: np.ndarray) -> np.ndarray:
        quotas = shares_of(MIXTURE, self.weights)
        starts = np.cumsum([0, *quotas])
        blocks, inside = np.divmod(places, MIXTURE)
        indices = np.empty_like(places)
        for block in np.unique(blocks).tolist():
            of_it = blocks == block
            slots = shuffled(inside[of_it], MIXTURE, keyed(self.seed + 1, block))
            part = np.searchsorted(starts, slots, side="right") - 1
            within = block * np.array(quotas)[part] + slots - starts[part]
            indices[of_it] = self.of_parts(part, within)
        return indices

    def of_parts(self, parts: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Places in the streams of the parts -> indices of the whole source."""
        starts = np.cumsum([0, *self.parts])
        indices = np.empty_like(places)
        for part in np.unique(parts).tolist():
            of_it = parts == part
            indices[of_it] = starts[part] + self.in_part(places[of_it], part)
        return indices

    def in_part(self, places: np.ndarray, part: int) -> np.ndarray:
        """Places in the stream of a part -> indices in it; of shards one after another too."""
        length, seed = self.parts[part], self.seed + part
        if self.source.shard_lengths is None:
            return in_epochs(places, length, seed)
        first = sum(self.parts[:part])
        ends = np.cumsum(self.source.shard_lengths)
        inside = (first < ends) & (ends <= first + length)
        lengths = np.array(self.source.shard_lengths)[inside].tolist()
        return in_windows(places, lengths, self.source.shards_at_once, seed)

    def balanced(self, places: np.ndarray) -> np.ndarray:
        bounds, members, starts, counts = self.classes
        drawn = uniforms_at(self.seed, Purpose.BALANCE, places, 2)
        kind = np.searchsorted(bounds, drawn[:, 0], side="right")
        return members[starts[kind] + np.floor(drawn[:, 1] * counts[kind]).astype(np.int64)]

    @cached_property
    def classes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Upper bounds of the classes' shares; indices by class; where each class begins there,
        and how many there are of it."""
        labels = np.asarray(self.source.labels)
        members = np.argsort(labels, kind="stable")
        _, counts = np.unique(labels, return_counts=True)
        chances = counts ** (1 - self.balance)
        bounds = np.cumsum(chances / chances.sum())[:-1]
        return bounds, members, np.cumsum([0, *counts[:-1]]), counts


def in_epochs(places: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Places (B,) of an endless stream of `length` images -> indices, shuffled in each epoch."""
    epochs, inside = np.divmod(places, length)
    indices = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        of_it = epochs == epoch
        indices[of_it] = shuffled(inside[of_it], length, keyed(seed, epoch))
    return indices


def in_windows(places: np.ndarray, lengths: Sequence[int], at_once: int, seed: int) -> np.ndarray:
    """The same where images lie in shards of these lengths, so many of which are read at once."""
    epochs, inside = np.divmod(places, sum(lengths))
    indices = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        of_it = epochs == epoch
        indices[of_it] = windowed(inside[of_it], lengths, at_once, keyed(seed, epoch))
    return indices


def keyed(seed: int, epoch: int) -> int:
    """A key for each epoch of each seed: those of seed 1 are not the later epochs of seed 0."""
    numbers = mixed(np.array([seed + 1], dtype=np.uint64)) + np.uint64(epoch)
    return int(mixed(numbers)[0])


def shares_of(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total`, in proportion to the weights, each at least 1."""
    exact = np.array(weights) / sum(weights) * total
    whole = np.maximum(np.floor(exact).astype(int), 1)
    order = np.argsort(whole - exact, kind="stable")  # the largest rests first
    for number in range(int(total - whole.sum())):
        whole[order[number % len(order)]] += 1
    while whole.sum() > total:
        whole[whole.argmax()] -= 1
    return whole.tolist()


def places_of(batch: int, batch_size: int, rank: int, ranks: int) -> np.ndarray:
    """The places (B,) in the stream of a process's share of a batch.

    Neighbours 2k and 2k + 1, which MixUp pairs, stay in one process where its share is even.
    """
    share = batch_size // ranks
    together = 2 if share % 2 == 0 else 1
    inside = np.arange(batch_size).reshape(-1, ranks, together)[:, rank].reshape(-1)
    return batch * batch_size + inside
