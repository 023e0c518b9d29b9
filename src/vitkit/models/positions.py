"""Position embeddings, learned for one grid of patches, taken to another."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vitkit.models.vit import VisionTransformer


def resize_positions(
    positions: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int], prefix: int = 1
) -> Tensor:
    """Positions (1, prefix + h*w, D) of a grid (h, w) -> (1, prefix + H*W, D) of a grid (H, W).

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


def resize_net(net: VisionTransformer, image_size: tuple[int, int]) -> VisionTransformer:
    """The same net for images of another size (height, width): its positions resized, a copy.

    Raises ValueError where the patch size does not divide the new size.
    """
    old, new = net.config, replace(net.config, image_size=tuple(image_size))
    state = dict(net.state_dict())
    state["position_embedding"] = resize_positions(
        state["position_embedding"], old.grid, new.grid, old.prefix
    )
    with torch.device("meta"):
        resized = VisionTransformer(new)
    copies = {name: tensor.detach().clone() for name, tensor in state.items()}
    resized.load_state_dict(copies, assign=True)
    return resized.requires_grad_(True).train(net.training)
