"""Every named net: its parameters to the digit, its FLOPs, and errors that name the nearest."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitkit.errors import UsageError
from vitkit.models import cost
from vitkit.models.variants import VARIANTS, build, config, name_of
from vitkit.models.vit import VisionTransformer, ViTConfig

# Parameters with 1000 classes at 224 pixels: those that the authors' models_test.py holds their
# nets to, and below them, in the same arithmetic, those of vitkit's own small nets.
PARAMETERS = {
    "ViT-Ti/16": 5_717_416,
    "ViT-S/32": 22_878_952,
    "ViT-S/16": 22_050_664,
    "ViT-B/32": 88_224_232,
    "ViT-B/16": 86_567_656,
    "ViT-B/8": 86_576_872,
    "ViT-L/32": 306_535_400,
    "ViT-L/16": 304_326_632,
    "ViT-H/14": 632_045_800,
    "ViT-Ti/8": 5_719_720,
    "ViT-Ti/4": 6_143_656,
    "ViT-Nano/16": 3_048_232,
    "ViT-Nano/8": 3_050_536,
    "ViT-Nano/4": 3_474_472,
    "ViT-Pico/8": 638_536,
    "ViT-Pico/4": 850_504,
    "ViT-Pico/2": 1_750_216,
    "ViT-Femto/2": 968_872,
}

# Multiply-adds in units of 10^9, as the field's tables print them.
GIGA_MULTIPLY_ADDS = [
    ("ViT-Ti/16", 224, "1.25"), ("ViT-Ti/16", 384, "4.68"),
    ("ViT-S/32", 224, "1.14"), ("ViT-S/32", 384, "3.44"),
    ("ViT-S/16", 224, "4.60"), ("ViT-S/16", 384, "15.49"),
    ("ViT-B/32", 224, "4.41"), ("ViT-B/32", 384, "13.04"),
    ("ViT-B/16", 224, "17.56"), ("ViT-B/16", 384, "55.48"),
    ("ViT-B/8", 224, "78.15"), ("ViT-B/8", 384, "294.0"),
    ("ViT-L/32", 224, "15.38"), ("ViT-L/32", 384, "45.28"),
    ("ViT-L/16", 224, "61.55"), ("ViT-L/16", 384, "191.1"), ("ViT-L/16", 512, "362.0"),
    ("ViT-H/14", 224, "167.3"), ("ViT-H/14", 518, "1016.7"),
]  # fmt: skip

OPTIONS = [
    {"pooling": "mean"},
    {"hidden_head": True},
    {"classes": 10, "image_size": (32, 48)},
    {"pooling": "mean", "hidden_head": True, "image_size": (48, 16), "classes": 3},
]


def on_meta(net: ViTConfig) -> VisionTransformer:
    """The net without memory for its weights."""
    with torch.device("meta"):
        return VisionTransformer(net)


def counted_parameters(net: ViTConfig) -> int:
    return sum(parameter.numel() for parameter in on_meta(net).parameters())


def counted_flops(net: ViTConfig, device: str = "meta") -> int:
    with torch.device(device), FlopCounterMode(display=False) as counter:
        VisionTransformer(net)(torch.empty(1, 3, *net.image_size))
    return counter.get_total_flops()


def test_every_variant_is_tested_here():
    assert set(PARAMETERS) == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_net_and_the_closed_form_have_the_known_number_of_parameters(name):
    net = config(name)
    assert cost.parameters(net) == PARAMETERS[name]
    assert counted_parameters(net) == PARAMETERS[name]


def test_the_pre_training_net_of_the_paper_has_the_known_number_of_parameters():
    net = config("ViT-B/16", classes=21843, hidden_head=True)
    assert cost.parameters(net) == counted_parameters(net) == 103_186_515


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parameters_and_flops_hold_for_every_option(options):
    net = config("ViT-Nano/8", **options)
    assert cost.parameters(net) == counted_parameters(net)
    assert cost.flops(net) == counted_flops(net)


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_equal_what_torch_counts(name):
    net = config(name)
    assert cost.flops(net) == counted_flops(net)


def test_flops_are_the_same_where_attention_is_written_out():
    net = config("ViT-Nano/4", image_size=32)
    assert cost.flops(net) == counted_flops(net, device="cpu")


@pytest.mark.parametrize("name, size, giga", GIGA_MULTIPLY_ADDS)
def test_half_the_flops_are_the_published_multiply_adds(name, size, giga):
    digits = len(giga.partition(".")[2])
    assert f"{cost.flops(config(name, image_size=size)) / 2e9:.{digits}f}" == giga


@pytest.mark.parametrize("name", VARIANTS)
def test_an_architecture_knows_its_name(name):
    assert name_of(config(name, classes=7, image_size=16 * VARIANTS[name].patch)) == name


def test_an_architecture_that_has_no_name_is_described():
    assert name_of(ViTConfig(16, 48, 2, 3, 96)) == "ViT (patch 16, width 48, depth 2, heads 3)"


def test_build_makes_the_named_net_with_the_options_given():
    net = build(
        "ViT-Pico/2", classes=5, image_size=(8, 12), pooling="mean", hidden_head=True,
        gelu="erf", dropout=0.1, head_bias=-3.0,
    )  # fmt: skip
    assert net.config == ViTConfig(
        patch=2, width=96, depth=4, heads=3, mlp_width=384, classes=5, image_size=(8, 12),
        pooling="mean", hidden_head=True, gelu="erf", dropout=0.1, head_bias=-3.0,
    )  # fmt: skip
    assert net(torch.zeros(2, 3, 8, 12)).shape == (2, 5)


def test_build_takes_one_side_for_a_square_and_the_papers_head_by_default():
    net = build("ViT-Pico/2", image_size=8)
    assert net.config == ViTConfig(2, 96, 4, 3, 384, classes=1000, image_size=(8, 8))


@pytest.mark.parametrize(
    "wrong, nearest",
    [
        ("ViT-B/61", "ViT-B/16"),
        ("vit-b/16", "ViT-B/16"),
        ("ViTB16", "ViT-B/16"),
        ("ViT-Nano/61", "ViT-Nano/16"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(wrong, nearest):
    with pytest.raises(UsageError) as error:
        build(wrong)
    assert repr(wrong) in str(error.value)
    assert repr(nearest) in str(error.value)


def test_a_name_near_to_none_is_refused_with_all_that_there_are():
    with pytest.raises(UsageError) as error:
        build("zzz")
    assert all(name in str(error.value) for name in VARIANTS)


def test_a_size_that_cannot_be_is_refused_by_an_error_that_names_net_size_and_nearest():
    with pytest.raises(UsageError, match=r"^ViT-B/16: .*\b217x217\b.*\b16\b.*\b224x224\b"):
        build("ViT-B/16", image_size=217)
