"""Scaled dot-product attention through one function, by whichever way is faster."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# On a CPU PyTorch's fused kernel is slow in bfloat16, above all backward, until sequences are
# long; in float32 it is the faster way at every length. Measured by benchmarks/attention.py, see
# docs/performance.md, "Attention".
WRITTEN_OUT_UP_TO = 2048  # tokens


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: q (B, h, T, d), k and v (B, h, S, d) -> (B, h, T, d).

    Source: appendix A, Eq. 6 and 7. Both ways agree to 1e-5 in float32.
    """
    if written_out_is_faster(q, k):
        return attend_written_out(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def written_out_is_faster(q: Tensor, k: Tensor) -> bool:
    in_bfloat16_on_cpu = q.device.type == "cpu" and q.dtype == torch.bfloat16
    return in_bfloat16_on_cpu and k.shape[-2] <= WRITTEN_OUT_UP_TO


def attend_written_out(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same, as two matrix products and a softmax; q is scaled first, as the authors do.

    `bias` (B, h, T, S) is added to the logits.
    """
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    weights = torch.softmax(logits if bias is None else logits + bias, dim=-1)
    return weights.to(v.dtype) @ v  # autocast on CUDA returns the softmax in float32
