"""AxialResNet: equal to Axial-DeepLab's own code, and what its attention along lines means."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.models.axial_resnet import (
    ACROSS,
    DOWN,
    AxialAttention,
    AxialResNet,
    AxialResNetConfig,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "axial-resnet"
BATCH_NORMS = nn.BatchNorm1d | nn.BatchNorm2d

# The original's names -> ours, in this order
NAMES = [
    (r"^conv1\.", "root."), (r"^bn1\.", "root_norm."), (r"^fc\.", "head."),
    (r"^layer(\d)\.", lambda match: f"stages.{int(match[1]) - 1}."),
    (r"conv_down", "conv1"), (r"conv_up", "conv2"), (r"\.bn([12])\.", r".norm\1."),
    (r"downsample", "shortcut"), (r"hight_block", "column_attention"),
    (r"width_block", "row_attention"), (r"qkv_transform", "qkv"), (r"bn_qkv", "qkv_norm"),
    (r"\.relative$", ".relative_embedding"),
]  # fmt: skip
# Norms that the original applies to tensors side by side are one for each here.
STACKED = {"bn_similarity": ("content_norm", "query_norm", "key_norm")}
INTERLEAVED = {"bn_output": ("value_norm", "offset_norm")}


def from_original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of lib/models/axialnet.py as one of AxialResNet."""
    ours = {}
    for name, tensor in state.items():
        for theirs, own in NAMES:
            name = re.sub(theirs, own, name)
        theirs = name.split(".")[-2]
        if theirs in STACKED:
            parts = tensor.chunk(3) if tensor.ndim else [tensor] * 3
            ours |= {name.replace(theirs, own): part
                     for own, part in zip(STACKED[theirs], parts, strict=True)}  # fmt: skip
        elif theirs in INTERLEAVED:
            parts = (tensor[0::2], tensor[1::2]) if tensor.ndim else [tensor] * 2
            ours |= {name.replace(theirs, own): part
                     for own, part in zip(INTERLEAVED[theirs], parts, strict=True)}  # fmt: skip
        elif not name.endswith("flatten_index"):  # which is no weight
            ours[name] = tensor
    return ours


def golden(file: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / file) as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def golden_net() -> AxialResNet:
    config = AxialResNetConfig(4, (2, 1, 2, 1), heads=4, classes=5, image_size=(64, 64))
    net = AxialResNet(config)
    net.load_state_dict(from_original(golden("checkpoint.npz")))
    return net


def assert_agrees(ours: Tensor, expected: Tensor) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


