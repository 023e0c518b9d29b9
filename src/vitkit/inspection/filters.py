"""What the first layer looks for in the pixels (Figure 7, left)."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from vitkit.errors import UsageError
from vitkit.inspection.result import Filters
from vitkit.models.axial_resnet import AxialResNet
from vitkit.models.bit import BiT
from vitkit.models.nets import Net
from vitkit.models.std_conv import StdConv2d, standardise
from vitkit.models.t2t import T2TViT
from vitkit.models.vit import VisionTransformer


def filters(net: Net, most: int = 28) -> Filters:
    """The first layer that reads pixels, as at most `most` pictures, each scaled to 0..1 by itself.

    Of a ViT the principal components of its patch embedding, as in the paper; of a T2T-ViT those of
    the first layer's keys, queries and values, which read squares of 7 x 7 pixels. Of the other
    nets, hybrids included, the filters of the first convolution in their own order; where it is
    standardised, the standardised weights, which are what the images meet. Raises UsageError where
    `most` is below 1.
    """
    if most < 1:
        raise UsageError(f"most is {most}; it is how many filters to show, at least 1")
    weight, name = first_layer(net)
    weight = weight.detach().float().cpu().numpy()
    if isinstance(net, T2TViT) or (isinstance(net, VisionTransformer) and net.stem is None):
        components, explained = principal_components(weight.reshape(len(weight), -1), most)
        shown = components.reshape(-1, *weight.shape[1:])
        return Filters(pictures(shown), explained, f"principal components of {name}")
    number = "" if len(weight) <= most else f", the first {most} of {len(weight)}"
    return Filters(pictures(weight[:most]), None, f"filters of {name}{number}")


def first_layer(net: Net) -> tuple[Tensor, str]:
    """Its weights (filters, 3, p, p) as they meet the pixels, and what it is called."""
    if isinstance(net, T2TViT):
        layer = net.tokens_to_token.layer1
        linear = next(m for m in layer.attention.children() if m is not layer.attention.out)
        assert isinstance(linear, nn.Linear)
        # The layer norm before it scales what each weight reads.
        weight = (linear.weight * layer.norm1.weight).unflatten(1, (3, 7, 7))
        return weight, "the first keys, queries and values"
    if isinstance(net, VisionTransformer) and net.stem is None:
        return net.patch_embedding.weight, "the patch embedding"
    if isinstance(net, VisionTransformer | BiT):
        root = net.root if isinstance(net, BiT) else net.stem.root.conv  # pyright: ignore
        assert isinstance(root, StdConv2d)
        return standardise(root.weight, root.variance_eps, root.std_eps), "the root convolution"
    if isinstance(net, AxialResNet):
        return net.root.weight, "the root convolution"
    first = next(m for m in net.backbone.modules() if isinstance(m, nn.Conv2d))
    return first.weight, "the first convolution"


def principal_components(rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, d) -> components (k, d) of length 1 and their shares of the variance (k,).

    k is the least of `most`, d and n - 1, the largest share first. A component's sign says nothing;
    here its entry of largest size is positive.
    """
    centred = (rows - rows.mean(axis=0)).astype(np.float64)
    _, sizes, components = np.linalg.svd(centred, full_matrices=False)
    count = min(most, rows.shape[1], len(rows) - 1)
    components, variance = components[:count], sizes**2
    largest = np.abs(components).argmax(axis=1)
    signs = np.sign(components[np.arange(count), largest])
    total = variance.sum() or 1.0  # of filters that are all alike no share is anything
    return components * signs[:, None], variance[:count] / total


def pictures(weight: np.ndarray) -> np.ndarray:
    """(n, 3, p, p) -> (n, p, p, 3) float32, each from 0, its least value, to 1; a flat one is 0.5.

    The three channels share one scale, so that a grey filter stays grey.
    """
    least = weight.min(axis=(1, 2, 3), keepdims=True)
    span = weight.max(axis=(1, 2, 3), keepdims=True) - least
    scaled = np.where(span > 0, (weight - least) / np.where(span > 0, span, 1), 0.5)
    return scaled.transpose(0, 2, 3, 1).astype(np.float32)
