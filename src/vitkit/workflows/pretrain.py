"""Pre-training: a net from random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitkit.errors import UsageError, named
from vitkit.models import variants
from vitkit.models.nets import NetConfig, make
from vitkit.recipes import PRETRAIN
from vitkit.training.config import TrainConfig, override
from vitkit.workflows.run import Run, train_run
from vitkit.workflows.task import Task, data_config, open_task


def pretrain(
    data: Any,
    recipe: str = "quickstart",
    *,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    resume: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    **fields: Any,
) -> Run:
    """Train a net from random weights on DATA; the Run has the folder, metrics and model.

    `data` is "digits", a folder, parquet files or a Source (vitkit.data.opening.open_data).
    `fields` change fields of the recipe: `steps=1000`, `learning_rate=3e-4`, or by dotted name
    `**{"optimizer.weight_decay": 0.1}`. `config` replaces recipe and fields. `resume` is None,
    "auto" or a run directory. Raises UsageError for words that cannot be, DataError for the data.
    """
    task = open_task(data, data_config(config, fields))
    final = override(config or recipe_config(task, recipe), fields)
    net = net_config(final, len(task.train.class_names))
    return train_run(
        "pretrain", task, final, net, lambda: make(net), out=out, resume=resume,
        device=device, quiet=quiet,
    )  # fmt: skip


def recipe_config(task: Task, recipe: str) -> TrainConfig:
    """What a recipe says for these data; UsageError for an unknown one."""
    return PRETRAIN[named("recipe", recipe, PRETRAIN)](task.facts())


def net_config(config: TrainConfig, classes: int) -> NetConfig:
    """The net that a config asks for; UsageError where there is none such."""
    if config.linear_probe:
        raise UsageError(
            "linear_probe fits a head to the features of a checkpoint, and pre-training has none; "
            "leave it out, or fine-tune"
        )
    asked = {
        "pooling": config.pooling, "hidden_head": config.hidden_head, "dropout": config.dropout,
        "head_bias": config.head_bias,
    }  # fmt: skip
    fields = variants.field_names(config.model)
    # A recipe says "token" or "mean" for every net; one without tokens has its own pooling.
    of_tokens = config.pooling not in ("token", "mean")
    for name, wanted in asked.items():
        if name not in fields and (of_tokens if name == "pooling" else wanted):
            raise UsageError(f"{config.model} has no {name.replace('_', ' ')}; leave it out")
    options = {name: value for name, value in asked.items() if name in fields}
    return variants.config(config.model, classes, config.image_size, **options)
