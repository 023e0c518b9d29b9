"""Grad-CAM: where in the image the evidence for a class lies (Selvaraju et al., arXiv 1610.02391).

Shapes: B images, C channels of a map of h x w places, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.errors import UsageError
from vitkit.inspection.runs import device_of, evaluating, with_classes
from vitkit.models.axial_resnet import AxialResNet
from vitkit.models.bit import BiT
from vitkit.models.efficientnet import EfficientNet
from vitkit.models.nets import Net
from vitkit.models.t2t import T2TViT
from vitkit.models.vit import VisionTransformer


def grad_cam(net: Net, images: Tensor, classes: Sequence[int] | Tensor | None = None) -> Tensor:
    """Images (B, 3, H, W), normalised -> (B, h, w) float32 on the CPU: 0 is no evidence, 1 the most
    in the image; all 0 where nothing speaks for the class.

    `classes` is a class for each image, the likeliest by default. Each channel of a map is weighted
    by the mean of the logit's gradient over the places (Eq. 1), and the sum's negative part left
    out (Eq. 2). The map is the last one of BiT, AxialResNet and EfficientNet, what the stem gives
    of a hybrid, and of a ViT and a T2T-ViT the patch tokens that the last block reads: what it
    gives of them has no gradient where the class token is read.

    The net computes in eval mode; its modes, gradients and requires_grad are left as they were.
    Raises UsageError where the net has no head, or not that class.
    """
    with_classes(net)
    # The caller may be in inference mode, whose tensors have no gradient.
    with torch.inference_mode(False), torch.enable_grad(), evaluating(net):
        kept, logits = map_and_logits(net, images.to(device_of(net)).clone())
        chosen = chosen_classes(classes, logits)
        score = logits.gather(1, chosen[:, None]).sum()  # no image has a part in another's
        (gradient,) = torch.autograd.grad(score, kept)
    if kept.ndim == 3:
        kept, gradient = on_grid(net, kept), on_grid(net, gradient)
    weights = gradient.float().mean(dim=(2, 3), keepdim=True)
    heat = F.relu((weights * kept.detach().float()).sum(dim=1))
    most = heat.amax(dim=(1, 2), keepdim=True)
    return (heat / torch.where(most > 0, most, 1)).cpu()


def chosen_classes(classes: Sequence[int] | Tensor | None, logits: Tensor) -> Tensor:
    """(B,) int64 of those that the logits (B, K) have."""
    if classes is None:
        return logits.argmax(dim=1)
    chosen = torch.as_tensor(classes, device=logits.device, dtype=torch.int64)
    count = logits.shape[1]
    if chosen.shape != logits.shape[:1] or not ((chosen >= 0) & (chosen < count)).all():
        raise UsageError(
            f"classes is {chosen.tolist()}; give a number from 0 to {count - 1} for each of the "
            f"{len(logits)} image(s)"
        )
    return chosen


def map_and_logits(net: Net, images: Tensor) -> tuple[Tensor, Tensor]:
    """A map that can be differentiated by, (B, C, h, w) or tokens (B, T, D), and what the net makes
    of it, logits (B, K)."""
    if isinstance(net, BiT | AxialResNet):
        kept = leaf(net.feature_map, images)
        return kept, net.head(kept.mean(dim=(2, 3)))
    if isinstance(net, EfficientNet):
        kept = leaf(net.backbone, images)
        return kept, net.head(net.pool(kept).flatten(1))
    return between(net, images)


def leaf(function, images: Tensor) -> Tensor:
    """function(images), of which nothing before it is remembered."""
    with torch.no_grad():
        return function(images).requires_grad_()


def between(net: VisionTransformer | T2TViT, images: Tensor) -> tuple[Tensor, Tensor]:
    """What is passed on within the net: by the stem, or to the last block."""
    kept: list[Tensor] = []

    def pass_on(x: Tensor) -> Tensor:
        kept.append(x.detach().requires_grad_())
        return kept[0]

    def from_stem(_stem: nn.Module, _images: tuple, x: Tensor) -> Tensor:
        return pass_on(x)

    def to_block(_block: nn.Module, inputs: tuple) -> Tensor:
        return pass_on(inputs[0])

    if isinstance(net, VisionTransformer) and net.stem is not None:
        hook = net.stem.register_forward_hook(from_stem)
    else:
        hook = net.blocks[-1].register_forward_pre_hook(to_block)
    try:
        logits = net(images)
    finally:
        hook.remove()
    return kept[0], logits


def on_grid(net: Net, tokens: Tensor) -> Tensor:
    """Tokens (B, T, D) -> those of the patches as a map (B, D, H, W)."""
    assert isinstance(net, VisionTransformer | T2TViT)
    return tokens[:, net.config.prefix :].transpose(1, 2).unflatten(2, net.config.grid)
