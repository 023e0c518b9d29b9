"""Position embeddings, looked at."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def position_similarity(positions: Tensor, prefix: int = 1) -> Tensor:
    """Positions (1, prefix + N, D) -> (N, N), the cosine of each patch's with each other's.

    Row n, reshaped to the grid, is the tile of patch n in the paper's Figure 7 (centre).
    """
    patches = F.normalize(positions[0, prefix:].detach().float(), dim=-1)
    return patches @ patches.T
