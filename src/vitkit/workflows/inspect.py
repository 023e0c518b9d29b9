"""A checkpoint, opened: what its weights hold, and what it looks at in images."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitkit import inspection as look
from vitkit.data.checks import DataError
from vitkit.data.decode import ImageError
from vitkit.data.opening import open_data
from vitkit.data.pipeline import Batch, evaluation_batches
from vitkit.data.source import Source, Splits, Subset
from vitkit.errors import UsageError, VitkitError, named
from vitkit.inspection.result import ImageFound, Inspection, Neighbour
from vitkit.inspection.sentences import sentences
from vitkit.models.nets import kind_of, make
from vitkit.models.variants import name_of
from vitkit.plain import save
from vitkit.prediction.model import Model, load
from vitkit.training.precision import choose_device
from vitkit.workflows.inspect_options import InspectOptions
from vitkit.workflows.pages import page_at
from vitkit.workflows.protocols.classes import class_numbers

BATCH = 32
SEARCHED = 20_000  # training images among which neighbours are looked for, evenly spread
THUMBNAIL = 96  # pixels
SHOWN_CLASSES = 5
QUERY = re.compile(r"(\d+),(\d+)")

Batches = Callable[[], Iterable[Batch]]  # each call begins anew


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
    them) attention, rollout, flow, relevance, Grad-CAM, the class by layer, patch norms, and
    whether the prediction hangs on what the relevance map shows. `data` (DATA) gives the images
    that attention distances are means over (without it they are the given ones), and its training
    images are searched for nearest neighbours. `options` are the fields of InspectOptions. Raises
    UsageError for a layer, head, patch or class that is not there.
    """
    for name in options:
        named("option of inspect", name, list(InspectOptions.__dataclass_fields__))
    asked = InspectOptions(**options)
    model = checkpoint if isinstance(checkpoint, Model) else load(checkpoint)
    check(asked, model)
    model.to(choose_device(device))
    splits = None if data is None else open_data(data)
    notes: list[str] = []
    shown = [] if images is None else readable(model, images, asked.show, notes)
    found = of_weights(model, notes)
    batches, labelled = many(model, shown, splits, asked.count, threads, notes)
    if batches is not None:
        found = over_many(found, model, batches, labelled, asked, notes)
    rows = tuple(of_image(model, name, image, asked) for name, image in shown)
    if splits is not None and rows and asked.neighbours:
        images_apart = spread(splits.train, SEARCHED)
        rows = with_neighbours(model, rows, shown, images_apart, asked.neighbours, threads)
    found = replace(found, images=rows)
    return replace(found, notes=(*sentences(found), *notes))


def write(
    found: Inspection, out: str | Path, about: dict[str, Any], figures: Path | None = None
) -> Path:
    """Write report.html, and report.json and report.npz beside it -> the page."""
    from vitkit.reports.inspection import write_inspection

    page = page_at(out)
    save(found, page.with_suffix(""))
    return write_inspection(page, found, about, figures)
