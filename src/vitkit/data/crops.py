"""The random crops that the paper trains with: where they lie, and images cropped, one or many."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import floor, sqrt
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitkit.data.augmentation.placing import parts, placed
from vitkit.data.draws import Purpose, uniforms_at

CACHED = 2**18  # values that a CPU works on at once: in float32 they fit into a core's own cache
TRIES = 50
MIRRORED = 0.5  # of the images
DRAWS = 2 * TRIES + 3  # an aspect and a height for each try, then the place and the mirror image


def inception_boxes(
    draws: np.ndarray,
    sizes: np.ndarray,
    area: tuple[float, float] = (0.05, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """Random crops (B, 4) of top, left, height, width, from draws (B, DRAWS) in [0, 1).

    `sizes` are the images' (B, 2) heights and widths. A crop has this share of the area and this
    aspect w / h. As TensorFlow's sample_distorted_bounding_box, which the authors use: the aspect
    is uniform, then the height is uniform among those that keep the area in range. (torchvision
    draws the area uniformly and the logarithm of the aspect.) After 50 misfits, where TensorFlow
    takes 100 and corrects heights by a pixel, it is the whole image.
    """
    height, width = sizes[:, :1], sizes[:, 1:]  # (B, 1), beside the tries (B, TRIES)
    least, most = area[0] * height * width, area[1] * height * width
    ratio = aspect[0] + draws[:, :TRIES] * (aspect[1] - aspect[0])
    low = np.rint(np.sqrt(least / ratio))
    high = np.minimum(np.rint(np.sqrt(most / ratio)), np.floor((width + 0.5) / ratio))
    high = np.minimum(high, height)
    low = np.minimum(low, high)
    h = low + np.floor(draws[:, TRIES : 2 * TRIES] * (high + 1 - low))
    w = np.rint(h * ratio)
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width) & (least <= h * w) & (h * w <= most)
    rows, first = np.arange(len(draws)), fits.argmax(axis=1)  # the first that fits, else 0
    found = np.stack([h[rows, first], w[rows, first]], axis=1)
    size = np.where(fits[rows, first][:, None], found, sizes)
    place = np.floor(draws[:, 2 * TRIES : 2 * TRIES + 2] * (sizes - size + 1))
    return np.concatenate([place, size], axis=1).astype(np.int64)


def inception_box(
    draws: Sequence[float],
    height: int,
    width: int,
    area: tuple[float, float] = (0.05, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """The same for one image, to the bit: ten times as fast as numpy, which is made for many."""
    least, most = area[0] * height * width, area[1] * height * width
    size = height, width
    for share, place in zip(draws[:TRIES], draws[TRIES : 2 * TRIES], strict=True):
        ratio = aspect[0] + share * (aspect[1] - aspect[0])
        high = min(round(sqrt(most / ratio)), floor((width + 0.5) / ratio), height)
        low = min(round(sqrt(least / ratio)), high)
        h = low + floor(place * (high + 1 - low))
        w = round(h * ratio)
        if 0 < h <= height and 0 < w <= width and least <= h * w <= most:
            size = h, w
            break
    top, left = draws[2 * TRIES : 2 * TRIES + 2]
    return floor(top * (height - size[0] + 1)), floor(left * (width - size[1] + 1)), *size


def similar_boxes(draws: np.ndarray, sizes: np.ndarray, area: tuple[float, float]) -> np.ndarray:
    """Random crops (B, 4) of top, left, height, width, from draws (B, DRAWS) in [0, 1).

    They have the aspect of their images, whose heights and widths are `sizes` (B, 2), and a share
    of the area that is uniform in the range, and lie anywhere inside; all in fractions of pixels.
    With a share of 0.64 it is what BiT's input_pipeline_tf2_or_jax.py takes of an image: 128 x 128
    of it resized to 160 x 160.
    """
    share = area[0] + draws[:, :1] * (area[1] - area[0])
    size = sizes * np.sqrt(share)
    place = draws[:, 2 * TRIES : 2 * TRIES + 2] * (sizes - size)
    return np.concatenate([place, size], axis=1)


@dataclass(frozen=True)
class RandomCrop:
    """What becomes of an image in training: a random crop, resized, every second one mirrored.

    The crop is an inception crop, or one with the image's own aspect. A pure function of the seed
    and the image's place in the stream.
    """

    image_size: tuple[int, int]  # (height, width) that comes out, pixels
    crop_area: tuple[float, float] = (0.05, 1.0)
    flip: bool = True
    aspect: Literal["varied", "kept"] = "varied"

    def draws(self, seed: int, positions: np.ndarray) -> np.ndarray:
        """(B, DRAWS), of which `crop` takes a row; `positions` (B,) lie close to each other."""
        return uniforms_at(seed, Purpose.CROP, positions, DRAWS)

    def crop(self, image: Tensor, draws: np.ndarray) -> Tensor:
        """uint8 (3, H, W) of any size and draws (DRAWS,) -> uint8 (3, *image_size)."""
        if self.aspect == "kept":
            rows, columns = self.places(draws[None], *image.shape[1:])
            return taken(image, *(placed(numbers[0], image.device) for numbers in (rows, columns)))
        numbers, (height, width) = draws.tolist(), image.shape[1:]
        top, left, height, width = inception_box(numbers, height, width, self.crop_area)
        cut = resized(image[:, top : top + height, left : left + width], self.image_size)
        return cut.flip(-1) if self.flip and numbers[-1] < MIRRORED else cut

    def crop_batch(self, images: Tensor, draws: np.ndarray) -> Tensor:
        """The same for uint8 (B, 3, H, W) of one size on any device, with draws (B, DRAWS).

        With a varied aspect about one value in six differs by 1 from `crop`'s: torch resizes uint8
        in whole numbers.
        """
        rows, columns = self.places(draws, *images.shape[-2:])
        rows, columns = (placed(numbers, images.device) for numbers in (rows, columns))
        results = images.new_empty((len(images), 3, *self.image_size))
        for part in parts(images, CACHED):
            results[part] = interpolated(images[part], rows[part], columns[part])
        return results

    def places(self, draws: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Draws (B, DRAWS) -> the rows (B, h) and columns (B, w) of images of this size that the
        new ones lie on."""
        sizes = np.broadcast_to(np.array([[height, width]]), (len(draws), 2))
        if self.aspect == "kept":
            boxes, within = similar_boxes(draws, sizes, self.crop_area), (height, width)
        else:
            boxes, within = inception_boxes(draws, sizes, self.crop_area), (None, None)
        rows = sampling(boxes[:, 0], boxes[:, 2], self.image_size[0], within[0])
        columns = sampling(boxes[:, 1], boxes[:, 3], self.image_size[1], within[1])
        mirrored = (draws[:, -1] < MIRRORED) & self.flip
        columns[mirrored] = columns[mirrored, ::-1]
        return rows, columns


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) -> uint8 (3, *size), bilinear with half-pixel centres, not antialiased."""
    if tuple(image.shape[1:]) == size:
        return image
    # torch 2.14 cannot resize contiguous uint8 to a single pixel, and on CUDA no uint8 at all.
    if size == (1, 1) or image.is_cuda:
        pixels = F.interpolate(image.float()[None], size, mode="bilinear")[0]
        return pixels.round().to(torch.uint8)
    return F.interpolate(image[None], size, mode="bilinear")[0]


def sampling(
    start: np.ndarray, length: np.ndarray, new: int, within: int | None = None
) -> np.ndarray:
    """(B, new): the old pixel, a fraction, that each new one of a crop lies on; half-pixel centres.

    `start` and `length` (B,) are those of the crop along one side, which is not left; or, with
    `within`, what is not left is the image of so many pixels, as if it had been resized before the
    crop. In whole
    256ths, so that the products of `interpolated` are exact in float32, whatever the order of
    their sums: an image comes out the same in any batch and on any device.
    """
    scale = length[:, None] / new
    inside = (np.arange(new) + 0.5) * scale - 0.5
    if within is None:
        places = start[:, None] + np.clip(inside, 0, length[:, None] - 1)
    else:
        places = np.clip(start[:, None] + inside, 0, within - 1)
    return np.rint(places * 256) / 256


def interpolated(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images (B, 3, H, W) uint8 at rows (B, h) and columns (B, w) -> float32 (B, 3, h, w), whole
    values, bilinear.

    As two products of matrices, which are fast everywhere: row i of the left one holds the shares
    that the old rows have in the new row i. Rows come before colours meanwhile, so that the three
    colours of an image go through a product together.
    """
    batch, _, old_height, old_width = images.shape
    left = shares(rows, old_height)  # (B, h, H)
    right = shares(columns, old_width).mT.contiguous()  # (B, W, w)
    pixels = images.permute(0, 2, 1, 3).float().reshape(batch, old_height, 3 * old_width)
    with full_precision(images.device):
        mixed = torch.bmm(torch.bmm(left, pixels).view(batch, -1, old_width), right)  # (B, 3h, w)
    mixed = mixed.round_().view(batch, rows.shape[1], 3, columns.shape[1])
    return mixed.permute(0, 2, 1, 3)


def taken(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The same for one image (3, H, W), to the bit: uint8 (3, h, w), with rows (h,), columns (w,).

    A product would read each pixel of a large image for each new row.
    """

    def between(pixels: Tensor, places: Tensor, dim: int) -> Tensor:
        before = places.long()
        after = (before + 1).clamp(max=pixels.shape[dim] - 1)
        share = places - before if dim == 2 else (places - before)[:, None]
        first, second = (pixels.index_select(dim, n).float() for n in (before, after))
        return first * (1 - share) + second * share

    return between(between(image, rows, 1), columns, 2).round_().to(torch.uint8)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """A run may let a GPU round to TF32's 11 bits; exact products of crops take all 24."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.set_float32_matmul_precision(before)


def shares(places: Tensor, old: int) -> Tensor:
    """Places (B, N) among `old` pixels -> (B, N, old): how much of each pixel is taken there."""
    pixels = torch.arange(old, dtype=torch.float32, device=places.device)
    return (places[:, :, None] - pixels).abs_().neg_().add_(1).clamp_(min=0)
