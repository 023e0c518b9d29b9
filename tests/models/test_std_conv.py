"""Convolution with weight standardisation, and TensorFlow's SAME padding, as properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vitkit.models.std_conv import StdConv2d, same_padding, standardise

BIT = {"variance_eps": 1e-10, "std_eps": 0.0}
HYBRID = {"variance_eps": 0.0, "std_eps": 1e-5}
both_families = pytest.mark.parametrize("epsilons", [BIT, HYBRID], ids=["BiT", "hybrid"])


def random_weight(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype) * 0.3 + 0.1


def by_the_formula(weight: Tensor, variance_eps: float, std_eps: float) -> Tensor:
    """Kernel by kernel, in plain words."""
    kernels = []
    for kernel in weight:
        mean = kernel.sum() / kernel.numel()
        variance = ((kernel - mean) ** 2).sum() / kernel.numel()
        kernels.append((kernel - mean) / (math.sqrt(variance + variance_eps) + std_eps))
    return torch.stack(kernels)


# Standardisation: (w - mean) / (sqrt(variance + variance_eps) + std_eps)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 100.0])
@pytest.mark.parametrize(
    "variance_eps, std_eps", [(1e-10, 0.0), (1e-6, 0.0), (0.0, 1e-5), (1e-4, 1e-2)]
)
@pytest.mark.parametrize("shape", [(4, 3, 7, 7), (5, 2, 1, 1), (2, 1, 3, 3)])
def test_each_output_channel_is_standardised_by_its_own_mean_and_biased_variance(
    shape, variance_eps, std_eps, scale
):
    weight = random_weight(*shape) * scale
    expected = by_the_formula(weight, variance_eps, std_eps)
    torch.testing.assert_close(standardise(weight, variance_eps, std_eps), expected)


@both_families
def test_a_standardised_kernel_has_mean_zero_and_variance_one(epsilons):
    kernel = standardise(random_weight(6, 5, 3, 3), **epsilons)
    torch.testing.assert_close(kernel.mean(dim=(1, 2, 3)), torch.zeros(6, dtype=kernel.dtype))
    variance = kernel.square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-4, atol=0)


@both_families
def test_a_kernel_far_from_zero_loses_no_digits_to_its_mean(epsilons):
    weight = random_weight(4, 8, 3, 3) + 100
    expected = standardise(weight.float().double(), **epsilons)
    difference = standardise(weight.float(), **epsilons) - expected
    assert difference.abs().max() < 3e-4


@both_families
def test_a_constant_kernel_becomes_zero_and_its_gradient_is_finite(epsilons):
    weight = torch.full((2, 3, 3, 3), 0.25, requires_grad=True)
    kernel = standardise(weight, **epsilons)
    assert torch.equal(kernel, torch.zeros_like(kernel))
    kernel.backward(torch.randn_like(kernel))
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("variance_eps, std_eps", [(1e-10, 0.0), (0.0, 1e-5), (1e-2, 1e-1)])
def test_gradients_are_those_of_the_formula(variance_eps, std_eps):
    weight = random_weight(3, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: standardise(w, variance_eps, std_eps), weight)


@both_families
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_weights_are_still_standardised_in_float32(epsilons, dtype):
    weight = random_weight(8, 32, 3, 3, dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        kernel = standardise(weight, **epsilons)
    assert torch.equal(kernel, standardise(weight, **epsilons))


@both_families
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_standardised_in_float32_and_rounded_once(epsilons, dtype):
    weight = (random_weight(8, 32, 3, 3) * 1e-3).to(dtype)
    expected = standardise(weight.float(), **epsilons).to(dtype)
    assert torch.equal(standardise(weight, **epsilons), expected)


# The convolution


@both_families
@pytest.mark.parametrize("kernel, stride, padding", [(1, 1, 0), (1, 2, 0), (3, 2, 1), (7, 2, 3)])
def test_with_a_number_for_padding_that_many_zeros_are_on_every_side(
    epsilons, kernel, stride, padding
):
    layer = StdConv2d(3, 4, kernel, stride, padding=padding, **epsilons).double()
    images = torch.randn(2, 3, 12, 15, dtype=torch.float64)
    padded = F.pad(images, (padding, padding, padding, padding))
    expected = F.conv2d(padded, standardise(layer.weight, **epsilons), stride=stride)
    torch.testing.assert_close(layer(images), expected)


@given(
    kernel=st.integers(1, 7), stride=st.integers(1, 3), height=st.integers(1, 20),
    width=st.integers(1, 20), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_same_padding_gives_an_output_for_every_stride_that_begins_in_the_image(
    kernel, stride, height, width, seed
):
    torch.manual_seed(seed)
    layer = StdConv2d(2, 3, kernel, stride, padding="same", **BIT).double()
    images = torch.randn(1, 2, height, width, dtype=torch.float64)
    output = layer(images)
    assert output.shape[-2:] == (math.ceil(height / stride), math.ceil(width / stride))
    (top, bottom), (left, right) = (same_padding(n, kernel, stride) for n in (height, width))
    expected = F.conv2d(
        F.pad(images, (left, right, top, bottom)), standardise(layer.weight, **BIT), stride=stride
    )
    torch.testing.assert_close(output, expected[..., : output.shape[-2], : output.shape[-1]])


@pytest.mark.parametrize(
    "size, kernel, stride, zeros",
    [
        (224, 7, 2, (2, 3)), (112, 3, 2, (0, 1)), (56, 3, 1, (1, 1)), (56, 1, 2, (0, 0)),
        (225, 7, 2, (3, 3)), (113, 3, 2, (1, 1)), (1, 3, 2, (1, 1)), (2, 3, 2, (0, 1)),
        (8, 4, 1, (1, 2)),
    ],
)  # fmt: skip
def test_the_zeros_of_same_padding_at_sizes_worked_by_hand(size, kernel, stride, zeros):
    assert same_padding(size, kernel, stride) == zeros


def test_the_smaller_half_of_the_zeros_comes_first():
    """3 x 3 windows of stride 2 on 4 x 4 ones: the first is inside, the last reaches over."""
    layer = StdConv2d(1, 1, 3, 2, padding="same", variance_eps=0.0, std_eps=1.0).double()
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 2, 2] = 1.0  # reads the last row and column of each window
    ones = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    kernel = standardise(layer.weight, 0.0, 1.0)
    assert layer(ones)[0, 0, 0, 0].item() == pytest.approx(kernel.sum().item(), abs=1e-12)
    assert layer(ones)[0, 0, 1, 1].item() == pytest.approx(kernel[..., :2, :2].sum().item())


def test_the_layer_holds_one_weight_and_no_bias():
    layer = StdConv2d(3, 4, 7, 2, padding="same", **HYBRID)
    assert {name: tuple(value.shape) for name, value in layer.state_dict().items()} == {
        "weight": (4, 3, 7, 7)
    }


def test_the_layer_can_be_made_and_run_without_memory():
    with torch.device("meta"):
        layer = StdConv2d(3, 4, 7, 2, padding="same", **HYBRID)
    assert layer(torch.empty(2, 3, 225, 224, device="meta")).shape == (2, 4, 113, 112)


def test_the_layer_describes_itself_with_its_padding_and_epsilons():
    words = repr(StdConv2d(3, 4, 7, 2, padding="same", **HYBRID))
    assert "padding=same, variance_eps=0.0, std_eps=1e-05" in words


# Words that are wrong


@pytest.mark.parametrize(
    "variance_eps, std_eps, words",
    [
        (-1e-5, 0.0, "variance_eps is -1e-05"),
        (0.0, math.nan, "std_eps is nan"),
        (math.inf, 0.0, "variance_eps is inf"),
        (0.0, 0.0, "both 0"),
    ],
)
def test_epsilons_that_could_divide_by_zero_are_refused(variance_eps, std_eps, words):
    with pytest.raises(ValueError, match=words):
        StdConv2d(3, 4, 3, padding=1, variance_eps=variance_eps, std_eps=std_eps)
