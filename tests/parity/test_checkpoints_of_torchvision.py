"""torchvision's checkpoints are read, and written so that torchvision itself reads them."""

from typing import Any

import pytest
import torch
from peers import (
    assert_close,
    assert_equal,
    assert_prepares_alike,
    assert_same_net,
    images_for,
    on_meta,
    randomised,
    saved,
)
from torch import nn
from torchvision import models

import vitkit
from vitkit.checkpoints.bundle import Bundle
from vitkit.checkpoints.convert import write_foreign
from vitkit.checkpoints.formats import TORCHVISION_EFFICIENTNET, TORCHVISION_VIT
from vitkit.checkpoints.usual import preprocessing_of
from vitkit.models.variants import config
from vitkit.prediction.model import Model

SMALL = {"image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 3, "hidden_dim": 192}
NETS = {  # name: (its builder, arguments, some fields of our config)
    "vit_b_16": (models.vit_b_16, {}, {"patch": 16, "width": 768, "heads": 12, "depth": 12,
                                       "gelu": "erf", "norm_eps": 1e-6, "image_size": (224, 224)}),
    "hidden layer": (models.VisionTransformer,
                     {**SMALL, "mlp_dim": 768, "representation_size": 192},
                     {"hidden_head": True, "image_size": (64, 64)}),
    "efficientnet_b0": (models.efficientnet_b0, {}, {"size": "B0", "image_size": (224, 224)}),
    "efficientnet_b1": (models.efficientnet_b1, {"num_classes": 5}, {"size": "B1", "classes": 5}),
    "efficientnet_b2": (models.efficientnet_b2, {"num_classes": 5}, {"size": "B2", "classes": 5}),
}  # fmt: skip


def made(name: str) -> Any:
    builder, arguments, _ = NETS[name]
    return randomised(on_meta(builder, **arguments))


def bundle_of(model: Model) -> Bundle:
    return Bundle(model.net, model.class_names, model.preprocessing)


@torch.inference_mode()
def assert_computes_the_same(model: Model, peer: Any) -> None:
    seen = []
    head = [module for module in peer.modules() if isinstance(module, nn.Linear)][-1]
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images = images_for(model.net)
    assert_close(model.net(images), peer(images))
    assert_close(model.net.features(images), seen[0])
    hook.remove()


@pytest.mark.parametrize("name", NETS)
def test_a_state_dict_is_read_and_written(room, name):
    peer = made(name)
    weights = peer.state_dict()
    model = vitkit.load(saved(weights, room / "theirs.pth"))
    expected = NETS[name][2]
    assert {field: getattr(model.net.config, field) for field in expected} == expected
    assert_computes_the_same(model, peer)

    write_foreign(bundle_of(model), room / "ours.pth", "torchvision")
    again = torch.load(room / "ours.pth", weights_only=True)
    assert_equal(again, dict(weights))
    on_meta(NETS[name][0], **NETS[name][1]).load_state_dict(again, strict=True, assign=True)
    assert_same_net(vitkit.load(room / "ours.pth").net, model.net)


def test_the_names_of_the_mlp_before_torchvision_0_13_are_read(room):
    weights = made("hidden layer").state_dict()
    old = {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): tensor
        for name, tensor in weights.items()
    }
    ours, new = (
        vitkit.load(saved(w, room / file))
        for w, file in ((old, "old.pth"), (weights, "new.safetensors"))
    )
    assert_same_net(ours.net, new.net)


@pytest.mark.parametrize("name", ["hidden layer", "efficientnet_b0"])
def test_a_net_without_a_head_is_read_and_written(room, name):
    weights = dict(made(name).state_dict())
    for part in ("weight", "bias"):
        weights.pop(f"heads.head.{part}" if name == "hidden layer" else f"classifier.1.{part}")
    model = vitkit.load(saved(weights, room / "theirs.safetensors"))
    assert (model.net.config.classes, model.class_names) == (0, [])
    write_foreign(bundle_of(model), room / "ours.pth", "torchvision")
    assert_equal(torch.load(room / "ours.pth", weights_only=True), weights)


def test_a_thousand_classes_have_the_names_of_imagenet(room):
    model = vitkit.load(saved(made("efficientnet_b0").state_dict(), room / "theirs.pth"))
    assert model.class_names == models.EfficientNet_B0_Weights.DEFAULT.meta["categories"]
    assert "the class names of ImageNet-1k, as it has 1,000 classes" in model.provenance["assumed"]


@pytest.mark.parametrize(
    ("form", "name", "side", "weights"),
    [
        (TORCHVISION_VIT, "ViT-B/16", 224, models.ViT_B_16_Weights.IMAGENET1K_V1),
        *(
            (TORCHVISION_EFFICIENTNET, f"EfficientNet-B{n}", side, weights)
            for n, side, weights in (
                (0, 224, models.EfficientNet_B0_Weights.IMAGENET1K_V1),
                (3, 300, models.EfficientNet_B3_Weights.IMAGENET1K_V1),
                (5, 456, models.EfficientNet_B5_Weights.IMAGENET1K_V1),
            )
        ),
    ],
)
def test_images_are_prepared_as_torchvisions_own_weights_ask_for(form, name, side, weights):
    assumed: list[str] = []
    ours = preprocessing_of(form, config(name, image_size=side), {}, assumed)
    assert_prepares_alike(ours, weights.transforms())
    assert assumed == [f"preprocessing as {form.title} usually have it: {ours.summary}"]
