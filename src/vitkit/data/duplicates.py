"""Near-duplicates among images: the same picture encoded, resized, cropped, mirrored or lit anew.

Three steps, each on far fewer pairs than the one before:

1. `candidates`: every image against every other by 63 low frequencies, each image with its own
   limit, above which about EXPECTED of all others lie by chance. A flat sky has a higher limit than
   a crowd, so that neither drowns in candidates nor misses its copies.
2. `first_fit`: how much of one image a small shift and stretch of the other explains, linearly.
3. `compare`: the two are aligned, and what is seen must agree in all places, not only where the
   strongest edges are; colours must not contradict.

Measured on the 100,000 images of Tiny ImageNet: docs/data.md.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from vitkit.data.indexes.columns import let_go

SIDE = 32  # of a thumbnail's luminance; its two colour differences are 8x8
COLOUR = 8
BYTES = SIDE * SIDE + 2 * COLOUR * COLOUR  # of a thumbnail
LARGE = 256  # pixels of a side from which images are shrunk in whole values first
FREQUENCIES = 8  # of each direction in a descriptor
FLAT = 2.0  # standard deviation of the luminance below which nothing is there to compare
EXPECTED = 12.0  # images above an image's own limit by chance
SAMPLE = 2048  # images by which the limits are set
FEW = 1000  # images of which all pairs are compared
FIRST_FIT = 0.75  # correlation of gradients that a pair must have after a linear fit
THRESHOLD = 0.8  # similarity of near-duplicates
BUSY = 0.6  # share of an image in which there is something; less makes likeness doubtful
COLOURS_APART = 0.5  # share of the colour that may differ; 1: nothing in common
FURTHEST = 0.13  # of the half side: how far a crop may shift and stretch an image
STEPS = (2, 3)  # of the alignment, before and after hopeless pairs are dropped
HOPELESS = 0.5  # correlation of gradients after the first steps
ROWS, COLUMNS = 1024, 2048  # of a block of scores, which stays in the processor's cache

Progress = Callable[[int, int], None]  # (done, of all)


class Pairs(NamedTuple):
    """Pairs of images by index, the first below the second: arrays of one length."""

    first: np.ndarray  # int64
    second: np.ndarray
    similarity: np.ndarray  # float32, at most 1
    mirrored: np.ndarray  # bool


@dataclass(frozen=True)
class Descriptors:
    """Unit vectors in two halves: mirroring an image changes the sign of the second alone."""

    even: Tensor  # (N, 32) bfloat16
    odd: Tensor  # (N, 32)


def thumbnail(image: Tensor) -> Tensor:
    """uint8 (3, H, W) -> uint8 (BYTES,): luminance 32x32, then red - green and blue - green."""
    small = image[None]
    if image.shape[-2] * image.shape[-1] > LARGE**2:  # as float it would take four times the memory
        small = F.interpolate(small, (LARGE, LARGE), mode="bilinear", antialias=True)
    small = F.interpolate(small.float(), (SIDE, SIDE), mode="bilinear", antialias=True)[0]
    red, green, blue = small
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    differences = F.avg_pool2d(torch.stack([red - green, blue - green]) / 2 + 128, SIDE // COLOUR)
    both = torch.cat([luminance.flatten(), differences.flatten()])
    return both.round_().clamp_(0, 255).to(torch.uint8)


def luminance(thumbnails: np.ndarray) -> Tensor:
    """uint8 (n, BYTES) -> float32 (n, 32, 32)."""
    pixels = np.ascontiguousarray(thumbnails[:, : SIDE * SIDE])
    return torch.from_numpy(pixels).float().view(-1, SIDE, SIDE)


def colours(thumbnails: np.ndarray) -> Tensor:
    """uint8 (n, BYTES) -> float32 (n, 2, 8, 8), about 0 where there is no colour."""
    pixels = np.ascontiguousarray(thumbnails[:, SIDE * SIDE :])
    return torch.from_numpy(pixels).float().view(-1, 2, COLOUR, COLOUR) - 128


def near_duplicates(
    thumbnails: np.ndarray,
    searched: np.ndarray,
    among: int | None = None,
    threshold: float = THRESHOLD,
    progress: Progress | None = None,
) -> Pairs:
    """The near-duplicates among thumbnails, uint8 (N, BYTES), which may be mapped from disk.

    `searched` (N,) bool tells which take part. With `among`, a pair has at least one of the first
    so many images. Takes about 300 bytes of memory an image.
    """
    places = np.flatnonzero(searched)
    found = describe(thumbnails, places)
    places, descriptors = places[~found.flat], found.descriptors
    let_go(thumbnails)
    rows = int(np.searchsorted(places, len(thumbnails) if among is None else among))
    pairs = candidates(descriptors, rows, progress)
    kept = [
        compare(thumbnails, *fitting, threshold)
        for fitting in first_fit(thumbnails, descriptors, places, pairs)
    ]
    columns = [np.concatenate(column) for column in zip(*kept, strict=True)] if kept else None
    return Pairs(*columns) if columns else no_pairs()


def no_pairs() -> Pairs:
    none = np.empty(0, np.int64)
    return Pairs(none, none, np.empty(0, np.float32), np.empty(0, bool))


class Described(NamedTuple):
    descriptors: Descriptors  # of the images that are not flat
    flat: np.ndarray  # (n,) bool, of all


def describe(thumbnails: np.ndarray, places: np.ndarray) -> Described:
    """Low frequencies of the luminance, each weighted by its frequency.

    In photographs amplitudes fall with the frequency, so that all weigh about the same then, and
    the cosines of unrelated images are distributed as of random vectors.
    """
    wave = torch.cos(
        torch.arange(FREQUENCIES)[:, None] * (torch.arange(SIDE) + 0.5) * math.pi / SIDE
    )
    across = torch.arange(FREQUENCIES).float()
    weight = (across[:, None] ** 2 + across**2).sqrt()  # 0 for the mean
    half = FREQUENCIES * FREQUENCIES // 2
    # Rooms made before the loop: small results kept between large passing ones would hold those.
    even, odd = (torch.empty(len(places), half, dtype=torch.bfloat16) for _ in range(2))
    flat = np.zeros(len(places), bool)
    kept = 0
    for begin in range(0, len(places), 4096):
        pixels = luminance(thumbnails[places[begin : begin + 4096]])
        dull = pixels.flatten(1).std(1) < FLAT
        spectrum = F.normalize((wave @ pixels[~dull] @ wave.T * weight).flatten(1))
        spectrum = spectrum.view(-1, FREQUENCIES, FREQUENCIES)
        even[kept : kept + len(spectrum)] = spectrum[:, :, 0::2].flatten(1)
        odd[kept : kept + len(spectrum)] = spectrum[:, :, 1::2].flatten(1)
        flat[begin : begin + len(pixels)] = dull.numpy()
        kept += len(spectrum)
    return Described(Descriptors(even[:kept], odd[:kept]), flat)


def candidates(given: Descriptors, rows: int, progress: Progress | None = None) -> np.ndarray:
    """(M, 2) pairs of which one is above the other's limit, one at least of the first `rows`."""
    images = len(given.even)
    if images < 2:
        return np.empty((0, 2), np.int64)
    limits = limits_of(given)
    # The lower limit of a pair decides; in this order it is that of the row, but for columns
    # beyond `rows`.
    order = np.lexsort((limits.numpy(), np.arange(images) >= rows))
    computed = fastest_type(given)
    even, odd = given.even[order].to(computed), given.odd[order].to(computed)
    limits = limits[order].to(computed)
    found = [np.empty((0, 2), np.int32)]
    for top in range(0, rows, ROWS):
        bottom = min(top + ROWS, rows)
        corner = [torch.empty(0, 2, dtype=torch.int64)]
        for left in range(top, images, COLUMNS):
            scores = even[top:bottom] @ even[left : left + COLUMNS].T
            scores += (odd[top:bottom] @ odd[left : left + COLUMNS].T).abs_()
            corner.append(above(scores, limits[top:bottom]) + torch.tensor([top, left]))
            if left + COLUMNS > rows:
                columns = above(scores.T, limits[left : left + COLUMNS])
                corner.append(columns.flip(1) + torch.tensor([top, left]))
        both = torch.cat(corner)
        found.append(both[both[:, 0] < both[:, 1]].int().numpy())
        if progress:
            progress(bottom, rows)
    pairs = np.sort(order[np.concatenate(found)], axis=1)
    numbers = np.unique(pairs[:, 0] * images + pairs[:, 1])
    return np.stack([numbers // images, numbers % images], axis=1)


def above(scores: Tensor, limits: Tensor) -> Tensor:
    """(n, 2): where scores (R, C) exceed the limits (R,) of their rows, which few rows do."""
    rows = (scores.amax(1) > limits).nonzero()[:, 0]
    hits = (scores[rows] > limits[rows, None]).nonzero()
    return torch.stack([rows[hits[:, 0]], hits[:, 1]], dim=1)


def limits_of(given: Descriptors) -> Tensor:
    """(N,) for each image a score that about EXPECTED others exceed by chance, were it normal."""
    images = len(given.even)
    if images <= FEW:
        return torch.full((images,), -2.0)
    chosen = np.random.default_rng(0).permutation(images)[:SAMPLE]
    even, odd = given.even[chosen].float(), given.odd[chosen].float()
    z = float(torch.special.ndtri(torch.tensor(1 - EXPECTED / images, dtype=torch.float64)))
    limits = torch.empty(images)
    for begin in range(0, images, ROWS):
        part = slice(begin, begin + ROWS)
        scores = given.even[part].float() @ even.T
        scores += (given.odd[part].float() @ odd.T).abs_()
        limits[part] = scores.mean(1) + z * scores.std(1)
    return limits.clamp_(max=0.97)


def fastest_type(given: Descriptors) -> torch.dtype:
    """bfloat16 where the processor multiplies it fast, else float32; the values are the same."""
    if len(given.even) < ROWS:
        return torch.float32
    seconds = {}
    for kind in (torch.float32, torch.bfloat16):
        block = given.even[:ROWS].to(kind)
        torch.mm(block, block.T)
        began = time.perf_counter()
        for _ in range(3):
            torch.mm(block, block.T)
        seconds[kind] = time.perf_counter() - began
    return min(seconds, key=seconds.__getitem__)


def first_fit(
    thumbnails: np.ndarray, given: Descriptors, places: np.ndarray, pairs: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of the candidates those that a shift and a stretch may explain: (first, second, mirrored).

    To first order, image B shifted and stretched is B plus multiples of its gradients and of these
    times their coordinates. So how much of A it explains is told by five products with a basis of
    what B spans, and one basis serves all of B's candidates.
    """
    pairs = pairs[np.argsort(pairs[:, 1], kind="stable")]
    for begin in range(0, len(pairs), 16384):
        a, b = pairs[begin : begin + 16384].T
        turned = (given.odd[a].float() * given.odd[b].float()).sum(1) < 0
        own, inverse = np.unique(b, return_inverse=True)
        bases = spans(blurred(luminance(thumbnails[places[own]])))
        pixels = luminance(thumbnails[places[a]])
        pixels = torch.where(turned[:, None, None], pixels.flip(-1), pixels)
        edges = F.normalize(edges_of(blurred(pixels)))
        shares = torch.empty(len(a))
        for part in range(0, len(a), 512):
            chosen = bases[torch.from_numpy(inverse[part : part + 512])]
            explained = chosen @ edges[part : part + 512, :, None]
            shares[part : part + 512] = explained.square().sum((1, 2))
        let_go(thumbnails)  # the pages read, which would add up to all
        fits = (shares > FIRST_FIT**2).numpy()
        if fits.any():
            yield places[a[fits]], places[b[fits]], turned.numpy()[fits]


def blurred(pixels: Tensor) -> Tensor:
    """(n, 32, 32) -> (n, 16, 16), smooth enough for a linear fit of some pixels' shift."""
    return F.avg_pool2d(pixels[:, None], 4, 2, 1, count_include_pad=False)[:, 0]


def edges_of(pixels: Tensor) -> Tensor:
    """(..., s, s) -> (..., 2 * s * (s - 1)): differences of neighbours."""
    return torch.cat([pixels.diff(dim=-1).flatten(-2), pixels.diff(dim=-2).flatten(-2)], dim=-1)


def spans(pixels: Tensor) -> Tensor:
    """(n, s, s) -> (n, 5, edges) orthonormal: those of the image, its gradients, and these times x
    and y."""
    columns = F.normalize(edges_of(torch.stack([pixels, *moved(pixels)], dim=1)), dim=2)
    return torch.linalg.qr(columns.transpose(1, 2)).Q.transpose(1, 2)


def moved(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """How pixels (n, s, s) change with a stretch and a shift in x, then in y; sides are -1 to 1."""
    side = pixels.shape[-1]
    across = centres(side)
    dy, dx = torch.gradient(pixels, spacing=2 / side, dim=(1, 2))
    return dx * across, dx, dy * across[:, None], dy


def centres(side: int) -> Tensor:
    return (torch.arange(side) + 0.5) / side * 2 - 1


def compare(
    thumbnails: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    turned: np.ndarray,
    threshold: float,
) -> tuple[np.ndarray, ...]:
    """Those of the pairs that are near-duplicates, as the columns of `Pairs`."""
    scores = [
        similarity(thumbnails[first[part]], thumbnails[second[part]], turned[part])
        for part in (slice(begin, begin + 256) for begin in range(0, len(first), 256))
    ]
    found = torch.cat(scores).numpy()
    kept = found >= threshold
    return first[kept], second[kept], found[kept], turned[kept]


def similarity(first: np.ndarray, second: np.ndarray, turned: np.ndarray) -> Tensor:
    """(n,) of thumbnails (n, BYTES): how alike they are once aligned, at most 1.

    The smaller of two: the correlation of the gradients, which a few strong edges can decide, and
    the mean correlation within small windows, which noise in dark corners can. What lacks to 1
    counts for more where most of an image is empty, as around a needle on white paper: any other
    needle fits. 0 where the colours contradict.
    """
    mirror = torch.from_numpy(turned)
    a, b = unit(luminance(first)), unit(luminance(second))
    b = torch.where(mirror[:, None, None], b.flip(-1), b)
    alike = torch.zeros(len(a))
    warp = align(a, b, torch.zeros(len(a), 4), STEPS[0])
    left = by_gradients(a, *warped(b, warp)) > HOPELESS
    a, b = a[left], b[left]
    aligned, seen = warped(b, align(a, b, warp[left], STEPS[1]))
    found = torch.minimum(by_gradients(a, aligned, seen), by_windows(a, aligned, seen))
    doubt = (BUSY / torch.minimum(busy(a), busy(b))).clamp(min=1)
    alike[left] = 1 - (1 - found) * doubt
    one, other = colours(first), colours(second)
    other = torch.where(mirror[:, None, None, None], other.flip(-1), other)
    size = one.square().mean((1, 2, 3)).sqrt() + other.square().mean((1, 2, 3)).sqrt()
    apart = (one - other).square().mean((1, 2, 3)).sqrt() / (size + 5)
    return torch.where(apart > COLOURS_APART, 0.0, alike)


def unit(pixels: Tensor) -> Tensor:
    """(n, s, s) with mean 0 and standard deviation 1."""
    pixels = pixels - pixels.mean((1, 2), keepdim=True)
    return pixels / pixels.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-3)


def align(a: Tensor, b: Tensor, warp: Tensor, steps: int) -> Tensor:
    """The warp (n, 4) that brings b onto a: stretch and shift in x, then in y.

    Gauss-Newton steps, brightness and contrast fitted beside them (Lucas and Kanade 1981).
    """
    damping = torch.diag(torch.tensor([1e-3, 1e-3, 1.0, 1.0, 1.0, 1.0])) * 0.003 * SIDE * SIDE
    for _ in range(steps):
        shifted, seen = warped(b, warp)
        columns = torch.stack([shifted, torch.ones_like(a), *moved(shifted)], dim=1)
        columns = (columns * seen[:, None]).flatten(2)
        squares = columns @ columns.transpose(1, 2) + damping
        step = torch.linalg.solve(squares, columns @ a.flatten(1)[:, :, None])[:, :, 0]
        warp = (warp + step[:, 2:] / step[:, :1].clamp(min=0.3)).clamp(-FURTHEST, FURTHEST)
    return warp


def warped(pixels: Tensor, warp: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (n, s, s) read at x + stretch * x + shift, and where that lies inside."""
    columns, inside_x = reading(warp[:, 0], warp[:, 1], pixels.shape[-1])
    rows, inside_y = reading(warp[:, 2], warp[:, 3], pixels.shape[-1])
    inside = inside_y[:, :, None] * inside_x[:, None]
    return rows @ pixels @ columns.transpose(1, 2), inside


def reading(stretch: Tensor, shift: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """(n, s, s) weights of linear interpolation for each place read, and (n, s) if it is inside."""
    across = centres(side)
    places = ((across + stretch[:, None] * across + shift[:, None]) + 1) / 2 * side - 0.5
    inside = ((places > -0.51) & (places < side - 0.49)).float()
    places = places.clamp(0, side - 1)
    return (1 - (places[:, :, None] - torch.arange(side)).abs()).clamp(min=0), inside


def by_gradients(a: Tensor, b: Tensor, seen: Tensor) -> Tensor:
    """(n,) the correlation of the gradients of two aligned images, where both are known."""
    known = seen[:, 1:-1, 2:] * seen[:, 1:-1, :-2] * seen[:, 2:, 1:-1] * seen[:, :-2, 1:-1]
    across = [p[:, 1:-1, 2:] - p[:, 1:-1, :-2] for p in (a, b)]
    down = [p[:, 2:, 1:-1] - p[:, :-2, 1:-1] for p in (a, b)]
    product = (known * (across[0] * across[1] + down[0] * down[1])).sum((1, 2))
    squares = [(known * (x * x + y * y)).sum((1, 2)) for x, y in zip(across, down, strict=True)]
    return product / (squares[0] * squares[1]).sqrt().clamp(min=1e-3)


def by_windows(a: Tensor, b: Tensor, seen: Tensor) -> Tensor:
    """(n,) the mean correlation within windows of 7x7 pixels, weighted by the root of contrast.

    So a line through a clear sky does not decide for the sky.
    """
    share = mean_of_window(seen)
    known = share.clamp(min=0.01)
    mean_a, mean_b = mean_of_window(a * seen) / known, mean_of_window(b * seen) / known
    var_a = (mean_of_window(a * a * seen) / known - mean_a**2).clamp(min=0)
    var_b = (mean_of_window(b * b * seen) / known - mean_b**2).clamp(min=0)
    together = mean_of_window(a * b * seen) / known - mean_a * mean_b
    correlation = together / ((var_a * var_b).sqrt() + 0.001)
    weight = ((var_a + var_b) / 2).pow(0.25) * (share > 0.6)
    return (weight * correlation).sum((1, 2)) / weight.sum((1, 2)).clamp(min=1e-6)


def busy(pixels: Tensor) -> Tensor:
    """(n,) share of the windows in which an image has its contrast: 1 if all have as much."""
    contrast = mean_of_window(pixels.square()) - mean_of_window(pixels).square()
    contrast = contrast.clamp(min=1e-6).sqrt().flatten(1)
    return contrast.mean(1).square() / contrast.square().mean(1)


def mean_of_window(values: Tensor) -> Tensor:
    return F.avg_pool2d(values[:, None], 7, 1, 3, count_include_pad=False)[:, 0]


def groups_of(images: int, first: np.ndarray, second: np.ndarray) -> list[np.ndarray]:
    """Images joined by pairs, directly or through others: sorted indices, two or more a group."""
    if not len(first):
        return []
    edges = coo_array((np.ones(len(first), bool), (first, second)), shape=(images, images))
    _, numbers = connected_components(edges, directed=False)
    joined = np.unique(np.concatenate([first, second]))
    order = joined[np.argsort(numbers[joined], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)


def alike_by_features(
    features: np.ndarray,
    searched: np.ndarray,
    threshold: float,
    among: int | None = None,
    progress: Progress | None = None,
) -> Pairs:
    """The pairs of features (N, D) whose cosine reaches the threshold.

    `searched` and `among` as for `near_duplicates`.
    """
    places = np.flatnonzero(searched)
    rows = int(np.searchsorted(places, len(features) if among is None else among))
    found = []
    for top in range(0, rows, ROWS):
        bottom = min(top + ROWS, rows)
        some = unit_rows(features[places[top:bottom]])
        for left in range(top, len(places), COLUMNS):
            scores = some @ unit_rows(features[places[left : left + COLUMNS]]).T
            hits = above(scores, torch.full((len(some),), threshold))
            a, b = (hits + torch.tensor([top, left])).T.numpy()
            ordered = a < b
            alike = scores[hits[:, 0], hits[:, 1]].numpy()
            found.append((places[a[ordered]], places[b[ordered]], alike[ordered]))
        if progress:
            progress(bottom, rows)
    if not found:
        return no_pairs()
    first, second, alike = (np.concatenate(column) for column in zip(*found, strict=True))
    return Pairs(first, second, alike, np.zeros(len(first), bool))


def unit_rows(features: np.ndarray) -> Tensor:
    return F.normalize(torch.from_numpy(np.ascontiguousarray(features)).float())
