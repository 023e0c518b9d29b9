"""A net run as it classifies, and what its blocks give on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vitkit.errors import UsageError
from vitkit.models.nets import Net, kind_of
from vitkit.models.t2t import T2TViT
from vitkit.models.vit import VisionTransformer


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """The net in eval mode; afterwards each of its modules is in the mode that it was in."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def device_of(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def with_tokens(net: Net, what: str) -> VisionTransformer | T2TViT:
    """The net, if it is one of tokens; else a UsageError which says that it has no `what`."""
    if isinstance(net, VisionTransformer | T2TViT):
        return net
    raise UsageError(
        f"a net of kind {kind_of(net.config)} has no {what}; a ViT, a hybrid and a T2T-ViT have"
    )


def with_classes(net: Net) -> None:
    """Raises UsageError where the net has no head."""
    if not net.config.classes:
        raise UsageError(
            "this net has no head, so no class can be explained; fine-tune it, or inspect another"
        )


@torch.no_grad()
def block_outputs(net: VisionTransformer | T2TViT, images: Tensor) -> list[Tensor]:
    """Images (B, 3, H, W), normalised -> what the first block reads and what each block gives:
    depth + 1 tensors (B, T, D), none of them normed. The net is in eval mode meanwhile."""
    kept: list[Tensor] = []

    def keep_input(_block: nn.Module, inputs: tuple) -> None:
        kept.append(inputs[0])

    def keep_output(_block: nn.Module, _inputs: tuple, x: Tensor) -> None:
        kept.append(x)

    hooks = [net.blocks[0].register_forward_pre_hook(keep_input)]
    hooks += [block.register_forward_hook(keep_output) for block in net.blocks]
    try:
        with evaluating(net):
            net.encode(images.to(device_of(net)))
    finally:
        for hook in hooks:
            hook.remove()
    return kept
