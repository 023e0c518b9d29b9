"""The candidates of a sweep, from words and from Python."""

import pytest

from vitkit.errors import UsageError
from vitkit.training.config import TrainConfig
from vitkit.training.grid import grid, values_in

BASE = TrainConfig(steps=10)


@pytest.mark.parametrize(
    ("word", "name", "values"),
    [
        ("optimizer.learning-rate=0.001,3e-3", "optimizer.learning_rate", (0.001, 0.003)),
        ("learning-rate=1", "optimizer.learning_rate", (1.0,)),
        ("batch_size=32,64", "batch_size", (32, 64)),
        ("augment.level=none,light1", "augment.level", ("none", "light1")),
        ("augment.flip=true,False", "augment.flip", (True, False)),
        ("augment.crop-area=0.05x1,0.8x1.0", "augment.crop_area", ((0.05, 1.0), (0.8, 1.0))),
        ("augment.jitter=0x0x0x0", "augment.jitter", ((0.0, 0.0, 0.0, 0.0),)),
        ("augment.mixup=none,0,0.2", "augment.mixup", (None, 0.0, 0.2)),
        ("schedule.warmup-steps=none,100", "schedule.warmup_steps", (None, 100)),
        ("image-size=224,384x256", "image_size", ((224, 224), (384, 256))),
        ("data.weights=1x2,1x1", "data.weights", ((1.0, 2.0), (1.0, 1.0))),
    ],
)
def test_a_word_is_read_by_the_type_of_its_field(word, name, values):
    found = values_in([word])
    assert found == {name: values}
    assert [type(value) for value in found[name]] == [type(value) for value in values]


def test_several_fields_give_every_combination_the_first_slowest():
    over = values_in(["learning-rate=0.1,0.2", "augment.level=none,light1"])
    candidates = grid(BASE, over)
    assert [label for label, _ in candidates] == [
        "learning-rate 0.1, level none", "learning-rate 0.1, level light1",
        "learning-rate 0.2, level none", "learning-rate 0.2, level light1",
    ]  # fmt: skip
    found = [(c.optimizer.learning_rate, c.augment.level, c.steps) for _, c in candidates]
    assert found == [(0.1, "none", 10), (0.1, "light1", 10), (0.2, "none", 10), (0.2, "light1", 10)]


def test_python_gives_the_same_grid_as_words():
    words = values_in(["learning-rate=0.1,0.2", "image-size=8,16"])
    assert grid(BASE, words) == grid(BASE, {"learning_rate": [0.1, 0.2], "image_size": [8, 16]})


def test_a_label_names_a_field_by_its_whole_name_where_the_last_part_is_not_enough():
    labels = [label for label, _ in grid(BASE, {"optimizer.name": ["sgd"], "batch_size": [8]})]
    assert labels == ["name sgd, batch-size 8"]
    over = {"dropout": [0.1], "augment.mixup": [None], "augment.flip": [False]}
    assert grid(BASE, over)[0][0] == "dropout 0.1, mixup none, flip false"


def test_a_swept_length_takes_the_place_of_the_recipes():
    steps = [(c.steps, c.epochs) for _, c in grid(BASE, {"epochs": [1.0, 2.0]})]
    assert steps == [(None, 1.0), (None, 2.0)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer.learningrate=1,2"], "did you mean 'optimizer.learning-rate'"),
        (["learning-rate"], "expected FIELD=VALUE,VALUE"),
        (["learning-rate=0.1,"], "'' must be a number"),
        (["learning-rate=fast"], "'fast' must be a number"),
        (["batch-size=1.5"], "'1.5' must be a whole number"),
        (["schedule.warmup-steps=few"], "'few' must be a whole number"),
        (["augment.flip=1"], "'1' must be true or false"),
        (["augment.crop-area=0.05xhalf"], "'half' must be a number"),
        (["augment.level=light3"], "did you mean 'light2'"),
        (["learning-rate=1", "optimizer.learning-rate=2"], "given twice"),
        (["seed=0,1"], "--seeds N"),
        (["model=ViT-B/16"], "brings its own architecture"),
        (["data.subset=0.1,0.5"], "on the same images"),
        (["data.quarantine=a.txt"], "on the same images"),
        (["threads=1,2"], "not what it learns"),
        (["engine.sharding=ddp,fsdp"], "not what it learns"),
        (["recipe=a,b"], "a sweep for each recipe"),
    ],
)
def test_words_that_cannot_be_are_refused_in_a_sentence(words, said):
    with pytest.raises(UsageError) as error:
        values_in(words)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("over", "given", "said"),
    [
        ({"learning_rate": [0.1, 0.1]}, (), "0.1 is given twice"),
        ({"learning_rate": [0.1], "optimizer.learning_rate": [0.2]}, (), "given twice"),
        ({"learning_rate": [0.1, -1.0]}, (), "must be above 0"),
        ({"learning_rate": ["0.1"]}, (), "'0.1' must be a number"),
        ({"augment.crop_area": [(0.5,)]}, (), "2 numbers joined by x"),
        ({"learning_rate": [float("nan")]}, (), "must be a number"),
        ({"seed": [1, 2]}, (), "--seeds N"),
        ({"learning_rate": [0.1]}, ("optimizer.learning_rate",), "leave out one"),
        ({"steps": [1, 2]}, ("epochs",), "leave out one"),
        ({"steps": [1, 2], "epochs": [1.0]}, (), "give one length"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_in_a_sentence(over, given, said):
    with pytest.raises(UsageError) as error:
        grid(BASE, over, given)
    assert said in str(error.value)
