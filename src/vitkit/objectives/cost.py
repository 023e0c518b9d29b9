"""What an image costs to learn from by each objective, from configs alone."""

from __future__ import annotations

from dataclasses import replace

from vitkit.models import cost
from vitkit.models.nets import NetConfig, feature_width
from vitkit.models.vit_config import ViTConfig
from vitkit.objectives.mae import check_mae, decoder_config
from vitkit.objectives.masking import BINS, CELLS, check_masking
from vitkit.objectives.patches import hidden_count
from vitkit.objectives.settings import ContrastiveConfig, MaskingConfig, Objective


def flops(
    net: NetConfig,
    objective: Objective,
    masking: MaskingConfig,
    contrastive: ContrastiveConfig,
    batch_size: int,
) -> int:
    """FLOPs of one image's (of simclr one view's) forward pass, counted as models.cost.flops does.

    `batch_size` is of the whole batch, whose views simclr compares. UsageError for a net that the
    objective is not for.
    """
    if objective == "mae":
        return 2 * mae_multiply_adds(check_mae(net, masking), masking)
    if objective == "masked-patches":
        return 2 * masked_multiply_adds(check_masking(net, masking), masking)
    if objective == "simclr":
        projection = contrastive.hidden_width * (width_of(net) + contrastive.width)
        return body(net) + 2 * (projection + batch_size * contrastive.width)
    return cost.flops(net)


def body(net: NetConfig) -> int:
    """FLOPs of the net's forward pass without a head."""
    return cost.flops(replace(net, classes=0))


def width_of(net: NetConfig) -> int:
    """D of the net's features."""
    return net.feature_width if isinstance(net, ViTConfig) else feature_width(cost.skeleton(net))


def masked_multiply_adds(net: ViTConfig, masking: MaskingConfig) -> int:
    """The whole net, and the head on the patches that are corrupted."""
    patches = net.grid[0] * net.grid[1]
    colours = CELLS.get(masking.target, 0) ** 2 * BINS**3
    outputs = colours or 3 * net.cell**2
    return body(net) // 2 + hidden_count(masking.rate, patches) * net.width * outputs


def mae_multiply_adds(net: ViTConfig, masking: MaskingConfig) -> int:
    """All patches are embedded; the encoder reads those that are seen, the decoder all."""
    decoder = decoder_config(net, masking)
    patches, pixels = net.grid[0] * net.grid[1], 3 * net.cell**2
    hidden = hidden_count(masking.rate, patches)
    seen, every = net.prefix + patches - hidden, net.prefix + patches
    return (
        patches * pixels * net.width
        + net.depth * block_multiply_adds(net, seen)
        + seen * net.width * decoder.width
        + decoder.depth * block_multiply_adds(decoder, every)
        + hidden * decoder.width * pixels
    )


def block_multiply_adds(net: ViTConfig, tokens: int) -> int:
    """A block with global attention on so many tokens."""
    dense = 4 * net.width**2 + cost.mlp_multiply_adds(net)  # q, k, v, out and the MLP
    return tokens * dense + 2 * tokens**2 * net.width
