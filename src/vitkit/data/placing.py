"""Small arrays of the host brought to where the images are, without waiting for that device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


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
