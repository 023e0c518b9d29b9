"""Which images are held out for validation."""

from __future__ import annotations

import numpy as np


def held_out_indices(labels: np.ndarray, share: float, at_most: int, seed: int) -> np.ndarray:
    """Sorted indices of about `share` of every class, at most `at_most`, and one if it can be.

    Every class has its quota, of which the whole part is held out; what then lacks of the total
    is one more image from each class with the largest rests (Hamilton's method), so that classes
    smaller than 1 / share have their part as well. Every class keeps an image to train on.
    """
    share = min(share, at_most / max(1, len(labels)))
    random = np.random.default_rng(seed)
    order, counts = by_class(labels)
    quotas = np.minimum(counts * share, counts - 1).round(9)  # equal rests must be equal
    held = np.floor(quotas).astype(int)
    ends = np.cumsum(counts)
    # Of each class no more than can be held out: copies of all would stay with the process.
    members = [
        random.permutation(order[end - count : end])[: most + 1].copy()
        for count, end, most in zip(counts, ends, held, strict=True)
    ]
    wanted = max(round(quotas.sum()), 1 if quotas.any() else 0)
    shuffled = random.permutation(len(counts))  # chance decides between equal rests
    rests = shuffled[np.argsort((held - quotas)[shuffled], kind="stable")]
    held[rests[: wanted - held.sum()]] += 1
    chosen = [group[:number] for group, number in zip(members, held, strict=True)]
    return np.sort(np.concatenate([*chosen, np.empty(0, dtype=np.int64)]))


def by_class(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) indices in order of their labels, and how many there are of each label that occurs."""
    lowest = labels.min(initial=0)
    counts = np.bincount(labels - lowest)
    present = counts > 0
    numbers = np.cumsum(present) - 1
    # Sixteen bits are sorted by counting, ten times as fast.
    small = numbers.astype(np.uint16 if present.sum() <= 2**16 else np.int64)
    return np.argsort(small[labels - lowest], kind="stable"), counts[present]
