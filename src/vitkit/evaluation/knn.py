"""k-NN: the majority vote of the nearest training images, exactly.

The nearest rows are looked for with fast, coarse matrix products, and their distances are computed
anew in float64. A bound on the error of the products tells for each query whether another row could
be as near; where one could, the query is looked at again with finer products. So the result is that
of float64 throughout, at nearly the speed of bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

AT_ONCE = 2**25  # scores held at once
ROUNDING = {torch.bfloat16: 2.0**-9, torch.float32: 2.0**-24}  # the largest relative error


@dataclass(frozen=True)
class Rows:
    """Features (N, D) as they are compared: as given, or of the cosine divided by their lengths,
    since then the nearest are those at the smallest Euclidean distance."""

    values: Tensor  # (N, D)
    lengths: Tensor | None  # (N,) float64, infinite of a row of zeros, which has no direction

    def take(self, chosen: Tensor | slice) -> Tensor:
        """Some of them, float64."""
        rows = self.values[chosen].double()
        return rows if self.lengths is None else rows / self.lengths[chosen][..., None]

    def zero(self, chosen: Tensor | slice) -> Tensor:
        """Whether they have no direction: their cosine distance from all others is 1."""
        if self.lengths is None:
            return torch.zeros(self.values[chosen].shape[:-1], dtype=torch.bool)
        return self.lengths[chosen].isinf()

    def parts(self) -> list[slice]:
        step = max(1, AT_ONCE // self.values.shape[1])
        return [slice(n, n + step) for n in range(0, len(self.values), step)]


@dataclass(frozen=True)
class Coarse:
    """Training rows for coarse products; all that differs from `centre`, which is their mean."""

    centre: Tensor  # (D,) float64
    values: Tensor  # (N, D) of a coarse kind
    bias: Tensor  # (N,) float32: minus half their squared length
    longest: float  # length of a row
    error: float  # the largest length of what a row lost


def knn(
    features: np.ndarray | Tensor,
    labels: np.ndarray | Tensor,
    queries: np.ndarray | Tensor,
    k: int = 10,
    metric: str = "cosine",
) -> np.ndarray:
    """Training features (N, D), labels (N,) integers from 0 on, queries (Q, D) -> (Q,) labels.

    Each query gets the label that most of its `k` nearest rows have by the "cosine" or "euclidean"
    distance, each vote alike; of several with as many votes the smallest. These are the
    predictions of scikit-learn's KNeighborsClassifier(k, metric=metric, algorithm="brute") on
    float64 rows, but for one thing: where rows at exactly the same distance lie on both sides of
    the k-th place, the first of them vote here, and there a choice that changes with the threads.
    """
    labels = np.asarray(labels)
    indices = nearest(features, queries, k, metric).numpy()
    votes_for = labels[indices]  # (Q, k)
    result = np.empty(len(indices), labels.dtype)
    classes = int(labels.max()) + 1
    step = max(1, AT_ONCE // classes)
    for n in range(0, len(indices), step):
        part = votes_for[n : n + step]
        counts = np.zeros((len(part), classes), np.int32)
        np.add.at(counts, (np.arange(len(part))[:, None], part), 1)
        result[n : n + step] = counts.argmax(1)
    return result


def nearest(
    features: np.ndarray | Tensor, queries: np.ndarray | Tensor, k: int, metric: str
) -> Tensor:
    """(Q, k) indices of the nearest training rows, the nearest first; k is at most their number."""
    rows, asked = rows_of(features, metric), rows_of(queries, metric)
    if not 1 <= k <= len(rows.values):
        raise ValueError(f"k is {k}; expected 1 to {len(rows.values)}, the training rows")
    found = torch.empty(len(asked.values), k, dtype=torch.int64)
    unsure = torch.arange(len(found))
    for kind in kinds():
        if len(unsure):
            unsure = look(rows, asked, unsure, kind, found)
    if len(unsure):
        look_closely(rows, asked, unsure, found)
    return found


def rows_of(features: np.ndarray | Tensor, metric: str) -> Rows:
    rows = Rows(torch.as_tensor(features), None)
    if metric == "euclidean":
        return rows
    lengths = torch.cat([rows.take(part).norm(dim=1) for part in rows.parts()])
    return Rows(rows.values, torch.where(lengths == 0, torch.inf, lengths))


def kinds() -> list[torch.dtype]:
    """bfloat16 first, where this CPU multiplies it."""
    able = torch.cpu.get_capabilities()
    fast = any(able.get(unit) for unit in ("amx_bf16", "avx512_bf16"))
    return [torch.bfloat16, torch.float32] if fast else [torch.float32]


def look(rows: Rows, asked: Rows, chosen: Tensor, kind: torch.dtype, found: Tensor) -> Tensor:
    """Write the nearest of the chosen queries into `found` (Q, k) -> those that stay unsure."""
    coarse = coarse_rows(rows, kind)
    (number, width), k = rows.values.shape, found.shape[1]
    few = min(number, 2 * k + 20)  # rows whose distances are computed
    unsure = []
    for part in chosen.split(max(1, AT_ONCE // max(number, few * width))):
        x = asked.take(part) - coarse.centre
        rounded = x.to(kind)
        scores = (rounded @ coarse.values.T).float().add_(coarse.bias)
        best, candidates = scores.topk(few, dim=1)
        candidates = candidates.sort(dim=1).values  # of equal distances the first row is nearer
        distances = distances_to(rows, asked, part, candidates)
        nearest, order = distances.sort(dim=1, stable=True)
        found[part] = candidates.gather(1, order[:, :k])
        if few < number:
            # A score is (|x|^2 - distance^2) / 2: all others have at most the last of the best.
            length, lost = x.norm(dim=1), (x - rounded.double()).norm(dim=1)
            kth = (length.square() - nearest[:, k - 1]) / 2
            sure = kth > best[:, -1].double() + error_of(coarse, length, lost)
            unsure.append(part[~sure | asked.zero(part)])
    return torch.cat(unsure) if unsure else chosen[:0]


def coarse_rows(rows: Rows, kind: torch.dtype) -> Coarse:
    parts = rows.parts()
    centre = torch.stack([rows.take(part).sum(0) for part in parts]).sum(0) / len(rows.values)
    values, biases, longest, error = [], [], 0.0, 0.0
    for part in parts:
        exact = rows.take(part) - centre
        values.append(exact.to(kind))
        length = exact.norm(dim=1)
        # A row without direction lies at the squared distance 2 from rows of length 1, not at 1.
        biases.append((-length.square() / 2 - 0.5 * rows.zero(part)).float())
        longest = max(longest, float(length.max()))
        error = max(error, float((exact - values[-1].double()).norm(dim=1).max()))
    return Coarse(centre, torch.cat(values), torch.cat(biases), longest, error)


def error_of(coarse: Coarse, length: Tensor, lost: Tensor) -> Tensor:
    """By how much a score can be wrong, of queries of these lengths that lost so much.

    What rounding took from both factors (Cauchy-Schwarz), D sums in float32 in any order, the
    result rounded once, and the bias added in float32.
    """
    width = coarse.values.shape[1]
    product = (length + lost) * (coarse.longest + coarse.error)
    sums = (width + 4) * 2.0**-24 + ROUNDING[coarse.values.dtype]
    factors = lost * coarse.longest + (length + lost) * coarse.error
    return factors + sums * product + coarse.longest**2 * 2.0**-23 + 1e-30


def distances_to(rows: Rows, asked: Rows, part: Tensor, candidates: Tensor) -> Tensor:
    """Squared distances (B, m), float64, of queries from the m rows given for each."""
    found = (rows.take(candidates) - asked.take(part)[:, None]).square().sum(-1)
    without = rows.zero(candidates) | asked.zero(part)[:, None]
    return torch.where(without, 2.0, found)


def look_closely(rows: Rows, asked: Rows, chosen: Tensor, found: Tensor) -> None:
    """The same by products in float64, for queries to which very many rows are nearly alike: the
    distances of all rows are computed that could be among the nearest."""
    k, unit = found.shape[1], (rows.values.shape[1] + 8) * 2.0**-52
    for part in chosen.split(max(1, AT_ONCE // (4 * len(rows.values)))):
        distances = all_distances(rows, asked, part)
        largest = 2 * (distances.max(dim=1).values + 4 * asked.take(part).square().sum(1))
        could = distances.kthvalue(k, dim=1).values + 2 * unit * largest
        for query, row, limit in zip(part, distances, could, strict=True):
            candidates = torch.nonzero(row <= limit)[:, 0]
            exact = distances_to(rows, asked, query[None], candidates[None])[0]
            found[query] = candidates[exact.sort(stable=True).indices[:k]]


def all_distances(rows: Rows, asked: Rows, part: Tensor) -> Tensor:
    """Squared distances (B, N), float64, of queries from all rows."""
    x = asked.take(part)
    found = torch.empty(len(x), len(rows.values), dtype=torch.float64)
    for of in rows.parts():
        y = rows.take(of)
        squares = x.square().sum(1)[:, None] + y.square().sum(1)
        distances = torch.addmm(squares, x, y.T, alpha=-2).clamp_(min=0)
        without = rows.zero(of) | asked.zero(part)[:, None]
        found[:, of] = torch.where(without, 2.0, distances)
    return found
