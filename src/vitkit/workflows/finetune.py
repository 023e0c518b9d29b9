"""Fine-tuning: a trained net on other classes, often at a higher resolution (section 3.2)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vitkit.errors import UsageError
from vitkit.models.nets import Net, NetConfig, make, resize_net
from vitkit.models.variants import name_of
from vitkit.prediction.model import Model, load
from vitkit.recipes import finetuning
from vitkit.recipes.regularisation import regularised
from vitkit.training.config import TrainConfig, override
from vitkit.workflows.linear_probe import fit_head
from vitkit.workflows.run import Run, train_run
from vitkit.workflows.task import Task, data_config, open_task, refuse_with_config


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
    any_net: bool = False,
    regularisation: str | None = None,
    **fields: Any,
) -> Run:
    """Train a checkpoint's net on DATA; arguments as for `pretrain`.

    The head, hidden layer included, is replaced by a single layer, of zeros or with `linear_probe`
    fitted to the frozen features, and the positions are resized to `image_size`, which is the
    checkpoint's own if not given.
    """
    model, name = opened(checkpoint)
    refuse_with_config(config, recipe, regularisation, any_net)
    task = open_task(data, data_config(config, fields), labelled=False)
    final = override(config or recipe_config(task, recipe, model, any_net, regularisation), fields)
    return finetune_on(task, final, model, name, out=out, resume=resume, device=device, quiet=quiet)


def opened(checkpoint: str | Path | Model) -> tuple[Model, str]:
    """A checkpoint's model, and what records call it."""
    if isinstance(checkpoint, Model):
        return checkpoint, "in memory"
    return load(checkpoint), str(checkpoint)


def finetune_on(
    task: Task,
    config: TrainConfig,
    model: Model,
    name: str,
    *,
    out: str | Path | None = None,
    resume: str | None = None,
    device: str = "auto",
    quiet: bool = False,
    opening: str | None = None,
) -> Run:
    """One run with all decided: the task, the config, and the model that records call `name`."""
    net = net_config(config, task, model)
    return train_run(
        "finetune", task, config, net, lambda: adapted(model.net, net), out=out, resume=resume,
        device=device, quiet=quiet, parent=parent_of(model, name),
        preprocessing=model.preprocessing.at(config.image_size), opening=opening,
        begin=partial(fit_head, task=task) if config.linear_probe else None,
    )  # fmt: skip


def parent_of(model: Model, name: str) -> dict[str, Any]:
    """What a run records of the checkpoint that it comes from."""
    return {"checkpoint": name, **model.provenance}


def recipe_config(
    task: Task,
    recipe: str,
    model: Model,
    any_net: bool = False,
    regularisation: str | None = None,
) -> TrainConfig:
    """What a recipe says for these data and this checkpoint, whose architecture it keeps."""
    net = model.net.config
    config = finetuning(recipe, task.facts(), name_of(net), net.image_size, any_net)
    config = config if regularisation is None else regularised(config, regularisation)
    return replace(config, **architecture(config, net))


def architecture(config: TrainConfig, net: NetConfig) -> dict[str, Any]:
    """The fields of a config that a checkpoint decides; only nets with tokens have the last two."""
    own = {name: getattr(net, name, getattr(config, name)) for name in ("pooling", "positions")}
    return {"model": name_of(net), **own}


def net_config(config: TrainConfig, task: Task, model: Model) -> NetConfig:
    """The checkpoint's net for other classes and another image size; UsageError if impossible."""
    before = model.net.config
    kept = architecture(config, before) | {"hidden_head": False}
    for name, value in kept.items():
        if getattr(config, name) != value:
            raise UsageError(
                f"{name} is {getattr(config, name)!r}, but with this checkpoint it is {value!r}: a "
                "checkpoint brings its own architecture, and fine-tuning a single linear head"
            )
    if config.evaluation_resize != "direct":
        raise UsageError(
            f"evaluation_resize is {config.evaluation_resize!r}, but a checkpoint brings its own "
            "way to prepare images; leave it out"
        )
    for name in ("dropout", "stochastic_depth"):
        if getattr(config, name) and not hasattr(before, name):
            raise UsageError(f"{config.model} has no {name.replace('_', ' ')}; leave it out")
    if config.distillation.token and not getattr(before, "distillation_token", False):
        raise UsageError(
            "distillation.token is True, but the net of this checkpoint has no such token; leave "
            "it out, and its one head learns from the teacher as well"
        )
    wanted = {
        "hidden_head": False, "dropout": config.dropout,
        "stochastic_depth": config.stochastic_depth, "head_bias": config.head_bias,
    }  # fmt: skip
    options = {name: value for name, value in wanted.items() if hasattr(before, name)}
    try:
        classes = 0 if config.self_supervised else len(task.train.class_names)
        return replace(before, classes=classes, image_size=config.image_size, **options)
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
