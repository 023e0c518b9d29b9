"""Attention inside groups of patches instead of among all of them.

The Vision Transformer paper weighs such patterns against global attention (section 2; Axial-ViT in
appendix D.6). Groups that tile the grid are brought side by side by a reshape and given to
ordinary attention, so they run and train wherever that does.

Shapes: B images, h heads, d width of a head, H x W patches, T = prefix + H * W tokens; the prefix
tokens (class token, registers) attend to everything and everything attends to them, whatever the
pattern.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from vitkit.models.attend import attend

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

MOST_LISTED = 4096  # patches along a side whose divisors an error lists
SIZED = re.compile(r"(window|stride|neighborhood):([1-9][0-9]*)(?:x([1-9][0-9]*))?")


@dataclass(frozen=True)
class Pattern:
    """Which patches a patch attends to; `parse_pattern` makes one, `str` gives the text back."""

    kind: str  # "global", "row", "column", "window", "stride" or "neighborhood"
    size: tuple[int, int] = (1, 1)  # patches down and across, of the kinds that have a size

    def __str__(self) -> str:
        if self.kind in ("global", "row", "column"):
            return self.kind
        down, across = self.size
        return f"{self.kind}:{down}" if down == across else f"{self.kind}:{down}x{across}"

    @property
    def tiles(self) -> bool:
        """Whether the grid falls into groups: not so for "global" and "neighborhood"."""
        return self.kind not in ("global", "neighborhood")

    def blocks(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Patches down and across of the blocks that a pattern that tiles cuts the grid into.

        A row, a column and a window are such a block. With a stride the block's places are the
        groups: one group is the patches that have the same place in every block.
        """
        if self.kind == "row":
            return 1, grid[1]
        return (grid[0], 1) if self.kind == "column" else self.size

    def group_size(self, grid: tuple[int, int]) -> int:
        """Patches in each group of a pattern that tiles."""
        block = math.prod(self.blocks(grid))
        return math.prod(grid) // block if self.kind == "stride" else block

    def check(self, grid: tuple[int, int]) -> None:
        """Raises ValueError where the blocks do not divide a grid of (H, W) patches."""
        if not self.tiles:
            return
        if any(side % part for side, part in zip(grid, self.blocks(grid), strict=True)):
            known = ""
            if max(grid) <= MOST_LISTED:
                down, across = (", ".join(map(str, divisors(side))) for side in grid)
                known = f"; what divides it: {down} down and {across} across"
            raise ValueError(
                f"attention pattern '{self}' does not divide the grid of {grid[0]}x{grid[1]} "
                f"patches{known}"
            )


def parse_pattern(text: str) -> Pattern:
    """The pattern that `text` names; ValueError where it names none.

    global                   every patch attends to every patch
    row, column              to those of its row, of its column: the halves of axial attention
    window:K, window:KxL     to those of its block of K x K, K down and L across
    stride:S, stride:SxT     to those whose row and column are its own modulo S, S and T
    neighborhood:K, :KxL     to those at most (K - 1) / 2 rows and columns away, K odd; at the
                             border of the grid these are fewer
    """
    if text in ("global", "row", "column"):
        return Pattern(text)
    match = SIZED.fullmatch(text)
    if not match:
        raise ValueError(
            f"attention pattern {text!r} is not known; choose 'global', 'row', 'column', "
            "'window:K', 'window:KxL', 'stride:S', 'stride:SxT' or 'neighborhood:K'"
        )
    kind, down, across = match[1], int(match[2]), int(match[3] or match[2])
    if kind == "neighborhood" and not (down % 2 and across % 2):
        raise ValueError(f"attention pattern {text!r} has no patch at its middle; its size is odd")
    return Pattern(kind, (down, across))


