"""Logistic regression on frozen features, the linear probe, as the weights of a final layer.

With softmax it is multinomial regression, with sigmoid one against the rest for each class. The
features are standardised for the fit, and the result is for features as they come.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitkit.objectives.supervised import Loss, cross_entropy

L2 = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # penalties to choose from
ITERATIONS = 200  # of L-BFGS, at most
AT_ONCE = 4096  # rows whose logits are held at once: of 21,843 classes they take 360 MB


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    classes: int,
    loss: Loss = "softmax",
    penalties: Sequence[float] = L2,
    class_weights: Tensor | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Features (N, D) float32, labels (N,) or (N, K) on one device -> weights (K, D) and bias (K,)
    for each penalty.

    Each minimises mean cross-entropy + l2 / 2 ||weights||^2 over standardised features, the bias
    outside the penalty: scikit-learn's LogisticRegression with C = 1 / (N l2). `class_weights` are
    those of `cross_entropy`. Every fit starts from the one before.
    """
    mean, std = features.mean(0), features.std(0, correction=0)
    std = torch.where(std > 1e-6, std, 1.0)  # what never changes tells nothing
    rows = (features - mean) / std
    weights = nn.Parameter(torch.zeros(classes, rows.shape[1], device=rows.device))
    bias = nn.Parameter(torch.zeros(classes, device=rows.device))
    fits = []
    for l2 in penalties:
        descend(rows, labels, weights, bias, loss, l2, class_weights)
        whole = weights.detach() / std
        fits.append((whole, bias.detach() - whole @ mean))
    return fits


def descend(
    rows: Tensor,
    labels: Tensor,
    weights: nn.Parameter,
    bias: nn.Parameter,
    loss: Loss,
    l2: float,
    class_weights: Tensor | None,
) -> None:
    """Take weights and bias to the minimum."""
    search = torch.optim.LBFGS(
        [weights, bias], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe",
        tolerance_grad=1e-6, tolerance_change=1e-9,
    )  # fmt: skip

    def value() -> Tensor:
        search.zero_grad()
        penalty = l2 / 2 * weights.square().sum()
        penalty.backward()
        total = penalty.detach()
        for x, y in zip(rows.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
            part = cross_entropy(x @ weights.T + bias, y, loss, class_weights=class_weights)
            part = part * (len(x) / len(rows))
            part.backward()
            total = total + part.detach()
        return total

    search.step(value)  # pyright: ignore[reportArgumentType]  (it takes tensors)
