"""What an evaluation finds, as plain data: printed, saved and shown in the report."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vitkit.plain import Curve, Table


@dataclass(frozen=True)
class Confusion:
    """How often each class was taken for each."""

    # K classes of the data; where the net took some for classes that the data lack, the last is
    # "another class" and stands for all of those: its row is empty.
    class_names: tuple[str, ...]
    counts: np.ndarray  # (K, K) int64: row the true class, column the predicted one


@dataclass(frozen=True)
class Reliability:
    """Confidence beside accuracy, in bins of equal width over 0..1."""

    confidence: np.ndarray  # (bins,) mean probability of the predicted class, NaN of an empty bin
    accuracy: np.ndarray  # (bins,) share that is right, NaN of an empty bin
    images: np.ndarray  # (bins,) int64
    ece: float  # expected calibration error, 0..1


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities mean what they say, before and after one temperature for all."""

    before: Reliability  # over every image
    # Of the images that the temperature was not fitted on; None where they are too few.
    temperature: float | None = None
    apart_before: Reliability | None = None
    apart_after: Reliability | None = None


@dataclass(frozen=True)
class Mistake:
    """An image that the net got wrong."""

    name: str  # path, or file and row
    true: str
    predicted: str
    probability: float  # of the predicted class
    true_probability: float
    picture: np.ndarray | None = None  # (h, w, 3) uint8, small; None where it cannot be read


@dataclass(frozen=True)
class Findings:
    """What one protocol found of one net on one set of images."""

    metrics: dict[str, float]  # shares lie between 0 and 1; a name that ends in "loss" is a loss
    class_recall: dict[str, float | None] = field(default_factory=dict)  # None: no image of it
    class_images: dict[str, int] = field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    curves: tuple[Curve, ...] = ()
    notes: tuple[str, ...] = ()  # sentences: what was left out, assumed, or cannot be said
    confusion: Confusion | None = None
    calibration: Calibration | None = None
    worst: tuple[Mistake, ...] = ()  # the true class had the smallest probabilities
    confident: tuple[Mistake, ...] = ()  # the wrong class had the largest
    images: int = 0  # that were scored
    facts: dict[str, str] = field(default_factory=dict)  # "protocol", "data", "fingerprint"
