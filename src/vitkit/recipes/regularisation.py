"""How much a net is kept from learning its training images by heart: a ladder of four rungs.

"Strong regularization is key" on small data (arXiv 2010.11929, appendix B.1), and the paper climbs
as the data shrink: dropout 0 on 303 M images, 0.1 on 14 M, with weight decay 0.3 on 1.3 M. What
decides is how often an image is seen, which for a given time is the more often the fewer there are:
7 to 14 times there, 30 to 90, 300. By quickstart `vitkit pretrain` and `finetune` take the rung of
their data; `--regularisation RUNG` puts any rung over any recipe. Tried out in docs/results.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitkit.errors import named
from vitkit.models.variants import VARIANTS
from vitkit.training.config import TrainConfig


@dataclass(frozen=True)
class Rung:
    weight_decay: float
    label_smoothing: float
    dropout: float
    stochastic_depth: float
    mixup: float


# Rungs from how many times on that an image is seen.
LADDER = {
    "none": (0, Rung(0.0, 0.0, 0.0, 0.0, 0.0)),
    "light": (5, Rung(0.05, 0.1, 0.0, 0.0, 0.0)),
    "medium": (300, Rung(0.1, 0.1, 0.1, 0.0, 0.2)),
    "strong": (500, Rung(0.3, 0.1, 0.1, 0.1, 0.5)),
}


def rung_for(passes: float) -> str:
    """The rung for a run that sees each of its images so many times."""
    return [name for name, (least, _) in LADDER.items() if passes >= least][-1]


def regularised(config: TrainConfig, name: str) -> TrainConfig:
    """The config on a rung of the ladder; UsageError for an unknown one.

    Labels of a sigmoid loss are not smoothed, nets without dropout go without, and so does SGD
    without weight decay, which it adds to the gradient: what AdamW can bear would undo the weights.
    MixUp is that of `augment.level` where the rung has none. Without labels there are none to
    smooth or to mix.
    """
    rung = LADDER[named("regularisation", name, LADDER)][1]
    drops = has_dropout(config.model)
    smooth = config.loss == "softmax" and not config.self_supervised
    decay = rung.weight_decay if config.optimizer.name == "adamw" else config.optimizer.weight_decay
    mixup = 0.0 if config.self_supervised else rung.mixup
    return replace(
        config,
        label_smoothing=rung.label_smoothing if smooth else 0.0,
        dropout=rung.dropout if drops else 0.0,
        stochastic_depth=rung.stochastic_depth if drops else 0.0,
        optimizer=replace(config.optimizer, weight_decay=decay),
        augment=replace(config.augment, mixup=mixup or None),
    )


def has_dropout(model: str) -> bool:
    """Whether a net, by its name or by what `name_of` says of one without, has dropout."""
    row = VARIANTS.get(model)
    return (row.kind if row else model.split(" ")[0]) in ("ViT", "T2T-ViT")
