"""What a net costs, from its config alone: no weights are made."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from vitkit.models.bit import BiTConfig
from vitkit.models.nets import Net, NetConfig, make_meta
from vitkit.models.restricted import attention_pairs, parse_pattern
from vitkit.models.vit_config import ViTConfig


def parameters(net: NetConfig) -> int:
    """The number of weights and biases that are trained, positions and class token included."""
    return sum(p.numel() for p in skeleton(net).parameters() if p.requires_grad)


def flops(net: NetConfig) -> int:
    """FLOPs of one image's forward pass: 2 for each multiply-add of a product or convolution.

    Norms, softmax, GELU and additions are not counted, as torch.utils.flop_counter does not count
    them; what a convolution reads of its zero padding is, as there. Multiply-adds, which the
    field's tables often call FLOPs, are half of this. A training step costs three times as much.
    """
    if isinstance(net, ViTConfig):
        return 2 * vit_multiply_adds(net)
    if isinstance(net, BiTConfig):
        body = resnet_multiply_adds(net.image_size, net.units, net.width)
        return 2 * (body + net.feature_width * net.classes)
    return counted_flops(net)


def exaflops(net: NetConfig, images: float, epochs: float) -> float:
    """10^18 FLOPs of training on so many images, as the paper's Table 6 counts them.

    Three forward passes an image, and 2 FLOPs for a multiply-add. Unlike `flops`, a ResNet's
    convolutions count only what they read inside the image, not its zero padding, as XLA counts
    them. Table 6 comes out to 0.2 % for ViT (but B/32: 56.3, printed as 55), 1.4 % for BiT and
    3.1 % for hybrids.
    """
    counted = flops(net)
    if isinstance(net, BiTConfig):
        counted -= 2 * padding_read(net.image_size, net.units, net.width)
    elif isinstance(net, ViTConfig) and net.stem is not None:
        counted -= 2 * padding_read(net.image_size, net.stem, net.stem_width)
    return 3 * counted * images * epochs / 1e18


@lru_cache(maxsize=1)  # parameters and FLOPs are asked for one after the other
def skeleton(net: NetConfig) -> Net:
    return make_meta(net).eval()


def vit_multiply_adds(net: ViTConfig) -> int:
    tokens, width = net.tokens, net.width
    patches = tokens - net.prefix
    stem, channels = 0, 3
    if net.stem is not None:
        stem = resnet_multiply_adds(net.image_size, net.stem, net.stem_width)
        channels = net.stem_width * (4 * 2 ** (len(net.stem) - 1) if net.stem else 1)
    embedding = patches * channels * net.patch**2 * width
    hidden = width**2 if net.hidden_head else 0
    pool = 0
    if net.pooling == "map":  # one query: its own projection, keys and values of all, out, MLP
        pool = 2 * width**2 + patches * 2 * width**2 + 2 * patches * width
        pool += mlp_multiply_adds(net)
    heads = 2 if net.distillation_token else 1
    return (
        stem + embedding
        + sum(block_multiply_adds(net, layer) for layer in range(net.depth))
        + pool + hidden + heads * net.feature_width * net.classes
    )  # fmt: skip


def block_multiply_adds(net: ViTConfig, layer: int) -> int:
    tokens, width = net.tokens, net.width
    pattern = parse_pattern(net.attention[layer % len(net.attention)])
    pairs = attention_pairs(pattern, net.grid, net.prefix)
    relative = tokens * (2 * tokens - 1) * width if net.positions == "relative" else 0
    return (
        4 * tokens * width**2  # q, k, v, out
        + 2 * pairs * width  # q k^T and the weighted sum of v
        + relative
        + tokens * mlp_multiply_adds(net)
    )


def mlp_multiply_adds(net: ViTConfig) -> int:
    """Of one token."""
    return net.width * net.mlp_width * (3 if net.mlp == "swiglu" else 2)


def resnet_multiply_adds(size: tuple[int, int], units: tuple[int, ...], width: int) -> int:
    """Of a ResNet of bottleneck units after a 7x7 root of `width` channels and a pool, no head.

    The stem of the hybrids and BiT alike: norms and the order within a unit cost nothing here.
    """
    height, across = (-(-side // 2) for side in size)
    total, channels = height * across * 7 * 7 * 3 * width, width
    height, across = -(-height // 2), -(-across // 2)  # the pool
    for stage, count in enumerate(units):
        middle = width * 2**stage
        for unit in range(count):
            total += height * across * channels * middle  # 1x1
            if unit == 0:
                if stage > 0:
                    height, across = -(-height // 2), -(-across // 2)
                total += height * across * channels * 4 * middle  # projection
            total += height * across * (9 * middle**2 + 4 * middle**2)  # 3x3 and 1x1
            channels = 4 * middle
    return total


def padding_read(size: tuple[int, int], units: tuple[int, ...], width: int) -> int:
    """Multiply-adds of such a ResNet's 7x7 root and 3x3 convolutions with zeros around the map."""
    total = read_outside(size, 7, 2) * 3 * width
    height, across = (-(-side // 4) for side in size)  # after root and pool
    for stage, count in enumerate(units):
        middle = width * 2**stage
        for unit in range(count):
            stride = 2 if stage > 0 and unit == 0 else 1
            total += read_outside((height, across), 3, stride) * middle**2
            height, across = -(-height // stride), -(-across // stride)
    return total


def read_outside(size: tuple[int, int], kernel: int, stride: int) -> int:
    """How often a convolution padded by half its kernel reads padding, over the whole map."""

    def inside(side: int) -> int:
        starts = range(-(kernel // 2), side - kernel // 2, stride)
        return sum(min(side, start + kernel) - max(0, start) for start in starts)

    outputs = math.prod(-(-side // stride) for side in size)
    return outputs * kernel**2 - inside(size[0]) * inside(size[1])


def counted_flops(net: NetConfig) -> int:
    """The same for any net, by running it without memory under torch's counter."""
    from torch.utils.flop_counter import FlopCounterMode

    images = torch.empty(1, 3, *net.image_size, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        skeleton(net)(images)
    return counter.get_total_flops()
