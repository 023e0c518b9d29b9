"""What holds for every recipe: it builds at full size, trains shrunk, and refuses what it must."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import vitkit
from vitkit.data.facts import DataFacts
from vitkit.data.opening import digits
from vitkit.data.source import ArraySource
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError
from vitkit.models import cost
from vitkit.models.nets import make_meta
from vitkit.models.variants import VARIANTS
from vitkit.prediction.model import Model
from vitkit.recipes import FINETUNE, PRETRAIN, as_written, finetuning, planning, pretraining
from vitkit.recipes.recipe import IMAGENET
from vitkit.training.config import TrainConfig, flat
from vitkit.workflows.pretrain import net_config

OF_THE_PAPER = ("ViT-B/32", "ViT-B/16", "ViT-L/32", "ViT-L/16", "ViT-H/14", "R50+ViT-B/32",
                "R50+ViT-B/16", "R50+ViT-L/32", "R50+ViT-L/16", "BiT-R50x1", "BiT-R152x2",
                "BiT-R200x3")  # fmt: skip
KNOWN = [
    (name, net)
    for recipes in (PRETRAIN, FINETUNE)
    for name, recipe in recipes.items()
    if recipe.data is not None
    for net in recipe.nets or OF_THE_PAPER
]
SUPERVISED = [name for name in PRETRAIN if not pretraining(name, IMAGENET).self_supervised]
FAST = {
    "batch_size": 4,
    "steps": 2,
    "evaluate_every": 2,
    "quiet": True,
    "device": "cpu",
    "precision": "fp32",
}


@pytest.mark.parametrize(("name", "net"), KNOWN)
def test_it_builds_at_full_size_for_every_net_it_names(name, net):
    data = (PRETRAIN | FINETUNE)[name].data
    config = planning(name, data, net)
    assert (config.recipe, config.model) == (name, net)
    shape = net_config(config, data.classes)
    skeleton = make_meta(shape)
    if config.self_supervised:
        assert shape.classes == 0 and isinstance(skeleton.head, torch.nn.Identity)
    else:
        assert skeleton.head.weight.shape == (data.classes, shape.feature_width)
    assert sum(p.numel() for p in skeleton.parameters() if p.requires_grad) == cost.parameters(
        shape
    )


def small(net):
    """A net of the same kind as small as there is, and its image side."""
    if net.startswith("BiT"):
        return "BiT-R50x1", 16
    return ("R+ViT-Ti/16", 32) if net.startswith("R") else ("ViT-Femto/2", 8)


@pytest.fixture(scope="module")
def few_digits():
    """Forty real digits, every class among them."""
    source = digits().train
    images = np.stack([source.image(i).permute(1, 2, 0).numpy() for i in range(40)])
    names = [str(n) for n in range(10)]
    return ArraySource(images, [int(source.labels[i]) for i in range(40)], names)


def check_run(run, config):
    assert run.steps == 2 and np.isfinite(run.metrics["loss"])
    last = vitkit.load(run.folder / "last")
    assert last.provenance["recipe"] == config.recipe
    weight = last.net.head.weight  # of zeros at first: it has learned
    assert torch.isfinite(weight).all() and weight.abs().max() > 0
    return last.net


# The rows of BiT differ in the learning rate alone, and there is no small BiT.
SLOW = ("jft-bit-r101", "jft-bit-r152")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in SUPERVISED
        if name not in ("quickstart", "deit-distilled")  # which wants a teacher
    ],
)
def test_shrunk_it_trains_from_nothing(name, few_digits, tmp_path):
    net, side = small(PRETRAIN[name].nets[0])
    run = vitkit.pretrain(
        few_digits, name, out=tmp_path / "run", model=net, image_size=side, any_net=True, **FAST
    )
    config = pretraining(name, IMAGENET, net, any_net=True)
    trained = check_run(run, config).config
    for field in (
        "pooling",
        "positions",
        "hidden_head",
        "dropout",
        "stochastic_depth",
        "head_bias",
    ):
        if hasattr(trained, field):
            assert getattr(trained, field) == getattr(config, field), field


UNLABELLED = sorted(PRETRAIN.keys() - set(SUPERVISED))
SMALL_DECODER = {f"masking.decoder_{what}": n for what, n in
                 (("width", 16), ("depth", 1), ("heads", 2))}  # fmt: skip


@pytest.mark.parametrize("name", UNLABELLED)
def test_shrunk_it_trains_without_labels_a_net_that_can_be_fine_tuned(name, few_digits, tmp_path):
    run = vitkit.pretrain(
        few_digits, name, out=tmp_path / "run", model="ViT-Femto/2", image_size=8, any_net=True,
        **FAST, **(SMALL_DECODER if name.endswith("mae") else {}),
    )  # fmt: skip
    assert run.steps == 2 and np.isfinite(run.metrics["loss"])
    last = vitkit.load(run.folder / "last")
    config = pretraining(name, IMAGENET, "ViT-Femto/2", any_net=True)
    assert last.provenance["recipe"] == name and last.net.config.classes == 0
    assert (last.net.config.pooling, last.net.config.positions) == (
        config.pooling, config.positions,
    )  # fmt: skip
    tuned = vitkit.finetune(few_digits, last, out=tmp_path / "tuned", **FAST)
    assert tuned.model.net.config.classes == 10


@pytest.mark.parametrize("name", [name for name in FINETUNE if name != "quickstart"])
def test_shrunk_it_trains_a_checkpoint(name, few_digits, tmp_path):
    kind = "BiT" if name == "bit-hyperrule" else "ViT"
    net, side = small(kind)
    shape = (side, side)
    first = Model(vitkit.build(net, 3, side), ["a", "b", "c"], Preprocessing.direct(shape))
    run = vitkit.finetune(
        few_digits, first, name, out=tmp_path / "run", image_size=side, any_net=True, **FAST
    )
    check_run(run, finetuning(name, IMAGENET, net, shape, any_net=True))


def test_a_checkpoint_keeps_its_positions(few_digits, tmp_path):
    net = vitkit.build("ViT-Femto/2", 3, 8, positions="sincos2d", pooling="mean")
    first = Model(net, ["a", "b", "c"], Preprocessing.direct((8, 8)))
    run = vitkit.finetune(few_digits, first, out=tmp_path / "run", **FAST)
    assert run.model.net.config.positions == "sincos2d"
    with pytest.raises(UsageError, match=r"positions is '1d', but with this checkpoint it is"):
        vitkit.finetune(few_digits, first, out=tmp_path / "other", positions="1d", **FAST)


def test_a_net_without_positions_refuses_them(few_digits, tmp_path):
    with pytest.raises(UsageError, match="BiT-R50x1 has no positions; leave it out"):
        vitkit.pretrain(few_digits, out=tmp_path / "run", model="BiT-R50x1", positions="2d", **FAST)


def test_an_unknown_recipe_is_answered_with_the_nearest(few_digits):
    with pytest.raises(UsageError, match=r"unknown recipe 'jft-vit-h41'.*'jft-vit-h14'"):
        vitkit.pretrain(few_digits, "jft-vit-h41")
    with pytest.raises(UsageError, match=r"unknown recipe 'table4-cifra'.*'table4-cifar'"):
        finetuning("table4-cifra", IMAGENET, "ViT-B/16", (224, 224))


def test_a_net_that_a_recipe_was_not_written_for_is_refused_unless_asked_for(few_digits):
    said = "written for ViT-L/16, ViT-L/32, not for ViT-B/16.*--any-net"
    with pytest.raises(UsageError, match=said):
        vitkit.pretrain(few_digits, "i21k-vit-l", model="ViT-B/16")
    with pytest.raises(UsageError, match="unknown model 'ViT-L/61'"):
        vitkit.pretrain(few_digits, "i21k-vit-l", model="ViT-L/61", any_net=True)
    with pytest.raises(UsageError, match="not for ViT-B/16"):
        finetuning("table2-imagenet", IMAGENET, "ViT-B/16", (224, 224))
    assert pretraining("i21k-vit-l", IMAGENET, "ViT-B/16", any_net=True).model == "ViT-B/16"


def test_every_net_that_a_recipe_names_is_known():
    for recipe in (PRETRAIN | FINETUNE).values():
        assert set(recipe.nets) <= set(VARIANTS)


def test_images_of_several_labels_are_learned_by_a_sigmoid():
    facts = replace(IMAGENET, multi_label=True)
    for name, recipe in FINETUNE.items():
        net = next(iter(recipe.nets), "ViT-B/16")
        assert finetuning(name, facts, net, (224, 224)).loss == "sigmoid"
    for name in set(SUPERVISED) - {"deit-distilled"}:  # its teacher knows one class of an image
        assert pretraining(name, facts).loss == "sigmoid"


def test_a_recipe_says_nothing_about_the_machine():
    groups = ("engine.", "guard.", "data.", "threads", "precision", "save")
    for name in PRETRAIN:
        fields = flat(pretraining(name, IMAGENET))
        usual = flat(pretraining("quickstart", IMAGENET))
        for field in fields:
            if field.startswith(groups) and field != "data.repeats":
                assert fields[field] == usual[field]


def test_recipes_need_no_torch():
    code = "import sys, vitkit.recipes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_a_run_was_told_by_its_recipe_can_be_had_again():
    facts = DataFacts(images=1000, classes=10, side=32)
    made = pretraining("quickstart", facts)
    changed = replace(made, seed=7, batch_size=16)
    assert as_written("pretrain", changed, facts) == made
    tuned = finetuning("table4-cifar", facts, "ViT-B/16", (224, 224))
    assert as_written("finetune", replace(tuned, steps=3), facts) == tuned
    assert as_written("pretrain", TrainConfig(), facts) is None  # of no recipe
    assert as_written("finetune", replace(made, recipe="jft-vit-b"), facts) is None
