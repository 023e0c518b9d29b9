"""Whether a map is faithful to the net: deletion and insertion (RISE, arXiv 1806.07421).

Places are taken out of the image in the map's order, the hottest first, or put into a blurred one.
A faithful map makes the probability of the class fall soon, and rise soon. It is to be compared
with random maps: any order makes it fall and rise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.errors import UsageError
from vitkit.inspection.lens import SOFTMAX
from vitkit.inspection.runs import device_of, evaluating
from vitkit.plain import Curve

RANDOM_MAPS = 5
BATCH = 64  # images in one run of the net
BLUR = 0.1  # deviation of the blur, of the shorter side


def faithfulness(
    net: nn.Module,
    image: Tensor,
    heat: Tensor | np.ndarray,
    label: int,
    *,
    steps: int = 10,
    seed: int = 0,
    shares: Callable[[Tensor], Tensor] = SOFTMAX,
) -> tuple[Curve, Curve]:
    """An image (3, H, W), normalised, and a map (h, w) of the class numbered `label` -> the curves
    of deletion and of insertion: its probability by the share of the places, "map" beside "random".

    A place is a cell of the map, so that a map of patches takes out whole patches; `steps` of about
    as many cells each, fewer where there are fewer cells. Cells of the same heat come in an order
    drawn by `seed`. A deleted cell becomes 0, the mean colour of the preprocessing, as in RISE's
    code; insertion begins from the image under a Gaussian blur of a tenth of its shorter side. That
    is wider than RISE's, under which small images are still recognised. "random" is the mean over
    5 orders drawn by `seed`. Titles tell the areas under the lines (`areas`). The net computes in
    eval mode; `shares` makes probabilities of logits (B, K).
    Raises UsageError for a map with NaN, of other than two dimensions or finer than the image, and
    for fewer steps than 1.
    """
    if steps < 1:
        raise UsageError(f"steps is {steps}; it must be at least 1")
    heat = checked(torch.as_tensor(heat).float().cpu(), image)
    generator = torch.Generator().manual_seed(seed)
    orders = [order_of(heat, generator)]
    orders += [torch.randperm(heat.numel(), generator=generator) for _ in range(RANDOM_MAPS)]
    places = place_of_pixels(heat, image)
    counts = np.linspace(0, heat.numel(), min(steps, heat.numel()) + 1).round().astype(int)
    image = image.float().cpu()

    def measured(below: Tensor, above: Tensor) -> dict[str, np.ndarray]:
        """From `below`, cells of `above` put into it in each order."""
        mixed = (torch.where(mask, above, below) for order in orders
                 for mask in masks(order, places, counts))  # fmt: skip
        found = probabilities(net, mixed, label, shares).reshape(len(orders), -1)
        return {"map": found[0], "random": found[1:].mean(axis=0)}

    with evaluating(net):
        deletion = measured(image, torch.zeros_like(image))
        insertion = measured(blurred(image), image)
    x = counts / heat.numel()
    return curve("Deletion", "deleted", x, deletion), curve("Insertion", "inserted", x, insertion)


def curve(title: str, done: str, x: np.ndarray, lines: dict[str, np.ndarray]) -> Curve:
    found = Curve(
        title, f"share of the image {done}", "probability of the class", x, lines, share=True
    )
    told = ", ".join(f"{name} {area:.3f}" for name, area in areas(found).items())
    return replace(found, title=f"{title} (area: {told})")


def areas(curve: Curve) -> dict[str, float]:
    """The area under each line of a curve, by trapezoids. A map is faithful where its area is below
    that of "random" for deletion, above it for insertion."""
    return {name: float(np.trapezoid(line, curve.x)) for name, line in curve.lines.items()}


def checked(heat: Tensor, image: Tensor) -> Tensor:
    size, pixels = tuple(heat.shape), tuple(image.shape[-2:])
    if len(size) != 2 or min(size) < 1 or any(h > p for h, p in zip(size, pixels, strict=True)):
        raise UsageError(
            f"a map of {'x'.join(map(str, size))} cells does not lie over an image of "
            f"{'x'.join(map(str, pixels))} pixels; give one (h, w) that is no finer"
        )
    if heat.isnan().any():
        raise UsageError("the map has NaN, which has no place in an order; give numbers only")
    return heat


def order_of(heat: Tensor, generator: torch.Generator) -> Tensor:
    """Cells (h * w,) int64, the hottest first, those of one heat shuffled."""
    shuffled = torch.randperm(heat.numel(), generator=generator)
    return shuffled[heat.flatten()[shuffled].argsort(descending=True, stable=True)]


def place_of_pixels(heat: Tensor, image: Tensor) -> Tensor:
    """(H, W) int64: the number of the cell (of h x w) that each pixel lies in."""
    (height, width), (h, w) = image.shape[-2:], heat.shape
    down, across = torch.arange(height) * h // height, torch.arange(width) * w // width
    return down[:, None] * w + across


def masks(order: Tensor, places: Tensor, counts: np.ndarray) -> Iterator[Tensor]:
    """(H, W) bool for each count: the pixels of so many cells that come first."""
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return (rank[places] < int(count) for count in counts)


@torch.no_grad()
def probabilities(
    net: nn.Module, images: Iterable[Tensor], label: int, shares: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """Images (3, H, W) -> (n,) float64, those of one class."""
    device = device_of(net)
    parts = torch.stack(list(images)).split(BATCH)
    found = [shares(net(part.to(device)).float())[:, label].cpu() for part in parts]
    return torch.cat(found).double().numpy()


def blurred(image: Tensor) -> Tensor:
    """(3, H, W) under a Gaussian of a tenth of the shorter side, mirrored beyond the edges."""
    deviation = BLUR * min(image.shape[-2:])
    radius = min(math.ceil(3 * deviation), min(image.shape[-2:]) - 1)
    kernel = torch.exp(-torch.arange(-radius, radius + 1).square() / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    x = F.pad(image[None], (radius,) * 4, mode="reflect")
    x = F.conv2d(F.conv2d(x, kernel, groups=3), kernel.transpose(2, 3), groups=3)
    return x[0]
