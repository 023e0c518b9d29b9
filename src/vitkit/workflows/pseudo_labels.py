"""Pseudo-labels: what a teacher says of unlabelled images, and which of them a student learns.

After Noisy Student (arXiv 1911.04252), section 3: images of a confidence above a threshold, and of
each class as many, the most confident of a larger one and images of a smaller one again and again.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from vitkit.data.checks import BadImages
from vitkit.data.pipeline import evaluation_batches
from vitkit.data.source import Source, Subset
from vitkit.data.unlabelled import PseudoLabelled, Relabelled
from vitkit.errors import VitkitError
from vitkit.files import whole_file
from vitkit.models import cost
from vitkit.prediction.model import Model
from vitkit.training.precision import choose_threads, computing_threads
from vitkit.workflows.progress import told
from vitkit.workflows.teaching import order_of

BATCH = 64  # images; fixed, for another batch may round differently
UNREADABLE = -1  # in place of a label
MOST_REPEATS = 10  # of an image: of a class with few, each would be learned by heart
QUANTILES = (0.5, 0.9, 0.99, 1.0)
Kind = Literal["soft", "hard"]


@dataclass(frozen=True)
class Guesses:
    """What a teacher of K classes says of N images."""

    labels: np.ndarray  # (N,) int32: the likeliest class, or UNREADABLE
    confidences: np.ndarray  # (N,) float32: its probability, 0 to 1
    passed: np.ndarray  # (P,) int64: the images above the threshold, in order
    targets: np.ndarray  # of those (P, K) float32 probabilities, or (P,) int64 classes

    def per_class(self, classes: int) -> list[int]:
        """How many images of each class passed."""
        return np.bincount(self.labels[self.passed], minlength=classes).tolist()


class Numbered(Relabelled):
    """Images whose labels are their places: of those passed over it is then known which."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, np.arange(len(source)), source.class_names)

    def fingerprint(self) -> str:
        return self.source.fingerprint()


def guess(
    model: Model,
    images: Source,
    class_names: Sequence[str],
    kind: Kind,
    threshold: float,
    threads: int,
    quiet: bool = False,
    teacher: str = "given",
) -> Guesses:
    """What the model says of every image, prepared as for evaluation, in float32, without noise.

    `teacher` is what errors call it. Images that cannot be read are passed over, with a note,
    within the limits of a run. VitkitError where the net's answers are not finite, or no confidence
    is above the threshold.
    """
    labels = np.full(len(images), UNREADABLE, np.int32)
    confidences = np.zeros(len(images), np.float32)
    passed, targets = [], []
    bad = BadImages(limit=max(10, len(images) // 1000))
    batches = evaluation_batches(Numbered(images), model.preprocessing, BATCH, threads, bad)
    work = cost.flops(model.net.config) * BATCH
    device = next(model.net.parameters()).device
    with computing_threads(choose_threads(work, device, 1)):
        for batch in told(batches, len(images), "pseudo-labels", quiet):
            shares = answers(model, batch.images, class_names).softmax(-1)
            if not torch.isfinite(shares).all():
                raise VitkitError(
                    f"the answers of the teacher {teacher} are not finite, so its weights are "
                    "damaged or its training diverged; give a sound checkpoint as --teacher, or "
                    "train one with a lower --learning-rate"
                )
            best = shares.max(1)
            places = batch.labels.numpy()
            labels[places], confidences[places] = best.indices.numpy(), best.values.numpy()
            certain = best.values > threshold
            passed.append(places[certain.numpy()])
            wanted = shares if kind == "soft" else best.indices
            targets.append(wanted[certain].numpy())
    if bad.reasons:
        name, reason = next(iter(bad.reasons.items()))
        warnings.warn(
            f"{len(bad.reasons)} unlabelled images cannot be read and are passed over, the first: "
            f"{name}: {reason}",
            stacklevel=2,
        )
    if not any(map(len, passed)):
        raise none_passed(confidences[labels != UNREADABLE], threshold)
    return Guesses(labels, confidences, np.concatenate(passed), np.concatenate(targets))


def answers(model: Model, images: Tensor, class_names: Sequence[str]) -> Tensor:
    """Logits (B, K) of prepared images, for these classes in this order."""
    order = order_of(model.class_names, class_names, "given")
    return model.run(model.net, images)[:, order]


def none_passed(confidences: np.ndarray, threshold: float) -> VitkitError:
    found = np.quantile(confidences, QUANTILES) if len(confidences) else [math.nan] * len(QUANTILES)
    shown = ", ".join(
        f"{100 * q:g} % {value:.3f}" for q, value in zip(QUANTILES, found, strict=True)
    )
    return VitkitError(
        f"none of {len(confidences):,} unlabelled images is of a class with a confidence above "
        f"{threshold:g}; the quantiles of their confidences are {shown}; give a lower --threshold, "
        "or a teacher that knows these images better"
    )


def balanced(
    labels: np.ndarray, confidences: np.ndarray, wanted: int | None, seed: int
) -> np.ndarray:
    """Labels and confidences (P,) of images -> the places of those to learn, sorted.

    `wanted` of each class that has any: the most confident of them, the first of equal ones; where
    there are fewer, all of them as often as they go into `wanted`, and for the rest images drawn
    by (seed, class), but none more than MOST_REPEATS times. None takes all as they are.
    """
    if wanted is None:
        return np.arange(len(labels))
    chosen = []
    for label in np.unique(labels).tolist():
        own = np.flatnonzero(labels == label)
        own = own[np.argsort(-confidences[own], kind="stable")]
        whole, rest = divmod(min(wanted, MOST_REPEATS * len(own)), len(own))
        if whole == 0:
            chosen.append(own[:wanted])
            continue
        drawn = np.random.default_rng((seed, label)).permutation(own)[:rest]
        chosen.append(np.concatenate([np.tile(own, whole), drawn]))
    return np.sort(np.concatenate(chosen))


def per_class_by(labels: np.ndarray) -> int:
    """As many of each class that the student learns about as many images as passed."""
    return math.ceil(len(labels) / len(np.unique(labels)))


def to_learn(
    images: Source, guesses: Guesses, chosen: np.ndarray, class_names: Sequence[str]
) -> Source:
    """The images that a student learns, with their pseudo-labels; some several times.

    `chosen` (n,) are places among those that passed.
    """
    passed = Subset(images, guesses.passed)
    return Subset(PseudoLabelled(passed, guesses.targets, class_names), chosen)


def save(path: Path, guesses: Guesses) -> str:
    """Write NAME.npz, whole or not at all -> its SHA-256."""
    with whole_file(path) as fresh, fresh.open("wb") as file:
        np.savez(file, **vars(guesses))
    return sha256(path)


def read(path: Path, expected: str | None) -> Guesses | None:
    """What `save` wrote; None where the file is not the one of this SHA-256."""
    if expected is None or not path.is_file() or sha256(path) != expected:
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Guesses(**arrays)
    except (OSError, ValueError, TypeError, BadZipFile):
        return None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
