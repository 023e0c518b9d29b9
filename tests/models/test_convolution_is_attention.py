"""A 3x3 convolution is a special case of multi-head attention (Cordonnier et al. 2020, Theorem 1).

One head for each of the nine places of the kernel: a position selects the token at one offset,
whatever the contents, the values are that token times the kernel's matrix for the place, and the
output sums the heads. Positions are those of appendix D.4, learned embeddings of the offset in one
dimension. An offset of dy rows and dx columns is dy * W + dx tokens, as long as no row runs into
the next: a border of zeros around the image sees to that.

What is claimed: at every patch inside the border the attention layer of the net, with weights
that exist, equals the convolution of what is inside, padded with zeros. The number of channels
that come out is the width of a head, as in the theorem. Nothing is claimed of the border's patches,
nor that training finds such weights.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitkit.models.vit import Attention
from vitkit.models.vit_config import ViTConfig

HEADS, CHANNELS = 9, 4  # a head for each place of the kernel; channels that come out, d
WIDTH = HEADS * CHANNELS  # channels that go in, D
PLACES = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


@torch.no_grad()
def attention_like(kernel: Tensor, grid: tuple[int, int], pooling: str) -> Attention:
    """An attention layer for `grid` patches that does what the kernel (d, D, 3, 3) does."""
    config = ViTConfig(
        1, WIDTH, 1, HEADS, 1, image_size=grid, positions="relative", pooling=pooling
    )  # fmt: skip
    attention = Attention(config).to(kernel.dtype)
    for parameter in attention.parameters():
        parameter.zero_()
    assert attention.relative_embedding is not None
    offsets = attention.relative_embedding.view(-1, HEADS, CHANNELS)  # row o: i - j = T - 1 - o
    query, _, value = attention.qkv.weight.view(3, HEADS, CHANNELS, WIDTH)
    query_bias = attention.qkv.bias.view(3, HEADS, CHANNELS)[0]
    for head, (dy, dx) in enumerate(PLACES):
        query_bias[head, 0] = CHANNELS**0.5  # every query is the same, and every key 0
        offsets[config.tokens - 1 + dy * grid[1] + dx, head, 0] = 200  # e^-200 is left for others
        value[head] = kernel[:, :, dy + 1, dx + 1]
        attention.out.weight[:CHANNELS, head * CHANNELS : (head + 1) * CHANNELS] = torch.eye(
            CHANNELS
        )
    assert not query.any()
    return attention


def as_tokens(feature_map: Tensor, prefix: int) -> Tensor:
    """(B, D, H, W) -> (B, prefix + H * W, D), the prefix a token of anything."""
    tokens = feature_map.flatten(2).transpose(1, 2)
    return torch.cat([torch.randn_like(tokens[:, :prefix]), tokens], dim=1)


def as_feature_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, prefix + H * W, D) -> (B, d, H, W): the channels that come out."""
    return tokens[:, -grid[0] * grid[1] :, :CHANNELS].transpose(1, 2).unflatten(2, grid)


@pytest.mark.parametrize("pooling", ["mean", "token"])  # without and with a class token
@pytest.mark.parametrize("inside", [(5, 5), (3, 6), (6, 1)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str
)
@torch.no_grad()
def test_attention_inside_a_border_of_zeros_is_a_convolution(inside, pooling, dtype, tolerance):
    grid = (inside[0] + 2, inside[1] + 2)
    kernel = torch.randn(CHANNELS, WIDTH, 3, 3, dtype=dtype) / WIDTH**0.5
    image = torch.randn(2, WIDTH, *inside, dtype=dtype)
    attention = attention_like(kernel, grid, pooling)
    tokens = attention(as_tokens(F.pad(image, (1, 1, 1, 1)), attention.prefix))
    found = as_feature_map(tokens, grid)[:, :, 1:-1, 1:-1]
    expected = F.conv2d(image, kernel, padding=1)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
    assert not tokens[..., CHANNELS:].any()


@torch.no_grad()
def test_without_a_border_it_is_one_away_from_the_edges_and_rows_run_into_each_other_there():
    grid = (5, 6)
    kernel = torch.randn(CHANNELS, WIDTH, 3, 3, dtype=torch.float64)
    image = torch.randn(1, WIDTH, *grid, dtype=torch.float64)
    tokens = attention_like(kernel, grid, "mean")(as_tokens(image, 0))
    difference = (as_feature_map(tokens, grid) - F.conv2d(image, kernel, padding=1)).abs()[0]
    assert difference[:, 1:-1, 1:-1].max() < 1e-10
    assert difference[:, 1:-1, [0, -1]].amin(dim=(1, 2)).min() > 1e-6
    # At the sides it is the convolution of the rows as one line, neighbours by offset alone.
    around = F.pad(image.flatten(2), (7, 7)).unfold(2, 15, 1)  # of each, 7 before to 7 after
    nine = around[..., [7 + dy * 6 + dx for dy, dx in PLACES]]  # (1, D, tokens, 9)
    one_line = torch.einsum("bcnp,ocp->bon", nine, kernel.flatten(2)).unflatten(2, grid)
    difference = (as_feature_map(tokens, grid) - one_line).abs()[0]
    assert difference.flatten(1)[:, 7:-7].max() < 1e-10  # where the line has all nine
