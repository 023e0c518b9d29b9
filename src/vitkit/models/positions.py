"""Position embeddings, learned for one grid of patches, taken to another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_positions(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], prefix: int = 1
) -> Tensor:
    """Positions (1, prefix + h*w, D) of a grid (h, w) -> (1, prefix + H*W, D) of a grid (H, W).

    Bilinear with aligned corners, which is what `scipy.ndimage.zoom(order=1)` in the authors'
    checkpoint.py computes; the first `prefix` tokens are kept as they are. Section 3.2, "2D
    interpolation of the pre-trained position embeddings, according to their location".
    Raises ValueError where the positions do not fit the old grid.
    """
    found, (height, width) = positions.shape[1], old_grid
    if positions.ndim != 3 or found != prefix + height * width or min(*old_grid, *new_grid) < 1:
        raise ValueError(
            f"positions of shape {tuple(positions.shape)} do not fit {prefix} prefix tokens and a "
            f"grid of {height}x{width} (expected (1, {prefix + height * width}, D)), to be resized "
            f"to {new_grid[0]}x{new_grid[1]}"
        )
    if tuple(old_grid) == tuple(new_grid):
        return positions
    kept, patches = positions[:, :prefix], positions[:, prefix:]
    image = patches.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # (1, D, h, w)
    image = F.interpolate(
        image.float(), size=tuple(new_grid), mode="bilinear", align_corners=True
    )
    patches = image.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([kept, patches], dim=1)
