"""BiT as properties, and equal to the authors' own code: golden/bit-four-stage, bit-epsilons."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.models.bit import BiT, BiTConfig
from vitkit.models.std_conv import StdConv2d

GOLDEN = Path(__file__).parents[1] / "golden"
FOUR_STAGES = {"units": (1, 1, 1, 1), "root_width": 32, "classes": 10, "image_size": (64, 64)}


def small_net(**options) -> BiT:
    """A float64 net in eval mode, no parameter of which is zero: nothing can hide."""
    options = {"units": (1, 2), "root_width": 32, "classes": 5, "image_size": (32, 32)} | options
    net = BiT(BiTConfig(**options)).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net


def random_images(*size: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *(size or (32, 32)), dtype=torch.float64) * 2 - 1


# The authors' code

# Names of big_transfer's checkpoints and ours; (.) is the stage, unit, or which of three.
NAMES = {
    "root_block/standardized_conv2d/kernel": "root.weight",
    "block(.)/unit(..)/(.)/standardized_conv2d/kernel": "stages.{}.{}.conv{}.weight",
    "block(.)/unit(..)/(.)/group_norm/gamma": "stages.{}.{}.norm{}.weight",
    "block(.)/unit(..)/(.)/group_norm/beta": "stages.{}.{}.norm{}.bias",
    "block(.)/unit(..)/a/proj/standardized_conv2d/kernel": "stages.{}.{}.projection.weight",
    "group_norm/gamma": "norm.weight",
    "group_norm/beta": "norm.bias",
    "head/conv2d/kernel": "head.weight",
    "head/conv2d/bias": "head.bias",
}


def our_name(name: str) -> str:
    for pattern, ours in NAMES.items():
        if match := re.fullmatch(pattern, name):
            stage, unit, *which = match.groups() or ("1", "1")
            return ours.format(int(stage) - 1, int(unit) - 1, *("_abc".index(c) for c in which))
    raise KeyError(name)


def our_layout(array: np.ndarray) -> Tensor:
    """Kernels (h, w, I, O) -> (O, I, h, w); vectors as they are. Stored in float16."""
    tensor = torch.from_numpy(array).double()
    return tensor.permute(3, 2, 0, 1) if tensor.ndim == 4 else tensor


def golden_net(case: str, **options) -> BiT:
    with np.load(GOLDEN / case / "checkpoint.npz") as arrays:
        state = {
            our_name(name.removeprefix("resnet/")): our_layout(arrays[name]) for name in arrays
        }
    state["head.weight"] = state["head.weight"].flatten(1)
    net = BiT(BiTConfig(**FOUR_STAGES | options)).double().eval()
    net.load_state_dict(state)
    return net


@torch.no_grad()
def errors(net: BiT, case: str) -> tuple[float, float]:
    """How far features and logits are off, in units of the tolerance that the cases ask for."""
    with np.load(GOLDEN / case / "io.npz") as arrays:
        images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).to(net.norm.weight.dtype)
        features, logits = (torch.from_numpy(arrays[name]) for name in ("features", "logits"))
    off = []
    for ours, golden in ((net.features(images), features), (net(images), logits)):
        assert ours.shape == golden.shape
        tolerance = 1e-5 * max(1, golden.abs().max().item())
        off.append((ours - golden).abs().max().item() / tolerance)
    return off[0], off[1]


@pytest.mark.parametrize("case", ["bit-four-stage", "bit-epsilons"])
def test_features_and_logits_are_those_of_the_authors_code(case):
    assert max(errors(golden_net(case), case)) < 0.01, "both were computed in float64"


@pytest.mark.parametrize("case", ["bit-four-stage", "bit-epsilons"])
def test_float32_too_is_within_the_tolerance(case):
    assert max(errors(golden_net(case).float(), case)) < 1


@pytest.mark.parametrize(
    "options",
    [
        {"variance_eps": 1e-8},  # as in timm
        {"variance_eps": 1e-12},
        {"variance_eps": 0.0, "std_eps": 1e-5},  # as in the hybrids
        {"group_norm_eps": 1e-6},
    ],
    ids=str,
)
def test_every_epsilon_matters_to_the_golden_case(options):
    assert min(errors(golden_net("bit-epsilons", **options), "bit-epsilons")) > 10


def test_a_pool_that_pads_with_less_than_zero_is_off(monkeypatch):
    pad = F.pad
    monkeypatch.setattr(F, "pad", lambda x, sides: pad(x, sides, value=-math.inf))
    assert min(errors(golden_net("bit-epsilons"), "bit-epsilons")) > 10


@pytest.mark.parametrize("part", ["root", "stages.1.0.conv2", "stages.3.0.conv2"])
def test_same_padding_instead_of_symmetric_is_off(part):
    net = golden_net("bit-epsilons")
    convolution = net.get_submodule(part)
    convolution.same, convolution.padding = True, (0, 0)
    assert min(errors(net, "bit-epsilons")) > 10


@pytest.mark.parametrize("missing", range(13))
def test_without_any_one_of_its_relus_the_net_is_off(monkeypatch, missing):
    relu, calls = F.relu, []

    def all_but_one(x: Tensor, inplace: bool = False) -> Tensor:
        calls.append(1)
        return x if (len(calls) - 1) % 13 == missing else relu(x, inplace)

    monkeypatch.setattr(F, "relu", all_but_one)
    assert min(errors(golden_net("bit-epsilons"), "bit-epsilons")) > 10
    assert len(calls) == 2 * 13, "three to a unit and one at the end, for features and for logits"


def test_a_projection_that_reads_what_is_not_activated_is_off():
    net = golden_net("bit-epsilons")
    unit = net.stages[2][0]
    seen = []
    unit.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    unit.projection.register_forward_pre_hook(lambda *_: (seen[-1],))
    assert min(errors(net, "bit-epsilons")) > 10


# The nets of the paper

R50, R101, R152, R200 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3)


@pytest.mark.parametrize(
    "units, width_factor, parameters",
    [
        (R50, 1, 25_549_352), (R50, 2, 97_988_712), (R50, 3, 217_319_080),
        (R101, 1, 44_541_480), (R101, 3, 387_934_888),
        (R152, 1, 60_185_128), (R152, 2, 236_335_208), (R152, 4, 936_533_224),
        (R200, 3, 568_633_000),
    ],
)  # fmt: skip
def test_the_nets_of_the_paper_have_as_many_parameters_as_in_big_transfer(
    units, width_factor, parameters
):
    with torch.device("meta"):
        net = BiT(BiTConfig(units, width_factor))
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters
    assert sum(tensor.numel() for tensor in net.state_dict().values()) == parameters


def test_parameters_are_named_by_stage_unit_and_place():
    unit = [f"{layer}.weight" for layer in ("conv1", "conv2", "conv3", "norm1", "norm2", "norm3")]
    unit += [f"{norm}.bias" for norm in ("norm1", "norm2", "norm3")]
    expected = {"root.weight", "norm.weight", "norm.bias", "head.weight", "head.bias"}
    expected |= {f"stages.{place}.{name}" for place in ("0.0", "1.0", "1.1") for name in unit}
    expected |= {f"stages.{place}.projection.weight" for place in ("0.0", "1.0")}
    assert set(small_net().state_dict()) == expected


# Shapes


@pytest.mark.parametrize("height, width", [(64, 64), (65, 97), (33, 20), (1, 1)])
def test_images_of_any_size_will_do_whatever_the_config_says(height, width):
    net, images = small_net(), random_images(height, width)
    feature_map = net.feature_map(images)
    assert feature_map.shape == (2, 256, math.ceil(height / 8), math.ceil(width / 8))
    assert net.features(images).shape == (2, 256)
    assert net(images).shape == (2, 5)


def test_four_stages_see_a_thirty_second_of_the_image_side():
    net = small_net(units=(1, 1, 1, 1))
    assert net.config.feature_width == 1024
    assert net.feature_map(random_images(224, 65, batch=1)).shape == (1, 1024, 7, 3)


def test_the_width_factor_widens_the_root_as_root_width_does():
    wide, factor = small_net(root_width=64), small_net(root_width=32, width_factor=2)
    shapes = [{n: p.shape for n, p in net.state_dict().items()} for net in (wide, factor)]
    assert shapes[0] == shapes[1]
    assert factor.config.width == factor.root.out_channels == 64


def test_an_empty_batch_has_no_logits():
    assert small_net()(random_images(batch=0)).shape == (0, 5)


# The net, top down


def test_features_are_the_mean_of_the_feature_map_and_the_head_is_linear_on_them():
    net, images = small_net(), random_images()
    features = net.features(images)
    torch.testing.assert_close(features, net.feature_map(images).mean(dim=(2, 3)))
    expected = features @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net(images), expected)


def test_the_feature_map_is_activated():
    feature_map = small_net().feature_map(random_images())
    assert feature_map.min() == 0
    assert feature_map.max() > 0


def test_the_logits_of_an_image_do_not_depend_on_the_rest_of_the_batch():
    net, images = small_net(), random_images(batch=3)
    torch.testing.assert_close(net(images)[:1], net(images[:1]))


def test_the_net_is_the_same_in_training_as_in_evaluation():
    net, images = small_net(), random_images()
    assert torch.equal(net.train()(images), net.eval()(images))


def test_a_unit_adds_to_its_input_which_no_activation_follows():
    """A constant kernel standardises to zero, so that the unit's branch gives nothing."""
    unit = small_net().stages[1][1]
    nn.init.ones_(unit.conv3.weight)
    x = torch.randn(2, 256, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(unit(x), x)


def test_a_stage_halves_the_image_at_its_first_3_x_3_convolution_and_the_first_stage_does_not():
    net = small_net()
    strides = {n: m.stride[0] for n, m in net.named_modules() if isinstance(m, StdConv2d)}
    twos = {name for name, stride in strides.items() if stride == 2}
    assert twos == {"root", "stages.1.0.conv2", "stages.1.0.projection"}


def test_every_parameter_is_trained():
    net = small_net()
    net(random_images()).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in net.parameters())


