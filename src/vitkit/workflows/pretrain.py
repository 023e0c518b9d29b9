"""Pre-training: a net from random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError
from vitkit.models import variants
from vitkit.models.nets import NetConfig, make
from vitkit.recipes import for_objective, pretraining
from vitkit.recipes.regularisation import regularised
from vitkit.training.config import TrainConfig, override
from vitkit.workflows.run import Run, train_run
from vitkit.workflows.task import Task, data_config, open_task, refuse_with_config

BEFORE_CROP = 8 / 7  # of the image side: 256 for 224, big_vision's pre-training configs


def pretrain(
    data: Any,
    recipe: str = "quickstart",
    *,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    resume: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    any_net: bool = False,
    regularisation: str | None = None,
    **fields: Any,
) -> Run:
    """Train a net from random weights on DATA; the Run has the folder, metrics and model.

    `data` is "digits", a folder, parquet files or a Source (vitkit.data.opening.open_data).
    `fields` change fields of the recipe: `steps=1000`, `learning_rate=3e-4`, or by dotted name
    `**{"optimizer.weight_decay": 0.1}`. `config` replaces recipe and fields. `resume` is None,
    "auto" or a run directory. `any_net` takes a recipe for a `model` it was not written for;
    `objective="mae"` beside quickstart is quickstart-mae;
    `regularisation` is a rung of vitkit.recipes.regularisation, put over the recipe. Raises
    UsageError for words that cannot be, DataError for the data.
    """
    refuse_with_config(config, recipe, regularisation, any_net)
    task = open_task(data, data_config(config, fields), labelled=False)
    recipe, model = for_objective(recipe, fields.get("objective")), fields.get("model")
    final = override(config or recipe_config(task, recipe, model, any_net, regularisation), fields)
    net = net_config(final, len(task.train.class_names))
    return train_run(
        "pretrain", task, final, net, lambda: make(net), out=out, resume=resume,
        device=device, quiet=quiet, preprocessing=preprocessing(final),
    )  # fmt: skip


def recipe_config(
    task: Task,
    recipe: str,
    model: str | None = None,
    any_net: bool = False,
    regularisation: str | None = None,
) -> TrainConfig:
    """What a recipe says for these data and this net; UsageError for an unknown one."""
    config = pretraining(recipe, task.facts(), model, any_net)
    return config if regularisation is None else regularised(config, regularisation)


def preprocessing(config: TrainConfig) -> Preprocessing:
    """What images to evaluate on go through, and the net's users' images after that."""
    if config.evaluation_resize == "crop":
        side = round(BEFORE_CROP * max(config.image_size))
        return Preprocessing.small_crop(config.image_size, side)
    return Preprocessing.direct(config.image_size)


def net_config(config: TrainConfig, classes: int) -> NetConfig:
    """The net that a config asks for, without a head where no labels are learned; UsageError where
    there is none such."""
    if config.linear_probe:
        raise UsageError(
            "linear_probe fits a head to the features of a checkpoint, and pre-training has none; "
            "leave it out, or fine-tune"
        )
    asked = {
        "pooling": config.pooling, "positions": config.positions,
        "hidden_head": config.hidden_head, "dropout": config.dropout,
        "stochastic_depth": config.stochastic_depth, "head_bias": config.head_bias,
        "distillation_token": config.distillation.token,
    }  # fmt: skip
    fields = variants.field_names(config.model)
    # A recipe says these for every net; one without tokens has its own way.
    usual = {"pooling": ("token", "mean"), "positions": ("1d",)}
    for name, wanted in asked.items():
        if name not in fields and wanted and wanted not in usual.get(name, ()):
            raise UsageError(f"{config.model} has no {name.replace('_', ' ')}; leave it out")
    if config.distillation.token and config.pooling != "token":
        raise UsageError(
            f"distillation.token is a second class token, but pooling is {config.pooling}; give "
            "--pooling token"
        )
    if config.lora.rank:
        raise UsageError(
            f"lora.rank is {config.lora.rank}, but pre-training has learned nothing yet that could "
            "be adapted; leave it out, or fine-tune a checkpoint"
        )
    options = {name: value for name, value in asked.items() if name in fields}
    wanted = 0 if config.self_supervised else classes
    return variants.config(config.model, wanted, config.image_size, **options)
