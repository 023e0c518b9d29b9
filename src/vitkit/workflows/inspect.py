"""A checkpoint, opened: what its weights hold, and what it looks at in images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitkit.data.checks import DataError, some
from vitkit.data.decode import ImageError
from vitkit.data.opening import open_data
from vitkit.data.pipeline import Batch, evaluation_batches
from vitkit.data.source import Source, Splits, Subset
from vitkit.errors import UsageError, VitkitError, named
from vitkit.inspection.attention import notes_on_attention, numbers_of, token_names
from vitkit.inspection.distance import mean_distances, measured
from vitkit.inspection.embeddings import positions
from vitkit.inspection.filters import filters
from vitkit.inspection.lens import lens_accuracy
from vitkit.inspection.norms import norms_found, norms_of
from vitkit.inspection.result import DistancesFound, Inspection, NormsFound
from vitkit.inspection.sentences import sentences
from vitkit.models.nets import Net, NetConfig, kind_of, make
from vitkit.models.t2t import T2TViT
from vitkit.models.variants import name_of
from vitkit.models.vit import VisionTransformer
from vitkit.plain import Curve, save
from vitkit.prediction.model import Model, load
from vitkit.training.precision import choose_device
from vitkit.workflows.inspect_images import images_found, query_of
from vitkit.workflows.inspect_options import InspectOptions
from vitkit.workflows.progress import told
from vitkit.workflows.protocols.classes import class_numbers, renumber

BATCH = 32
SEED = 0  # of the net with fresh weights
PATCH = re.compile(r"\d{1,6},\d{1,6}")

Batches = Callable[[], Iterable[Batch]]  # a call begins anew


def inspect(
    checkpoint: str | Path | Model,
    images: Any = None,
    *,
    data: Any = None,
    device: str = "auto",
    threads: int = 2,
    **options: Any,
) -> Inspection:
    """What a net has learned, as plain data.

    From its weights alone filters and positions; of each of `images` (as `Model.predict` takes
    them) attention, rollout, relevance, Grad-CAM, the class by layer, patch norms, and whether the
    prediction hangs on what the relevance map shows. `data` (DATA) gives the images that attention
    distances are means over (without it they are the given ones), and its training images are
    searched for nearest neighbours. `options` are the fields of InspectOptions. Raises UsageError
    for a layer, head, patch or class that is not there.
    """
    for name in options:
        named("option of inspect", name, list(InspectOptions.__dataclass_fields__))
    asked = InspectOptions(**options)
    model = checkpoint if isinstance(checkpoint, Model) else load(checkpoint)
    check(asked, model)
    check_finite(model.net)
    model.to(choose_device(device))
    splits = None if data is None else open_data(data)
    notes: list[str] = []
    shown = [] if images is None else readable(model, images, asked.show, notes)
    found = of_weights(model.net, notes)
    batches, labelled = over(model, shown, splits, asked.count, threads, notes)
    if batches is not None and found.grid is not None:
        found = over_many(found, model.net, batches, labelled, asked)
    train = None if splits is None else splits.train
    found = replace(found, images=images_found(model, shown, train, asked, threads))
    return replace(found, notes=(*sentences(found), *notes))


def write(
    found: Inspection, page: Path, about: dict[str, Any], figures: Path | None = None
) -> Path:
    """Write the page, and beside it the same as JSON and npz (vitkit.plain)."""
    from vitkit.reports.inspection import write_inspection  # matplotlib takes a while

    save(found, page.with_suffix(""))
    return write_inspection(page, found, about, figures)


def check(asked: InspectOptions, model: Model) -> None:
    """UsageError for what the net has not, before any work."""
    for name in ("count", "show"):
        if getattr(asked, name) < 1:
            raise UsageError(f"--{name} is {getattr(asked, name)}; it must be at least 1")
    if asked.neighbours < 0:
        raise UsageError(f"--neighbours is {asked.neighbours}; it must be at least 0")
    if asked.of and not model.class_names:
        raise UsageError(f"--of {asked.of}: this net has no head, so it knows no class")
    if asked.of:
        named("class of --of", asked.of, model.class_names)
    net = model.net
    if asked.query not in ("class", "mean") and not PATCH.fullmatch(asked.query):
        raise UsageError(
            f"--query {asked.query[:60]!r}; expected class, mean or ROW,COLUMN of a patch"
        )
    if not isinstance(net, VisionTransformer | T2TViT):
        of_attention = asked.layers or asked.heads or asked.maps or asked.flow or asked.untrained
        if of_attention or asked.query != "class":
            token_names(net)  # says that there is no attention
        return
    query_of(net, asked.query)
    numbers_of("layer", asked.layers or None, len(net.blocks))
    numbers_of("head", asked.heads or None, net.config.heads)


def check_finite(net: Net) -> None:
    """VitkitError where weights hold NaN or infinities: nothing can be seen in them."""
    state = {k: v for k, v in net.state_dict().items() if v.is_floating_point()}
    bad = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if bad:
        raise VitkitError(
            f"{len(bad)} of {len(state)} tensors of this net hold NaN or infinities ({some(bad)}): "
            "its training diverged, or the file is damaged; inspect an earlier checkpoint"
        )


def readable(model: Model, images: Any, most: int, notes: list[str]) -> list[tuple[str, Tensor]]:
    """Names and tensors (3, H, W) of the first images; notes on those that cannot be read."""
    found, bad, more = [], [], 0
    for name, image in model.prepared(images):
        if len(found) == most:
            more += 1
        elif isinstance(image, ImageError):
            bad.append(f"{name}: {image}")
        else:
            found.append((name, image))
    if not found:
        raise VitkitError(f"none of the {len(bad)} images could be read; the first: {bad[0]}")
    notes += [f"Left out, as it cannot be read: {line}." for line in bad]
    if more:
        notes.append(f"{more} more images were given than are shown; --show takes more.")
    return found


def of_weights(net: Net, notes: list[str]) -> Inspection:
    """What the weights alone tell; notes on what does not apply to this kind of net."""
    config = net.config
    found = Inspection(
        name_of(config), kind_of(config), config.image_size, None, None, None,
        filters=filters(net),
    )  # fmt: skip
    try:
        found = replace(found, positions=positions(net))
    except UsageError as error:
        notes.append(sentence(error))
    if isinstance(net, VisionTransformer | T2TViT):
        notes += notes_on_attention(net)
        return replace(
            found, grid=net.config.grid, depth=len(net.blocks), heads=net.config.heads,
            prefix=token_names(net),
        )  # fmt: skip
    try:
        token_names(net)
    except UsageError as error:
        notes.append(sentence(error))
    return found


def sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def over(
    model: Model,
    shown: Sequence[tuple[str, Tensor]],
    splits: Splits | None,
    count: int,
    threads: int,
    notes: list[str],
) -> tuple[Batches | None, bool]:
    """The images that means are over, and whether their labels are known, in the net's numbering.

    Of DATA those of the split that is evaluated, evenly spread; else the images shown.
    """
    if splits is None:
        if not shown:
            notes.append(
                "Attention distances need images: give IMAGES, or --data DATA for a mean over many."
            )
            return None, False
        tensors = torch.stack([image for _, image in shown])
        return lambda: [Batch(tensors, torch.empty(0))], False
    source = spread(splits.test or splits.val or splits.train, count)
    number = None
    if not model.class_names:
        notes.append("The net has no head, so classes, relevance and Grad-CAM are left out.")
        return batches_of(source, model, None, threads), False
    if source.multi_label and not source.labels.sum():
        notes.append("Accuracy by layer is left out: none of the images has a label.")
        return batches_of(source, model, None, threads), False
    try:
        number = class_numbers(model.class_names, source.class_names, splits.name)
    except (DataError, UsageError):
        classes = some(source.class_names)
        notes.append(f"Accuracy by layer is left out: these are not the net's classes: {classes}.")

    return batches_of(source, model, number, threads), number is not None


def batches_of(source: Source, model: Model, number: Tensor | None, threads: int) -> Batches:
    """The images, their labels in the net's numbering where `number` tells it."""

    def batches() -> Iterable[Batch]:
        read = evaluation_batches(source, model.preprocessing, BATCH, threads)
        for batch in told(read, len(source), "inspected"):
            labels = batch.labels
            if number is not None:
                labels = renumber(labels, number, len(model.class_names))
            yield Batch(batch.images, labels)

    return batches


