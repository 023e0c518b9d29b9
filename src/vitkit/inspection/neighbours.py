"""Nearest neighbours in feature space."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2**24  # cosines at a time: 64 MiB of float32


@torch.no_grad()
def neighbours(query: Tensor, index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Features (Q, D) and (N, D) -> rows of `index` (Q, count) int64 and their cosines float32,
    the nearest first; all N where they are fewer than `count`.

    A row of zeros has the cosine 0 with every other.
    """
    index = F.normalize(index.float(), dim=-1)
    count = min(count, len(index))
    rows, cosines = [], []
    for part in F.normalize(query.float(), dim=-1).split(max(1, BLOCK // max(1, len(index)))):
        nearest = (part @ index.T).topk(count, dim=-1)
        rows.append(nearest.indices)
        cosines.append(nearest.values)
    if not rows:
        return torch.empty(0, count, dtype=torch.int64), torch.empty(0, count)
    return torch.cat(rows), torch.cat(cosines)