def test_every_convolution_and_norm_has_the_epsilons_of_the_config():
    net = small_net(variance_eps=1e-3, std_eps=1e-2, group_norm_eps=1e-1)
    convolutions = [m for m in net.modules() if isinstance(m, StdConv2d)]
    norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert len(convolutions) == 1 + 3 * 3 + 2
    assert {(m.variance_eps, m.std_eps) for m in convolutions} == {(1e-3, 1e-2)}
    assert {(m.num_groups, m.eps) for m in norms} == {(32, 1e-1)}


# Initial values and heads


def test_kernels_are_lecun_normal_cut_at_two_deviations_and_norms_are_the_identity():
    torch.manual_seed(0)
    net = BiT(BiTConfig((1, 1), root_width=64))
    for name in ("root", "stages.0.0.conv2", "stages.1.0.conv1", "stages.1.0.projection"):
        weight = net.get_submodule(name).weight
        std = math.sqrt(1 / weight[0].numel())
        assert weight.std().item() == pytest.approx(std, rel=0.03)
        assert 1.9 * std < weight.abs().max() <= 2 * std / 0.8796
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.count_nonzero(module.bias) == 0


@pytest.mark.parametrize("bias", [0.0, -10.0])
def test_every_logit_of_a_new_net_is_exactly_the_head_bias(bias):
    net = BiT(BiTConfig((1,), root_width=32, classes=7, head_bias=bias))
    assert torch.equal(net(torch.randn(2, 3, 16, 16)), torch.full((2, 7), bias))


