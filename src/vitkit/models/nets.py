"""Every kind of net behind one interface, and what all of them can be asked for.

A net has `config` (with `classes` and `image_size`), `head`, `forward(images) -> (B, classes)`,
`features(images) -> (B, D)`, what the head reads, and `reset_head(classes, bias)`. Its state_dict
is complete, and with the config it is all that a file needs to hold.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitkit.errors import UsageError
from vitkit.models.axial_resnet import AxialResNet, AxialResNetConfig
from vitkit.models.bit import BiT, BiTConfig
from vitkit.models.efficientnet import EfficientNet, EfficientNetConfig
from vitkit.models.positions import resize_line, resize_positions, sincos_2d
from vitkit.models.t2t import T2TConfig, T2TViT
from vitkit.models.vit import VisionTransformer
from vitkit.models.vit_config import ViTConfig

Net = VisionTransformer | BiT | T2TViT | AxialResNet | EfficientNet
NetConfig = ViTConfig | BiTConfig | T2TConfig | AxialResNetConfig | EfficientNetConfig


class Kind(NamedTuple):
    config: type
    net: type


KINDS = {  # by the name that files have for them
    "ViT": Kind(ViTConfig, VisionTransformer),
    "BiT": Kind(BiTConfig, BiT),
    "T2T-ViT": Kind(T2TConfig, T2TViT),
    "AxialResNet": Kind(AxialResNetConfig, AxialResNet),
    "EfficientNet": Kind(EfficientNetConfig, EfficientNet),
}


def kind_of(config: NetConfig) -> str:
    """The name of a config's kind, one of KINDS."""
    return next(name for name, kind in KINDS.items() if type(config) is kind.config)


def feature_width(net: Net) -> int:
    """D of `net.features`."""
    if isinstance(net, EfficientNet):
        return net.feature_width
    return net.config.width if isinstance(net, T2TViT) else net.config.feature_width


def make(config: NetConfig) -> Net:
    """A net of this architecture, with random weights as its authors draw them."""
    return KINDS[kind_of(config)].net(config)


def resize_net(net: Net, image_size: tuple[int, int]) -> Net:
    """The same net for images of another size (height, width), a copy: its positions are resized.

    Raises ValueError or UsageError where the architecture cannot read images of that size.
    """
    old, new = net.config, replace(net.config, image_size=tuple(image_size))
    state = {name: tensor.detach() for name, tensor in net.state_dict().items()}
    if isinstance(old, ViTConfig) and isinstance(new, ViTConfig):
        state = {name: resized(name, tensor, old, new) for name, tensor in state.items()}
    elif new != old and not isinstance(net, BiT | EfficientNet):
        state |= fixed_tensors(new, state)
    fresh = make_meta(new)
    fresh.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    return fresh.requires_grad_(True).train(net.training)


def resized(name: str, tensor: Tensor, old: ViTConfig, new: ViTConfig) -> Tensor:
    """One tensor of a Vision Transformer for the new config's grid."""
    match name.rsplit(".")[-1]:
        case "position_embedding" if new.positions == "sincos2d":
            return sincos_2d(new.grid, new.width, new.positioned_prefix).to(tensor)
        case "position_embedding":
            return resize_positions(tensor, old.grid, new.grid, old.positioned_prefix)
        case "row_embedding":
            return resize_line(tensor, new.grid[0])
        case "column_embedding":
            return resize_line(tensor, new.grid[1])
        case "relative_embedding":
            return resize_line(tensor[None], 2 * new.tokens - 1)[0]
    return tensor


def fixed_tensors(new: NetConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a net of the new size holds that is computed, not learned; UsageError for more."""
    fresh: dict[str, Any] = dict(make(new).named_buffers())
    expected = make_meta(new).state_dict()
    other = [name for name, tensor in state.items() if expected[name].shape != tensor.shape]
    learned = [name for name in other if name not in fresh]
    if learned:
        raise UsageError(
            f"a net of kind {kind_of(new)} holds {learned[0]}, learned for one image size; it "
            "cannot be resized: train it at the size that is wanted"
        )
    return {name: fresh[name] for name in other}


def make_meta(config: NetConfig) -> Net:
    """The net without memory: names and shapes only."""
    with torch.device("meta"), NothingDrawn():
        return make(config)


DRAWING = {
    Tensor.normal_, Tensor.uniform_,
    nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_,
}  # fmt: skip


class NothingDrawn(TorchFunctionMode):
    """Random numbers are not drawn; where tensors hold nothing, torch would load its compiler."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in DRAWING:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)
