"""The order in which a set is read: a shuffle of any length that holds no permutation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

ROUNDS = 6
SMALL = 4  # bits; of fewer places the orders are alike often enough only after more rounds
LOW = np.uint64(0xFFFFFFFF)


def shuffled(places: np.ndarray, length: int, key: int) -> np.ndarray:
    """Places (any shape, int64, each below `length`) -> where a permutation by `key` sends them.

    A Feistel network on the smallest even number of bits that holds `length`; what falls outside
    is sent through again (Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains"). Takes
    no memory that grows with `length`, and some nanoseconds a place.
    """
    half = max(1, (max(1, length - 1).bit_length() + 1) // 2)
    values = np.array(places, dtype=np.uint64)
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        values[outside] = feistel(values[outside], half, key)
        outside = values >= length
    return values.astype(np.int64)


def feistel(values: np.ndarray, half: int, key: int) -> np.ndarray:
    """A permutation of the numbers of 2 x `half` bits, by a key of any size."""
    bits = np.uint64(half)
    mask = np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for number in range(ROUNDS if half > SMALL else 4 * ROUNDS):
        round_key = np.uint64((key * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) % 2**64)
        left, right = right, left ^ (mixed(right + round_key) & mask)
    return (left << bits) | right


def mixed(values: np.ndarray) -> np.ndarray:
    """64-bit numbers, each bit of which depends on all bits of the number given (SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class Windows:
    """Shards in random order, so many of them at once being shuffled together.

    Numbers for each shard, none for each image.
    """

    shards: np.ndarray  # (S,) the shards in the order in which they are read
    starts: np.ndarray  # (S,) by shard: the index of its first image
    read_before: np.ndarray  # (S + 1,) how many images lie in the shards read before
    window_before: np.ndarray  # (W + 1,) how many images lie in the windows before
    at_once: int
    key: int

    def indices(self, places: np.ndarray) -> np.ndarray:
        """Places of an epoch (B,) -> indices of images (B,)."""
        windows = np.searchsorted(self.window_before, places, side="right") - 1
        read = np.empty(places.shape, dtype=np.int64)
        for window in np.unique(windows).tolist():
            inside = windows == window
            begin, end = self.window_before[window : window + 2].tolist()
            key = self.key * 0x9E3779B97F4A7C15 + window + 1
            read[inside] = begin + shuffled(places[inside] - begin, end - begin, key)
        which = np.searchsorted(self.read_before, read, side="right") - 1
        return self.starts[self.shards[which]] + read - self.read_before[which]

    def shards_from(self, place: int) -> list[int]:
        """The shards of the window that holds this place of an epoch, and those of the next one."""
        window = int(np.searchsorted(self.window_before, place, side="right")) - 1
        return self.shards[window * self.at_once : (window + 2) * self.at_once].tolist()


def windows_of(shard_lengths: Sequence[int], shards_at_once: int, key: int) -> Windows:
    return planned(tuple(shard_lengths), shards_at_once, key)


@lru_cache(maxsize=4)  # an epoch asks for the same ones in every batch
def planned(shard_lengths: tuple[int, ...], shards_at_once: int, key: int) -> Windows:
    lengths = np.array(shard_lengths, dtype=np.int64)
    shards = shuffled(np.arange(len(lengths)), len(lengths), key)
    read_before = np.cumsum(np.concatenate([[0], lengths[shards]]))
    ends = [*range(0, len(lengths), shards_at_once), len(lengths)]
    starts = np.cumsum(lengths) - lengths
    return Windows(shards, starts, read_before, read_before[ends], shards_at_once, key)


def windowed(
    places: np.ndarray, shard_lengths: Sequence[int], shards_at_once: int, key: int
) -> np.ndarray:
    """Places (B,) of an epoch, each below the sum of the lengths -> indices (B,) of images.

    A permutation by `key` that reads shard by shard: they are taken in random order, and the
    images of every `shards_at_once` of them are shuffled together.
    """
    return windows_of(shard_lengths, shards_at_once, key).indices(np.asarray(places))


def shards_around(
    place: int, shard_lengths: Sequence[int], shards_at_once: int, key: int
) -> list[int]:
    """The shards that `windowed` reads from at this place of an epoch, and those it reads next."""
    return windows_of(shard_lengths, shards_at_once, key).shards_from(place)
