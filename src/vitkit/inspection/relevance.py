"""Which patches speak for a class: attention weighted by its gradient, rolled out.

Chefer, Gur and Wolf, "Generic Attention-model Explainability" (arXiv 2103.15679), Eq. 5 and 6: each
layer gives the mean over heads of (dy/dA * A), negative parts set to 0, and R <- R + that R, where
R begins as the identity and y is the logit of the class.

The net runs its own, fused attention, which keeps no A to take a gradient of. But a head's output
is O = A V, so that dy/dA = dy/dO V^T, and O is what the layer's last projection reads.

Shapes: B images, h heads, T = prefix + N tokens, N = H * W patches, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.errors import UsageError
from vitkit.inspection.attention import (
    AttentiveNet,
    Reading,
    attentions_of,
    attentive,
    read_by_head,
    token_names,
    watched,
)
from vitkit.inspection.runs import device_of, evaluating
from vitkit.models.nets import Net
from vitkit.models.vit import AttentionPool, VisionTransformer


def relevance(net: Net, images: Tensor, classes: int | Sequence[int] | None = None) -> Tensor:
    """Images (B, 3, H_image, W_image) -> (B, H, W), float32, on the CPU, 0 or above.

    `classes` is a class for all images or one for each; None is the one predicted. The map is the
    row of R of what the head reads: of the class token, of the mean of the patches, of two tokens
    their mean; with pooling "map" the probe's own weighted attention, taken through R. Larger
    values mean that more of the class's logit came by the patch; maps are not scaled.

    UsageError for a net without attention among tokens or without a head, or a class it has not.
    """
    net = attentive(net)
    depth = len(net.blocks)
    images = images.to(device_of(net))
    readings: list[Reading] = []
    pool = net.pool if isinstance(net, VisionTransformer) else None
    projections = [module.out for module in attentions_of(net)]
    projections += [] if pool is None else [pool.out]
    with (
        torch.inference_mode(False), torch.enable_grad(), evaluating(net),
        outputs_of(pool) as pooling,
        inputs_of(projections) as mixed, watched(net, range(depth), readings.append),
    ):  # fmt: skip
        # A gradient is to flow, whether or not the weights are frozen.
        logits = net(images.clone().requires_grad_())
        chosen = classes_of(net, logits, classes)
        score = logits[torch.arange(len(logits)), chosen].sum()  # images do not touch each other
        gradients = torch.autograd.grad(score, mixed)
    with torch.inference_mode():
        row = first_row(net, pool, pooling, gradients[-1])
        for reading, gradient in zip(readings[::-1], gradients[:depth][::-1], strict=True):
            row = row + followed(row, reading, gradient)
    return row[:, len(token_names(net)) :].unflatten(1, net.config.grid).float().cpu()


def followed(row: Tensor, reading: Reading, gradient: Tensor) -> Tensor:
    """The row (B, T) times a layer's weighted attention; image by image, so that memory is small.

    `gradient` (B, T, D) is that of what the layer's heads put out, side by side.
    """
    heads = range(reading.module.heads)
    values, gradients = reading.part(2), gradient.unflatten(-1, (len(heads), -1)).transpose(1, 2)
    rows = []
    for image in range(len(row)):
        weights = torch.softmax(reading.logits(slice(image, image + 1), heads, None)[0], dim=-1)
        of_weights = gradients[image].float() @ values[image].float().transpose(-2, -1)
        rows.append(row[image] @ (weights * of_weights).clamp_(min=0).mean(dim=0))
    return torch.stack(rows)


def first_row(
    net: AttentiveNet, pool: AttentionPool | None, pooling: list[Tensor], gradient: Tensor
) -> Tensor:
    """How much of each token of the last layer the head reads: (B, T)."""
    if pool is None:
        return read_by_head(net).to(gradient.device).expand(len(gradient), -1)
    q, kv = (part.float() for part in pooling)
    k, v = kv.unflatten(-1, (2, pool.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, N, d)
    q, of_output = (
        x.float().unflatten(-1, (pool.heads, -1)).transpose(1, 2) for x in (q, gradient)
    )  # (1, h, 1, d), (B, h, 1, d)
    weights = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1), dim=-1)
    weighted = (weights * (of_output @ v.transpose(-2, -1))).clamp(min=0).mean(dim=1)[:, 0]
    return F.pad(weighted, (len(token_names(net)), 0))  # the probe reads patches alone


def classes_of(net: Net, logits: Tensor, classes: int | Sequence[int] | None) -> Tensor:
    """The class of each image (B,)."""
    count = net.config.classes
    if not count:
        raise UsageError("this net has no head, so no class has a relevance; fine-tune it first")
    if classes is None:
        return logits.detach().argmax(dim=-1)
    chosen = torch.as_tensor(classes, device=logits.device)
    if chosen.ndim and len(chosen) != len(logits):
        raise UsageError(f"{len(chosen)} classes given for {len(logits)} images; give one for each")
    wrong = chosen[(chosen < 0) | (chosen >= count)]
    if len(wrong):
        raise UsageError(f"there is no class {int(wrong[0])}: this net has 0 to {count - 1}")
    return chosen.expand(len(logits))


@contextmanager
def inputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Inside, a pass appends what each of the modules reads, in the order of the pass."""
    read: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        read.append(inputs[0])

    with ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_pre_hook(keep).remove)
        yield read


@contextmanager
def outputs_of(pool: AttentionPool | None) -> Iterator[list[Tensor]]:
    """Inside, a pass appends the queries, then the keys and values, of the pool if there is one."""
    given: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        given.append(output.detach())

    with ExitStack() as stack:
        for module in () if pool is None else (pool.q, pool.kv):
            stack.callback(module.register_forward_hook(keep).remove)
        yield given
