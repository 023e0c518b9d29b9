"""Random draws as pure functions of (seed, purpose, position in the stream)."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

WORDS = 4  # 64-bit numbers in a block of Philox


class Purpose(IntEnum):
    """What draws are for; each purpose has a stream of its own. Numbers never change."""

    CROP = 1
    REPLACEMENT = 2  # of an image that cannot be used
    RANDAUGMENT = 3
    MIX = 4
    ERASE = 5
    JITTER = 6
    BALANCE = 7
    CORRUPTION = 8  # of a picture, by its index
    MASK = 9  # of patches
    GRAYSCALE = 10
    BLUR = 11
    JITTERED = 12  # whether an image is


def uniforms(seed: int, purpose: Purpose, first: int, positions: int, each: int) -> np.ndarray:
    """(positions, each) float64 in [0, 1): the draws of the positions from `first` on.

    A position's draws are its own, however many are asked for at once, by whichever thread or
    process: counter-based numbers (Philox 4x64, Salmon et al. 2011), the position in the counter
    and (seed, purpose) in the key. `each` is part of what decides them, so a purpose must always
    ask for as many.
    """
    blocks = -(-each // WORDS)
    bits = np.random.Philox(key=(int(purpose) << 64) | seed, counter=first * blocks)
    return np.random.Generator(bits).random((positions, blocks * WORDS))[:, :each]


def uniforms_at(seed: int, purpose: Purpose, positions: np.ndarray, each: int) -> np.ndarray:
    """(B, each): the same for positions (B,) in any order; they should lie close to each other."""
    if not len(positions):
        return np.empty((0, each))
    first = int(positions.min())
    drawn = uniforms(seed, purpose, first, int(positions.max()) - first + 1, each)
    return drawn[positions - first]
