"""Common corruptions of pictures at severities 1 to 5, as ImageNet-C has them.

The definitions are those of "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (Hendrycks and Dietterich, arXiv 1903.12261) as published in hendrycks/robustness.
Their constants depend on the size of the pictures: one whose shorter side has at most 48 pixels
takes those for 32, at most 128 those for 64; a larger one is brought to 224 as the authors do
(shorter side to 256, middle 224) and takes those. What differs from the published pictures:

- glass blur (a loop over single pixels) and frost (photographs of ice) are left out: 13 of 15;
- the draws are others, and the published ImageNet-C and Tiny-ImageNet-C are JPEGs of quality 85;
- borders lie a little otherwise where a picture is not square.

So accuracies are comparable with each other, not digit by digit with published ones.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from vitkit.data.draws import Purpose
from vitkit.data.transforms import Preprocessing, centre_crop, resize, without_far_ends
from vitkit.evaluation.corruption_table import CONSTANTS

SMALL, MIDDLE = 48, 128  # pixels of the shorter side up to which the constants are those of 32, 64
LARGE = 224  # of the pictures that all others are brought to, and whose constants they take
SEVERITIES = (1, 2, 3, 4, 5)
IMAGENET_C = Preprocessing(
    (LARGE, LARGE), "shorter-side", 256, antialias=True, rounding="torchvision"
)  # what a larger picture is brought to
GREY = np.array([0.299, 0.587, 0.114])  # the luminance of ITU-R BT.601


def corrupted(image: Tensor, kind: str, severity: int, seed: int, index: int) -> Tensor:
    """uint8 (3, H, W) of `standard` -> the same, corrupted; a pure function of all its arguments.

    With a seed and an index a kind draws the same at every severity.
    """
    constants = CONSTANTS[kind][scale_of(image)][severity - 1]
    bits = np.random.Philox(
        key=(int(Purpose.CORRUPTION) << 64) | seed, counter=np.array([0, 0, index, 0], np.uint64)
    )
    pixels = image.permute(1, 2, 0).numpy().astype(np.float64) / 255
    changed = FUNCTIONS[kind](pixels, constants, np.random.Generator(bits))
    # Cut off to whole values, not rounded, as the authors have it; the tiny rest is for floats.
    whole = (changed.clip(0, 1) * 255 + 1e-6).astype(np.uint8)
    return torch.from_numpy(whole).permute(2, 0, 1).contiguous()


def standard(image: Tensor) -> Tensor:
    """uint8 (3, H, W) -> the picture that is corrupted: a large one brought to 224 pixels, and what
    is very long or very high cut, since fog covers a square of the longer side."""
    image = without_far_ends(image)
    if scale_of(image) < LARGE or tuple(image.shape[-2:]) == IMAGENET_C.image_size:
        return image
    image = resize(image, IMAGENET_C.target(image), IMAGENET_C.interpolation, antialias=True)
    return centre_crop(image, IMAGENET_C.image_size, rounded=True)


def scale_of(image: Tensor) -> int:
    """Which constants a picture takes: those of 32, 64 or 224 pixels."""
    side = min(image.shape[-2:])
    return 32 if side <= SMALL else 64 if side <= MIDDLE else LARGE


# Each takes pixels (H, W, 3) float64 in 0..1, its constants and the draws, and gives pixels that
# may lie outside 0..1.


def gaussian_noise(x: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    return x + deviation * random.standard_normal(x.shape)


def shot_noise(x: np.ndarray, photons: float, random: np.random.Generator) -> np.ndarray:
    return random.poisson(x * photons) / photons


def impulse_noise(x: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    hit, white = random.random(x.shape) < share, random.random(x.shape) < 0.5
    return np.where(hit, white, x)


def speckle_noise(x: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    return x + x * deviation * random.standard_normal(x.shape)


def gaussian_blur(x: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    return ndimage.gaussian_filter(x, (deviation, deviation, 0), mode="nearest")


def defocus_blur(x: np.ndarray, disk: tuple, random: np.random.Generator) -> np.ndarray:
    """A disk whose edge is smoothed over one pixel, two of a large one."""
    radius, smoothing = disk
    margin = 1 if radius <= 8 else 2
    most = max(8, radius)  # the smoothing of the largest disks is folded back at this edge
    end = min(int(radius) + 2 * margin, most)
    reach = np.arange(-end, end + 1)
    kernel = (np.add.outer(reach**2, reach**2) <= radius**2).astype(np.float64)
    kernel = ndimage.gaussian_filter(kernel / kernel.sum(), smoothing, mode="mirror", radius=margin)
    return ndimage.correlate(x, kernel[..., None], mode="mirror")


def motion_blur(x: np.ndarray, motion: tuple, random: np.random.Generator) -> np.ndarray:
    return moved(x, *motion, angle=random.uniform(-45, 45))


def moved(x: np.ndarray, radius: float, deviation: float, angle: float) -> np.ndarray:
    """A trail to one side that fades like half a Gaussian, 2 radius + 1 pixels long, as
    ImageMagick's motion blur has it; beyond the border its pixels go on. Angle in degrees."""
    steps = np.arange(2 * int(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * deviation**2))
    weights /= weights.sum()
    down, right = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    rows, columns = np.arange(x.shape[0]), np.arange(x.shape[1])
    total = np.zeros_like(x)
    for step, weight in zip(steps, weights, strict=True):
        row = np.clip(rows + round(step * down), 0, len(rows) - 1)
        column = np.clip(columns + round(step * right), 0, len(columns) - 1)
        total += weight * x[row[:, None], column]
    return total


