"""Every kind of net trains, goes on after a stop, is fine-tuned, evaluated and converted alike."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import vitkit
from vitkit.data.opening import digits
from vitkit.data.source import ArraySource
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError
from vitkit.models.axial_resnet import AxialResNet
from vitkit.models.bit import BiT
from vitkit.models.efficientnet import EfficientNet
from vitkit.models.t2t import T2TViT
from vitkit.models.vit import VisionTransformer
from vitkit.prediction.model import Model
from vitkit.training.config import TrainConfig
from vitkit.workflows.pretrain import net_config

KINDS = {  # a net of each kind, the size of images that a core trains it on in seconds
    "R+ViT-Ti/16": (VisionTransformer, 32),
    "BiT-R50x1": (BiT, 16),
    "T2T-ViT-14": (T2TViT, 16),
    "EfficientNet-B0": (EfficientNet, 16),
    "AxialResNet-50-S": (AxialResNet, 32),
}
FAST = {"batch_size": 6, "quiet": True, "precision": "fp32"}


@pytest.fixture(scope="module")
def few_digits():
    """Forty real digits."""
    source = digits().train
    images = np.stack([source.image(i).permute(1, 2, 0).numpy() for i in range(40)])
    names = [str(n) for n in range(10)]
    return ArraySource(images, [int(source.labels[i]) for i in range(40)], names)


def weights(folder):
    return vitkit.load(folder / "last").net.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("name", ["R+ViT-Ti/16", "EfficientNet-B0", "AxialResNet-50-S"])
def test_a_net_is_trained_stopped_and_resumed_to_the_same_bits(name, few_digits, tmp_path):
    kind, side = KINDS[name]
    options = FAST | {"model": name, "image_size": side, "steps": 4, "save_every": 2}
    run = vitkit.pretrain(few_digits, out=tmp_path / "run", polyak=0.5, **options)
    assert isinstance(run.model.net, kind)
    before = weights(run.folder)
    shutil.rmtree(run.folder / "checkpoints" / "step-00000004")
    for bundle in ("last", "best"):
        shutil.rmtree(run.folder / bundle)
    vitkit.pretrain(few_digits, out=run.folder, polyak=0.5, resume="auto", **options)
    assert same(weights(run.folder), before)


@pytest.mark.parametrize("name", [name for name in KINDS if "Axial" not in name])
def test_a_net_is_fine_tuned_at_another_size_with_a_fresh_head(name, few_digits, tmp_path):
    kind, side = KINDS[name]
    net = vitkit.build(name, classes=3, image_size=side)
    model = Model(net, ["a", "b", "c"], Preprocessing.direct((side, side)))
    run = vitkit.finetune(
        few_digits, model, out=tmp_path / "run", steps=1, image_size=2 * side, **FAST
    )
    tuned = run.model
    assert isinstance(tuned.net, kind)
    assert tuned.net.config.image_size == (2 * side, 2 * side)
    assert tuned.net.config.classes == 10
    assert vitkit.evaluate(tuned, few_digits)["images"] == 40
    assert tuned.features(few_digits.image(0).permute(1, 2, 0).numpy()).shape[0] == 1


@pytest.mark.parametrize(
    "words", [{"hidden_head": True}, {"dropout": 0.1}, {"stochastic_depth": 0.1}]
)
def test_what_a_kind_of_net_does_not_have_is_refused_by_name(few_digits, tmp_path, words):
    what = next(iter(words)).replace("_", " ")
    with pytest.raises(UsageError, match=f"BiT-R50x1 has no {what}"):
        vitkit.pretrain(few_digits, out=tmp_path / "run", model="BiT-R50x1", steps=1, **words)
    if "hidden_head" not in words:  # which fine-tuning refuses for every net
        net = vitkit.build("BiT-R50x1", classes=2, image_size=16)
        model = Model(net, ["a", "b"], Preprocessing.direct((16, 16)))
        with pytest.raises(UsageError, match=f"BiT-R50x1 has no {what}"):
            vitkit.finetune(few_digits, model, out=tmp_path / "run", steps=1, **words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["R+ViT-Ti/16", "T2T-ViT-14", "EfficientNet-B0"])
def test_the_stochastic_depth_of_a_run_is_that_of_its_net(name):
    config = TrainConfig(model=name, image_size=(32, 32), stochastic_depth=0.3)
    assert net_config(config, 10).stochastic_depth == 0.3
    assert net_config(replace(config, stochastic_depth=0.0), 10).stochastic_depth == 0.0


def test_a_net_whose_positions_are_for_one_size_says_so(few_digits, tmp_path):
    net = vitkit.build("AxialResNet-50-S", classes=2, image_size=32)
    model = Model(net, ["a", "b"], Preprocessing.direct((32, 32)))
    with pytest.raises(UsageError, match="learned for one image size"):
        vitkit.finetune(few_digits, model, out=tmp_path / "run", steps=1, image_size=64, **FAST)


@pytest.mark.parametrize("name", ["EfficientNet-B0", "AxialResNet-50-S"])
def test_batch_norms_that_would_see_one_image_are_refused_before_anything_is_made(
    name, few_digits, tmp_path
):
    options = FAST | {"model": name, "image_size": 32, "steps": 1, "batch_size": 3}
    with pytest.raises(UsageError, match=r"batch norms.*a batch of 3 in 2 part\(s\) leaves one"):
        vitkit.pretrain(few_digits, out=tmp_path / "run", accumulation=2, **options)
