"""Fine-tuning: a trained net on other classes, often at a higher resolution (section 3.2)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vitkit.errors import UsageError, named
from vitkit.models.nets import Net, NetConfig, make, resize_net
from vitkit.models.variants import name_of
from vitkit.prediction.model import Model, load
from vitkit.recipes import FINETUNE
from vitkit.training.config import TrainConfig, override
from vitkit.workflows.linear_probe import fit_head
from vitkit.workflows.run import Run, train_run
from vitkit.workflows.task import Task, data_config, open_task


def finetune(
    data: Any,
    checkpoint: str | Path | Model,
    recipe: str = "quickstart",
    *,
    config: TrainConfig | None = None,
    out: str | Path | None = None,
    resume: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    **fields: Any,
) -> Run:
    """Train a checkpoint's net on DATA; arguments as for `pretrain`.

    The head, hidden layer included, is replaced by a single layer, of zeros or with `linear_probe`
    fitted to the frozen features, and the positions are resized to `image_size`, which is the
    checkpoint's own if not given.
    """
    model = checkpoint if isinstance(checkpoint, Model) else load(checkpoint)
    task = open_task(data, data_config(config, fields))
    final = override(config or recipe_config(task, recipe, model), fields)
    net = net_config(final, task, model)
    name = "in memory" if isinstance(checkpoint, Model) else str(checkpoint)
    return train_run(
        "finetune", task, final, net, lambda: adapted(model.net, net), out=out, resume=resume,
        device=device, quiet=quiet, parent={"checkpoint": name, **model.provenance},
        preprocessing=model.preprocessing.at(final.image_size),
        begin=partial(fit_head, task=task) if final.linear_probe else None,
    )  # fmt: skip


def recipe_config(task: Task, recipe: str, model: Model) -> TrainConfig:
    """What a recipe says for these data and this checkpoint, whose architecture it keeps."""
    net = model.net.config
    recipe_of = FINETUNE[named("recipe", recipe, FINETUNE)]
    config = recipe_of(task.facts(), name_of(net), net.image_size)
    return replace(config, pooling=getattr(net, "pooling", config.pooling))


def net_config(config: TrainConfig, task: Task, model: Model) -> NetConfig:
    """The checkpoint's net for other classes and another image size; UsageError if impossible."""
    before = model.net.config
    pooling = getattr(before, "pooling", config.pooling)  # only nets with tokens have a choice
    kept = {"model": name_of(before), "pooling": pooling, "hidden_head": False}
    for name, value in kept.items():
        if getattr(config, name) != value:
            raise UsageError(
                f"{name} is {getattr(config, name)!r}, but with this checkpoint it is {value!r}: a "
                "checkpoint brings its own architecture, and fine-tuning a single linear head"
            )
    wanted = {"hidden_head": False, "dropout": config.dropout, "head_bias": config.head_bias}
    options = {name: value for name, value in wanted.items() if hasattr(before, name)}
    try:
        return replace(
            before, classes=len(task.train.class_names), image_size=config.image_size, **options
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def adapted(net: Net, new: NetConfig) -> Net:
    """A copy with the net's weights, positions resized and a head of zeros."""
    fresh = make(new)
    fresh.reset_head(new.classes, new.head_bias)
    heads = ("hidden.", "head.", "head_distillation.")
    body = {
        name: weight
        for name, weight in resize_net(net, new.image_size).state_dict().items()
        if not name.startswith(heads)
    }
    fresh.load_state_dict(
        body | {k: v for k, v in fresh.state_dict().items() if k.startswith(heads)}
    )
    return fresh
