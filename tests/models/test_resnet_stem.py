"""The hybrid's ResNet as properties, and with a Vision Transformer behind it equal to the authors'
own code: golden/hybrid-two-stage, hybrid-root-only, hybrid-epsilons."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.models.resnet_stem import ResNetStem, same_max_pool
from vitkit.models.std_conv import StdConv2d
from vitkit.models.vit import VisionTransformer
from vitkit.models.vit_config import ViTConfig

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {  # what the config of each says beyond the tiny transformer that all of them have
    "hybrid-two-stage": {"patch": 1, "stem": (1, 2)},
    "hybrid-root-only": {"patch": 4, "stem": (), "hidden_head": True},
    "hybrid-epsilons": {"patch": 1, "stem": (1, 1)},
}


def small_stem(units: tuple[int, ...] = (1, 2), **options) -> ResNetStem:
    """A float64 stem no parameter of which is zero: nothing can hide."""
    stem = ResNetStem(units, **{"width": 32} | options).double().eval()
    with torch.no_grad():
        for parameter in stem.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return stem


def random_images(*size: int, batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *(size or (32, 32)), dtype=torch.float64) * 2 - 1


# The authors' code

# Names of the authors' checkpoints and ours; (.) is the number of a stage, unit, block or layer.
STEM_NAMES = {
    "conv_root": "stem.root.conv",
    "gn_root": "stem.root.norm",
    r"block(\d)/unit(\d)/conv(\d)": "stem.stages.{}.{}.conv{}",
    r"block(\d)/unit(\d)/gn(\d)": "stem.stages.{}.{}.norm{}",
    r"block(\d)/unit(\d)/conv_proj": "stem.stages.{}.{}.projection.conv",
    r"block(\d)/unit(\d)/gn_proj": "stem.stages.{}.{}.projection.norm",
}
BLOCK = r"Transformer/encoderblock_(\d)/"
TRANSFORMER_NAMES = {
    "embedding": "patch_embedding",
    "Transformer/encoder_norm": "norm",
    "pre_logits": "hidden",
    "head": "head",
    BLOCK + "LayerNorm_0": "blocks.{}.norm1",
    BLOCK + "LayerNorm_2": "blocks.{}.norm2",
    BLOCK + "MlpBlock_3/Dense_0": "blocks.{}.mlp.dense1",
    BLOCK + "MlpBlock_3/Dense_1": "blocks.{}.mlp.dense2",
    BLOCK + "MultiHeadDotProductAttention_1/out": "blocks.{}.attention.out",
}
QKV = ("query", "key", "value")
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def our_name(name: str) -> str:
    layer, _, leaf = name.rpartition("/")
    for pattern, ours in (STEM_NAMES | TRANSFORMER_NAMES).items():
        if match := re.fullmatch(pattern, layer):
            offset = 1 if pattern in STEM_NAMES else 0  # theirs count from 1 there
            stage_unit = [int(number) - offset for number in match.groups()[:2]]
            return f"{ours.format(*stage_unit, *match.groups()[2:])}.{LEAVES[leaf]}"
    raise KeyError(name)


def our_layout(array: np.ndarray) -> Tensor:
    """Kernels (h, w, I, O) -> (O, I, h, w), matrices (I, O) -> (O, I), vectors as they are."""
    tensor = torch.from_numpy(array)
    if tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)
    return tensor.flatten(end_dim=-2).T if tensor.ndim > 1 else tensor  # attention/out: 3 axes


def golden_state(case: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / case / "checkpoint.npz") as file:
        arrays = dict(file)
    positions = "Transformer/posembed_input/pos_embedding"
    state = {
        "class_token": torch.from_numpy(arrays.pop("cls")),
        "position_embedding": torch.from_numpy(arrays.pop(positions)),
    }
    queries = [name for name in arrays if name.endswith("/query/kernel")]
    for query in queries:  # q, k, v are (D, heads, d) and (heads, d), ours one matrix
        block = int(re.match(BLOCK, query)[1])
        for leaf in ("kernel", "bias"):
            names = [query.replace("query/kernel", f"{part}/{leaf}") for part in QKV]
            parts = [torch.from_numpy(arrays.pop(name)) for name in names]
            parts = [part.flatten(1).T if leaf == "kernel" else part.flatten() for part in parts]
            state[f"blocks.{block}.attention.qkv.{LEAVES[leaf]}"] = torch.cat(parts)
    return state | {our_name(name): our_layout(array) for name, array in arrays.items()}


def golden_net(case: str, **options) -> VisionTransformer:
    """The whole hybrid in float64."""
    state = golden_state(case)
    depth = len([name for name in state if name.endswith("qkv.weight")])
    config = ViTConfig(**{
        "width": 48, "depth": depth, "heads": 3, "mlp_width": 96, "classes": 10,
        "image_size": (64, 64), "stem_width": 32,
    } | CASES[case] | options)  # fmt: skip
    net = VisionTransformer(config).eval()
    net.load_state_dict(state)
    return net.double()


@torch.no_grad()
def errors(net: VisionTransformer, case: str) -> tuple[float, float]:
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


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_features_and_logits_are_those_of_the_authors_code(case, dtype):
    assert max(errors(golden_net(case).to(dtype), case)) < 0.5


@pytest.mark.parametrize(
    "options",
    [
        {"stem_variance_eps": 1e-10, "stem_std_eps": 0.0},  # as in BiT
        {"stem_variance_eps": 1e-8, "stem_std_eps": 0.0},  # as in timm
        {"stem_std_eps": 1e-6},
        {"stem_norm_eps": 1e-5},
    ],
    ids=str,
)
def test_every_epsilon_matters_to_the_golden_case(options):
    assert min(errors(golden_net("hybrid-epsilons", **options), "hybrid-epsilons")) > 10


@pytest.mark.parametrize("part", ["root.conv", "stages.1.0.conv2"])
def test_symmetric_padding_is_off_where_same_padding_is_not_symmetric(part):
    net = golden_net("hybrid-epsilons")
    convolution = net.stem.get_submodule(part)
    convolution.same, convolution.padding = False, (convolution.kernel_size[0] // 2,) * 2
    assert min(errors(net, "hybrid-epsilons")) > 10


def test_a_symmetric_pool_is_off(monkeypatch):
    monkeypatch.setattr(
        "vitkit.models.resnet_stem.same_max_pool", lambda x: F.max_pool2d(x, 3, 2, padding=1)
    )
    assert min(errors(golden_net("hybrid-epsilons"), "hybrid-epsilons")) > 10


@pytest.mark.parametrize("missing", range(7))
def test_without_any_one_of_its_relus_the_net_is_off(monkeypatch, missing):
    relu, calls = F.relu, []

    def all_but_one(x: Tensor, inplace: bool = False) -> Tensor:
        calls.append(1)
        return x if (len(calls) - 1) % 7 == missing else relu(x, inplace)

    monkeypatch.setattr(F, "relu", all_but_one)
    assert min(errors(golden_net("hybrid-epsilons"), "hybrid-epsilons")) > 10
    assert len(calls) == 2 * 7, "one at the root, three to a unit, for features and for logits"


# The hybrids of the paper and of AugReg

B, L, S, TI = (768, 12, 12, 3072), (1024, 24, 16, 4096), (384, 12, 6, 1536), (192, 12, 3, 768)


@pytest.mark.parametrize(
    "units, patch, transformer, parameters",
    [
        ((3, 4, 6, 3), 1, B, 110_945_832), ((3, 4, 9), 1, B, 98_659_112),
        ((3, 4, 6, 3), 1, L, 328_994_856), ((3, 4, 9), 1, L, 316_483_624),
        ((2, 2, 2, 2), 1, S, 36_431_912), ((2, 2, 2, 2), 1, B, 101_383_976), ((), 8, TI, 6_337_704),
    ],
    ids=["R50+B/32", "R50+B/16", "R50+L/32", "R50+L/16", "R26+S/32", "R26+B/32", "R+Ti/16"],
)  # fmt: skip
def test_the_hybrids_have_as_many_parameters_as_the_authors_code_counts(
    units, patch, transformer, parameters
):
    """Five are in its models_test.py; of R50+B/32 and R50+L/16 it has no config: by formula."""
    with torch.device("meta"):
        net = VisionTransformer(ViTConfig(patch, *transformer, stem=units))
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


def test_parameters_are_named_by_stage_unit_and_place():
    norms = [f"{norm}.{leaf}" for norm in ("norm1", "norm2", "norm3") for leaf in LEAVES.values()]
    unit = {"conv1.weight", "conv2.weight", "conv3.weight", *norms}
    pair = {"conv.weight", "norm.weight", "norm.bias"}
    expected = {f"root.{name}" for name in pair}
    expected |= {f"stages.{place}.{name}" for place in ("0.0", "1.0", "1.1") for name in unit}
    expected |= {f"stages.{place}.projection.{name}" for place in ("0.0", "1.0") for name in pair}
    assert set(small_stem().state_dict()) == expected


# Shapes


@pytest.mark.parametrize(
    "units, channels, stride",
    [((), 32, 4), ((1,), 128, 4), ((1, 2), 256, 8), ((1, 1, 1), 512, 16), ((1,) * 4, 1024, 32)],
)
@pytest.mark.parametrize("height, width", [(64, 64), (32, 96), (65, 33), (1, 1)])
def test_channels_and_stride_say_what_the_feature_map_will_be(
    units, channels, stride, height, width
):
    stem = small_stem(units)
    assert (stem.channels, stem.stride) == (channels, stride)
    size = (math.ceil(height / stride), math.ceil(width / stride))
    assert stem(random_images(height, width)).shape == (2, channels, *size)


def test_a_stage_halves_the_image_at_its_first_3_x_3_convolution_and_the_first_stage_does_not():
    stem = small_stem()
    strides = {n: m.stride[0] for n, m in stem.named_modules() if isinstance(m, StdConv2d)}
    twos = {name for name, stride in strides.items() if stride == 2}
    assert twos == {"root.conv", "stages.1.0.conv2", "stages.1.0.projection.conv"}


# The parts


@given(height=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_the_pool_has_windows_as_same_padding_places_them_and_never_takes_the_padding(
    height, width, seed
):
    torch.manual_seed(seed)
    x = torch.randn(2, 3, height, width) - 3  # mostly below zero
    rows, columns = math.ceil(height / 2), math.ceil(width / 2)
    expected = torch.empty(2, 3, rows, columns)
    for row in range(rows):
        for column in range(columns):
            top, left = 2 * row - height % 2, 2 * column - width % 2
            window = x[..., max(top, 0) : top + 3, max(left, 0) : left + 3]
            expected[..., row, column] = window.amax(dim=(2, 3))
    assert torch.equal(same_max_pool(x), expected)


def test_the_feature_map_is_activated():
    feature_map = small_stem()(random_images())
    assert feature_map.min() == 0
    assert feature_map.max() > 0


def test_a_new_unit_passes_on_its_shortcut():
    unit = ResNetStem((2,), width=32).stages[0][1]
    x = torch.rand(2, 128, 4, 4)
    assert torch.equal(unit(x), x)
    assert torch.equal(unit(-x), torch.zeros_like(x)), "what comes out is activated"


def test_the_feature_map_of_an_image_does_not_depend_on_the_rest_of_the_batch():
    stem, images = small_stem(), random_images(batch=3)
    torch.testing.assert_close(stem(images)[:1], stem(images[:1]))


def test_the_stem_compiles_whole_for_image_sizes_that_vary():
    """It hung, not failed, while SAME padding was written with rounded quotients."""
    stem = small_stem((1,))
    compiled = torch.compile(stem, fullgraph=True, dynamic=True, backend="eager")
    for size in ((32, 48), (64, 32)):
        images = random_images(*size)
        torch.testing.assert_close(compiled(images), stem(images))


def test_every_parameter_is_trained():
    stem = small_stem()
    stem(random_images()).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in stem.parameters())


def test_every_convolution_and_norm_has_the_epsilons_that_were_asked_for():
    stem = small_stem(variance_eps=1e-3, std_eps=1e-2, group_norm_eps=1e-1)
    convolutions = [m for m in stem.modules() if isinstance(m, StdConv2d)]
    norms = [m for m in stem.modules() if isinstance(m, nn.GroupNorm)]
    assert len(convolutions) == len(norms) == 1 + 3 * 3 + 2
    assert {(m.variance_eps, m.std_eps) for m in convolutions} == {(1e-3, 1e-2)}
    assert {(m.num_groups, m.eps) for m in norms} == {(32, 1e-1)}


def test_kernels_are_lecun_normal_cut_at_two_deviations():
    torch.manual_seed(0)
    stem = ResNetStem((1, 1))
    for name in ("root.conv", "stages.0.0.conv2", "stages.1.0.conv1"):
        weight = stem.get_submodule(name).weight
        std = math.sqrt(1 / weight[0].numel())
        assert weight.std().item() == pytest.approx(std, rel=0.03)
        assert 1.9 * std < weight.abs().max() <= 2 * std / 0.8796


def test_norms_start_as_the_identity_but_the_last_of_each_unit_at_zero():
    for name, module in ResNetStem((1, 2), width=32).named_modules():
        if isinstance(module, nn.GroupNorm):
            value = 0.0 if name.endswith("norm3") else 1.0
            assert torch.equal(module.weight, torch.full_like(module.weight, value))
            assert torch.count_nonzero(module.bias) == 0


# Words that are wrong


@pytest.mark.parametrize(
    "options, words",
    [
        ({"units": (1, 0)}, r"units is \(1, 0\)"),
        ({"width": 48}, "48 wide .* 32 divides"),
        ({"width": 0}, "0 wide"),
        ({"std_eps": 0.0}, "both 0"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        ResNetStem(**{"units": (1, 1)} | options)