def zoom_blur(x: np.ndarray, zooms: tuple, random: np.random.Generator) -> np.ndarray:
    """The mean of the picture and of its zooms."""
    factors = np.arange(1, *zooms)
    total = sum(zoomed(x, factor) for factor in factors)
    return (x + total) / (len(factors) + 1)


def zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """The middle of (H, W, C), larger by a factor, bilinearly, corner on corner."""
    height, width = x.shape[:2]
    inner = (math.ceil(height / factor), math.ceil(width / factor))
    middle = centre_crop(torch.from_numpy(x).permute(2, 0, 1), inner)
    larger = [max(round(inner[0] * factor), height), max(round(inner[1] * factor), width)]
    wide = F.interpolate(middle[None], size=larger, mode="bilinear", align_corners=True)[0]
    return centre_crop(wide, (height, width)).permute(1, 2, 0).numpy()


def snow(x: np.ndarray, weather: tuple, random: np.random.Generator) -> np.ndarray:
    """Flakes that fall, twice, one layer turned by half a circle; the picture turns pale."""
    mean, deviation, zoom, threshold, radius, motion, share = weather
    flakes = zoomed(mean + deviation * random.standard_normal((*x.shape[:2], 1)), zoom)
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    flakes = moved(flakes, radius, motion, angle=random.uniform(-135, -45))
    pale = np.maximum(x, (x @ GREY)[..., None] * 1.5 + 0.5)
    return share * x + (1 - share) * pale + flakes + np.rot90(flakes, k=2)


def fog(x: np.ndarray, weather: tuple, random: np.random.Generator) -> np.ndarray:
    """A cloud laid over the picture, which is then as bright as before."""
    thickness, fading = weather
    cloud = plasma(max(x.shape[:2]), fading, random)[: x.shape[0], : x.shape[1], None]
    return (x + thickness * cloud) * x.max() / max(x.max() + thickness, 1e-9)


def plasma(side: int, fading: float, random: np.random.Generator) -> np.ndarray:
    """A random landscape, 0..1, of a power of two that has `side` pixels: the diamond-square
    algorithm on a torus, the amplitude divided by fading**2 at each halving of the step."""
    size = 2 ** math.ceil(math.log2(side))
    heights, step, amplitude = np.zeros((size, size)), size, 1.0

    def drawn(neighbours: np.ndarray) -> np.ndarray:
        return neighbours / 4 + amplitude * random.uniform(-1, 1, neighbours.shape)

    while step >= 2:
        half = step // 2
        corner = heights[::step, ::step]
        over = corner + np.roll(corner, -1, axis=1)
        beside = corner + np.roll(corner, -1, axis=0)
        middle = drawn(over + np.roll(over, -1, axis=0))
        heights[half::step, half::step] = middle
        heights[::step, half::step] = drawn(over + middle + np.roll(middle, 1, axis=0))
        heights[half::step, ::step] = drawn(beside + middle + np.roll(middle, 1, axis=1))
        step, amplitude = half, amplitude / fading**2
    heights -= heights.min()
    return heights / max(heights.max(), 1e-9)  # of one pixel there is no highest


