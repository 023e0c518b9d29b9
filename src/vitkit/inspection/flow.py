"""Attention flow (Abnar and Zuidema, arXiv 2005.00928, section 3).

The layers are a network of pipes: from output token i of a layer to its input token j leads one of
capacity 0.5 A + 0.5 I, as in rollout. The flow of an input token is the largest that a token of the
last layer, the source, can send to it.

As the capacities of every row sum to 1, no flow is above 1, nor above what leads to the input token
in the first layer. Flows at 1 are limited at the source, and say nothing about their tokens.

Shapes: L layers, h heads, T tokens.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor

from vitkit.errors import UsageError
from vitkit.inspection.rollout import with_residual

SCALE = 2**30  # of the whole numbers that SciPy's maximum flow takes, below 2^31
NEAR = 1e-6  # flows that differ by less are alike


def flow(attention: np.ndarray | Tensor, token: int = 0) -> np.ndarray:
    """Attention (L, h, T, T) of one image -> flow from a token of the last layer (T,), 0 to 1.

    Token 0 is the class token. Each is a maximum flow in whole numbers, 2^-30 of the capacities;
    given is the capacity, in float64, of the cut that it finds. The true flow is at most that, and
    less by at most 2^-30 for each edge of the cut, and only where another cut is as narrow.
    UsageError for another shape, or a token that is not there.
    """
    maps = with_residual(attention)
    layers, tokens = maps.shape[:2]
    if not 0 <= token < tokens:
        raise UsageError(f"there is no token {token}: this attention is of 0 to {tokens - 1}")
    if layers == 1:
        return maps[0, token]
    rows, columns, capacities = edges(maps, token)
    source, sink = (layers - 1) * tokens, (layers - 1) * tokens + 1
    whole = np.floor(capacities * SCALE).astype(np.int32)
    # Edges into the sink come last; they are all that differs between one input token and another.
    flows = np.empty(tokens)
    for target in range(tokens):
        capacities[-tokens:] = maps[0, :, target]
        whole[-tokens:] = np.floor(maps[0, :, target] * SCALE)
        graph = csr_array((whole, (rows, columns)), shape=(sink + 1, sink + 1))
        left = graph - maximum_flow(graph, source, sink).flow
        left.eliminate_zeros()
        reached = np.zeros(sink + 1, dtype=bool)
        reached[breadth_first_order(left, source, return_predecessors=False)] = True
        flows[target] = capacities[reached[rows] & ~reached[columns]].sum()
    return flows


def edges(maps: np.ndarray, token: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The network above one input token: from, to, capacity, those of the first layer last.

    Node (l - 1) T + t is output token t of layer l of all but the last layer, whose one output
    token of interest comes next, then the input token.
    """
    layers, tokens = maps.shape[:2]
    source, sink = (layers - 1) * tokens, (layers - 1) * tokens + 1
    every = np.arange(tokens)
    found = [(np.full(tokens, source), source - tokens + every, maps[-1, token])]
    for layer in range(layers - 2, 0, -1):
        start, end = np.nonzero(maps[layer])
        found.append((layer * tokens + start, (layer - 1) * tokens + end, maps[layer, start, end]))
    found.append((every, np.full(tokens, sink), np.zeros(tokens)))
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
