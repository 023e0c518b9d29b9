"""RandAugment as the authors' code has it, for a whole batch at once.

The operations and their strengths are those of big_vision's `randaug(layers, magnitude)`
(pp/autoaugment.py), which "How to train your ViT?" (arXiv 2106.10270) trained with. What others
have otherwise or would take for a slip is kept, and marked by "the authors:" below. One thing
differs: their distances are pixels for images of 224, and here shares of the side, which is the
same at 224 and leaves something to see of an image of 32.

All images of a layer that share a family of operations go through it together: a table of 256
values, a map of source pixels, a blend with grey or with a smoothed image, a rectangle.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitkit.data.augmentation.placing import parts, placed

TABLES = ("Invert", "Posterize", "Solarize", "SolarizeAdd", "Brightness", "Contrast")
MOVES = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
ALONE = ("AutoContrast", "Equalize", "Color", "Sharpness", "Cutout")
OPERATIONS = (*TABLES, *MOVES, *ALONE)
DRAWS = 4  # for each layer: operation, sign, and the place of Cutout, down and across
FULL = 10  # the magnitude at which an operation is at its full strength; more is possible
GREY = 128  # what comes into view from beyond an image's edges, and fills Cutout
SIDE = 224  # pixels; of the images that TRANSLATE and CUTOUT were made for
TRANSLATE, CUTOUT = 100, 40  # pixels at full strength; Cutout is twice as wide and high


def randaugment(images: Tensor, draws: np.ndarray, layers: int, magnitude: float) -> Tensor:
    """uint8 (B, 3, H, W) -> the same after `layers` operations, drawn for each image.

    `draws` (B, layers * DRAWS) lie in [0, 1). Strengths follow from the magnitude alone, but for
    a sign; Cutout's place is drawn. The images given are left as they are.
    """
    result = torch.empty_like(images)
    for part in parts(images):
        some = images[part]
        for layer in draws[part].reshape(-1, layers, DRAWS).transpose(1, 0, 2):
            chosen = (layer[:, 0] * len(OPERATIONS)).astype(np.int64)
            some = one_layer(some, chosen, layer[:, 1:], magnitude)
        result[part] = some
    return result


def one_layer(images: Tensor, chosen: np.ndarray, draws: np.ndarray, magnitude: float) -> Tensor:
    """Image i after operation number chosen[i], with draws[i] (3,) for its sign and its place."""
    places, results = [], []
    for family in (TABLES, MOVES, *((alone,) for alone in ALONE)):
        first = OPERATIONS.index(family[0])
        where = np.flatnonzero((first <= chosen) & (chosen < first + len(family)))
        if len(where):
            some = images.index_select(0, placed(where, images.device))
            numbers = chosen[where] - first
            results.append(operated(some, family, numbers, draws[where], magnitude))
            places.append(where)
    back = np.argsort(np.concatenate(places))
    return torch.cat(results).index_select(0, placed(back, images.device))


def operated(
    images: Tensor,
    family: tuple[str, ...],
    numbers: np.ndarray,
    draws: np.ndarray,
    magnitude: float,
) -> Tensor:
    """Image i after operation number numbers[i] of one family."""
    device, sides = images.device, (images.shape[2], images.shape[3])
    if family == TABLES:
        tables = fixed_tables(magnitude, sides, device)
        return looked_up(images, tables.index_select(0, placed(numbers, device)))
    if family == MOVES:
        signed = 2 * numbers + (draws[:, 0] < 0.5)
        return moved(images, source_maps(magnitude, sides, device), placed(signed, device))
    if family == ("AutoContrast",):
        return looked_up(images, autocontrast_tables(images))
    if family == ("Equalize",):
        return looked_up(images, equalize_tables(images))
    if family == ("Color",):
        return blend(grey(images), images, enhance_factor(magnitude))
    if family == ("Sharpness",):
        return sharpened(images, enhance_factor(magnitude))
    return filled(images, cutout_boxes(draws[:, 1:], magnitude, sides), GREY)


def enhance_factor(magnitude: float) -> float:
    """0 takes all colour, contrast, brightness or sharpness away; 1 changes nothing."""
    return magnitude / FULL * 1.8 + 0.1


def blend(base: Tensor, images: Tensor, factor: float | Tensor) -> Tensor:
    """base + factor * (images - base), clipped and cut off to uint8, in float32."""
    base = base.float()
    # In steps of one rounding each, so that every device gives the same pixels.
    return (base + (images - base) * factor).clamp_(0, 255).to(torch.uint8)


# Tables: the new value of each of 256 values.


def looked_up(images: Tensor, tables: Tensor) -> Tensor:
    """Tables (B, 256), or (B, 3, 256) with one for each channel."""
    pixels = images.flatten(tables.ndim - 1)
    return tables.gather(-1, pixels.long()).view_as(images)


@lru_cache(maxsize=8)
def fixed_tables(magnitude: float, sides: tuple[int, int], device: torch.device) -> Tensor:
    """uint8 (6, 256): TABLES, in their order."""
    share, factor = magnitude / FULL, enhance_factor(magnitude)
    values = np.arange(256)
    # The authors: the shift of Posterize and the threshold of Solarize are kept in a byte. So
    # Solarize inverts everything at 10 and 20 and is at 128 at 15, and Posterize leaves one bit
    # at 0 and, since TensorFlow shifts by 7 at most, beyond 20.
    shift = min((8 - int(share * 4)) % 256, 7)
    threshold = int(share * 256) % 256
    added = (values + int(share * 110)).clip(0, 255)
    # The authors: where PIL has the mean of the image, this is the number of pixels over 256.
    middle = min(math.prod(sides) // 256, 255)
    tables = [
        255 - values,
        values >> shift << shift,
        np.where(values < threshold, values, 255 - values),
        np.where(values < 128, added, values),
        *(blend(torch.full((256,), base), torch.arange(256), factor) for base in (0, middle)),
    ]
    return placed(np.stack(tables).astype(np.uint8), device)


def autocontrast_tables(images: Tensor) -> Tensor:
    """uint8 (B, 3, 256): from the channel's darkest to its brightest value becomes 0 to 255."""
    pixels = images.flatten(2)
    low, high = (found(2, keepdim=True).float() for found in (pixels.amin, pixels.amax))
    scale = 255 / (high - low)
    values = torch.arange(256, device=images.device, dtype=torch.float32)
    spread = (values * scale + -low * scale).clamp_(0, 255)
    return torch.where(high > low, spread, values).to(torch.uint8)


