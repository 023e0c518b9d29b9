"""Small arrays brought to where the images are without waiting, and images in handy parts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

ON_GPU = 2**25  # values, some of which become 8 bytes each for a moment
CACHED = 2**20  # values; more would leave a CPU's caches, and fewer cost more calls


def placed(array: np.ndarray, device: torch.device) -> Tensor:
    """The same numbers on the device, float64 as float32."""
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":  # from other memory than pinned a copy may wait
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def column(array: np.ndarray, device: torch.device) -> Tensor:
    """(B,) -> (B, 1, 1, 1): a number for each image of a batch."""
    return placed(array, device).view(-1, 1, 1, 1)


def some(images: Tensor, chosen: np.ndarray, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Images (B, 3, H, W) of which those that are `chosen`, bool (B,), are changed."""
    where = np.flatnonzero(chosen)
    if len(where) == len(images):
        return change(images)
    if not len(where):
        return images
    index = placed(where, images.device)
    return images.index_copy(0, index, change(images.index_select(0, index)))


def parts(images: Tensor, values: int = CACHED) -> list[slice]:
    """Which images go through together: on a CPU so few that they stay in its caches, on a GPU so
    many that what they take meanwhile is small beside a training step."""
    most = values if images.device.type == "cpu" else ON_GPU
    together = max(1, most // max(1, images[:1].numel()))
    return [slice(start, start + together) for start in range(0, len(images), together)]
