"""Small pictures of a source's images, for pages."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from vitkit.data.decode import ImageError
from vitkit.data.source import Source

SIDE = 96  # pixels of the longer side, at most


def picture(source: Source, index: int, side: int = SIDE) -> np.ndarray | None:
    """(h, w, 3) uint8, the longer side at most `side` pixels; None where it cannot be read now."""
    try:
        pixels = source.image(index)
    except (ImageError, OSError):
        return None
    height, width = pixels.shape[1:]
    scale = side / max(height, width)
    if scale < 1:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        small = F.interpolate(pixels[None].float(), size, mode="bilinear", antialias=True)[0]
        pixels = small.round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 0).contiguous().numpy()
