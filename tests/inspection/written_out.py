"""Nets whose attention is written out, map by map, to compare what is inspected with."""

import torch
from torch import Tensor

from vitkit.models.axial_resnet import AxialResNetConfig
from vitkit.models.bit import BiTConfig
from vitkit.models.nets import make
from vitkit.models.restricted import pattern_mask
from vitkit.models.t2t import T2TConfig
from vitkit.models.vit_config import ViTConfig

SMALL = {"patch": 4, "width": 24, "depth": 3, "heads": 3, "mlp_width": 32, "classes": 5,
         "image_size": (16, 24)}  # fmt: skip
STEM = {"patch": 1, "stem": (1, 1), "stem_width": 32, "image_size": (32, 48)}
KINDS = {
    "ViT": ViTConfig(**SMALL),
    "mean": ViTConfig(**SMALL, pooling="mean"),
    "map": ViTConfig(**SMALL, pooling="map"),
    "map, norm after": ViTConfig(**SMALL, pooling="map", norm_after_pool=True),
    "patch-mean": ViTConfig(**SMALL, pooling="patch-mean", norm_after_pool=True),
    "registers": ViTConfig(**SMALL, registers=2, pooling="token+mean", layer_scale=0.5),
    "distillation": ViTConfig(**SMALL, distillation_token=True, registers=1),
    "relative": ViTConfig(**SMALL, positions="relative"),
    "in layers": ViTConfig(**SMALL, positions_at="layers"),
    "axial": ViTConfig(**SMALL, attention=("row", "column", "global")),
    "windows": ViTConfig(
        **SMALL, attention=("window:2", "stride:2", "neighborhood:3"), registers=1
    ),
    "hybrid": ViTConfig(**SMALL | STEM),
    "T2T-ViT": T2TConfig(24, 2, 3, 32, token_dim=16, classes=5, image_size=(48, 64)),
}
WITHOUT = [
    BiTConfig(units=(1, 1), width_factor=1, classes=5, image_size=(32, 32)),
    AxialResNetConfig(16, (1, 1), classes=5, image_size=(32, 32)),
]


def made(kind: str):
    """A net of the kind in eval mode, all of whose weights are random, and far from uniform."""
    torch.manual_seed(0)
    net = make(KINDS[kind]).eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "attention.qkv" in name or "head" in name:
                parameter.normal_(0, 0.3)
            elif "token" in name or "bias" in name or "probe" in name:
                parameter.normal_(0, 0.5)
    return net


def images_for(net, count=2) -> Tensor:
    return torch.randn(count, 3, *net.config.image_size, generator=torch.Generator().manual_seed(1))


def weights_of(module, q: Tensor, k: Tensor) -> Tensor:
    """Appendix A, Eq. 6, of q and k (B, h, T, d): (B, h, T, T)."""
    logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if getattr(module, "relative_embedding", None) is not None:
        logits = logits + module.relative_logits(q, module.relative_embedding)
    if hasattr(module, "pattern"):
        allowed = pattern_mask(module.pattern, module.grid, module.prefix)
        logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.softmax(-1)


def written_out(net, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits (B, K) and each layer's attention (B, h, T, T), which the logits come by."""
    x, maps = net.embed(images), []
    for layer, block in enumerate(net.blocks):
        if hasattr(net, "add_positions"):
            x = net.add_positions(x, layer)
        q, k, v = block.attention.project(block.norm1(x))
        maps.append(weights_of(block.attention, q, k))
        mixed = block.attention.out((maps[-1] @ v).transpose(1, 2).flatten(2))
        scale1, scale2 = getattr(block, "scale1", None), getattr(block, "scale2", None)
        x = x + (mixed if scale1 is None else mixed * scale1)
        after = block.mlp(block.norm2(x))
        x = x + (after if scale2 is None else after * scale2)
    own = net.encode
    try:
        net.encode = lambda images: x
        return net(images), maps
    finally:
        net.encode = own
