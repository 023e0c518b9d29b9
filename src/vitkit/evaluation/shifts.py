"""Pictures moved by a few pixels of the net's input, and how often predictions stay.

A shifted picture is another window of the same larger picture, so every pixel in it was
photographed: none is mirrored or made up at a border. The picture is resized as the net's
preprocessing has it, larger only as far as the shifts need more margin than its crop leaves, and
the unshifted picture is the middle window of that. For a preprocessing without a crop the unshifted
picture is thus a little closer than in other evaluations; the windows are whole pixel values.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from vitkit.data.transforms import Preprocessing

SHARE = 8  # the largest shift is one in so many of the side
DIRECTIONS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}  # (row, column)
AS_PIXELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # pixels stay 0..255


def usual_distances(side: int) -> tuple[int, ...]:
    """Pixels of the net's input, up to 1/8 of its side: all of at most 8, of more doublings."""
    most = max(1, side // SHARE)
    if most <= 8:
        return tuple(range(1, most + 1))
    doublings = (2**power for power in range(most.bit_length()))
    return (*(distance for distance in doublings if distance < most), most)


def with_margin(preprocessing: Preprocessing, margin: int) -> Preprocessing:
    """The same to a picture with so many more pixels at each side, of which nothing is invented:
    pixels 0..255, not normalised."""
    height, width = preprocessing.image_size
    size, before = (height + 2 * margin, width + 2 * margin), preprocessing.resize_to
    if isinstance(before, int):
        before = max(before, *size)
    elif before is not None:
        before = (max(before[0], size[0]), max(before[1], size[1]))
    return replace(preprocessing, image_size=size, resize_to=before, **AS_PIXELS)


def window(image: Tensor, preprocessing: Preprocessing, margin: int, shift: tuple[int, int]):
    """uint8 (3, H, W) -> uint8 (3, *image_size): the content moved down and right by the shift
    (rows, columns), at most `margin`, both in pixels of the net's input."""
    wide = with_margin(preprocessing, margin)(image).round().clamp(0, 255).byte()
    height, width = preprocessing.image_size
    top, left = margin - shift[0], margin - shift[1]
    return wide[:, top : top + height, left : left + width].contiguous()


def as_it_is(preprocessing: Preprocessing) -> Preprocessing:
    """For pictures that are ready for the net: one that has its size is only normalised, another
    is resized straight to it."""
    return Preprocessing(
        preprocessing.image_size, antialias=True, mean=preprocessing.mean, std=preprocessing.std
    )


def same(predicted: np.ndarray, unshifted: np.ndarray) -> float:
    """The share of predictions (N,) that are those of the unshifted pictures (N,)."""
    return float(np.mean(predicted == unshifted))
