"""What an objective costs by its config is what torch counts of the learner's forward pass."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from small_nets import CONVOLUTIONAL, T2TS, VITS, vit_config
from vitkit.data.transforms import HALF
from vitkit.errors import UsageError
from vitkit.models import attend, cost, variants
from vitkit.models.nets import make
from vitkit.objectives.cost import flops
from vitkit.objectives.mae import MaskedAutoencoder
from vitkit.objectives.masking import MaskedPatches
from vitkit.objectives.settings import ContrastiveConfig, MaskingConfig
from vitkit.objectives.simclr import SimCLR

BATCH = 6
SMALL = {"decoder_width": 16, "decoder_depth": 2, "decoder_heads": 2}
CONTRASTIVE = ContrastiveConfig(hidden_width=24, width=8)
CASES = [
    ("mae", vit_config(classes=0, **more), MaskingConfig(rate=rate, **SMALL))
    for rate in (0.5, 0.75)
    for more in ({}, {"pooling": "mean"}, {"registers": 2, "mlp": "swiglu"},
                 {"pooling": "patch-mean", "positions": "sincos2d"})
] + [
    ("masked-patches", vit_config(classes=0, **more), MaskingConfig(target=target))
    for target in ("mean-colour", "colours", "pixels")
    for more in ({}, {"attention": ("row", "global", "column")}, {"stem": (1,), "stem_width": 32,
                                                                  "patch": 1})
] + [
    ("simclr", net, MaskingConfig())
    for net in (VITS["token+mean, registers"], VITS["hybrid"], *T2TS.values(),
                *CONVOLUTIONAL.values())
]  # fmt: skip


def learner_of(objective, net, masking):
    if objective == "simclr":
        return SimCLR(net, CONTRASTIVE, BATCH)
    return {"mae": MaskedAutoencoder, "masked-patches": MaskedPatches}[objective](
        net, masking, 0, HALF, HALF
    )


def told(net, objective, masking):
    return flops(net, objective, masking, CONTRASTIVE, BATCH)


@pytest.mark.parametrize(("objective", "net", "masking"), CASES)
def test_it_is_what_torch_counts(objective, net, masking, monkeypatch):
    # Fused ones on a CPU count as 0.
    monkeypatch.setattr(attend, "written_out_is_faster", lambda q, k: True)
    learner = learner_of(objective, make(net), masking).eval()
    images = torch.randn(BATCH, 3, *net.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        learner(images, torch.zeros(BATCH, dtype=torch.int64), np.arange(BATCH))
    assert BATCH * told(net, objective, masking) == counter.get_total_flops()


def test_labels_cost_what_the_net_does():
    assert told(VITS["map"], "supervised", MaskingConfig()) == cost.flops(VITS["map"])


def test_an_image_hidden_by_three_quarters_costs_a_masked_autoencoder_less_than_half():
    """Of what ViT-L/16 costs whole: its decoder is small beside it."""
    net = variants.config("ViT-L/16", classes=0)
    share = told(net, "mae", MaskingConfig(rate=0.75)) / cost.flops(net)
    assert 0.3 < share < 0.5


def test_a_net_that_the_objective_is_not_for_is_refused():
    with pytest.raises(UsageError, match="mae is for ViTs"):
        told(CONVOLUTIONAL["BiT"], "mae", MaskingConfig())
