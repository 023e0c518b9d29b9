"""What an inspection finds, as plain data: saved as npz + JSON (vitkit.plain), shown in the report.

Shapes: L layers, h heads, T = prefix + N tokens, N = H * W patches of the grid, p pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitkit.plain import Curve


@dataclass(frozen=True)
class Filters:
    """What the first layer looks for (Figure 7, left)."""

    pictures: np.ndarray  # (n, p, p, 3) float32, each scaled to 0..1
    explained: np.ndarray | None  # (n,) share of the variance of each principal component
    kind: str  # "principal components of the patch embedding", "filters of the root", ...


@dataclass(frozen=True)
class PositionsFound:
    """How alike the position embeddings are (Figure 7, centre)."""

    kind: str  # the config's: "1d", "2d", "sincos2d"; or T2T-ViT's "sincos1d"
    similarity: np.ndarray  # (N, N) float32 cosine; row n reshaped to the grid is patch n's tile
    rows: float  # Spearman's correlation of distance and similarity, between patches of one row;
    columns: float  # and of one column; NaN where there is none
    untrained_rows: float  # the same of fresh positions of this architecture
    untrained_columns: float
    note: str = ""  # a sentence: what these positions do not say


@dataclass(frozen=True)
class DistancesFound:
    """Mean attention distance by layer and head (Figure 7, right; Figure 11)."""

    layers: tuple[int, ...]
    pixels: np.ndarray  # (L, h) of the input image, mean over queries and images
    uniform: float  # pixels, what attention that is equal everywhere would have
    images: int
    untrained: np.ndarray | None = None  # (L, h), of the same net with fresh weights


@dataclass(frozen=True)
class NormsFound:
    """Norms of the last layer's patch tokens; a few far above the rest are registers in disguise
    (arXiv 2309.16588)."""

    norms: np.ndarray  # (images, N) float32
    threshold: float  # above it a token counts as an outlier
    outliers: float  # share of the patch tokens


@dataclass(frozen=True)
class Neighbour:
    """An image near to another one in feature space."""

    name: str
    label: str | None
    similarity: float  # cosine
    picture: np.ndarray | None  # (h, w, 3) uint8


@dataclass(frozen=True)
class ImageFound:
    """What was found in one image."""

    name: str
    picture: np.ndarray  # (H p, W p, 3) uint8, as the net reads it
    top: tuple[tuple[str, float], ...]  # classes and probabilities, the likeliest first
    layers: tuple[int, ...] = ()  # of `attention`
    heads: tuple[int, ...] = ()
    query: str = ""  # whose attention it is: "class token", "patch 3,4", "all patches"
    attention: np.ndarray | None = None  # (L, h, T): a row of each map, of the query
    maps: np.ndarray | None = None  # (L, h, T, T), whole maps, where they were asked for
    rollout: np.ndarray | None = None  # (T,)
    flow: np.ndarray | None = None  # (T,)
    flow_note: str = ""  # a sentence: how much these flows say
    relevance: np.ndarray | None = None  # (H, W), of the class `relevance_of`
    relevance_of: str = ""
    grad_cam: np.ndarray | None = None  # (h, w), of the same class
    lens: tuple[tuple[tuple[str, float], ...], ...] = ()  # by layer: classes and probabilities
    patch_norms: np.ndarray | None = None  # (H, W)
    faithfulness: tuple[Curve, ...] = ()  # deletion, insertion, each beside random maps
    neighbours: tuple[Neighbour, ...] = ()


@dataclass(frozen=True)
class Inspection:
    """A net, opened."""

    net: str  # its name, or a description
    kind: str  # "ViT", "BiT", ... (vitkit.models.nets.KINDS)
    image_size: tuple[int, int]  # pixels
    grid: tuple[int, int] | None  # patches down and across; None where the net has none
    depth: int | None
    heads: int | None
    prefix: tuple[str, ...] = ()  # the tokens before the patches, by name
    notes: tuple[str, ...] = ()  # sentences: what holds, what does not, what does not apply
    filters: Filters | None = None
    positions: PositionsFound | None = None
    distances: DistancesFound | None = None
    norms: NormsFound | None = None
    lens: Curve | None = None  # accuracy by layer, where labels are known
    images: tuple[ImageFound, ...] = ()
