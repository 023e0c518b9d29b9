"""What a net looks at in single images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitkit.data.pipeline import evaluation_batches
from vitkit.data.source import Source, Subset
from vitkit.data.transforms import Preprocessing
from vitkit.evaluation.topk import features_of
from vitkit.inspection.attention import (
    attention,
    numbers_of,
    patch_token,
    pool_attention,
    read_by_head,
)
from vitkit.inspection.faithfulness import faithfulness
from vitkit.inspection.flow import flow, note_on_flow
from vitkit.inspection.grad_cam import grad_cam
from vitkit.inspection.lens import lens
from vitkit.inspection.neighbours import neighbours
from vitkit.inspection.norms import patch_norms
from vitkit.inspection.relevance import relevance
from vitkit.inspection.result import ImageFound, Neighbour
from vitkit.inspection.rollout import rollout_of
from vitkit.models.t2t import T2TViT
from vitkit.models.vit import VisionTransformer
from vitkit.prediction.model import Model
from vitkit.workflows.inspect_options import InspectOptions
from vitkit.workflows.pictures import picture
from vitkit.workflows.progress import told

BATCH = 32
TOP = 5  # classes of the prediction
OF_LAYER = 3  # classes of the logit lens
SEARCHED = 20_000  # training images among which neighbours are looked for, evenly spread


def images_found(
    model: Model,
    shown: Sequence[tuple[str, Tensor]],
    train: Source | None,
    asked: InspectOptions,
    threads: int,
) -> tuple[ImageFound, ...]:
    """Each image, looked into; with `train` also its nearest neighbours among those."""
    slow = told(shown, len(shown), "looked into", size=lambda _: 1)
    found = tuple(of_image(model, name, image, asked) for name, image in slow)
    if train is None or not found or not asked.neighbours:
        return found
    return with_neighbours(model, found, [image for _, image in shown], train, asked, threads)


def of_image(model: Model, name: str, image: Tensor, asked: InspectOptions) -> ImageFound:
    """One image (3, H, W), prepared as the net reads it."""
    net, one = model.net, image[None]
    best, top = top_of(model, one)
    found = ImageFound(name, picture_of(image, model.preprocessing), top)
    if isinstance(net, VisionTransformer | T2TViT):
        found = with_attention(net, found, one, asked)
        found = replace(
            found, rollout=rollout_of(net, one)[0].numpy(),
            patch_norms=patch_norms(net, one)[0].unflatten(0, net.config.grid).numpy(),
        )  # fmt: skip
    if not model.class_names:
        return found
    of = model.class_names.index(asked.of) if asked.of else best
    heat = grad_cam(net, one, [of])[0].numpy()
    found = replace(found, relevance_of=model.class_names[of], grad_cam=heat)
    if isinstance(net, VisionTransformer | T2TViT):
        heat = relevance(net, one, of)[0].numpy()
        found = replace(found, relevance=heat, lens=lens_of(model, one))
    if not np.isfinite(heat).all():  # as logits that overflow make it
        return found
    curves = faithfulness(net, image, heat, of, shares=model.shares)
    return replace(found, faithfulness=curves)


def with_attention(
    net: VisionTransformer | T2TViT, found: ImageFound, one: Tensor, asked: InspectOptions
) -> ImageFound:
    """The rows of the query; whole maps where they are kept or flow needs them."""
    layers = tuple(numbers_of("layer", asked.layers or None, len(net.blocks)))
    heads = tuple(numbers_of("head", asked.heads or None, net.config.heads))
    query, token = query_of(net, asked.query)
    row = attention(net, one, layers, heads, token)[0]  # (L, h, Q, T)
    found = replace(
        found, layers=layers, heads=heads, query=query, attention=row.mean(dim=2).numpy()
    )
    if asked.maps:
        found = replace(found, maps=attention(net, one, layers, heads)[0].numpy())
    if asked.flow:
        pooled = pool_attention(net, one)
        shares = read_by_head(net)
        if pooled is not None:
            shares = F.pad(pooled[0].mean(dim=0), (net.config.prefix, 0))
        maps = attention(net, one)[0]
        flows = flow(maps, shares)
        found = replace(found, flow=flows, flow_note=note_on_flow(flows, maps))
    return found


def query_of(net: VisionTransformer | T2TViT, query: str) -> tuple[str, int | list[int]]:
    """What the query is called, and its tokens; of several the mean is shown."""
    prefix, (height, width) = net.config.prefix, net.config.grid
    if "," in query:
        row, column = map(int, query.split(","))
        return f"patch {query}", patch_token(net, row, column)
    if query == "class" and has_class_token(net):
        return "class token", 0
    return "mean of all patches", list(range(prefix, prefix + height * width))


def has_class_token(net: VisionTransformer | T2TViT) -> bool:
    return isinstance(net, T2TViT) or net.config.has_class_token


def top_of(model: Model, one: Tensor) -> tuple[int, tuple[tuple[str, float], ...]]:
    """The number of the likeliest class, and the likeliest by name; of a net without a head none.

    Two classes may have one name.
    """
    if not model.class_names:
        return 0, ()
    found = model.shares(model.run(model.net, one)[0])
    shares, order = found.topk(min(TOP, len(model.class_names)))
    return int(order[0]), named(model, order, shares)


def lens_of(model: Model, one: Tensor) -> tuple[tuple[tuple[str, float], ...], ...]:
    order, shares = lens(model.net, one, OF_LAYER, model.shares)
    return tuple(named(model, *row) for row in zip(order[0], shares[0], strict=True))


def named(model: Model, order: Tensor, shares: Tensor) -> tuple[tuple[str, float], ...]:
    pairs = zip(order.tolist(), shares.tolist(), strict=True)
    return tuple((model.class_names[number], share) for number, share in pairs)


def with_neighbours(
    model: Model,
    found: Sequence[ImageFound],
    images: Sequence[Tensor],
    train: Source,
    asked: InspectOptions,
    threads: int,
) -> tuple[ImageFound, ...]:
    """The nearest of the training images in feature space, by cosine."""
    places = np.arange(len(train))
    if len(train) > SEARCHED:
        places = np.linspace(0, len(train) - 1, SEARCHED).round().astype(np.int64)
    batches = evaluation_batches(Subset(train, places), model.preprocessing, BATCH, threads)
    batches = told(batches, len(places), "searched for neighbours")
    index, _ = features_of(lambda batch: model.run(model.net.features, batch), batches)
    query = model.run(model.net.features, torch.stack(list(images)))
    rows, cosines = neighbours(query, index, asked.neighbours)
    return tuple(
        replace(one, neighbours=tuple(
            neighbour(train, int(places[row]), cosine)
            for row, cosine in zip(of.tolist(), near.tolist(), strict=True)
        ))
        for one, of, near in zip(found, rows, cosines, strict=True)
    )  # fmt: skip


def neighbour(train: Source, index: int, cosine: float) -> Neighbour:
    label = None if train.multi_label else train.class_names[int(train.labels[index])]
    return Neighbour(train.name(index), label, cosine, picture(train, index))


def picture_of(image: Tensor, preprocessing: Preprocessing) -> np.ndarray:
    """A prepared image (3, H, W) as people see it: (H, W, 3) uint8."""
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std)
    )
    pixels = ((image.cpu() * std + mean) * 255).round().clamp(0, 255)
    return pixels.to(torch.uint8).permute(1, 2, 0).numpy()
