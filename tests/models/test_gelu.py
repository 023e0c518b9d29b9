"""GELU computes the same compiled and not."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from vitkit.models.gelu import gelu

compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")


@compiled
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_compiled_it_is_the_same_function_with_the_same_gradient(approximate, dtype):
    def run(function):
        x = torch.linspace(-12, 12, 4001, dtype=dtype).requires_grad_()
        y = function(x, approximate)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        return y.detach(), gradient

    found, expected = run(torch.compile(gelu, dynamic=False)), run(gelu)
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-13, torch.bfloat16: 1e-2}[dtype]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_not_compiled_it_is_torchs_own():
    x = torch.randn(100)
    assert torch.equal(gelu(x, "tanh"), F.gelu(x, approximate="tanh"))
    assert torch.equal(gelu(x, "none"), F.gelu(x))