def brightness(x: np.ndarray, added: float, random: np.random.Generator) -> np.ndarray:
    """The value of HSV grows, hue and saturation stay; black becomes grey."""
    value = x.max(axis=2, keepdims=True)
    brighter = (value + added).clip(0, 1)
    return np.where(value > 0, x * brighter / np.maximum(value, 1e-9), brighter)


def saturate(x: np.ndarray, change: tuple, random: np.random.Generator) -> np.ndarray:
    """The saturation of HSV changes; what is grey counts as red, hue 0."""
    factor, added = change
    value, least = x.max(axis=2, keepdims=True), x.min(axis=2, keepdims=True)
    saturation = (value - least) / np.maximum(value, 1e-9)
    red = value * np.array([0.0, 1.0, 1.0])  # how far full red lies from white
    full = np.where(saturation > 0, (value - x) / np.maximum(saturation, 1e-9), red)
    return value - full * (saturation * factor + added).clip(0, 1)


def contrast(x: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    mean = x.mean(axis=(0, 1), keepdims=True)
    return (x - mean) * share + mean


def elastic_transform(x: np.ndarray, field: tuple, random: np.random.Generator) -> np.ndarray:
    """Three corners of a square in the middle move, then every pixel by a smooth field."""
    unit = 244 if min(x.shape[:2]) > MIDDLE else min(x.shape[:2])  # 244 is the authors'
    strength, smoothness, corners = (unit * constant for constant in field)
    middle, half = np.array(x.shape[:2]) // 2, min(x.shape[:2]) // 3
    before = middle + half * np.array([[1, 1], [-1, 1], [-1, -1]])  # (row, column)
    after = before + random.uniform(-corners, corners, before.shape)
    # The affine map from where a pixel goes to where it comes from.
    back = np.linalg.solve(np.column_stack([after, np.ones(3)]), before)
    here = np.indices(x.shape[:2]).astype(np.float64)
    come_from = np.tensordot(back[:2], here, axes=(0, 0)) + back[2][:, None, None]
    x = taken_from(x, come_from, "mirror")
    noise = random.uniform(-1, 1, here.shape)
    smooth = ndimage.gaussian_filter(noise, (0, smoothness, smoothness), truncate=3)
    return taken_from(x, here + strength * smooth, "reflect")


def taken_from(x: np.ndarray, places: np.ndarray, border: str) -> np.ndarray:
    """(H, W, C) at places (2, H, W), rows and columns, bilinearly."""
    channels = [
        ndimage.map_coordinates(x[..., c], places, order=1, mode=border) for c in range(x.shape[2])
    ]
    return np.stack(channels, axis=-1)


def pixelate(x: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    picture = as_picture(x)
    small = (max(1, int(picture.width * share)), max(1, int(picture.height * share)))
    box = Image.Resampling.BOX
    return np.asarray(picture.resize(small, box).resize(picture.size, box)) / 255


def jpeg_compression(x: np.ndarray, quality: int, random: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    as_picture(x).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


def as_picture(x: np.ndarray) -> Image.Image:
    return Image.fromarray((x * 255).round().astype(np.uint8))


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "gaussian-noise": gaussian_noise, "shot-noise": shot_noise, "impulse-noise": impulse_noise,
    "defocus-blur": defocus_blur, "motion-blur": motion_blur, "zoom-blur": zoom_blur,
    "snow": snow, "fog": fog, "brightness": brightness, "contrast": contrast,
    "elastic-transform": elastic_transform, "pixelate": pixelate,
    "jpeg-compression": jpeg_compression, "speckle-noise": speckle_noise,
    "gaussian-blur": gaussian_blur, "saturate": saturate,
}  # fmt: skip
