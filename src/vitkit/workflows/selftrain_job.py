"""What a self-training is of: opened, checked, and with the config of every round."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vitkit.data.facts import DataFacts
from vitkit.errors import UsageError
from vitkit.models.variants import VARIANTS, name_of
from vitkit.prediction.model import Model
from vitkit.recipes.noisy_student import check_fields, noisy_student
from vitkit.training.config import TrainConfig, override
from vitkit.training.precision import choose_device
from vitkit.training.world import World, from_environment
from vitkit.workflows import selftrain_record
from vitkit.workflows.feeding import loader_threads
from vitkit.workflows.finetune import opened, parent_of
from vitkit.workflows.pretrain import net_config
from vitkit.workflows.pseudo_labels import MOST_REPEATS
from vitkit.workflows.run import fixed_steps
from vitkit.workflows.selftrain_data import Images, open_images
from vitkit.workflows.selftrain_words import SelfTrainWords
from vitkit.workflows.task import data_config
from vitkit.workflows.teaching import fingerprint, order_of

OUT = "runs/selftrain"


@dataclass(frozen=True)
class Job:
    """All that decides a self-training."""

    images: Images
    words: SelfTrainWords
    teacher: Model | None  # that was given
    teacher_name: str
    fields: dict[str, Any]
    device: str
    quiet: bool
    facts: DataFacts  # of the labelled images

    def model(self, number: int) -> str | None:
        """The net of a round by its name; None leaves it to the recipe. UsageError for a student
        that is to be the teacher's net, where that has no name."""
        if number and self.words.students:
            return self.words.students[min(number, len(self.words.students)) - 1]
        if "model" in self.fields or self.teacher is None:
            return self.fields.get("model")
        name = name_of(self.teacher.net.config)
        if number and name not in VARIANTS:
            raise UsageError(
                f"the teacher {self.teacher_name} is a {name}, which `vitkit models` does not "
                "list, so no student can be made like it; give --student NET, one of those listed"
            )
        return name

    def config(self, number: int, images: int, flip_keeps_class: bool = True) -> TrainConfig:
        """How the net of a round is trained on so many images."""
        flip = flip_keeps_class and self.facts.flip_keeps_class
        facts = replace(self.facts, images=images, flip_keeps_class=flip)
        # A teacher sees no pseudo-labels that could be weighed against the labels.
        apart = ("model",) if number else ("model", "data.weights")
        fields = {name: value for name, value in self.fields.items() if name not in apart}
        return override(noisy_student(facts, self.model(number)), fields)

    @cached_property
    def usual(self) -> TrainConfig:
        """How the first net that is trained here learns the labelled images alone."""
        return self.config(0 if self.teacher is None else 1, self.facts.images)

    @property
    def learned_at_most(self) -> int:
        """How many unlabelled images a student can learn, repeats among them."""
        passed, classes = len(self.images.unlabelled), len(self.images.task.train.class_names)
        asked = str(self.words.per_class)
        return min(int(asked) * classes, MOST_REPEATS * passed) if asked.isdecimal() else passed

    @property
    def threads(self) -> int:
        return loader_threads(self.usual, World())

    def asked_for(self) -> dict[str, Any]:
        """The start of the record: what must be the same when this goes on."""
        teacher = None
        if self.teacher is not None:
            teacher = parent_of(self.teacher, self.teacher_name)
            teacher |= {"weights": fingerprint(self.teacher.net)}
        return selftrain_record.asked_for(
            self.images, self.words, teacher, self.config(1, self.facts.images),
            [self.model(number) for number in range(self.words.rounds + 1)],
        )  # fmt: skip


def prepared(
    labelled: Any,
    unlabelled: Any,
    words: SelfTrainWords,
    teacher: str | Path | Model | None,
    out: str | Path | None,
    device: str,
    quiet: bool,
    fields: dict[str, Any],
) -> Job:
    """Everything opened and checked; UsageError or DataError for whatever would fail later on."""
    if from_environment().size > 1:
        raise UsageError("self-training runs in one process; start it without torchrun")
    choose_device(device)
    check_fields(fields)
    model, name = (None, "") if teacher is None else opened(teacher)
    leaks_to = Path(f"{out or OUT}-quarantine.txt")
    images = open_images(labelled, unlabelled, data_config(None, fields), leaks_to)
    classes = images.task.train.class_names
    if model is not None:
        order_of(model.class_names, classes, name)  # refused where they are others
    job = Job(images, words, model, name, fields, device, quiet, images.task.facts())
    for number in range(0 if model is None else 1, max(1, len(words.students)) + 1):
        config = job.config(number, job.facts.images)
        if len(config.data.weights) not in (0, 2):
            raise UsageError(
                f"--data.weights names {len(config.data.weights)} shares; give two, of the "
                "labelled and of the pseudo-labelled images"
            )
        net_config(config, len(classes))
        fixed_steps(config, len(images.task.train))
    return job
