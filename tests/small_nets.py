"""A small net of every kind, with weights that are random everywhere: nothing can hide."""

import torch
from torch import nn

from vitkit.models.axial_resnet import AxialResNetConfig
from vitkit.models.bit import BiTConfig
from vitkit.models.efficientnet import EfficientNetConfig
from vitkit.models.nets import Net, make
from vitkit.models.t2t import T2TConfig
from vitkit.models.vit_config import ViTConfig

CLASSES = 5


def vit_config(**options) -> ViTConfig:
    """Three blocks over 3 x 2 patches of 4 pixels."""
    sizes = {"patch": 4, "width": 16, "depth": 3, "heads": 2, "mlp_width": 24}
    return ViTConfig(**(sizes | {"classes": CLASSES, "image_size": (12, 8)} | options))


VITS = {
    "token": vit_config(),
    "mean": vit_config(pooling="mean", image_size=(8, 12)),
    "map": vit_config(pooling="map"),
    "patch-mean, norm after it": vit_config(pooling="patch-mean", norm_after_pool=True),
    "token+mean, registers": vit_config(pooling="token+mean", registers=2),
    "hidden head": vit_config(hidden_head=True),
    "distilled": vit_config(distillation_token=True),
    "positions in every layer": vit_config(positions_at="layers"),
    "no positions, SwiGLU": vit_config(positions="none", mlp="swiglu", layer_scale=0.5),
    "relative positions": vit_config(positions="relative"),
    "hybrid": vit_config(stem=(1,), stem_width=32, patch=1),
}
T2TS = {
    f"T2T-ViT, {kind}": T2TConfig(
        16, 2, 2, 24, kind, token_dim=6, classes=CLASSES, image_size=(32, 48)
    )
    for kind in ("performer", "transformer")
}
WITH_TOKENS = VITS | T2TS
CONVOLUTIONAL = {
    "BiT": BiTConfig((1, 1), root_width=32, classes=CLASSES, image_size=(32, 16)),
    "AxialResNet": AxialResNetConfig(8, (1, 1), 2, classes=CLASSES, image_size=(32, 16)),
    "EfficientNet": EfficientNetConfig("B0", classes=CLASSES, image_size=(64, 32)),
}
EVERY = WITH_TOKENS | CONVOLUTIONAL


def small_net(config, seed: int = 0) -> Net:
    """In eval mode."""
    torch.manual_seed(seed)
    net = make(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        assert isinstance(net.head, nn.Linear)
        nn.init.normal_(net.head.weight)
    return net


def images_for(net: Net, count: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, *net.config.image_size, generator=generator)
