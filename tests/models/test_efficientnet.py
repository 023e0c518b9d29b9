"""EfficientNet is torchvision's net, its numbers and weights, behind the contract of vitkit's."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from vitkit.models.efficientnet import USUAL_IMAGE_SIZES, EfficientNet, EfficientNetConfig


def random_images(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *(size or (64, 64)))


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """torchvision's B0 with statistics and biases that are neither 0 nor 1."""
    torch.manual_seed(0)
    net = models.efficientnet_b0(num_classes=10).eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
    return net


@pytest.fixture
def ours(theirs) -> EfficientNet:
    net = EfficientNet(EfficientNetConfig("B0", classes=10)).eval()
    net.load_state_dict(
        {
            name.replace("features.", "backbone.", 1).replace("classifier.1.", "head.", 1): value
            for name, value in theirs.state_dict().items()
        }
    )
    return net


# torchvision's net


@pytest.mark.parametrize("size", [(224, 224), (64, 96), (33, 47)])
@torch.no_grad()
def test_torchvisions_weights_give_torchvisions_logits_at_any_image_size(ours, theirs, size):
    images = random_images(*size)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-6)


def test_a_new_net_has_the_weights_that_torchvision_draws():
    torch.manual_seed(1)
    expected = models.efficientnet_b0(num_classes=3).state_dict().values()
    torch.manual_seed(1)
    drawn = EfficientNet(EfficientNetConfig("B0", classes=3)).state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(drawn, expected, strict=True))


@pytest.mark.parametrize("size", USUAL_IMAGE_SIZES)
def test_each_size_has_the_parameters_norms_and_dropout_that_torchvision_publishes(size):
    name = f"efficientnet_{size.lower()}"
    published = models.get_model_weights(name).DEFAULT.meta
    with torch.device("meta"):
        net = EfficientNet(EfficientNetConfig(size))
        expected = models.get_model(name)
    assert {tensor.device.type for tensor in net.state_dict().values()} == {"meta"}
    assert sum(parameter.numel() for parameter in net.parameters()) == published["num_params"]
    assert norms(net) == norms(expected)
    assert net.dropout.p == expected.classifier[0].p
    assert depths(net) == depths(expected)


def norms(net: nn.Module) -> list[tuple[float, float | None]]:
    return [(m.eps, m.momentum) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


def depths(net: nn.Module) -> list[float]:
    return [m.p for m in net.modules() if type(m).__name__ == "StochasticDepth"]


def test_the_usual_image_sizes_are_those_of_the_original_code():
    assert list(USUAL_IMAGE_SIZES.values()) == [224, 240, 260, 300, 380, 456, 528, 600]


def test_dropout_and_stochastic_depth_can_be_other_than_torchvisions():
    with torch.device("meta"):
        net = EfficientNet(EfficientNetConfig("B0", dropout=0.0, stochastic_depth=0.0))
    assert net.dropout.p == 0
    assert set(depths(net)) == {0.0}


# Features and head


@torch.no_grad()
def test_the_head_is_one_linear_layer_on_the_average_of_the_last_map(ours):
    images = random_images()
    features = ours.features(images)
    torch.testing.assert_close(features, ours.backbone(images).mean(dim=(2, 3)))
    torch.testing.assert_close(ours(images), features @ ours.head.weight.T + ours.head.bias)
    assert features.shape == (2, ours.feature_width)
    assert isinstance(ours.head, nn.Linear)


def test_dropout_stands_between_the_features_and_the_head(ours, monkeypatch):
    monkeypatch.setattr(F, "dropout", lambda x, *_, **__: torch.zeros_like(x))
    ours.dropout.train()
    assert torch.equal(ours(random_images()), ours.head.bias.expand(2, -1))
    assert ours.features(random_images()).any()


@torch.no_grad()
def test_a_net_without_classes_gives_its_features(ours):
    net = EfficientNet(EfficientNetConfig("B0", classes=0)).eval()
    state = ours.state_dict()
    net.load_state_dict({name: state[name] for name in net.state_dict()})
    images = random_images()
    assert isinstance(net.head, nn.Identity)
    assert not any(name.startswith("head") for name in net.state_dict())
    assert torch.equal(net(images), ours.features(images))


@torch.no_grad()
def test_a_reset_head_is_zero_for_its_new_classes_and_leaves_the_features_alone(ours):
    images = random_images()
    before = ours.features(images)
    ours.reset_head(7, bias=-2.0)
    assert torch.equal(ours(images), torch.full((2, 7), -2.0))
    assert torch.equal(ours.features(images), before)
    assert (ours.config.classes, ours.config.head_bias) == (7, -2.0)
    ours.reset_head(0)
    assert torch.equal(ours(images), before)
    ours.reset_head(3)
    assert ours(images).shape == (2, 3)


def test_the_head_bias_of_a_new_net_is_what_the_config_says():
    net = EfficientNet(EfficientNetConfig("B0", classes=4, head_bias=-10.0))
    assert torch.equal(net.head.bias, torch.full((4,), -10.0))


@torch.no_grad()
def test_the_state_is_complete_even_for_a_net_made_without_memory(ours):
    images = random_images()
    with torch.device("meta"):
        same = EfficientNet(ours.config)
    same.load_state_dict(ours.state_dict(), assign=True)
    assert torch.equal(same.eval()(images), ours(images))


def test_a_few_steps_from_a_zero_head_lower_the_loss_of_a_small_batch():
    torch.manual_seed(0)
    config = EfficientNetConfig("B0", classes=2, dropout=0.0, stochastic_depth=0.0)
    net, images = EfficientNet(config).train(), random_images(32, 32, batch=8)
    net.reset_head(
        2
    )  # torchvision's own draw for two classes is too large to train without warm-up
    labels = torch.arange(8) % 2
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2))
    assert losses[-1] < 0.2 * losses[0]


# Words that are wrong


def test_an_image_size_from_json_becomes_a_tuple():
    assert EfficientNetConfig("B0", image_size=[32, 48]).image_size == (32, 48)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"size": "B8"}, "'B8' .* B0, .*B7"),
        ({"classes": -1}, "classes is -1"),
        ({"image_size": (0, 32)}, r"image_size is \(0, 32\)"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"stochastic_depth": -0.1}, "stochastic_depth is -0.1"),
        ({"head_bias": math.inf}, "head_bias is inf"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        EfficientNetConfig(**({"size": "B0"} | options))
