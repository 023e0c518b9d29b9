"""Mean attention distance (Figure 7 right, Figure 11 and appendix D.7 of the paper).

For a patch it is the mean of its distances to all patches, weighted by its attention. The paper
does not say what becomes of the class token, and of registers. Here they are left out as queries
and as keys, and what remains of each row is made to sum to 1 again, so that a head that mostly
looks at the class token is measured by where among the patches it looks, and does not pass for a
local one. (The reproduction in sayakpaul/probing-vits leaves them out and does not renormalise; its
distances are smaller by the share that the class token gets.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vitkit.data.pipeline import Batch
from vitkit.errors import VitkitError
from vitkit.inspection.attention import (
    AT_ONCE,
    Reading,
    attentive,
    numbers_of,
    token_names,
    watched,
)
from vitkit.inspection.result import DistancesFound
from vitkit.inspection.runs import device_of, evaluating
from vitkit.models.nets import Net
from vitkit.models.t2t import CELL
from vitkit.models.vit_config import ViTConfig


def mean_distances(
    net: Net, batches: Iterable[Batch | Tensor], layers: Sequence[int] | None = None
) -> DistancesFound:
    """Mean attention distance of each layer and head, in pixels of the image that the net reads.

    `batches` are of images (B, 3, H, W), prepared as the net reads them. Memory does not grow with
    the number of images. UsageError for a net without attention among tokens or a layer that it
    has not; VitkitError where there are no images.
    """
    device = device_of(net)
    with torch.inference_mode(), evaluating(net), measured(net, layers) as sums:
        for batch in batches:
            images = batch if isinstance(batch, Tensor) else batch.images
            net(images.to(device))
    return sums.found()


@dataclass
class Sums:
    """Distances summed over images."""

    layers: tuple[int, ...]
    between: Tensor  # (N, N), pixels
    totals: Tensor = field(default_factory=lambda: torch.empty(0))  # (L, h), float64
    images: int = 0

    def found(self) -> DistancesFound:
        if not self.images:
            raise VitkitError("no images to measure attention distance on; give one at least")
        pixels, uniform = self.totals / self.images, float(self.between.mean())
        return DistancesFound(self.layers, pixels.numpy(), uniform, self.images)


@contextmanager
def measured(net: Net, layers: Sequence[int] | None = None) -> Iterator[Sums]:
    """Inside, every pass of the net adds its attention distances to what is given."""
    net = attentive(net)
    chosen = numbers_of("layer", layers, len(net.blocks))
    config, prefix = net.config, len(token_names(net))
    cell = config.cell if isinstance(config, ViTConfig) else CELL
    between = patch_distances(config.grid, cell).to(device_of(net))
    sums = Sums(tuple(chosen), between.cpu(), torch.zeros(len(chosen), config.heads).double())
    patches = torch.arange(prefix, prefix + len(between))

    def add(reading: Reading) -> None:
        of_images = reading_distances(reading, patches, prefix, between)
        sums.totals[chosen.index(reading.layer)] += of_images
        if reading.layer == chosen[-1]:
            sums.images += len(reading.qkv)

    with watched(net, chosen, add):
        yield sums


def reading_distances(reading: Reading, patches: Tensor, prefix: int, between: Tensor) -> Tensor:
    """The distances of one layer's heads (h,), float64, summed over the images of a pass."""
    heads, count = range(reading.module.heads), len(patches)
    total = torch.zeros(len(heads), dtype=torch.float64)
    step = max(1, AT_ONCE // (len(heads) * count**2))
    for first in range(0, len(reading.qkv), step):
        some = slice(first, first + step)
        # A softmax over the patches alone is the whole one, renormalised.
        weights = torch.softmax(reading.logits(some, heads, patches, prefix), dim=-1)
        distances = weights.flatten(2) @ between.flatten() / count  # (b, h)
        total += distances.sum(dim=0).double().cpu()
    return total


def patch_distances(grid: tuple[int, int], cell: int) -> Tensor:
    """Pixels between the centres of patches `cell` pixels wide, row by row: (N, N), float32."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    down, across = (place[:, None] - place for place in (rows, columns))
    return torch.from_numpy(cell * np.hypot(down, across)).float()
