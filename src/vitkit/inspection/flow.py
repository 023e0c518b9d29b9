"""Attention flow (Abnar and Zuidema, arXiv 2005.00928, section 3).

The layers are a network of pipes: from output token i of a layer to its input token j leads one of
capacity 0.5 A + 0.5 I, as in rollout. The flow of an input token is the largest that the class
token of the last layer, or what else is the source, can send to it.

As the capacities of every row sum to 1, no flow is above 1, nor above what leads to the input token
in the first layer. Flows at 1 are limited at the source, and say nothing about their tokens.

Shapes: L layers, h heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor

from vitkit.errors import UsageError
from vitkit.inspection.rollout import with_residual

SCALE = 2**30  # of the whole numbers that SciPy's maximum flow takes, below 2^31
NEAR = 1e-6  # flows that differ by less are alike


def flow(
    attention: np.ndarray | Tensor, source: int | Sequence[float] | np.ndarray | Tensor = 0
) -> np.ndarray:
    """Attention (L, h, T, T) of one image -> the flow to each input token (T,), 0 to 1.

    The source is a token of the last layer, 0 the class token; or, of a net whose head reads
    several, the share of each (T,), as `read_by_head` gives them, which it sends at most.
    Each flow is a maximum flow in whole numbers, 2^-30 of the capacities; given is the capacity, in
    float64, of the cut that it finds. The true flow is at most that, and less by at most 2^-30 for
    each edge of the cut, and only where another cut is as narrow. UsageError for another shape, or
    a token that is not there.
    """
    maps = with_residual(attention)
    tokens = maps.shape[1]
    rows, columns, capacities = edges(maps, shares_of(source, tokens))
    whole = np.floor(capacities * SCALE).astype(np.int32)
    start, end = int(rows[0]), int(columns[-1])
    flows = np.empty(tokens)
    for target in range(tokens):
        # The edges into the end come last; they are all that one input token differs by.
        capacities[-tokens:] = maps[0, :, target]
        whole[-tokens:] = np.floor(maps[0, :, target] * SCALE)
        graph = csr_array((whole, (rows, columns)), shape=(end + 1, end + 1))
        left = graph - maximum_flow(graph, start, end).flow
        left.eliminate_zeros()
        reached = np.zeros(end + 1, dtype=bool)
        reached[breadth_first_order(left, start, return_predecessors=False)] = True
        flows[target] = capacities[reached[rows] & ~reached[columns]].sum()
    return flows


def shares_of(source: int | Sequence[float] | np.ndarray | Tensor, tokens: int) -> np.ndarray:
    """What each token of the last layer sends at most: (T,), float64, their sum 1."""
    if isinstance(source, int):
        if not 0 <= source < tokens:
            raise UsageError(f"there is no token {source}: this attention is of 0 to {tokens - 1}")
        return np.eye(tokens)[source]
    shares = np.asarray(source, dtype=np.float64)
    if shares.shape != (tokens,) or (shares < 0).any() or abs(shares.sum() - 1) > NEAR:
        raise UsageError(f"a source is a token, or {tokens} shares of 0 or above whose sum is 1")
    return shares


def edges(maps: np.ndarray, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The network above one input token: from, to, capacity.

    Node (l - 1) T + t is output token t of layer l, then come the source and the input token. The
    source's edges are the first ones, those into the input token the last T, still without one.
    """
    layers, tokens = maps.shape[:2]
    every, source = np.arange(tokens), layers * tokens
    read = np.flatnonzero(shares)
    found = [(np.full(len(read), source), source - tokens + read, shares[read])]
    for layer in range(layers - 1, 0, -1):
        start, end = np.nonzero(maps[layer])
        if layer == layers - 1:  # of which no other token is reached
            start, end = start[shares[start] > 0], end[shares[start] > 0]
        found.append((layer * tokens + start, (layer - 1) * tokens + end, maps[layer, start, end]))
    found.append((every, np.full(tokens, source + 1), np.zeros(tokens)))
    rows, columns, capacities = map(np.concatenate, zip(*found, strict=True))
    return rows, columns, capacities


def saturated(flows: np.ndarray) -> np.ndarray:
    """(T,) bool: which flows are limited by the source alone, and so tell nothing of a token."""
    return np.asarray(flows) >= 1 - NEAR


def note_on_flow(flows: np.ndarray, attention: np.ndarray | Tensor) -> str:
    """A sentence on how far these flows say more than a glance at the first layer would.

    `attention` (L, h, T, T) is what they are of.
    """
    full, into = saturated(flows), with_residual(attention)[0].sum(axis=0)
    of_first = ~full & (np.abs(flows - into) <= NEAR)
    if full.all():
        return "All flows are 1, the most that the source sends: they say nothing about the image."
    return (
        f"Of {len(flows)} flows {full.sum()} are 1, the most that the source sends, which tells "
        f"nothing of the token, and {of_first.sum()} are what leads to the token in the first "
        "layer, whatever the layers above do."
    )