def equalize_tables(images: Tensor) -> Tensor:
    """uint8 (B, 3, 256): all values become about equally frequent, as PIL has it."""
    pixels = images.flatten(2).long()
    channels = torch.arange(3 * len(images), device=images.device).view(-1, 3, 1)
    counts = torch.zeros(768 * len(images), dtype=torch.int32, device=images.device)
    ones = counts.new_ones(1).expand(pixels.numel())
    counts.scatter_add_(0, (pixels + 256 * channels).view(-1), ones)
    sums = counts.view(-1, 3, 256).cumsum(2)
    pixels_of_the_brightest = counts.view(-1, 3, 256).gather(
        2, images.flatten(2).amax(2, True).long()
    )
    step = (sums[..., -1:] - pixels_of_the_brightest) // 255
    tables = (sums + step // 2) // step.clamp(min=1)
    tables = F.pad(tables[..., :-1], (1, 0)).clamp_(0, 255)
    values = torch.arange(256, device=images.device)
    return torch.where(step > 0, tables, values).to(torch.uint8)


# Moves: where each pixel comes from, at the nearest one.


def moved(images: Tensor, maps: Tensor, rows: Tensor) -> Tensor:
    """Image i by map number rows[i] of `maps` (M, H * W)."""
    sources = maps.index_select(0, rows)[:, None].expand(-1, 3, -1)
    # The pixel that is appended is the one that the maps give for what lies outside.
    pixels = F.pad(images.flatten(2), (0, 1), value=GREY)
    return pixels.gather(2, sources).view_as(images)


@lru_cache(maxsize=4)
def source_maps(magnitude: float, sides: tuple[int, int], device: torch.device) -> Tensor:
    """int64 (10, H * W): MOVES in their order, each with strength above 0 and below."""
    maps = [
        source_map(matrix, sides)
        for move in MOVES
        for sign in (1, -1)
        for matrix in [move_matrix(move, sign * magnitude / FULL, sides)]
    ]
    return placed(np.stack(maps), device)


def move_matrix(move: str, share: float, sides: tuple[int, int]) -> np.ndarray:
    """(2, 3): takes (x, y, 1) of a new pixel to where it comes from.

    `share` is the strength over the full one, with its sign. Rotation is about the middle,
    shears are about the first row or column.
    """
    height, width = sides
    if move == "Rotate":
        angle = np.float32(math.radians(30 * share))
        cos, sin = np.cos(angle), np.sin(angle)
        right, below = np.float32(width - 1), np.float32(height - 1)
        x = (right - (cos * right - sin * below)) / np.float32(2)
        y = (below - (sin * right + cos * below)) / np.float32(2)
        return np.array([[cos, -sin, x], [sin, cos, y]], np.float32)
    shear, move_by = 0.3 * share, TRANSLATE * share / SIDE
    rows = {
        "ShearX": [[1, shear, 0], [0, 1, 0]],
        "ShearY": [[1, 0, 0], [shear, 1, 0]],
        "TranslateX": [[1, 0, move_by * width], [0, 1, 0]],
        "TranslateY": [[1, 0, 0], [0, 1, move_by * height]],
    }
    return np.array(rows[move], np.float32)


def source_map(matrix: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """int64 (H * W,): the pixel that each new one takes, H * W for what lies outside."""
    height, width = sides
    y, x = np.mgrid[:height, :width].astype(np.float32)
    from_x, from_y = (rounded(a * x + b * y + c) for a, b, c in matrix)
    within = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    return np.where(within, from_y * width + from_x, height * width).reshape(-1)


def rounded(values: np.ndarray) -> np.ndarray:
    """To the nearest whole number, halves away from 0 as in C."""
    return np.trunc(values + np.copysign(np.float32(0.5), values)).astype(np.int64)


# Colour, sharpness, rectangles.


def grey(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float32 (B, 1, H, W), whole numbers, as tf.image.rgb_to_grayscale."""
    red, green, blue = (images.float() * (1 / 255)).split(1, dim=1)
    return ((red * 0.2989 + green * 0.587 + blue * 0.114) * 255.5).floor_()


def sharpened(images: Tensor, factor: float) -> Tensor:
    """A blend with the image smoothed by PIL's 3 x 3 kernel (1 around 5); edges stay."""
    if min(images.shape[2:]) < 3:
        return images
    rows = images.float()
    inner = rows[:, :, 1:-1, 1:-1]
    rows = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    sums = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner
    # Cut off to whole numbers; the half keeps a quotient that is one from coming out below it.
    smoothed = ((sums + 0.5) / 13).floor_()
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = blend(smoothed, inner, factor)
    return result


def cutout_boxes(places: np.ndarray, magnitude: float, sides: tuple[int, int]) -> np.ndarray:
    """int64 (B, 4) of top, bottom, left, right; the middle is a pixel drawn by `places` (B, 2)."""
    middles = (places * sides).astype(np.int64)
    half = int(magnitude / FULL * CUTOUT * min(sides) / SIDE)
    starts, ends = (middles - half).clip(0), (middles + half).clip(None, sides)
    return np.stack([starts[:, 0], ends[:, 0], starts[:, 1], ends[:, 1]], axis=1)


def inside(boxes: np.ndarray, sides: tuple[int, int], device: torch.device) -> Tensor:
    """Boxes (B, 4) of top, bottom, left, right -> bool (B, 1, H, W)."""
    top, bottom, left, right = placed(boxes, device).T[..., None]
    y, x = (torch.arange(side, device=device) for side in sides)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    return (rows[:, :, None] & columns[:, None])[:, None]


def filled(images: Tensor, boxes: np.ndarray, value: int) -> Tensor:
    sides = (images.shape[2], images.shape[3])
    return images.masked_fill(inside(boxes, sides, images.device), value)