def small_net(**options) -> AxialResNet:
    """A float64 net in eval mode in which no parameter is zero: nothing can hide."""
    options = {"units": (1, 2), "heads": 2, "classes": 5, "image_size": (16, 24)} | options
    net = AxialResNet(AxialResNetConfig(4, **options)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


def small_attention(length: int, along: int, width: int = 8) -> AxialAttention:
    """Two heads, random weights, and batch norms that do nothing to logits and outputs."""
    attention = AxialAttention(width, heads=2, length=length, along=along).double().eval()
    attention.initialise()
    for module in attention.modules():
        if isinstance(module, BATCH_NORMS):
            module.eps = 0.0  # the running variance is 1
    return attention


# The original code's numbers


@torch.no_grad()
def test_features_and_logits_are_those_of_the_original_code():
    arrays = golden("io.npz")
    net = golden_net().eval()
    assert_agrees(net.features(arrays["images"]), arrays["features"])
    assert_agrees(net(arrays["images"]), arrays["logits"])


@torch.no_grad()
def test_in_training_the_norms_follow_the_batch_as_those_of_the_original_code():
    """In float64, as the golden case is: each norm of a batch of 3 magnifies what is rounded."""
    arrays = golden("io.npz")
    net = golden_net().double().train()
    assert_agrees(net(arrays["images"].double()), arrays["training_logits"])


@pytest.mark.parametrize(
    ("width", "units", "expected"),
    [  # axial26s, axial50s, axial50m, axial50l of the original code
        (32, (1, 2, 4, 1), 5_944_936),
        (32, (3, 4, 6, 3), 11_586_216),
        (48, (3, 4, 6, 3), 25_179_400),
        (64, (3, 4, 6, 3), 43_973_480),
    ],
)
def test_it_has_as_many_parameters_as_the_original(width, units, expected):
    with torch.device("meta"):
        net = AxialResNet(AxialResNetConfig(width, units))
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


# Attention along a line


@pytest.mark.parametrize("along", [DOWN, ACROSS])
@torch.no_grad()
def test_attention_is_the_formula(along):
    """Axial-DeepLab, Eq. 4, place by place, for one line."""
    n, heads, d = 5, 2, 4
    attention = small_attention(n, along)
    line = torch.randn(8, n, dtype=torch.float64)
    q, k, v = (attention.qkv.weight[:, :, 0] @ line).view(heads, 2 * d, n).split([2, 2, d], dim=1)
    for_q, for_k, for_v = attention.relative_embedding.split([2, 2, d])
    expected = torch.zeros(heads, d, n, dtype=torch.float64)
    for head in range(heads):
        for i in range(n):
            logits = torch.stack([
                q[head, :, i] @ k[head, :, j]
                + q[head, :, i] @ for_q[:, i - j + n - 1]
                + k[head, :, j] @ for_k[:, j - i + n - 1]
                for j in range(n)
            ])  # fmt: skip
            for j, weight in enumerate(logits.softmax(dim=0)):
                expected[head, :, i] += weight * (v[head, :, j] + for_v[:, i - j + n - 1])
    image = line[None, :, :, None] if along == DOWN else line[None, :, None]
    found = attention(image).flatten(2)[0]
    torch.testing.assert_close(found, expected.flatten(0, 1))


@pytest.mark.parametrize("along, own", [(DOWN, (slice(None), 2)), (ACROSS, (3, slice(None)))])
@torch.no_grad()
def test_a_place_is_read_by_its_own_line_alone(along, own):
    attention = small_attention((4, 5)[along - 2], along)
    image = torch.randn(1, 8, 4, 5, dtype=torch.float64)
    changed = image.clone()
    changed[:, :, 3, 2] += 1
    difference = (attention(changed) - attention(image)).abs().sum(dim=(0, 1))
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[own] = True
    assert torch.equal(difference > 1e-9, expected)


@torch.no_grad()
def test_attention_down_is_attention_across_the_transposed_image():
    down, across = small_attention(5, DOWN), small_attention(5, ACROSS)
    across.load_state_dict(down.state_dict())
    image = torch.randn(2, 8, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(down(image), across(image.transpose(2, 3)).transpose(2, 3))


@torch.no_grad()
def test_columns_and_rows_together_reach_every_place():
    unit = small_net(image_size=(16, 24)).stages[0][0]
    x = torch.randn(1, 4, 4, 6, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, 1, 2] += 10
    attended = [unit.row_attention(unit.column_attention(unit.conv1(y))) for y in (x, changed)]
    assert ((attended[1] - attended[0]).abs().sum(dim=(0, 1)) > 1e-9).all()


# The net


def test_a_unit_starts_as_its_shortcut():
    unit = AxialResNet(AxialResNetConfig(4, (1, 2), heads=2, image_size=(16, 16))).stages[1][1]
    x = torch.rand(2, 32, 2, 2)
    torch.testing.assert_close(unit(x), F.relu(x))


def test_random_weights_have_the_spread_that_the_authors_give_them():
    net = AxialResNet(AxialResNetConfig(64, (1, 1), image_size=(64, 64)))
    unit = net.stages[1][0]
    attention = unit.column_attention
    for weight, std in [
        (net.root.weight, math.sqrt(2 / (64 * 49))),  # He's, of the channels that go out
        (unit.conv1.weight, math.sqrt(2 / 256)),
        (attention.qkv.weight, math.sqrt(1 / 256)),
        (attention.relative_embedding, math.sqrt(1 / 32)),  # d
    ]:
        assert weight.std().item() == pytest.approx(std, rel=0.1)
        assert weight.mean().abs().item() < 0.1 * std


def test_a_rectangular_net_reads_rectangular_images():
    net = small_net(image_size=(16, 24))
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    assert net.feature_map(images).shape == (2, 32, 2, 3)
    assert net.features(images).shape == (2, net.config.feature_width) == (2, 32)
    assert net(images).shape == (2, 5)
    torch.testing.assert_close(net(images), net.head(net.features(images)))


def test_the_logits_of_an_image_do_not_depend_on_the_rest_of_the_batch():
    net, images = small_net(), torch.rand(3, 3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(net(images)[:1], net(images[:1]))


def test_an_empty_batch_has_no_logits():
    assert small_net()(torch.rand(0, 3, 16, 24, dtype=torch.float64)).shape == (0, 5)


def test_every_parameter_is_trained():
    net = small_net().train()
    (net(torch.rand(2, 3, 16, 24, dtype=torch.float64)) ** 2).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"16x16 pixels .* built for 16x24, whose relative"):
        small_net()(torch.rand(1, 3, 16, 16, dtype=torch.float64))


def test_the_head_starts_at_zero_with_the_bias_asked_for():
    config = AxialResNetConfig(4, (1, 1), heads=2, image_size=(16, 16), head_bias=-10.0)
    net = AxialResNet(config)
    assert isinstance(net.head, nn.Linear)
    assert torch.equal(net(torch.rand(2, 3, 16, 16)), torch.full((2, 1000), -10.0))


def test_a_net_without_classes_gives_its_features():
    net = small_net(classes=0)
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    assert isinstance(net.head, nn.Identity)
    assert torch.equal(net(images), net.features(images))


@pytest.mark.parametrize("classes", [3, 0])
def test_the_head_can_be_replaced(classes):
    net = small_net()
    net.reset_head(classes, bias=0.5)
    assert (net.config.classes, net.config.head_bias) == (classes, 0.5)
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    expected = torch.full((2, 3), 0.5).double() if classes else net.features(images)
    assert torch.equal(net(images), expected)


def test_the_state_dict_is_all_that_a_net_is():
    net, images = small_net().train(), torch.rand(2, 3, 16, 24, dtype=torch.float64)
    net(images)  # running means and variances are state too
    with torch.device("meta"):
        other = AxialResNet(net.config)
    other.load_state_dict(net.state_dict(), assign=True)
    assert torch.equal(other.eval()(images), net.eval()(images))


# Configs


def test_lists_become_tuples():
    config = AxialResNetConfig(8, [1, 1], image_size=[16, 24])  # type: ignore[arg-type]
    assert config == AxialResNetConfig(8, (1, 1), image_size=(16, 24))
    assert hash(config)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"width": 0}, "width is 0"),
        ({"heads": 0}, "heads is 0"),
        ({"heads": 5}, "5 heads do not divide the width 32"),
        ({"units": ()}, "number of units"),
        ({"units": (3, 0)}, "number of units"),
        ({"classes": -1}, "classes is -1"),
        ({"image_size": (224, 200)}, "224x200 .* multiples of 32"),
        ({"image_size": (0, 224)}, "0x224"),
        ({"image_size": (224,)}, "a height and a width"),
        ({"head_bias": math.nan}, "head_bias is nan"),
    ],
)
def test_impossible_values_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        AxialResNetConfig(**{"width": 32} | options)
