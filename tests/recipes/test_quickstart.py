"""What vitkit does by default follows from the number of images and from the net."""

import itertools
import json

import pytest

import vitkit
from vitkit.cli import main
from vitkit.data.facts import DataFacts
from vitkit.errors import UsageError
from vitkit.recipes import finetuning, pretraining
from vitkit.recipes.regularisation import LADDER, regularised, rung_for


def finetune(images, model="ViT-B/16", **facts):
    return finetuning("quickstart", DataFacts(images, **facts), model, (224, 224))


def test_fine_tuning_takes_500_steps_of_few_images_and_of_more_as_their_square_root():
    steps = [finetune(images).steps for images in (2, 80, 1000, 4000, 100_000)]
    assert steps == [500, 500, 500, 1000, 5000]


def test_a_batch_is_a_tenth_of_few_images_and_even():
    assert [finetune(n).batch_size for n in (1, 5, 59, 80, 639, 640, 10**6)] == [
        2, 2, 4, 8, 62, 64, 64,
    ]  # fmt: skip


def test_the_rate_of_a_transformer_falls_with_its_width_and_towards_its_embeddings():
    nets = {
        "ViT-Pico/8": (6.3e-4, 5), "ViT-B/16": (7.8e-5, 13), "ViT-H/14": (4.7e-5, 33),
        "R50+ViT-B/16": (7.8e-5, 29),
    }  # fmt: skip
    for model, (rate, layers) in nets.items():
        optimizer = finetune(1000, model).optimizer
        assert (optimizer.name, optimizer.learning_rate) == ("adamw", rate)
        assert optimizer.layer_decay**layers == pytest.approx(1 / 4, rel=0.02)


@pytest.mark.parametrize("model", ["BiT-R50x1", "EfficientNet-B0", "ViT (patch 3, width 9)"])
def test_nets_of_another_kind_and_without_a_name_learn_as_the_papers_table_4_says(model):
    optimizer = finetune(1000, model).optimizer
    assert (optimizer.name, optimizer.learning_rate) == ("sgd", 0.03)
    assert optimizer.layer_decay == 1 and optimizer.weight_decay == 0


def test_pre_training_takes_30_epochs_or_5000_steps():
    many, few = (pretraining("quickstart", DataFacts(n)) for n in (50_000, 1600))
    assert many.epochs == 30 and few.epochs == 200
    assert few.epochs * 1600 / few.batch_size == 5000


def test_the_more_often_images_are_seen_the_higher_the_rung():
    rungs = {0.1: "none", 4.9: "none", 5: "light", 299: "light", 300: "medium", 499: "medium",
             500: "strong", 10_000: "strong"}  # fmt: skip
    assert {passes: rung_for(passes) for passes in rungs} == rungs


def test_each_rung_holds_back_more_than_the_one_below():
    rows = [tuple(vars(rung).values()) for _, rung in LADDER.values()]
    for below, above in itertools.pairwise(rows):
        assert above != below and all(a >= b for a, b in zip(above, below, strict=True))


def test_pre_training_of_fewer_images_is_never_on_a_lower_rung():
    dropped = [(c.dropout, c.stochastic_depth) for n in range(10, 1200)
               for c in [pretraining("quickstart", DataFacts(n))]]  # fmt: skip
    assert dropped == sorted(dropped, reverse=True)
    assert dropped[640 - 10] == (0.1, 0.1) and dropped[641 - 10] == (0.1, 0.0)
    assert dropped[1066 - 10] == (0.1, 0.0) and dropped[1067 - 10] == (0.0, 0.0)


def test_labels_of_a_sigmoid_loss_are_not_smoothed():
    config = regularised(finetune(100, multi_label=True), "strong")
    assert config.loss == "sigmoid" and config.label_smoothing == 0
    assert config.dropout == 0.1


def test_a_net_without_dropout_goes_without():
    config = regularised(finetune(100, "BiT-R50x1"), "strong")
    assert config.dropout == config.stochastic_depth == 0
    assert config.augment.mixup == 0.5


@pytest.mark.parametrize("rung", list(LADDER))
def test_sgd_keeps_its_own_weight_decay(rung):
    """It is added to the gradient, and momentum multiplies it: AdamW's would undo the weights."""
    table4 = finetuning("table4-cifar", DataFacts(100), "ViT-B/16", (224, 224))
    assert regularised(table4, rung).optimizer == table4.optimizer


def test_a_rung_without_mixup_leaves_that_of_the_level():
    assert regularised(finetune(100), "light").augment.mixup is None


def test_a_rung_goes_over_the_recipe_and_a_field_over_the_rung(tmp_path):
    words = ["pretrain", "digits", "--recipe", "imagenet-vit", "--model", "ViT-Femto/2",
             "--any-net", "--image-size", "8", "--steps", "2", "--batch-size", "8",
             "--regularisation", "medium", "--dropout", "0.3",
             "--out", str(tmp_path / "run")]  # fmt: skip
    assert main(words) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["dropout"] == 0.3  # of the words
    assert config["optimizer"]["weight_decay"] == 0.1  # of the rung, the recipe's is 0.3
    assert config["hidden_head"]  # of the recipe


def test_an_unknown_rung_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'medium'"):
        vitkit.pretrain("digits", out=tmp_path / "run", steps=2, regularisation="medum")
    assert not (tmp_path / "run").exists()


def test_the_rate_goes_with_the_square_roots_of_a_small_batch_and_of_the_steps():
    small, usual, many = (finetune(n, "ViT-Pico/8") for n in (160, 1000, 16_000))
    assert (small.batch_size, usual.batch_size, many.batch_size) == (16, 64, 64)
    assert (small.steps, usual.steps, many.steps) == (500, 500, 2000)
    rates = [one.optimizer.learning_rate for one in (small, usual, many)]
    assert rates == pytest.approx([rates[1] / 2, rates[1], rates[1] * 2], rel=0.05)


def test_a_whole_config_goes_without_a_recipe_or_a_rung(tmp_path):
    config = finetune(100, "ViT-Femto/2")
    for more in ({"recipe": "imagenet-vit"}, {"regularisation": "light"}, {"any_net": True}):
        with pytest.raises(UsageError, match="config is given, which says all"):
            vitkit.pretrain("digits", config=config, out=tmp_path / "run", **more)
