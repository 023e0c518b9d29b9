"""Whether probabilities mean what they say: reliability, its error, and one temperature for all.

"On Calibration of Modern Neural Networks" (Guo et al., ICML 2017, arXiv 1706.04599): the expected
calibration error, Equation 3, and temperature scaling, Section 4.2.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from vitkit.evaluation.findings import Calibration, Reliability

BINS = 15  # of equal width, as in the paper
FEWEST = 20  # images; of fewer a temperature says nothing
RANGE = (0.05, 20.0)  # temperatures to choose from
SEED = 0  # of the half that the temperature is fitted on


def calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Logits (N, K), labels (N,) integers. The temperature is fitted on a half of the images drawn
    by a seed, and told of by the other half."""
    before = reliability(logits, labels)
    if len(logits) < FEWEST:
        return Calibration(before)
    order = torch.from_numpy(np.random.default_rng(SEED).permutation(len(logits)))
    fitted, apart = order[: len(order) // 2], order[len(order) // 2 :]
    found = temperature(logits[fitted], labels[fitted])
    x, y = logits[apart], labels[apart]
    return Calibration(before, found, reliability(x, y), reliability(x / found, y))


def reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> Reliability:
    """Confidence is the softmax probability of the likeliest class; a bin begins with its lower
    edge, and a confidence of 1 belongs to the last."""
    shares, best = logits.float().softmax(1).max(1)
    edges = torch.linspace(0, 1, bins + 1)
    place = torch.bucketize(shares, edges, right=True).sub(1).clamp(0, bins - 1).numpy()
    images = np.bincount(place, minlength=bins)
    confidence = np.bincount(place, shares.double().numpy(), bins)
    accuracy = np.bincount(place, (best == labels).double().numpy(), bins)
    ece = float(np.abs(confidence - accuracy).sum() / len(labels))
    with np.errstate(invalid="ignore"):  # of empty bins: NaN
        return Reliability(confidence / images, accuracy / images, images.astype(np.int64), ece)


def temperature(logits: Tensor, labels: Tensor) -> float:
    """What logits are to be divided by for the smallest mean negative log-likelihood."""
    logits = logits.double()

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        return float(torch.nn.functional.cross_entropy(scaled, labels))

    low, high = np.log(RANGE)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    return float(np.exp(found.x))  # pyright: ignore[reportAttributeAccessIssue]