def attend_within(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, grid: tuple[int, int], prefix: int
) -> Tensor:
    """Attention restricted by `pattern`: q, k, v (B, h, T, d) -> (B, h, T, d).

    Equal to attention under `pattern_mask`, without the work for the pairs that the mask forbids;
    neighborhoods save only a part of it. ValueError where the pattern does not divide the grid.
    """
    if pattern.kind == "global":
        return attend(q, k, v)
    pattern.check(grid)
    if pattern.tiles:
        return attend_in_groups(q, k, v, pattern, grid, prefix)
    if q.device.type == "cuda" and q.dtype != torch.float64:  # which FlexAttention does not have
        mask = block_mask(pattern, grid, prefix, q.device)
        return compiled_flex_attention()(q, k, v, block_mask=mask)
    return attend_in_strips(q, k, v, pattern, grid, prefix)


# Patterns that tile the grid: groups beside each other in the batch


def attend_in_groups(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, grid: tuple[int, int], prefix: int
) -> Tensor:
    """One attention among the patches of every group at once, one of the prefix to everything."""
    queries = group(q, pattern, grid, prefix)
    keys, values = (group(x, pattern, grid, prefix, shared=True) for x in (k, v))
    patches = ungroup(attend(queries, keys, values), pattern, grid)  # (B, H * W, h, d)
    if prefix:
        first = attend(q[:, :, :prefix], k, v).transpose(1, 2)
        patches = torch.cat([first, patches], dim=1)
    return patches.transpose(1, 2)  # in memory as it was: the net puts the heads side by side


