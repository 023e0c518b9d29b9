"""What a run's images cost, by what they are to teach; no weights are made."""

from __future__ import annotations

from vitkit.models import cost
from vitkit.models.nets import NetConfig
from vitkit.objectives.cost import flops
from vitkit.training.config import TrainConfig


def flops_of(net: NetConfig, config: TrainConfig) -> int:
    """FLOPs of one image's forward pass, with what stands beside the net while it learns.

    Without a distilling teacher's own. UsageError for a net that the objective is not for.
    """
    return flops(net, config.objective, config.masking, config.contrastive, config.batch_size)


def exaflops_of(net: NetConfig, config: TrainConfig, images: float) -> float:
    """10^18 FLOPs of training on so many images, as models.cost.exaflops counts a net's."""
    further = flops_of(net, config) - cost.flops(net)
    return cost.exaflops(net, images, 1) + 3 * further * images / 1e18
