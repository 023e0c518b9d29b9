"""The resizes and centre crops of the paper and of others: a `Preprocessing`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vitkit.values import settle

MOST_PIXELS = 2**15  # on a side; more is a slip, or a trap
MOST_ASPECT = 4  # of an image whose shorter side is resized; a longer one is cut in the middle
HALF = (0.5, 0.5, 0.5)  # the authors' mean and std: pixels 0..255 become -1..1


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the tensor that a net reads; it travels with the weights.

    Calling it: uint8 (3, H, W) -> float32 (3, *image_size), `(pixels / 255 - mean) / std`.
    """

    image_size: tuple[int, int]  # (height, width) that comes out, pixels
    resize: Literal["direct", "shorter-side"] = "direct"  # direct distorts the aspect
    resize_to: tuple[int, int] | int | None = None  # before a centre crop; None: no crop
    interpolation: Literal["bilinear", "bicubic", "area"] = "bilinear"
    antialias: bool = (
        False  # Pillow's, to whole pixel values; tf.image.resize (the authors) has none
    )
    truncate: bool = False  # back to whole pixel values after the resize, as big_vision does
    # Where a side or a crop falls between pixels: "nearest" is big_vision's rounding of the longer
    # side with the crop's odd pixel below and right; "torchvision" cuts the longer side off and
    # rounds the crop's place, as torchvision and timm do, "floor" cuts both, as Hugging Face does.
    rounding: Literal["nearest", "torchvision", "floor"] = "nearest"
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF

    def __post_init__(self) -> None:
        settle(self)
        if min(self.image_size) < 1:
            raise ValueError(f"image_size is {self.image_size}; it must be (height, width), pixels")
        if self.resize not in ("direct", "shorter-side"):
            raise ValueError(
                f"resize {self.resize!r} is not known; choose 'direct' or 'shorter-side'"
            )
        if self.interpolation not in ("bilinear", "bicubic", "area"):
            raise ValueError(
                f"interpolation {self.interpolation!r} is not known; choose 'bilinear', 'bicubic' "
                "or 'area'"
            )
        if isinstance(self.resize_to, int) != (self.resize == "shorter-side"):
            raise ValueError(
                f"resize_to is {self.resize_to!r}; it must be one side for 'shorter-side', "
                "(height, width) or None for 'direct'"
            )
        before_crop = self.resize_to if self.resize_to is not None else self.image_size
        sides = (before_crop, before_crop) if isinstance(before_crop, int) else before_crop
        if max(sides) > MOST_PIXELS:
            raise ValueError(f"resize_to has a side above {MOST_PIXELS:,} pixels")
        if any(before < after for before, after in zip(sides, self.image_size, strict=True)):
            raise ValueError(
                f"resize_to {self.resize_to!r} is smaller than the crop {self.image_size}"
            )
        if self.rounding not in ("nearest", "torchvision", "floor"):
            raise ValueError(
                f"rounding {self.rounding!r} is not known; choose 'nearest', 'torchvision' or "
                "'floor'"
            )
        if min(self.std) < torch.finfo(torch.float32).tiny:
            raise ValueError(f"std is {self.std}; it must be above 0")

    @classmethod
    def direct(cls, image_size: tuple[int, int]) -> Preprocessing:
        """The authors' evaluation (vision_transformer): resize straight to the size."""
        return cls(image_size)

    @classmethod
    def small_crop(cls, image_size: tuple[int, int], side: int) -> Preprocessing:
        """big_vision's pre-training evaluation: shorter side to `side` (area), centre crop."""
        return cls(image_size, "shorter-side", side, interpolation="area", truncate=True)

    @classmethod
    def resize_crop(cls, image_size: tuple[int, int], size: tuple[int, int]) -> Preprocessing:
        """big_vision's few-shot evaluation: resize to `size` (256x256 for 224), centre crop."""
        return cls(image_size, "direct", size, truncate=True)

    def __call__(self, image: Tensor) -> Tensor:  # uint8 (3, H, W) -> float32 (3, h, w)
        if isinstance(self.resize_to, int):
            image = without_far_ends(image)
        image = resize(image, self.target(image), self.interpolation, self.antialias)
        if self.truncate:
            image = image.clamp(0, 255).floor()
        image = centre_crop(image, self.image_size, rounded=self.rounding == "torchvision")
        return normalise(image, self.mean, self.std)

    def at(self, image_size: tuple[int, int]) -> Preprocessing:
        """The same for another image size (height, width), a crop keeping its share."""
        scale = image_size[0] / self.image_size[0]
        size = self.resize_to
        if isinstance(size, int):
            size = max(round(size * scale), *image_size)
        elif size is not None:
            size = (
                max(round(size[0] * scale), image_size[0]),
                max(round(size[1] * scale), image_size[1]),
            )
        return replace(self, image_size=tuple(image_size), resize_to=size)

    @property
    def summary(self) -> str:
        """In a line, for people."""
        size, before = ("x".join(map(str, n)) if isinstance(n, tuple) else n
                        for n in (self.image_size, self.resize_to))  # fmt: skip
        crop = f", its middle {size}" if before is not None and before != size else ""
        what = "shorter side" if self.resize == "shorter-side" else "image"
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{what} to {before or size} ({self.interpolation}){crop}, mean {mean}, std {std}"

    def target(self, image: Tensor) -> tuple[int, int]:
        """(height, width) before the centre crop."""
        if self.resize_to is None:
            return self.image_size
        if isinstance(self.resize_to, int):
            height, width = image.shape[-2:]
            whole = round if self.rounding == "nearest" else int
            shorter = min(height, width)
            return whole(height * self.resize_to / shorter), whole(width * self.resize_to / shorter)
        return self.resize_to


