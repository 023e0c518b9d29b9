"""Table 4, Table 2's ImageNet, BiT's HyperRule, and what their authors choose among."""

from dataclasses import replace

import pytest

from vitkit.data.facts import DataFacts
from vitkit.errors import UsageError
from vitkit.recipes import FINETUNE, candidates, finetuning, pretraining
from vitkit.recipes.recipe import CIFAR_100, IMAGENET, PETS
from vitkit.training.schedules import warmup_decay

SMALL = (224, 224)
FOUR = (0.001, 0.003, 0.01, 0.03)

TABLE_4 = [  # recipe, steps, learning rates, those added for ResNets and hybrids, dev share
    ("table4-imagenet", 20_000, (0.003, 0.01, 0.03), (0.06,), 0.01),
    ("table4-cifar", 10_000, FOUR, (), 0.02),
    ("table4-flowers-pets", 500, FOUR, (), 0.1),
    ("table4-vtab", 2_500, (0.01,), (), None),
    ("table2-imagenet", 20_000, (0.003, 0.01, 0.03), (0.06,), 0.01),
]


@pytest.mark.parametrize(("name", "steps", "rates", "further", "dev_share"), TABLE_4)
def test_every_row_says_what_table_4_says(name, steps, rates, further, dev_share):
    recipe = FINETUNE[name]
    assert (recipe.learning_rates, recipe.further_rates, recipe.dev_share) == (
        rates, further, dev_share,
    )  # fmt: skip
    config = finetuning(name, IMAGENET, "ViT-L/16", SMALL)
    assert (config.recipe, config.steps, config.batch_size) == (name, steps, 512)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 0.0)
    assert (optimizer.clip_norm, config.schedule.kind) == (1.0, "cosine")
    assert optimizer.learning_rate in rates
    assert config.loss == "softmax" and not config.hidden_head


def test_images_are_read_at_384_pixels_and_for_patches_of_14_at_the_grid_of_384():
    for net, side in (("ViT-B/16", 384), ("ViT-L/32", 384), ("R50+ViT-B/32", 384),
                      ("BiT-R50x1", 384), ("ViT-H/14", 378)):  # fmt: skip
        assert finetuning("table4-cifar", CIFAR_100, net, SMALL).image_size == (side, side)
    assert 378 // 14 == 384 // 14


def test_dropout_is_that_of_the_authors_configs():
    dropped = ("ViT-L/16", "ViT-H/14", "R50+ViT-B/16", "R50+ViT-L/32")
    for net in ("ViT-B/16", "ViT-B/32", "ViT-L/32", "BiT-R50x1", *dropped):
        config = finetuning("table4-cifar", CIFAR_100, net, SMALL)
        assert config.dropout == (0.1 if net in dropped else 0.0)


def test_warm_up_is_500_steps_and_50_of_500():
    for name, steps in (("table4-imagenet", 500), ("table4-cifar", 500), ("table4-vtab", 500),
                        ("table4-flowers-pets", 50)):  # fmt: skip
        config = finetuning(name, IMAGENET, "ViT-B/16", SMALL)
        assert config.steps * config.schedule.warmup_share == pytest.approx(steps)


def test_table_2_reads_larger_images_and_averages_the_weights():
    for net, side in (("ViT-L/16", 512), ("ViT-H/14", 518)):
        config = finetuning("table2-imagenet", IMAGENET, net, SMALL)
        assert (config.image_size, config.polyak) == ((side, side), 0.9999)
    assert finetuning("table4-imagenet", IMAGENET, "ViT-L/16", SMALL).polyak == 0.0


HYPERRULE = [  # images, the ends of the warm-up, of each rate and of the run, MixUp
    (19_999, (100, 200, 300, 400, 500), 0.0),
    (20_000, (500, 3000, 6000, 9000, 10_000), 0.1),
    (499_999, (500, 3000, 6000, 9000, 10_000), 0.1),
    (500_000, (500, 6000, 12_000, 18_000, 20_000), 0.1),
]


@pytest.mark.parametrize(("images", "ends", "mixup"), HYPERRULE)
def test_the_hyperrule_has_the_authors_learning_rate_in_every_step(images, ends, mixup):
    config = finetuning("bit-hyperrule", DataFacts(images, 10), "BiT-R50x1", SMALL)
    assert (config.steps, config.augment.mixup) == (ends[-1], mixup)
    schedule = config.schedule
    rate_at = warmup_decay(
        schedule.kind, config.optimizer.learning_rate, config.steps,
        round(schedule.warmup_share * config.steps), stairs=schedule.stairs,
    )  # fmt: skip

    def authors(step):
        if step < ends[0]:
            return 0.003 * step / ends[0]
        return 0.003 / 10 ** sum(end < step for end in ends[1:])

    for step in range(ends[-1]):
        assert rate_at(step) == pytest.approx(authors(step), rel=1e-9), step


def test_the_hyperrule_goes_by_the_area_of_the_images():
    for side, read, area in ((32, 128, 0.64), (95, 128, 0.64), (96, 480, 0.87890625)):
        config = finetuning("bit-hyperrule", replace(PETS, side=side), "BiT-R50x1", SMALL)
        assert config.image_size == (read, read)
        assert config.augment.crop_area == pytest.approx((area, area))
        assert config.augment.crop_aspect == "kept"
    assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (0.003, 0.0)
    assert (config.optimizer.clip_norm, config.batch_size) == (0.0, 512)


def test_a_vit_s_candidates_are_its_learning_rates():
    found = candidates("table4-imagenet", IMAGENET, "ViT-B/16", SMALL)
    assert [label for label, _ in found] == [
        "learning rate 0.003", "learning rate 0.01", "learning rate 0.03",
    ]  # fmt: skip
    assert [c.optimizer.learning_rate for _, c in found] == [0.003, 0.01, 0.03]
    assert {c.recipe for _, c in found} == {"table4-imagenet"}


def test_resnets_and_hybrids_try_0_06_on_imagenet_alone():
    for net, more in (("R50+ViT-B/16", 1), ("BiT-R50x1", 2), ("ViT-B/16", 0)):
        assert len(candidates("table4-imagenet", IMAGENET, net, SMALL)) == 3 + more
    assert len(candidates("table4-cifar", CIFAR_100, "R50+ViT-B/16", SMALL)) == 4


def test_bit_tries_its_hyperrule_as_well():
    label, config = candidates("table4-cifar", CIFAR_100, "BiT-R50x1", SMALL)[-1]
    assert label == config.recipe == "bit-hyperrule"
    assert (config.steps, config.image_size) == (10_000, (128, 128))


def test_recipes_that_leave_nothing_to_choose_have_no_candidates():
    assert candidates("quickstart", CIFAR_100, "ViT-B/16", SMALL) == []
    assert candidates("bit-hyperrule", CIFAR_100, "BiT-R50x1", SMALL) == []
    with pytest.raises(UsageError, match="table4-cifar"):
        candidates("table4-cifra", CIFAR_100, "ViT-B/16", SMALL)


def test_a_recipe_of_the_other_verb_is_refused_by_its_name():
    with pytest.raises(UsageError, match="jft-vit-b is a recipe of vitkit pretrain"):
        finetuning("jft-vit-b", DataFacts(), "ViT-B/16", (224, 224))
    with pytest.raises(UsageError, match="table4-cifar is a recipe of vitkit finetune"):
        pretraining("table4-cifar", DataFacts())
