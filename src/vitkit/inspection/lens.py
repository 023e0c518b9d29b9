"""The logit lens: what the net would say if it stopped after each layer.

The final norm, pooling and head are applied to what every block gives, as nostalgebraist did for
language models ("interpreting GPT: the logit lens", 2020). The head was trained for the last block
alone: that an early layer says nothing right does not mean that it knows nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vitkit.data.pipeline import Batch
from vitkit.inspection.runs import block_outputs, with_classes, with_tokens
from vitkit.models.nets import Net
from vitkit.models.t2t import T2TViT
from vitkit.plain import Curve

SOFTMAX = partial(torch.softmax, dim=-1)


@torch.no_grad()
def lens_logits(net: Net, images: Tensor) -> Tensor:
    """Images (B, 3, H, W), normalised -> logits (depth + 1, B, K) float32, on the CPU.

    Layer 0 is what the first block reads, layer l what block l gives, so that the last layer's are
    the net's own. Where a class token is read, layer 0 says the same of every image: the token has
    read nothing yet. Raises UsageError for a net without tokens or without a head.
    """
    net = with_tokens(net, "layers of tokens to read its classes from")
    with_classes(net)
    layers = block_outputs(net, images)
    if isinstance(net, T2TViT):
        logits = [net.head(net.norm(x[:, 0])) for x in layers]
    else:
        logits = [net.classify(x) for x in layers]
    return torch.stack(logits).float().cpu()


def lens(
    net: Net, images: Tensor, top: int = 3, shares: Callable[[Tensor], Tensor] = SOFTMAX
) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W), normalised -> by image and layer the `top` likeliest classes, their
    numbers (B, depth + 1, top) int64 and their probabilities, the likeliest first.

    `shares` makes probabilities of logits (..., K): Model.shares, where there are several labels.
    There are K of them where K is below `top`. Layers and errors as in `lens_logits`.
    """
    logits = lens_logits(net, images).transpose(0, 1)
    found = shares(logits).topk(min(top, logits.shape[-1]), dim=-1)
    return found.indices, found.values


def lens_accuracy(net: Net, batches: Iterable[Batch]) -> Curve:
    """The share of the images whose likeliest class is right, by layer from 0 to depth.

    Labels are of the net's numbering: (B,), or (B, K) where an image has several, any of which is
    right; an image without a label does not count. Errors as in `lens_logits`, and ValueError where
    no image has a label.
    """
    right, labelled = torch.zeros(()), 0
    for batch in batches:
        best = lens_logits(net, batch.images).argmax(dim=-1)  # (depth + 1, B)
        labels = batch.labels.cpu()
        if labels.ndim == 1:
            hits, has = best == labels, torch.ones(len(labels))
        else:
            hits, has = labels.gather(1, best.T).T > 0, (labels > 0).any(dim=1)
        right, labelled = right + hits.sum(dim=1), labelled + int(has.sum())
    if not labelled:
        raise ValueError("no image with a label to take the accuracy of")
    accuracy = (right / labelled).numpy().astype(np.float64)
    return Curve(
        "Accuracy by layer (logit lens)", "layer", "top-1", np.arange(len(accuracy)),
        {"top-1": accuracy}, share=True,
    )  # fmt: skip
