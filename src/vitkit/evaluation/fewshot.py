"""Few-shot accuracy of frozen features by regularised least squares, solved in closed form.

Section 4.1 of the paper ("few-shot accuracies ... by solving a regularized least-squares regression
problem that maps the representation of a subset of training images to {-1, 1}^K target vectors");
the numerics are those of big_vision's evaluators/fewshot_lsr.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from vitkit.data.checks import some
from vitkit.errors import UsageError, VitkitError

SHOTS = (1, 5, 10, 25)
SEEDS = (0, 1, 2)
L2 = 2.0**10  # big_vision's; the paper's is unpublished
SWEEP = tuple(2.0**power for power in range(-10, 21))  # penalties to choose from
AT_ONCE = 4096  # images whose scores are held at once
BIAS = 100.0  # the constant feature appended; it lies inside the penalty


@overload
def least_squares_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    l2: float,
) -> float: ...


@overload
def least_squares_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    l2: Sequence[float] | np.ndarray,
) -> np.ndarray: ...


def least_squares_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    l2: float | Sequence[float] | np.ndarray,
) -> float | np.ndarray:
    """Accuracy (0 to 1) on the test features of a linear classifier solved on the train features.

    Features (N, D), labels (N,) integers, l2 the penalty: a float -> a float, several -> an array
    of as many accuracies. Features are standardised by the mean and (biased) deviation of the
    train features, a constant is appended, targets are +1 for the class and -1 for all others.
    UsageError for an l2 that is not above 0.
    """
    raw = np.asarray(train_features, np.float64)
    mean, std = raw.mean(axis=0), raw.std(axis=0) + 1e-5
    x = standardised(raw, mean, std)
    x_test = standardised(np.asarray(test_features, np.float64), mean, std)
    classes, y = np.unique(np.asarray(train_labels), return_inverse=True)
    targets = np.where(np.arange(len(classes)) == y[:, None], 1.0, -1.0)  # (N, K)
    strengths = np.atleast_1d(np.asarray(l2, np.float64))
    accuracies = np.array(
        [
            np.mean(classes[best_rows(x_test, weights)] == np.asarray(test_labels))
            for weights in ridge(x, targets, strengths)
        ]
    )
    return float(accuracies[0]) if np.ndim(l2) == 0 else accuracies


def best_rows(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N,) the column of x @ weights that is largest, with few rows' scores held at once."""
    parts = (x[n : n + AT_ONCE] @ weights for n in range(0, len(x), AT_ONCE))
    return np.concatenate([part.argmax(axis=1) for part in parts])


def standardised(x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Features (N, D) -> (N, D + 1), with the constant feature at the end."""
    return np.concatenate([(x - mean) / std, np.full((len(x), 1), BIAS)], axis=1)


def ridge(x: np.ndarray, targets: np.ndarray, strengths: np.ndarray) -> list[np.ndarray]:
    """argmin ||x w - targets||^2 + l2 ||w||^2 for each l2: weights (D, K).

    One eigendecomposition serves every l2; of the two equal forms the smaller one is solved.
    UsageError for an l2 that is not above 0: of few images many weights were then as good, and
    which ones come out would be chance.
    """
    if not (np.isfinite(strengths) & (strengths > 0)).all():
        raise UsageError(f"l2 is {some(strengths.tolist())}; it must be above 0, and finite")
    n, d = x.shape
    if n >= d:  # primal: w = (x'x + l2)^-1 x'y
        values, vectors = np.linalg.eigh(x.T @ x)
        rotated = vectors.T @ (x.T @ targets)
        return [vectors @ (rotated / (values + l2)[:, None]) for l2 in strengths]
    values, vectors = np.linalg.eigh(x @ x.T)  # dual: w = x' (xx' + l2)^-1 y
    rotated = vectors.T @ targets
    return [x.T @ (vectors @ (rotated / (values + l2)[:, None])) for l2 in strengths]


def few_shot(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    l2: float = L2,
) -> dict[str, float]:
    """{"1shot": ..., "5shot": ...}: accuracy with that many training images of each class, the
    means over the seeds of `few_shot_accuracies`."""
    found = few_shot_accuracies(
        train_features, train_labels, test_features, test_labels, shots, seeds, [l2]
    )
    return {f"{shot}shot": float(values.mean()) for shot, values in found.items()}


def few_shot_accuracies(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    shots: Sequence[int],
    seeds: Sequence[int],
    l2: Sequence[float],
) -> dict[int, np.ndarray]:
    """For each number of shots (seeds, penalties) accuracies.

    A seed permutes each class once, and more shots contain the fewer ones. Shots that some class
    has not enough images for are left out; VitkitError if none is left.
    """
    train_labels = np.asarray(train_labels)
    classes = np.unique(train_labels)
    possible = possible_shots(train_labels, shots)
    found: dict[int, list[np.ndarray]] = {shot: [] for shot in possible}
    for seed in seeds:
        random = np.random.default_rng(seed)
        order = [random.permutation(np.flatnonzero(train_labels == label)) for label in classes]
        for shot in possible:
            chosen = np.concatenate([members[:shot] for members in order])
            accuracies = least_squares_accuracy(
                train_features[chosen], train_labels[chosen], test_features, test_labels, l2
            )
            found[shot].append(accuracies)
    return {shot: np.stack(values) for shot, values in found.items()}


def possible_shots(labels: np.ndarray, shots: Sequence[int]) -> list[int]:
    """Those that every class has images for. VitkitError if none is left."""
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    possible = [shot for shot in shots if shot <= smallest]
    if not possible:
        raise VitkitError(
            f"few-shot: the smallest class has {smallest} training images; {min(shots)} are needed"
        )
    return possible
