"""Training configs: overriding, refusing, and staying free of torch."""

import subprocess
import sys

import pytest

from vitkit.errors import UsageError
from vitkit.training.config import TrainConfig, flat, override


def test_fields_are_overridden_by_dotted_and_by_short_names():
    config = override(TrainConfig(), {"optimizer.weight_decay": 0.3, "learning_rate": 1e-4})
    assert (config.optimizer.weight_decay, config.optimizer.learning_rate) == (0.3, 1e-4)


def test_one_number_as_image_size_is_a_square():
    assert override(TrainConfig(), {"image_size": 96}).image_size == (96, 96)


def test_an_unknown_field_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="batch_size"):
        override(TrainConfig(), {"batchsize": 1})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("accumulation", 1000),
        ("minutes", -1.0),
        ("epochs", float("nan")),
        ("dropout", 1.0),
        ("stochastic_depth", 1.0),
        ("evaluation_resize", "middle"),
        ("schedule.kind", "steps"),
        ("schedule.stairs", (0.3, 1.0)),
        ("augment.crop_aspect", "wide"),
        ("optimizer.learning_rate", 0.0),
        ("augment.crop_area", (0.0, 1.0)),
        ("seed", -1),
        ("optimizer.name", "adam"),
        ("loss", "sofmax"),
        ("precision", "bfloat16"),
        ("optimizer.clip_norm", -1.0),
        ("optimizer.betas", (0.9, 1.0)),
        ("schedule.warmup_steps", -5),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(field, value):
    with pytest.raises(UsageError, match=field):
        override(TrainConfig(), {field: value})


def test_a_length_that_is_given_takes_the_place_of_the_recipes():
    recipe = TrainConfig(steps=500)
    assert override(recipe, {"minutes": 2.0}).steps is None
    assert override(recipe, {"epochs": 3.0}).steps is None
    assert override(recipe, {"batch_size": 3}).steps == 500
    with pytest.raises(UsageError, match="steps and minutes are given"):
        override(recipe, {"steps": 3, "minutes": 2.0})


def test_every_field_is_told_to_the_reader():
    import inspect

    from vitkit.objectives import settings
    from vitkit.training import config

    source = inspect.getsource(config) + inspect.getsource(settings)
    for name in flat(TrainConfig()):
        leaf = name.split(".")[-1]
        line = next(i for i, text in enumerate(source.splitlines()) if f"    {leaf}: " in text)
        assert '"""' in source.splitlines()[line + 1], f"{name} has no docstring"


def test_reading_the_recipes_does_not_import_torch():
    code = "import sys, vitkit.cli, vitkit.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "value", "fields", "reader"),
    [
        ("masking.rate", 0.6, {}, "masked-patches or mae"),
        ("masking.target", "pixels", {"objective": "mae"}, "masked-patches"),
        ("masking.normalised", False, {"objective": "masked-patches"}, "the objective mae"),
        ("contrastive.temperature", 0.5, {"objective": "mae"}, "simclr"),
        ("loss", "sigmoid", {"objective": "mae"}, "supervised"),
        ("distillation.temperature", 3.0, {}, "distillation.targets soft"),
        ("augment.jitter_share", 0.5, {}, "augment.jitter"),
    ],
)
def test_a_field_that_nothing_reads_is_refused(name, value, fields, reader):
    with pytest.raises(UsageError, match=f"{name} is {value}, but .*{reader} alone reads it"):
        override(TrainConfig(), {**fields, name: value})


@pytest.mark.parametrize(
    ("name", "value", "bounds"),
    [
        ("masking.rate", 1.0, "above 0 and below 1"),
        ("masking.decoder_width", 4, "at least 8"),
        ("contrastive.temperature", 1e-300, "between 0.001 and 100"),
    ],
)
def test_a_bound_is_said_as_it_is(name, value, bounds):
    with pytest.raises(UsageError, match=f"{name} is .*; it must be {bounds}"):
        override(TrainConfig(), {name: value})
