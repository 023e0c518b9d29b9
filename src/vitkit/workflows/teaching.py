"""Teachers: a checkpoint that knows the classes of the data, for a net that is to learn from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from vitkit.data.classes.imagenet import same_imagenet_classes
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError
from vitkit.models.nets import Net
from vitkit.objectives.distillation import Teacher
from vitkit.objectives.settings import DistillationConfig
from vitkit.prediction.model import load
from vitkit.training.config import TrainConfig


def check_distillation(config: TrainConfig) -> None:
    """UsageError for settings of a teacher where there is none."""
    asked, usual = vars(config.distillation), vars(DistillationConfig())
    said = [f"distillation.{name} is {asked[name]}" for name in asked if asked[name] != usual[name]]
    if config.distillation.teacher is None and said:
        raise UsageError(
            f"{' and '.join(said)}, but there is no teacher; give --distillation.teacher "
            "CHECKPOINT, a net that knows the classes of the data"
        )


def teacher_of(
    distillation: DistillationConfig, class_names: Sequence[str], students: Preprocessing
) -> Teacher | None:
    """The teacher, for images that a student prepares so; None where none is named.

    UsageError where it does not know exactly the student's classes, in whatever order.
    """
    if distillation.teacher is None:
        return None
    model = load(distillation.teacher)
    order = order_of(model.class_names, class_names, distillation.teacher)
    return Teacher(model.net, model.preprocessing, students, order)


def order_of(known: Sequence[str], given: Sequence[str], teacher: str) -> Tensor:
    """For each class of the data its number in the teacher, (K,) int64: by name, those of ImageNet
    by any of their names. UsageError where it knows others, or none."""
    if not known:
        raise UsageError(
            f"the teacher {teacher} has no head, so it cannot teach classes; fine-tune it on the "
            "classes of the data first (vitkit finetune DATA --from CHECKPOINT), or give another"
        )
    places: Sequence[int | None] = []
    if sorted(known) == sorted(given):
        place = {name: number for number, name in enumerate(known)}
        places = [place[name] for name in given]
    elif len(known) == len(given):
        places = same_imagenet_classes(known, given)
    if places and None not in places:
        return torch.tensor(places)
    first, theirs, ours = next(
        (place, *names)
        for place, names in enumerate(zip_longest(sorted(known), sorted(given)))
        if names[0] != names[1]
    )
    raise UsageError(
        f"the teacher {teacher} knows {len(known)} classes, and the data have {len(given)}; in "
        f"alphabetical order the first that differ, number {first}, are its {theirs!r} and the "
        f"data's {ours!r}; give a teacher that was trained on the same classes"
    )


def origins(
    parent: dict[str, Any] | None, distillation: DistillationConfig, teacher: Teacher | None
) -> dict[str, Any]:
    """What a run records of the nets that it comes from: "from", the checkpoint that it goes on
    from, and where there is a "teacher" its name and the SHA-256 of its weights."""
    if teacher is None:
        return {"from": parent}
    known = {"checkpoint": distillation.teacher, "weights_sha256": fingerprint(teacher.net)}
    return {"from": parent, "teacher": known}


def fingerprint(net: Net) -> str:
    """SHA-256 of a net's weights and their names, wherever they were read from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
