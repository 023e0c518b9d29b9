"""Convolution with weight standardisation (Qiao et al. 2019, arXiv 1903.10520)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StdConv2d(nn.Conv2d):
    """Images (B, I, H, W) -> (B, O, H', W'); each output channel's kernel has mean 0, variance 1.

    There is no bias: a norm follows. `padding` is zeros on every side, or "same": TensorFlow's
    SAME. Families of checkpoints differ in their epsilons, see `standardise`: the authors' hybrids
    have variance_eps 0 and std_eps 1e-5, BiT has 1e-10 and 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        *,
        padding: int | Literal["same"],
        variance_eps: float,
        std_eps: float,
    ) -> None:
        check_epsilons(variance_eps, std_eps)
        zeros = 0 if padding == "same" else padding
        super().__init__(in_channels, out_channels, kernel, stride, zeros, bias=False)
        self.same = padding == "same"
        self.variance_eps, self.std_eps = variance_eps, std_eps

    def forward(self, input: Tensor) -> Tensor:  # (B, I, H, W) -> (B, O, H', W')
        kernel = standardise(self.weight, self.variance_eps, self.std_eps)
        padding = self.padding
        if self.same:
            top, bottom = same_padding(input.shape[-2], self.kernel_size[0], self.stride[0])
            left, right = same_padding(input.shape[-1], self.kernel_size[1], self.stride[1])
            if top == bottom and left == right:  # the convolution itself can pad, without a copy
                padding = (top, left)
            else:
                input = F.pad(input, (left, right, top, bottom))
        return F.conv2d(input, kernel, None, self.stride, padding)

    def extra_repr(self) -> str:
        same = ", padding=same" if self.same else ""
        return (
            f"{super().extra_repr()}{same}, variance_eps={self.variance_eps}, "
            f"std_eps={self.std_eps}"
        )


def standardise(weight: Tensor, variance_eps: float, std_eps: float) -> Tensor:
    """(w - mean) / (sqrt(variance + variance_eps) + std_eps) of each output channel's kernel.

    `weight` is (O, I, h, w); the mean and the biased variance are over I, h and w. Computed in
    float32 at least, returned in the weight's own type. Where the variance is 0, so is the result,
    and the gradient is finite.
    """
    w = weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(1)
    if std_eps == 0:  # a layer norm without its affine part, for which there is a fused kernel
        w = F.layer_norm(w, w.shape[1:], eps=variance_eps)
    else:
        # of the ways to write mean and variance, the one whose backward pass copies least
        size = w.shape[1]
        w = w + w.sum(dim=1, keepdim=True) / -size
        variance = torch.linalg.vector_norm(w, dim=1, keepdim=True).square() / size
        # the square root of exactly 0 has no gradient: keep away from it, far below any epsilon
        deviation = (variance + variance_eps).clamp_min(torch.finfo(w.dtype).tiny).sqrt()
        w = w * (deviation + std_eps).reciprocal()
    return w.view_as(weight).to(weight.dtype)


def check_epsilons(variance_eps: float, std_eps: float) -> None:
    """Raises ValueError where `standardise` could divide by zero or by a negative number."""
    for name, value in (("variance_eps", variance_eps), ("std_eps", std_eps)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be a number that is not below 0")
    if variance_eps == std_eps == 0:
        raise ValueError("variance_eps and std_eps are both 0; one of them must be above 0")


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: zeros before and after a side of `size`, for ceil(size / stride) outputs.

    Where the zeros are odd in number the smaller half comes first, so that a 7 x 7 kernel of
    stride 2 has (2, 3) at even sizes and (3, 3) at odd ones.
    """
    # A remainder, no rounded quotients: on those torch.compile is stuck where sizes vary.
    last = size % stride or stride  # pixels from the start of the last stride to the end
    total = max(kernel - last, 0)
    return total // 2, total - total // 2
