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
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    grouped = np.split(np.argsort(classes, kind="stable"), np.cumsum(counts)[:-1])
    members = [random.permutation(group) for group in grouped]
    quotas = np.minimum(counts * share, counts - 1).round(9)  # equal rests must be equal
    held = np.floor(quotas).astype(int)
    wanted = max(round(quotas.sum()), 1 if quotas.any() else 0)
    shuffled = random.permutation(len(counts))  # chance decides between equal rests
    order = shuffled[np.argsort((held - quotas)[shuffled], kind="stable")]
    held[order[: wanted - held.sum()]] += 1
    chosen = [group[:number] for group, number in zip(members, held, strict=True)]
    return np.sort(np.concatenate([*chosen, np.empty(0, dtype=np.int64)]))
