"""Noisy Student (arXiv 1911.04252): how its teachers and students are trained, by quickstart's
means and with the paper's noise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vitkit.data.facts import DataFacts
from vitkit.errors import UsageError
from vitkit.models.variants import VARIANTS
from vitkit.recipes import quickstart
from vitkit.recipes.regularisation import has_dropout
from vitkit.training.config import TrainConfig

NET = "EfficientNet-B0"
SMALL = 80  # pixels of the images' side up to which nets and images are too small for the paper's
RANDAUGMENT = {"randaugment_layers": 2, "randaugment_magnitude": 27.0}  # section 3.1
DROPOUT = 0.5  # before the head
STOCHASTIC_DEPTH = 0.2  # of the last block: a survival probability of 0.8

NOT_FOR_STUDENTS = ("recipe", "objective", "masking", "contrastive")  # they learn labels, by this


def check_fields(names: Iterable[str]) -> None:
    """UsageError for fields of a config that are not for teachers and students."""
    refused = [name for name in names if name.partition(".")[0] in NOT_FOR_STUDENTS]
    if refused:
        options = ", ".join(f"--{name}".replace("_", "-") for name in sorted(refused))
        raise UsageError(
            "self-training learns labels by a recipe of its own (docs/selftraining.md); leave out "
            f"{options}"
        )


def noisy_student(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """Training of a teacher or student from nothing, on labels and pseudo-labels together.

    Length, rate and crops are quickstart's; the noise is section 3.1's: RandAugment (its magnitude
    is on the authors' scale, which `augment` has too), and where the net has them stochastic depth
    and dropout before the head. A Transformer's dropout is one after every dense layer, so it keeps
    quickstart's. For images up to 80 pixels the net is quickstart's and RandAugment is left out:
    with 100 labelled digits of 8 pixels and 1,000 steps a teacher reached 72 % without it and its
    second student 79 %, and with magnitudes of 5 and 10 teachers 60 % and 43 %, students 41 % and
    42 %.
    """
    small = facts.side <= SMALL
    config = quickstart.pretrain(facts, model or (None if small else NET))
    noise = {"stochastic_depth": STOCHASTIC_DEPTH} if has_dropout(config.model) else {}
    if VARIANTS[config.model].kind == "EfficientNet":
        noise = {"stochastic_depth": STOCHASTIC_DEPTH, "dropout": DROPOUT}
    augment = config.augment if small else replace(config.augment, **RANDAUGMENT)
    return replace(config, recipe="noisy-student", augment=augment, **noise)
