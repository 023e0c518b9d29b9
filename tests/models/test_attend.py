"""attend: softmax(q k^T / sqrt(d)) v, whichever way it is computed."""

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vitkit.models import attend as module
from vitkit.models.attend import attend

# The two ways, taken whatever is faster.
written_out = patch.object(module, "written_out_is_faster", lambda q, k: True)
fused = patch.object(module, "written_out_is_faster", lambda q, k: False)
both_ways = pytest.mark.parametrize("way", [written_out, fused], ids=["written out", "fused"])

shapes = st.tuples(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.integers(1, 16)
)  # batch, heads, T, S, d


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Appendix A, Eq. 6 and 7, in as many steps."""
    logits = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(q.shape[-1])
    weights = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    return torch.einsum("bhts,bhsd->bhtd", weights, v)


def random_qkv(batch, heads, queries, keys, width, dtype=torch.float64):
    q = torch.randn(batch, heads, queries, width, dtype=dtype, requires_grad=True)
    k, v = torch.randn(2, batch, heads, keys, width, dtype=dtype).unbind()
    return q, k.requires_grad_(), v.requires_grad_()


@both_ways
@given(shape=shapes, seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_attend_equals_the_formula_and_the_fused_kernel(way, shape, seed):
    torch.manual_seed(seed)
    q, k, v = random_qkv(*shape)
    with way:
        found = attend(q, k, v)
    torch.testing.assert_close(found, formula(q, k, v), rtol=0, atol=1e-5)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v), rtol=0, atol=1e-5)


@both_ways
@given(shape=shapes, seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_gradients_of_attend_equal_those_of_the_formula(way, shape, seed):
    torch.manual_seed(seed)
    inputs = random_qkv(*shape)
    weight = torch.randn(shape[0], shape[1], shape[2], shape[4], dtype=torch.float64)
    with way:
        found = torch.autograd.grad((attend(*inputs) * weight).sum(), inputs)
    expected = torch.autograd.grad((formula(*inputs) * weight).sum(), inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "longer", "expected"),
    [(torch.bfloat16, 0, True), (torch.bfloat16, 1, False), (torch.float32, 0, False)],
)
def test_on_a_cpu_attention_is_written_out_in_bfloat16_up_to_a_length(dtype, longer, expected):
    q, k, _ = random_qkv(1, 2, 7, module.WRITTEN_OUT_UP_TO + longer, 4, dtype=dtype)
    assert module.written_out_is_faster(q, k) is expected


@both_ways
def test_attend_agrees_to_a_hundred_thousandth_in_float32(way):
    q, k, v = random_qkv(2, 3, 65, 65, 64, dtype=torch.float32)
    with way:
        found = attend(q, k, v)
    expected = formula(q.double(), k.double(), v.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@both_ways
def test_bfloat16_stays_bfloat16_and_is_right_to_its_own_precision(way):
    q, k, v = (x.detach() for x in random_qkv(2, 3, 65, 65, 64, dtype=torch.bfloat16))
    with way:
        found = attend(q, k, v)
    assert found.dtype == torch.bfloat16
    expected = formula(q.double(), k.double(), v.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.02)


@both_ways
def test_autocast_keeps_bfloat16_through_the_softmax(way):
    q, k, v = (x.detach() for x in random_qkv(2, 3, 17, 17, 8, dtype=torch.bfloat16))
    with way, torch.autocast("cpu", torch.bfloat16):
        assert attend(q, k, v).dtype == torch.bfloat16


@both_ways
def test_large_logits_do_not_overflow(way):
    q, k, v = (x.detach() for x in random_qkv(1, 1, 5, 5, 4, dtype=torch.float32))
    with way:
        found = attend(q * 1e4, k, v)
    winners = (q @ k.transpose(-2, -1)).argmax(dim=-1)  # softmax has become a choice
    torch.testing.assert_close(found, v[0, 0, winners[0, 0]][None, None])
