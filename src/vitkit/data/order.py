"""The order in which a set is read: a shuffle of any length that holds no permutation."""

from __future__ import annotations

import numpy as np

ROUNDS = 6
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
    for number in range(ROUNDS):
        round_key = np.uint64((key * 0x9E3779B97F4A7C15 + number * 0xD1B54A32D192ED03) % 2**64)
        left, right = right, left ^ (mixed(right + round_key) & mask)
    return (left << bits) | right


def mixed(values: np.ndarray) -> np.ndarray:
    """64-bit numbers, each bit of which depends on all bits of the number given (SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
