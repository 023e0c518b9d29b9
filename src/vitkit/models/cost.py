"""What a net costs, from its config alone: no weights are made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitkit.models.vit import ViTConfig


def parameters(net: ViTConfig) -> int:
    """The number of weights and biases, position embeddings and class token included."""
    width, mlp = net.width, net.mlp_width
    embedding = 3 * net.patch**2 * width + width
    block = (
        2 * 2 * width  # two norms
        + 4 * (width * width + width)  # q, k, v, out
        + (width * mlp + mlp) + (mlp * width + width)
    )  # fmt: skip
    hidden = width * width + width if net.hidden_head else 0
    head = width * net.classes + net.classes
    return (
        embedding + (net.prefix + net.tokens) * width + net.depth * block
        + 2 * width + hidden + head
    )  # fmt: skip


def flops(net: ViTConfig) -> int:
    """FLOPs of one image's forward pass: 2 for each multiply-add of a matrix product.

    Norms, softmax, GELU and additions are not counted, as torch.utils.flop_counter does not count
    them. Multiply-adds, which the field's tables often call FLOPs, are half of this. A training
    step costs three times as much.
    """
    tokens, width = net.tokens, net.width
    patches = tokens - net.prefix
    embedding = patches * 3 * net.patch**2 * width
    block = (
        4 * tokens * width**2  # q, k, v, out
        + 2 * tokens**2 * width  # q k^T and the weighted sum of v
        + 2 * tokens * width * net.mlp_width
    )
    hidden = width**2 if net.hidden_head else 0
    return 2 * (embedding + net.depth * block + hidden + width * net.classes)