def group(
    x: Tensor, pattern: Pattern, grid: tuple[int, int], prefix: int, shared: bool = False
) -> Tensor:
    """Tokens (B, h, T, d) -> their patches (B * groups, h, M, d), M of them in each group.

    `shared` puts the prefix tokens before the patches of each group: (B * groups, h, prefix + M,
    d). Rows without a prefix are a view; windows and strides that share one are copied twice, as
    the parts of a concatenation are; all else once.
    """
    rows, columns = pattern.blocks(grid)
    order = (0, 3, 5, 1, 2, 4, 6) if pattern.kind == "stride" else (0, 2, 4, 1, 3, 5, 6)
    split = (grid[0] // rows, rows, grid[1] // columns, columns)
    groups = x[:, :, prefix:].unflatten(2, split).permute(order).flatten(4, 5)
    if shared and prefix:  # groups is (B, groups down, groups across, h, M, d)
        first = x[:, None, None, :, :prefix].expand(*groups.shape[:4], -1, -1)
        groups = torch.cat([first, groups], dim=4)
    return groups.flatten(0, 2)


def ungroup(x: Tensor, pattern: Pattern, grid: tuple[int, int]) -> Tensor:
    """(B * groups, h, M, d) -> (B, H * W, h, d): the patches back at their places."""
    rows, columns = pattern.blocks(grid)
    blocks, places = (grid[0] // rows, grid[1] // columns), (rows, columns)
    if pattern.kind == "stride":
        x = x.unflatten(2, blocks).unflatten(0, (-1, *places)).permute(0, 4, 1, 5, 2, 3, 6)
    else:
        x = x.unflatten(2, places).unflatten(0, (-1, *blocks)).permute(0, 1, 4, 2, 5, 3, 6)
    return x.flatten(1, 4)  # from (B, blocks, rows, blocks, columns, h, d)


# Neighborhoods overlap, so that no reshape gives them to ordinary attention


def attend_in_strips(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, grid: tuple[int, int], prefix: int
) -> Tensor:
    """Strips of whole rows, as many as a neighborhood has, each to all rows within its reach.

    The mask rules out what is too far to the side and, for some of the strip, up or down. It is
    made anew each time: one kept from a call that was being traced, or was under inference mode,
    could not be used outside of it.
    """
    rows, reach = pattern.size[0], pattern.size[0] // 2
    tokens = torch.arange(q.shape[2], device=q.device)
    outputs = [attend(q[:, :, :prefix], k, v)] if prefix else []
    for top in range(0, grid[0], rows):
        strip = tokens_of_rows(top, top + rows, grid, prefix)
        within_reach = tokens_of_rows(top - reach, top + rows + reach, grid, prefix)
        keys, values, key_tokens = (
            torch.cat([x[..., :prefix, :], x[..., within_reach, :]], dim=-2) if prefix
            else x[..., within_reach, :] for x in (k, v, tokens[:, None])
        )  # fmt: skip
        mask = may_attend(pattern, grid, prefix, tokens[strip, None], key_tokens.T)
        outputs.append(F.scaled_dot_product_attention(q[:, :, strip], keys, values, attn_mask=mask))
    return torch.cat([x.transpose(1, 2) for x in outputs], dim=1).transpose(1, 2)


def tokens_of_rows(top: int, bottom: int, grid: tuple[int, int], prefix: int) -> slice:
    """The tokens of rows top .. bottom - 1, as far as they are on the grid."""
    return slice(prefix + max(0, top) * grid[1], prefix + min(bottom, grid[0]) * grid[1])


# What each pattern allows, said once: for the mask, for FlexAttention, for the cost


def may_attend(
    pattern: Pattern, grid: tuple[int, int], prefix: int, query: Tensor, key: Tensor
) -> Tensor:
    """Whether token `query` may attend to token `key`: integer tensors -> bool, broadcast."""
    if pattern.kind == "global":
        return (query >= 0) & (key >= 0)  # any two
    shared = (query < prefix) | (key < prefix)
    row, column = (query - prefix) // grid[1], (query - prefix) % grid[1]
    key_row, key_column = (key - prefix) // grid[1], (key - prefix) % grid[1]
    if pattern.kind == "neighborhood":
        down, across = (side // 2 for side in pattern.size)
        near_row = (key_row >= row - down) & (key_row <= row + down)
        return shared | near_row & (key_column >= column - across) & (key_column <= column + across)
    down, across = pattern.blocks(grid)
    if pattern.kind == "stride":
        return shared | (row % down == key_row % down) & (column % across == key_column % across)
    return shared | (row // down == key_row // down) & (column // across == key_column // across)


def pattern_mask(
    pattern: Pattern, grid: tuple[int, int], prefix: int, device: torch.device | str = "cpu"
) -> Tensor:
    """(T, T) bool: row q, column k says whether token q may attend to token k."""
    tokens = torch.arange(prefix + math.prod(grid), device=device)
    return may_attend(pattern, grid, prefix, tokens[:, None], tokens)


def attention_pairs(pattern: Pattern, grid: tuple[int, int], prefix: int) -> int:
    """The pairs of query and key that `pattern_mask` allows.

    Each costs 4 * d FLOPs in each head: 2 * d in q k^T and as many in the weighted sum of v.
    """
    patches = math.prod(grid)
    if pattern.kind == "global":
        among_patches = patches**2
    elif pattern.kind == "neighborhood":
        among_patches = math.prod(map(near_pairs, grid, pattern.size))
    else:
        among_patches = patches * pattern.group_size(grid)
    return among_patches + 2 * prefix * patches + prefix**2


def near_pairs(side: int, size: int) -> int:
    """Pairs of 0 .. side - 1 that are at most (size - 1) / 2 apart."""
    reach = min(size // 2, side - 1)
    return side * (2 * reach + 1) - reach * (reach + 1)


@lru_cache(maxsize=64)
def block_mask(
    pattern: Pattern, grid: tuple[int, int], prefix: int, device: torch.device
) -> BlockMask:
    """FlexAttention's form of `pattern_mask`: which blocks of pairs it may pass over."""
    from torch.nn.attention.flex_attention import create_block_mask  # half a second to import

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return may_attend(pattern, grid, prefix, query, key)

    tokens = prefix + math.prod(grid)
    with torch.inference_mode(False):  # it is kept, and training may need it later
        return create_block_mask(mask_mod, None, None, tokens, tokens, device=device)


@cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    """FlexAttention is fast only where it is compiled; this compiles it on its first use."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]
