"""Position embeddings, looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitkit.errors import UsageError
from vitkit.inspection.result import PositionsFound
from vitkit.models.nets import Net, kind_of, make
from vitkit.models.t2t import T2TViT
from vitkit.models.vit import VisionTransformer
from vitkit.models.vit_config import ViTConfig

DIGITS = 5  # of a cosine that count for ranks; what follows is rounding


def position_similarity(positions: Tensor, prefix: int = 1) -> Tensor:
    """Positions (1, prefix + N, D) -> (N, N), the cosine of each patch's with each other's.

    Row n, reshaped to the grid, is the tile of patch n in the paper's Figure 7 (centre).
    """
    patches = F.normalize(positions[0, prefix:].detach().float(), dim=-1)
    return patches @ patches.T


def positions(net: Net, seed: int = 0, layer: int = 0) -> PositionsFound:
    """How alike the position embeddings of the patches are (Figure 7, centre), and whether patches
    of one row or column are the less alike the farther they are apart.

    A freshly drawn net of the same architecture (its `seed`) is measured beside it: what learned
    positions show beyond it was learned. Where every layer has positions of its own, those of
    `layer` are taken. Raises UsageError where nothing is added to the tokens, and for a layer that
    the net has not.
    """
    kind, similarity = similarity_of(net, layer)
    fresh, note = similarity, "these positions are fixed: an untrained net has the same"
    if isinstance(net, VisionTransformer) and net.config.positions != "sincos2d":
        fresh, note = similarity_of(untrained(net.config, seed), 0)[1], ""
    grid = grid_of(net)
    return PositionsFound(
        kind, similarity, *rank_correlations(similarity, grid), *rank_correlations(fresh, grid),
        note=note,
    )  # fmt: skip


def grid_of(net: Net) -> tuple[int, int]:
    assert isinstance(net, VisionTransformer | T2TViT)
    return net.config.grid


def similarity_of(net: Net, layer: int) -> tuple[str, np.ndarray]:
    """What kind of positions they are, and (N, N) float32 cosines; UsageError without any."""
    if isinstance(net, T2TViT):
        table = net.position_embedding.cpu()
        return "sincos1d", position_similarity(table, net.config.prefix).numpy()
    table = net.positions() if isinstance(net, VisionTransformer) else None
    if table is None:
        raise UsageError(f"{why_not(net)}, so there are no position embeddings to compare")
    config = net.config
    assert isinstance(config, ViTConfig)
    kind = config.positions
    if len(table) > 1:
        if not 0 <= layer < len(table):
            raise UsageError(f"layer {layer}: the layers with positions are 0 to {len(table) - 1}")
        kind, table = f"{kind}, of layer {layer} of {len(table)}", table[layer : layer + 1]
    return kind, position_similarity(table.cpu(), config.positioned_prefix).numpy()


def why_not(net: Net) -> str:
    if isinstance(net, VisionTransformer):
        if net.config.positions == "relative":
            return "this net knows positions by the offsets of pairs of tokens alone"
        return "this net was built without positions"
    return f"a net of kind {kind_of(net.config)} adds no positions to tokens"


def untrained(config: ViTConfig, seed: int) -> VisionTransformer:
    """A net of one small block whose positions are drawn as those of `config` are."""
    small = replace(config, depth=1, mlp_width=1, classes=0, attention=("global",))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = make(small)
    assert isinstance(net, VisionTransformer)
    return net


def rank_correlations(similarity: np.ndarray, grid: tuple[int, int]) -> tuple[float, float]:
    """Spearman's correlation of distance and similarity (N, N), between patches of one row and
    between patches of one column of a grid (H, W), all pairs of all rows or columns together.

    -1 is "the farther, the less alike". NaN where it is not defined: lines of fewer than three
    patches, whose distances are all one, or similarities that are all the same.
    """
    height, width = grid
    tiles = similarity.reshape(height, width, height, width).round(DIGITS)
    rows = np.stack([tiles[r, :, r, :] for r in range(height)])  # (H, W, W)
    columns = np.stack([tiles[:, c, :, c] for c in range(width)])  # (W, H, H)
    return spearman_of_lines(rows), spearman_of_lines(columns)


def spearman_of_lines(lines: np.ndarray) -> float:
    """(lines, n, n) similarities along each line -> their correlation with the distance."""
    from scipy.stats import spearmanr  # half a second that other inspections do without

    one, other = np.triu_indices(lines.shape[1], k=1)
    distance = np.tile(other - one, len(lines))
    alike = lines[:, one, other].reshape(-1)
    if len(set(distance)) < 2 or len(set(alike)) < 2:
        return float("nan")
    return float(spearmanr(distance, alike).statistic)  # pyright: ignore
