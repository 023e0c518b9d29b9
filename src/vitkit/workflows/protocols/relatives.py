"""The sets made beside ImageNet (--classes), scored as their authors do: among their own classes.

ImageNet-R and -A take the best of their 200 classes (eval.py of hendrycks/imagenet-r and of
hendrycks/natural-adv-examples), ImageNet-V2 and -Sketch of all 1,000. ObjectNet takes the best of
113 folders, each with the largest logit of the ImageNet classes that it stands for, images of the
other 200 folders left out and a red border of 2 pixels cut off (mlfoundations/wise-ft,
src/datasets/objectnet.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitkit.data.changed import Changed
from vitkit.data.checks import DataError, some
from vitkit.data.classes.imagenet import (
    SETS,
    classes_of_set,
    imagenet_classes,
    imagenet_numbers,
    looks_like,
    places_in_set,
)
from vitkit.data.source import Source, only_classes
from vitkit.errors import named
from vitkit.workflows.protocols.choices import one_label
from vitkit.workflows.protocols.job import Job

BORDER = 2  # pixels, of ObjectNet's images


def among_set(
    job: Job, title: str
) -> tuple[Source, Tensor, Tensor, Tensor, list[str], tuple[str, ...]]:
    """(the images that count, logits (N, classes of the set), labels (N,) of DATA, the place in
    the set of each class of DATA, names of the set's classes, notes). Raises DataError, UsageError.
    """
    named("set of classes", title, SETS)
    source, groups = job.scored, classes_of_set(title)
    one_label(source, f"--classes {title}")
    columns = columns_of(job.model.class_names, groups, title)
    names, notes = source.class_names, [said(title, len(groups))]
    found = zip(names, places_in_set(title, names), strict=True)
    places = {name: place for name, place in found if place is not None}
    if not places:
        raise DataError(f"{job.splits.name}: ImageNet has no class for any of these folders")
    if len(places) < len(names):
        whole = len(source)
        source = only_classes(source, list(places))
        notes.append(
            f"{whole - len(source):,} of {whole:,} images are left out: ImageNet has no class for "
            "their folders."
        )
    if title == "objectnet":
        source = Changed(source, without_border, f"without {BORDER} pixels of border")
    if not len(source):
        raise DataError(f"{job.splits.name}: none of the images is of a class of {title}")
    logits, labels = job.logits(source)
    best = torch.stack([logits[:, group].amax(dim=1) for group in columns], dim=1)
    called = [imagenet_classes()[group[0]].names for group in groups]
    for name, place in places.items():
        called[place] = name  # as the data call it
    return source, best, labels, torch.tensor(list(places.values())), called, tuple(notes)


def columns_of(known: list[str], groups: list[tuple[int, ...]], title: str) -> list[list[int]]:
    """For each class of the set the net's classes. Raises DataError where it lacks one."""
    column = {number: i for i, number in enumerate(imagenet_numbers(known)) if number is not None}
    absent = [n for group in groups for n in group if n not in column]
    if absent:
        names = some([imagenet_classes()[number].names for number in absent], 3)
        raise DataError(
            f"the net does not know {len(absent)} of ImageNet's classes that {title} is scored "
            f"among, such as {names}; evaluate a net that was trained on ImageNet"
        )
    return [[column[number] for number in group] for group in groups]


def said(title: str, classes: int) -> str:
    return f"Scored as {title}: the best of its {classes:,} classes."


def hint(names: list[str]) -> tuple[str, ...]:
    """A note where DATA, scored without --classes, looks like a set that it knows."""
    title = looks_like(names)
    if title is None:
        return ()
    return (
        f"The classes are those of {title}, whose authors score among them alone: "
        f"--classes {title} does.",
    )


def without_border(image: Tensor, index: int) -> Tensor:
    height, width = image.shape[-2:]
    if min(height, width) <= 2 * BORDER:
        return image
    return image[:, BORDER : height - BORDER, BORDER : width - BORDER].contiguous()