def spread(source: Source, count: int) -> Source:
    """At most so many images, evenly over the source: sorted folders would give one class."""
    if len(source) <= count:
        return source
    return Subset(source, torch.linspace(0, len(source) - 1, count).round().long().numpy())


def over_many(
    found: Inspection, net: Net, batches: Batches, labelled: bool, asked: InspectOptions
) -> Inspection:
    """Attention distances, patch norms and accuracy by layer over many images."""
    assert isinstance(net, VisionTransformer | T2TViT)  # the others have no grid
    distances, norms, lens = seen_once(net, batches(), labelled)
    if asked.untrained:
        fresh = drawn(net.config).to(next(net.parameters()).device).eval()
        distances = replace(distances, untrained=mean_distances(fresh, batches()).pixels)
    return replace(found, distances=distances, norms=norms, lens=lens)


def seen_once(
    net: VisionTransformer | T2TViT, batches: Iterable[Batch], labelled: bool
) -> tuple[DistancesFound, NormsFound, Curve | None]:
    """All three from one pass over the images."""
    norms: list[Tensor] = []

    def keep(_block: nn.Module, _inputs: tuple, tokens: Tensor) -> None:
        norms.append(norms_of(tokens, net.config.prefix))

    hook = net.blocks[-1].register_forward_hook(keep)
    try:
        if labelled:
            with measured(net) as sums:
                lens = lens_accuracy(net, batches)
            distances = sums.found()
        else:
            distances, lens = mean_distances(net, batches), None
    finally:
        hook.remove()
    return distances, norms_found(torch.cat(norms).numpy()), lens


def drawn(config: NetConfig) -> Net:
    """A net with fresh weights, the same ones each time; the random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return make(config)
