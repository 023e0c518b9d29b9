"""Attention within groups equals ordinary attention under a mask that forbids the other pairs."""

import itertools
import math
import re
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_mask, flex_attention
from torch.utils.flop_counter import FlopCounterMode

from vitkit.models import attend as attend_module
from vitkit.models import restricted as module
from vitkit.models.restricted import (
    attend_within,
    attention_pairs,
    block_mask,
    parse_pattern,
    pattern_mask,
)

CASES = [  # pattern, grid
    ("global", (3, 4)),
    ("row", (4, 4)), ("row", (3, 5)), ("row", (1, 6)),
    ("column", (4, 4)), ("column", (3, 5)),
    ("window:2", (4, 4)), ("window:2", (4, 6)), ("window:1x3", (2, 6)), ("window:4x2", (4, 6)),
    ("stride:2", (4, 4)), ("stride:2", (4, 6)), ("stride:3x2", (6, 4)), ("stride:1x3", (2, 6)),
    ("neighborhood:3", (4, 4)), ("neighborhood:1x5", (3, 7)), ("neighborhood:9", (3, 4)),
]  # fmt: skip
every_case = pytest.mark.parametrize(("text", "grid"), CASES)
every_prefix = pytest.mark.parametrize("prefix", [0, 1, 3])


@st.composite
def patterns_on_grids(draw):
    """A pattern's text and a grid that its blocks divide."""
    kind = draw(st.sampled_from(["global", "row", "column", "window", "stride", "neighborhood"]))
    blocks, size = (draw(st.tuples(st.integers(1, 4), st.integers(1, 4))) for _ in range(2))
    if kind in ("window", "stride"):
        return f"{kind}:{size[0]}x{size[1]}", (blocks[0] * size[0], blocks[1] * size[1])
    odd = f":{2 * size[0] - 1}x{2 * size[1] - 1}"
    return kind + (odd if kind == "neighborhood" else ""), blocks


