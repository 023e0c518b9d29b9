"""Pre-training compute as the paper prints it (Table 6, exaFLOPs; JFT-300M at 224 pixels)."""

import pytest
import torch

from vitkit.models.cost import exaflops, read_outside
from vitkit.models.variants import config

JFT_IMAGES, JFT_CLASSES = 303e6, 18_291

TABLE_6 = [  # net, epochs, exaFLOPs, tolerance
    ("ViT-B/32", 7, 55, 0.02), ("ViT-B/16", 7, 224, 0.02), ("ViT-L/32", 7, 196, 0.02),
    ("ViT-L/16", 7, 783, 0.02), ("ViT-L/16", 14, 1567, 0.02), ("ViT-H/14", 14, 4262, 0.02),
    ("BiT-R50x1", 7, 50, 0.03), ("BiT-R50x2", 7, 199, 0.03), ("BiT-R101x1", 7, 96, 0.03),
    ("BiT-R152x1", 7, 141, 0.03), ("BiT-R152x2", 7, 563, 0.03), ("BiT-R152x2", 14, 1126, 0.03),
    ("BiT-R200x3", 14, 3306, 0.03), ("R50+ViT-B/32", 7, 106, 0.04), ("R50+ViT-B/16", 7, 274, 0.04),
    ("R50+ViT-L/32", 7, 246, 0.04), ("R50+ViT-L/16", 7, 859, 0.04),
    ("R50+ViT-L/16", 14, 1668, 0.04),
]  # fmt: skip


@pytest.mark.parametrize(("name", "epochs", "printed", "tolerance"), TABLE_6)
def test_table_6_comes_out(name, epochs, printed, tolerance):
    options = {"hidden_head": True} if "ViT" in name else {}
    net = config(name, JFT_CLASSES, 224, **options)
    # The table prints whole numbers; ViT-B/32's 55 is the one that its rounding matters for.
    within = pytest.approx(printed, rel=0, abs=tolerance * printed + 0.5)
    assert exaflops(net, JFT_IMAGES, epochs) == within


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("size", [(8, 8), (7, 12), (56, 56)])
def test_what_is_read_outside_is_what_a_convolution_of_ones_lacks(kernel, stride, size):
    ones = torch.ones(1, 1, *size)
    weight = torch.ones(1, 1, kernel, kernel)
    read = torch.nn.functional.conv2d(ones, weight, stride=stride, padding=kernel // 2)
    assert read_outside(size, kernel, stride) == read.numel() * kernel**2 - int(read.sum())