def test_a_reset_head_is_zero_for_its_new_classes_and_leaves_the_features_alone():
    net, images = small_net(), random_images()
    before = net.features(images)
    net.reset_head(7, bias=-2.0)
    assert torch.equal(net(images), torch.full((2, 7), -2.0, dtype=torch.float64))
    assert torch.equal(net.features(images), before)
    assert (net.config.classes, net.config.head_bias) == (7, -2.0)


def test_without_classes_there_is_no_head_until_one_is_asked_for():
    net, images = small_net(classes=0), random_images()
    assert isinstance(net.head, nn.Identity)
    assert torch.equal(net(images), net.features(images))
    net.reset_head(3)
    assert net(images).shape == (2, 3)
    net.reset_head(0)
    assert torch.equal(net(images), net.features(images))


# Words that are wrong


def test_lists_as_from_json_become_tuples():
    config = BiTConfig(units=[1, 1], image_size=[32, 48])
    assert (config.units, config.image_size) == ((1, 1), (32, 48))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"units": ()}, r"units is \(\)"),
        ({"units": (3, 0)}, r"units is \(3, 0\)"),
        ({"width_factor": 0}, "width_factor is 0"),
        ({"root_width": 48}, "48 wide .* 32 equal groups"),
        ({"classes": -1}, "classes is -1"),
        ({"image_size": (0, 32)}, r"image_size is \(0, 32\)"),
        ({"image_size": (32,)}, r"image_size is \(32,\)"),
        ({"head_bias": math.nan}, "head_bias is nan"),
        ({"variance_eps": 0.0}, "variance_eps and std_eps are both 0"),
        ({"std_eps": -1.0}, "std_eps is -1.0"),
        ({"group_norm_eps": 0.0}, "group_norm_eps is 0.0"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        BiTConfig(**{"units": (1, 1)} | options)
