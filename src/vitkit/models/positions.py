"""Position embeddings: fixed ones, and learned ones taken from one grid of patches to another."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_positions(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], prefix: int = 1
) -> Tensor:
    """Positions (1, prefix + h*w, D) of a grid (h, w) -> (1, prefix + H*W, D) of a grid (H, W).

    Several sets of positions, (n, prefix + h*w, D), are resized each.

    Bilinear with aligned corners, which is what `scipy.ndimage.zoom(order=1)` in the authors'
    checkpoint.py computes; the first `prefix` tokens are kept as they are. Section 3.2, "2D
    interpolation of the pre-trained position embeddings, according to their location".
    Raises ValueError where the positions do not fit the old grid.
    """
    height, width = old_grid
    fits = positions.ndim == 3 and positions.shape[1] == prefix + height * width
    if not fits or min(*old_grid, *new_grid) < 1:
        raise ValueError(
            f"positions of shape {tuple(positions.shape)} do not fit {prefix} prefix tokens and a "
            f"grid of {height}x{width} (expected (1, {prefix + height * width}, D)), to be resized "
            f"to {new_grid[0]}x{new_grid[1]}"
        )
    if tuple(old_grid) == tuple(new_grid):
        return positions
    kept, patches = positions[:, :prefix], positions[:, prefix:]
    image = patches.unflatten(1, (height, width)).permute(0, 3, 1, 2)  # (1, D, h, w)
    image = F.interpolate(image.float(), size=tuple(new_grid), mode="bilinear", align_corners=True)
    patches = image.permute(0, 2, 3, 1).flatten(1, 2).to(positions.dtype)
    return torch.cat([kept, patches], dim=1)


def resize_line(embedding: Tensor, length: int) -> Tensor:
    """(n, l, D) -> (n, length, D): linear along the second axis, ends on ends."""
    if embedding.shape[1] == length:
        return embedding
    line = embedding.float().transpose(1, 2)  # (n, D, l)
    line = F.interpolate(line, size=length, mode="linear", align_corners=True)
    return line.transpose(1, 2).to(embedding.dtype)


def sincos_2d(grid: tuple[int, int], width: int, prefix: int = 0) -> Tensor:
    """Fixed positions (1, prefix + h*w, D) of a grid (h, w); the prefix tokens get zeros.

    The quarters of D are sin x, cos x, sin y, cos y at D / 4 wavelengths from 2 pi to 20,000 pi,
    in float32. Source: posemb_sincos_2d in big_vision's models/vit.py. Raises ValueError where 4
    does not divide D or D is below 8.
    """
    if width % 4 or width < 8:
        raise ValueError(f"2-D sin-cos positions need a width of 8, 12, 16, ...; got {width}")
    quarter = width // 4
    frequencies = 10_000.0 ** -(torch.arange(quarter) / (quarter - 1))
    y, x = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    by_x, by_y = (place.reshape(-1, 1) * frequencies for place in (x, y))
    table = torch.cat([by_x.sin(), by_x.cos(), by_y.sin(), by_y.cos()], dim=1)
    return F.pad(table, (0, 0, prefix, 0))[None]
