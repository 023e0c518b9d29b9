"""What the recipes without labels say is what their papers do."""

from dataclasses import replace

import pytest

from vitkit.data.facts import DataFacts
from vitkit.errors import UsageError
from vitkit.recipes import FINETUNE, as_written, finetuning, for_objective, pretraining
from vitkit.recipes.recipe import IMAGENET, JFT
from vitkit.recipes.regularisation import LADDER, regularised
from vitkit.words import with_recipe
from vitkit.workflows.recipes import settings

SMALL = DataFacts(images=50_000, classes=10, side=32)
QUICK = ("quickstart-masked-patches", "quickstart-mae", "quickstart-simclr")
FULL = ("masked-patches", "mae", "simclr")


def test_masked_patches_are_those_of_appendix_b_1_2():
    config = pretraining("masked-patches", JFT)
    assert (config.model, config.steps, config.batch_size) == ("ViT-B/16", 1_000_000, 4096)
    assert config.steps * config.batch_size / JFT.images == pytest.approx(14, abs=0.5)  # epochs
    assert (config.masking.rate, config.masking.target) == (0.5, "mean-colour")
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("adamw", 2e-4)
    assert (config.schedule.kind, config.schedule.warmup_steps) == ("cosine", 10_000)


def test_mae_is_that_of_table_8():
    config = pretraining("mae", IMAGENET, "ViT-L/16")
    optimizer, masking = config.optimizer, config.masking
    assert (config.epochs, config.batch_size) == (800, 4096)
    assert optimizer.learning_rate == pytest.approx(1.5e-4 * 4096 / 256)
    assert (optimizer.weight_decay, optimizer.betas) == (0.05, (0.9, 0.95))
    assert config.schedule.warmup_share * config.epochs == pytest.approx(40)
    assert (masking.rate, masking.normalised) == (0.75, True)
    decoder = (masking.decoder_width, masking.decoder_depth, masking.decoder_heads)
    assert decoder == (512, 8, 16)
    assert (config.augment.crop_area, config.positions) == ((0.2, 1.0), "sincos2d")


def test_simclr_has_its_augmentations_and_a_batch_of_as_many_images_as_moco_v3():
    config = pretraining("simclr", IMAGENET)
    assert config.data.repeats == 2 and config.batch_size / 2 == 4096
    passes = config.epochs / config.data.repeats
    assert passes == 300 and config.schedule.warmup_share * passes == pytest.approx(40)
    assert config.optimizer.learning_rate == pytest.approx(1.5e-4 * 4096 / 256)
    augment = config.augment
    assert (augment.jitter, augment.jitter_share) == ((0.8, 0.8, 0.8, 0.2), 0.8)
    assert (augment.grayscale, augment.blur) == (0.2, 0.5)
    assert config.contrastive.temperature == 0.1


@pytest.mark.parametrize(
    ("net", "epochs", "rate", "layer_decay", "depth"),
    [
        ("ViT-B/16", 100, 5e-4, 0.65, 0.1),
        ("ViT-L/16", 50, 1e-3, 0.75, 0.2),
        ("ViT-H/14", 50, 1e-3, 0.75, 0.3),
    ],
)
def test_mae_is_fine_tuned_as_table_9_says(net, epochs, rate, layer_decay, depth):
    config = finetuning("mae-finetune", IMAGENET, net, (224, 224))
    optimizer = config.optimizer
    assert (config.epochs, config.batch_size) == (epochs, 1024)
    assert optimizer.learning_rate == pytest.approx(rate * 4)
    assert (optimizer.layer_decay, optimizer.weight_decay) == (layer_decay, 0.05)
    assert (config.stochastic_depth, config.label_smoothing) == (depth, 0.1)
    assert config.schedule.warmup_share * epochs == pytest.approx(5)
    augment = config.augment
    assert (augment.mixup, augment.cutmix, augment.erase) == (0.8, 1.0, 0.25)


def test_mae_is_probed_as_table_10_says():
    config = finetuning("mae-linear", IMAGENET, "ViT-B/16", (224, 224))
    optimizer = config.optimizer
    assert (config.freeze, config.head_norm) == (("*", "!head.*"), True)
    assert (config.epochs, config.batch_size) == (90, 16_384)
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("lars", 0.9, 0.0)
    assert optimizer.learning_rate == pytest.approx(6.4)
    assert config.schedule.warmup_share * config.epochs == pytest.approx(10)


@pytest.mark.parametrize("name", QUICK)
def test_a_quickstart_has_the_net_and_length_of_quickstart(name):
    config, usual = pretraining(name, SMALL), pretraining("quickstart", SMALL)
    views = config.data.repeats
    assert (config.model, config.image_size) == (usual.model, usual.image_size)
    assert (config.epochs / views, config.batch_size / views) == (usual.epochs, usual.batch_size)
    assert config.objective == name.removeprefix("quickstart-")


@pytest.mark.parametrize("name", [*QUICK, *FULL])
@pytest.mark.parametrize("rung", LADDER)
def test_a_rung_of_regularisation_smooths_and_mixes_no_labels(name, rung):
    config = regularised(pretraining(name, SMALL), rung)
    assert config.label_smoothing == 0 and config.augment.mixup is None


@pytest.mark.parametrize("name", QUICK)
def test_what_a_run_was_told_can_be_had_again(name):
    config = pretraining(name, SMALL)
    assert as_written("pretrain", replace(config, seed=5), SMALL) == config


def test_settings_shown_are_those_that_are_read():
    shown = {name: set(settings(pretraining(name, IMAGENET))) for name in FULL}
    assert {n for n in shown["simclr"] if n.startswith(("masking", "contrastive"))} == {
        "contrastive.temperature", "contrastive.hidden_width", "contrastive.width",
    }  # fmt: skip
    assert {"masking.rate", "masking.target"} <= shown["masked-patches"]
    assert "masking.decoder_width" not in shown["masked-patches"]
    assert {"masking.rate", "masking.normalised", "masking.decoder_width"} <= shown["mae"]
    assert "masking.target" not in shown["mae"] and "loss" not in shown["mae"]
    supervised = set(settings(finetuning("mae-linear", IMAGENET, "ViT-B/16", (224, 224))))
    assert "loss" in supervised and "objective" not in supervised
    assert not any(n.startswith(("masking", "contrastive", "distillation")) for n in supervised)
    assert FINETUNE["mae-linear"].nets == ("ViT-B/16", "ViT-L/16", "ViT-H/14")


def test_an_objective_beside_quickstart_is_its_own_recipe():
    assert for_objective("quickstart", "mae") == "quickstart-mae"
    assert for_objective("quickstart", "supervised") == for_objective("quickstart", None)
    assert for_objective("mae", "simclr") == "mae"
    assert with_recipe(["digits", "--objective", "simclr"])[0] == "quickstart-simclr"
    assert with_recipe(["digits", "--recipe", "mae"]) == ("mae", ["digits", "--recipe", "mae"])


def test_a_net_without_tokens_is_no_deit():
    with pytest.raises(UsageError, match="BiT-R50x1 has no tokens"):
        pretraining("deit-distilled", IMAGENET, "BiT-R50x1", any_net=True)