def random_qkv(tokens: int, dtype=torch.float64, batch=2, heads=3, width=4) -> list[Tensor]:
    """q, k, v laid out as the net has them: views of one (B, T, 3, h, d)."""
    qkv = torch.randn(batch, tokens, 3, heads, width, dtype=dtype, requires_grad=True)
    return list(qkv.permute(2, 0, 3, 1, 4).unbind(0))


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Every pair computed, the forbidden ones then left out of the softmax."""
    logits = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
    return torch.softmax(logits, dim=-1) @ v


def coordinates(grid: tuple[int, int]):
    """Pairs of patches, each a row and a column, in the order of the tokens."""
    return itertools.product(itertools.product(range(grid[0]), range(grid[1])), repeat=2)


# What each pattern means


MEANINGS = {
    "global": lambda r, c, s, d: True,
    "row": lambda r, c, s, d: r == s,
    "column": lambda r, c, s, d: c == d,
    "window:2x3": lambda r, c, s, d: (r // 2, c // 3) == (s // 2, d // 3),
    "stride:2x3": lambda r, c, s, d: (r % 2, c % 3) == (s % 2, d % 3),
    "neighborhood:3x5": lambda r, c, s, d: abs(r - s) <= 1 and abs(c - d) <= 2,
}


@pytest.mark.parametrize("text", MEANINGS)
def test_the_mask_is_the_meaning_of_the_pattern(text):
    grid = (4, 6)
    allowed = [MEANINGS[text](*query, *key) for query, key in coordinates(grid)]
    mask = pattern_mask(parse_pattern(text), grid, prefix=0)
    assert mask.dtype == torch.bool
    assert mask.flatten().tolist() == allowed


@every_case
def test_prefix_tokens_see_everything_and_everything_sees_them(text, grid):
    pattern = parse_pattern(text)
    mask = pattern_mask(pattern, grid, prefix=2)
    assert mask[:2].all() and mask[:, :2].all()
    assert torch.equal(mask[2:, 2:], pattern_mask(pattern, grid, prefix=0))


@given(patterns_on_grids())
@settings(max_examples=50, deadline=None)
def test_a_patch_sees_itself_and_who_sees_whom_is_mutual(case):
    text, grid = case
    mask = pattern_mask(parse_pattern(text), grid, prefix=1)
    assert mask.diagonal().all()
    assert torch.equal(mask, mask.T)


def test_rows_are_flat_windows_and_a_whole_neighborhood_is_global():
    def mask(text):
        return pattern_mask(parse_pattern(text), (4, 6), prefix=1)

    assert torch.equal(mask("row"), mask("window:1x6"))
    assert torch.equal(mask("column"), mask("window:4x1"))
    assert torch.equal(mask("column"), mask("stride:1x6"))
    for text in ("window:4x6", "stride:1", "neighborhood:11"):
        assert torch.equal(mask(text), mask("global"))


# Attention within groups


@every_case
@every_prefix
def test_it_equals_attention_under_the_mask(text, grid, prefix):
    pattern = parse_pattern(text)
    q, k, v = random_qkv(prefix + math.prod(grid))
    found = attend_within(q, k, v, pattern, grid, prefix)
    expected = masked_attention(q, k, v, pattern_mask(pattern, grid, prefix))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@every_case
@every_prefix
def test_its_gradients_equal_those_under_the_mask(text, grid, prefix):
    pattern = parse_pattern(text)
    inputs = random_qkv(prefix + math.prod(grid))
    weight = torch.randn_like(inputs[0])
    found = attend_within(*inputs, pattern, grid, prefix)
    expected = masked_attention(*inputs, pattern_mask(pattern, grid, prefix))
    torch.testing.assert_close(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        rtol=0, atol=1e-10,
    )  # fmt: skip


@given(
    case=patterns_on_grids(), prefix=st.integers(0, 3), batch=st.integers(1, 3),
    heads=st.integers(1, 3), width=st.integers(1, 5), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_it_equals_attention_under_the_mask_on_any_grid(case, prefix, batch, heads, width, seed):
    torch.manual_seed(seed)
    pattern, grid = parse_pattern(case[0]), case[1]
    q, k, v = random_qkv(prefix + math.prod(grid), batch=batch, heads=heads, width=width)
    found = attend_within(q, k, v, pattern, grid, prefix)
    expected = masked_attention(q, k, v, pattern_mask(pattern, grid, prefix))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@every_case
@every_prefix
def test_it_agrees_to_a_hundred_thousandth_in_float32(text, grid, prefix):
    pattern = parse_pattern(text)
    q, k, v = random_qkv(prefix + math.prod(grid), dtype=torch.float32)
    found = attend_within(q, k, v, pattern, grid, prefix)
    mask = pattern_mask(pattern, grid, prefix)
    expected = masked_attention(q.double(), k.double(), v.double(), mask)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@every_case
@pytest.mark.parametrize("way", [True, False], ids=["written out", "fused"])
def test_bfloat16_stays_bfloat16(text, grid, way):
    pattern = parse_pattern(text)
    q, k, v = random_qkv(1 + math.prod(grid), dtype=torch.bfloat16)
    with patch.object(attend_module, "written_out_is_faster", lambda q, k: way):
        found = attend_within(q, k, v, pattern, grid, prefix=1)
    assert found.dtype == torch.bfloat16
    mask = pattern_mask(pattern, grid, prefix=1)
    expected = masked_attention(q.double(), k.double(), v.double(), mask)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.03)


@every_case
def test_an_image_does_not_see_the_others_of_its_batch(text, grid):
    pattern = parse_pattern(text)
    q, k, v = random_qkv(1 + math.prod(grid), batch=3)
    found = attend_within(q, k, v, pattern, grid, prefix=1)
    alone = attend_within(q[1:2], k[1:2], v[1:2], pattern, grid, prefix=1)
    torch.testing.assert_close(found[1:2], alone)


@pytest.mark.parametrize("text", ["row", "window:2", "stride:2", "neighborhood:3"])
def test_a_patch_reads_nothing_from_outside_its_group(text):
    grid, pattern = (4, 4), parse_pattern(text)
    q, k, v = random_qkv(16)
    reads = torch.autograd.grad(attend_within(q, k, v, pattern, grid, 0)[0, :, 5].sum(), v)[0]
    assert torch.equal(reads[0, 0, :, 0] != 0, pattern_mask(pattern, grid, 0)[5])


@pytest.mark.parametrize("text", ["row", "window:2", "stride:2", "neighborhood:3"])
@pytest.mark.parametrize("prefix", [0, 1])
@torch.no_grad()
def test_it_is_exported_for_any_number_of_images(text, prefix):
    grid = (4, 6)

    class Net(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend_within(q, k, v, parse_pattern(text), grid, prefix)

    q, k, v = random_qkv(prefix + math.prod(grid), batch=5)
    images = {0: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(Net(), (q[:2], k[:2], v[:2]), dynamic_shapes=(images,) * 3)
    torch.testing.assert_close(exported.module()(q, k, v), Net()(q, k, v))


@pytest.mark.parametrize("prefix", [0, 1])
def test_what_was_seen_under_inference_mode_does_not_keep_it_from_training(prefix):
    pattern, grid = parse_pattern("neighborhood:3"), (4, 4)
    q, k, v = random_qkv(prefix + 16)
    with torch.inference_mode():
        attend_within(q, k, v, pattern, grid, prefix)
        block_mask(pattern, grid, prefix, q.device)
    attend_within(q, k, v, pattern, grid, prefix).sum().backward()
    assert not block_mask(pattern, grid, prefix, q.device).kv_num_blocks.is_inference()


# Cost


@given(case=patterns_on_grids(), prefix=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_the_pairs_are_those_of_the_mask(case, prefix):
    pattern, grid = parse_pattern(case[0]), case[1]
    pairs = attention_pairs(pattern, grid, prefix)
    assert pairs == pattern_mask(pattern, grid, prefix).sum().item()


@pytest.mark.parametrize(("text", "grid"), [c for c in CASES if "neighborhood" not in c[0]])
@every_prefix
def test_no_other_pairs_are_computed(text, grid, prefix):
    pattern, heads, width = parse_pattern(text), 3, 4
    q, k, v = random_qkv(prefix + math.prod(grid), batch=1, heads=heads, width=width)
    written_out = patch.object(attend_module, "written_out_is_faster", lambda q, k: True)
    with written_out, FlopCounterMode(display=False) as counter:  # fused ones on a CPU count as 0
        attend_within(q, k, v, pattern, grid, prefix)
    pairs = attention_pairs(pattern, grid, prefix)
    assert counter.get_total_flops() == 2 * 2 * pairs * width * heads


@pytest.mark.parametrize(
    ("text", "growth"),
    [("global", 16), ("row", 8), ("column", 8), ("window:4", 4), ("stride:4", 16)],
)
def test_with_four_times_the_patches_the_cost_grows_as_it_should(text, growth):
    pattern = parse_pattern(text)
    smaller, larger = (attention_pairs(pattern, (side, side), 0) for side in (32, 64))
    assert larger == growth * smaller
    assert attention_pairs(parse_pattern("stride:4"), (64, 64), 0) == 64**4 / 4**2


def test_rows_without_a_prefix_are_not_copied():
    q, _, _ = random_qkv(12)
    rows = module.group(q, parse_pattern("row"), (3, 4), prefix=0)
    assert rows.untyped_storage().data_ptr() == q.untyped_storage().data_ptr()


@every_case
def test_the_heads_of_a_token_lie_side_by_side_in_memory(text, grid):
    """So that the net, which joins them next, need not copy."""
    q, k, v = random_qkv(1 + math.prod(grid), dtype=torch.float32)
    found = attend_within(q, k, v, parse_pattern(text), grid, prefix=1)
    assert found.transpose(1, 2).is_contiguous()


# FlexAttention


@every_case
@every_prefix
def test_flex_attention_is_given_the_same_mask(text, grid, prefix):
    tokens = prefix + math.prod(grid)
    pattern = parse_pattern(text)
    mask_mod = block_mask(pattern, grid, prefix, torch.device("cpu")).mask_mod
    mask = create_mask(mask_mod, 1, 1, tokens, tokens, device="cpu")
    assert torch.equal(mask[0, 0], pattern_mask(pattern, grid, prefix))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("prefix", [0, 1])
def test_flex_attention_under_the_block_mask_equals_attention_under_the_mask(prefix):
    pattern, grid = parse_pattern("neighborhood:3"), (16, 12)  # more than one block of 128
    q, k, v = (x.detach() for x in random_qkv(prefix + 16 * 12, torch.float32, width=16))
    found = flex_attention(q, k, v, block_mask=block_mask(pattern, grid, prefix, q.device))
    expected = attend_within(q, k, v, pattern, grid, prefix)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention trains on a CUDA device")
@pytest.mark.parametrize("prefix", [0, 1])
def test_on_a_cuda_device_neighborhoods_equal_attention_under_the_mask(prefix):
    pattern, grid = parse_pattern("neighborhood:3"), (16, 12)
    inputs = [x.cuda() for x in random_qkv(prefix + 16 * 12, torch.float32, width=16)]
    found = attend_within(*inputs, pattern, grid, prefix)
    mask = pattern_mask(pattern, grid, prefix, "cuda")
    expected = F.scaled_dot_product_attention(*inputs, attn_mask=mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    gradients = (torch.autograd.grad(x.square().sum(), inputs) for x in (found, expected))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-2)


# Words


@pytest.mark.parametrize(
    "text",
    ["global", "row", "column", "window:7", "window:7x2", "stride:2", "stride:2x4",
     "neighborhood:7", "neighborhood:3x5"],
)  # fmt: skip
def test_a_pattern_is_written_as_it_is_read(text):
    assert str(parse_pattern(text)) == text


def test_one_number_is_both_sides():
    assert parse_pattern("window:4") == parse_pattern("window:4x4")


@pytest.mark.parametrize(
    "text",
    ["", "Row", "rows", "row:2", "global:1", "window", "window:", "window:0", "window:-2",
     "window:2x", "window:2x0", "window:2x2x2", "window:2.5", "window: 2", "stride:x2",
     "window:٢", "neighborhood", "axial", "window:2\n"],
)  # fmt: skip
def test_a_text_that_is_no_pattern_is_refused_with_those_that_are(text):
    with pytest.raises(ValueError, match=re.escape(repr(text)) + ".*'row'.*'stride:S'"):
        parse_pattern(text)


@pytest.mark.parametrize("text", ["neighborhood:4", "neighborhood:3x2"])
def test_a_neighborhood_has_a_middle(text):
    with pytest.raises(ValueError, match="odd"):
        parse_pattern(text)


@pytest.mark.parametrize("text", ["window:4", "stride:4", "window:7x4", "window:16", "stride:5x7"])
def test_blocks_that_do_not_divide_the_grid_are_refused_with_those_that_do(text):
    says = f"'{text}' does not divide the grid of 14x10 .* 1, 2, 7, 14 down and 1, 2, 5, 10 across"
    with pytest.raises(ValueError, match=says):
        parse_pattern(text).check((14, 10))


@pytest.mark.parametrize("text", ["global", "row", "column", "window:2", "neighborhood:17"])
def test_a_pattern_that_fits_is_not_refused(text):
    parse_pattern(text).check((14, 10))


def test_attention_on_a_grid_that_does_not_fit_is_refused():
    q, k, v = random_qkv(15)
    with pytest.raises(ValueError, match="'window:2' does not divide the grid of 3x5"):
        attend_within(q, k, v, parse_pattern("window:2"), (3, 5), prefix=0)


def test_a_grid_as_large_as_only_a_hostile_file_asks_for_is_refused_at_once():
    with pytest.raises(ValueError, match=r"'window:7' does not divide the grid of 68719476736x"):
        parse_pattern("window:7").check((2**36, 2**36))
