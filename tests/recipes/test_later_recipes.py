"""AugReg, big_vision's baseline and DeiT: what their authors' files and tables say."""

import re

import pytest

from vitkit.checkpoints.published import AUGREG
from vitkit.recipes import PRETRAIN, augreg, pretraining
from vitkit.recipes.recipe import IMAGENET, IMAGENET_21K
from vitkit.training.config import flat

# Of timm's vision_transformer.py.
ON_IMAGENET = {
    "ViT-B/16": "B_16-i1k-300ep-lr_0.001-aug_strong2-wd_0.1-do_0.1-sd_0.1",
    "ViT-B/32": "B_32-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.1-sd_0.1",
    "ViT-S/16": "S_16-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0",
}
LIGHT = {"light0": "light1", "light1": "light2"}  # what files and the paper call the same
FILES = [("augreg-i21k", *row) for row in AUGREG.items()]
FILES += [("augreg-imagenet", *row) for row in ON_IMAGENET.items()]


@pytest.mark.parametrize(("name", "net", "file"), FILES)
def test_augreg_s_settings_are_those_that_the_published_files_are_named_for(name, net, file):
    said = re.search(r"-(\d+)ep-lr_(.+)-aug_(\w+)-wd_(.+)-do_(.+)-sd_(.+)", file)
    assert said
    config = pretraining(name, PRETRAIN[name].data, net)
    assert config.epochs == float(said[1])
    assert config.optimizer.learning_rate == float(said[2])
    assert config.augment.level == LIGHT.get(said[3], said[3])
    assert config.optimizer.weight_decay == float(said[4])
    assert (config.dropout, config.stochastic_depth) == (float(said[5]), float(said[6]))


def test_what_the_two_augreg_recipes_share_and_do_not():
    i21k = pretraining("augreg-i21k", IMAGENET_21K, "ViT-B/16")
    imagenet = pretraining("augreg-imagenet", IMAGENET, "ViT-B/16")
    for config in (i21k, imagenet):
        assert (config.batch_size, config.image_size, config.loss) == (4096, (224, 224), "sigmoid")
        assert (config.schedule.kind, config.schedule.warmup_steps) == ("cosine", 10_000)
        assert (config.optimizer.clip_norm, config.pooling) == (1.0, "token")
        assert config.evaluation_resize == "crop"
    assert (i21k.hidden_head, i21k.head_bias) == (False, -10.0)
    assert (imagenet.hidden_head, imagenet.head_bias) == (True, -6.9)


def test_a_net_without_published_weights_gets_the_setting_of_b16():
    config = pretraining("augreg-imagenet", IMAGENET, "ViT-H/14", any_net=True)
    expected = pretraining("augreg-imagenet", IMAGENET, "ViT-B/16")
    differing = {k for k, v in flat(config).items() if v != flat(expected)[k]}
    assert differing == {"model"}


def test_the_grid_has_all_28_points_once():
    points = list(augreg.grid(pretraining("augreg-imagenet", IMAGENET, "ViT-S/16")))
    assert len(points) == 28 == len({label for label, _ in points})
    settings = {
        (c.augment.level, c.optimizer.weight_decay, c.dropout, c.stochastic_depth)
        for _, c in points
    }
    assert len(settings) == 28
    assert ("strong1", 0.03, 0.1, 0.1) in settings and ("none", 0.1, 0.0, 0.0) in settings
    assert {c.model for _, c in points} == {"ViT-S/16"}


def test_big_vision_s_baseline_is_its_config_file():
    config = pretraining("big-vision-s16", IMAGENET)
    assert (config.model, config.epochs, config.batch_size) == ("ViT-S/16", 90, 1024)
    assert (config.pooling, config.positions, config.hidden_head) == ("mean", "sincos2d", True)
    assert (config.loss, config.head_bias, config.dropout) == ("softmax", 0.0, 0.0)
    # 0.0001 there is not multiplied by the learning rate of 0.001.
    assert config.optimizer.weight_decay * config.optimizer.learning_rate == pytest.approx(1e-4)
    assert (config.optimizer.clip_norm, config.augment.level) == (1.0, "light2")
    assert (config.schedule.kind, config.schedule.warmup_steps) == ("cosine", 10_000)
    assert config.evaluation_resize == "crop"


@pytest.mark.parametrize("net", ["ViT-Ti/16", "ViT-S/16", "ViT-B/16"])
def test_deit_s_settings_are_those_of_its_table_9(net):
    config = pretraining("deit-distilled", IMAGENET, net)
    assert (config.epochs, config.image_size, config.loss) == (300, (224, 224), "softmax")
    assert config.batch_size == pytest.approx(1024, rel=0.02) and config.batch_size % 3 == 0
    optimizer = config.optimizer
    assert optimizer.learning_rate == pytest.approx(5e-4 * config.batch_size / 512)
    assert (optimizer.name, optimizer.weight_decay, optimizer.clip_norm) == ("adamw", 0.05, 0)
    assert config.schedule.kind == "cosine"
    assert config.schedule.warmup_share * config.epochs == pytest.approx(5)
    assert (config.label_smoothing, config.dropout, config.stochastic_depth) == (0.1, 0, 0.1)
    augment = config.augment
    assert (augment.randaugment_layers, augment.randaugment_magnitude) == (2, 9)
    assert (augment.mixup, augment.cutmix, augment.erase) == (0.8, 1.0, 0.25)
    assert config.data.repeats == 3
    asked = config.distillation
    assert (asked.targets, asked.share, asked.token, asked.teacher) == ("hard", 0.5, True, None)
