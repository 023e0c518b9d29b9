"""Whether a net that learns without labels gives all images the same features: collapse."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# On CIFAR-10 images and digits the lowest spread of 45 sound nets was 0.26, of trained ones 0.41;
# two ViT-Pico/4 that learned to make two views alike, with nothing that took images apart, came to
# 0.11 and 0.16 within 120 steps.
LEAST = 0.2
# But among the digits an untrained net with fixed positions may begin at 0.15, and learn well.
SHARE = 0.5  # of the spread that a run began with
CONSTANT = 1e-3  # what rounding leaves of features that are the same, whatever they began with
ABOUT = (
    "feature_spread says how far apart the features of different images lie: 0 where all are "
    f"alike, 1 where they point in all directions. Below {LEAST:g}, and below half of what the run "
    "began with, they have collapsed."
)


def spread(features: np.ndarray | Tensor) -> float:
    """Features (N, D) of different images -> how far apart their directions lie, 0 to 1.

    The standard deviation of the features, each row divided by its length, times the root of D, as
    SimSiam's authors watch it (arXiv 2011.10566, section 4.1): 0 where all rows point the same way,
    1 where they point in all directions alike; the root of 1 minus the mean cosine of two rows. A
    row of zeros counts as zeros. NaN, of which nothing follows, for fewer than two rows and where a
    feature is not finite.
    """
    rows = torch.as_tensor(features).double()
    if len(rows) < 2 or not bool(rows.isfinite().all()):
        return math.nan
    rows = torch.nn.functional.normalize(rows, dim=1, eps=torch.finfo(torch.float64).tiny)
    return float((rows - rows.mean(0)).square().sum(1).mean().sqrt())


def collapsed(spread: float, first: float) -> bool:
    """Whether features, which had the spread `first` before a net was trained, have become too
    much alike to tell images by, or are constant; not where nothing is known (NaN)."""
    return spread < CONSTANT or (spread < LEAST and spread < SHARE * first)


def in_words(spread: float, first: float) -> str:
    """What a collapse is, for people."""
    return (
        f"the features have collapsed: those of different images are nearly the same (a spread of "
        f"{spread:.2g}, {first:.2g} before the first step); start again with a lower "
        "--learning-rate or a longer warm-up"
    )