def without_far_ends(image: Tensor) -> Tensor:
    """A very long or very high image, cut in the middle to an aspect of MOST_ASPECT.

    For an image whose shorter side is resized: the crop is a square of that side at most, and
    what lies far from the middle would take gigabytes only to be cropped away.
    """
    height, width = image.shape[-2:]
    most = MOST_ASPECT * min(height, width)
    return centre_crop(image, (min(height, most), min(width, most)))


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Pixels 0..255 (..., 3, H, W) of any dtype -> float32 (pixels / 255 - mean) / std."""
    return normalised(pixels, normalising_constants(mean, std, pixels.device))


def normalising_constants(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> Tensor:
    """(2, 3, 1, 1): what `normalised` subtracts, and what it divides by."""
    numbers = [[float(value) for value in values] for values in (mean, std)]
    return torch.tensor(numbers, device=device).view(2, 3, 1, 1) * 255


def normalised(pixels: Tensor, constants: Tensor) -> Tensor:
    shift, scale = constants
    if pixels.is_floating_point():
        pixels = pixels.float()
    return torch.sub(pixels, shift).div_(scale)  # one new tensor, not three


def resize(image: Tensor, size: tuple[int, int], interpolation: str, antialias: bool) -> Tensor:
    """uint8 (3, H, W) -> (3, *size), pixels 0..255, half-pixel centres.

    With antialias uint8, as Pillow and torchvision have it: bicubic weights reach beyond 0..255,
    and what does so is cut off. Without it float32, as of tf.image.resize, where nothing is.
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image if antialias else image.float()
    if interpolation == "area":
        rows = area_weights(image.shape[-2], size[0])
        columns = area_weights(image.shape[-1], size[1])
        resized = rows @ image.float() @ columns.T
        return resized.round().to(torch.uint8) if antialias else resized
    # Where the new width is 1 torch fails or errs unless the channels lie last (2.14).
    pixels = (image if antialias and size[1] > 1 else image.float())[None]
    if size[1] == 1:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    resized = F.interpolate(pixels, size=tuple(size), mode=interpolation, antialias=antialias)[0]
    return resized.clamp(0, 255).round().to(torch.uint8) if antialias else resized


def area_weights(old: int, new: int) -> Tensor:
    """(new, old): the share of each old pixel in each new one, TensorFlow's "area" method."""
    edges = torch.arange(new + 1, dtype=torch.float64) * old / new
    cells = torch.arange(old, dtype=torch.float64)
    overlap = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
    return (overlap.clamp(min=0) * new / old).float()


def centre_crop(image: Tensor, size: tuple[int, int], rounded: bool = False) -> Tensor:
    """(3, H, W) -> (3, *size), cut from the middle; an odd rest goes below and to the right.

    Where `rounded`, half an odd rest goes to the even side, as torchvision's center_crop has it.
    """
    rests = (image.shape[-2] - size[0], image.shape[-1] - size[1])
    top, left = (round(rest / 2) if rounded else rest // 2 for rest in rests)
    return image[:, top : top + size[0], left : left + size[1]]
