"""Every named net: its parameters to the digit, its FLOPs, and errors that name the nearest."""

import math
import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitkit.errors import UsageError
from vitkit.models import cost
from vitkit.models.nets import NetConfig, make
from vitkit.models.variants import VARIANTS, build, config, name_of
from vitkit.models.vit_config import ViTConfig

# Parameters with 1000 classes at the usual size of each net. ViT, hybrids and BiT: those that the
# authors' models_test.py holds their nets to, and the same formula for the paper's other nets.
# g, G and DINOv2: timm's nets. T2T-ViT: the trained ones of the authors' own code. EfficientNet:
# torchvision's table. AxialResNet: axial-deeplab's code. The small ones: the same arithmetic.
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
    "ViT-g/14": 1_012_611_432,
    "ViT-G/14": 1_844_440_680,
    "DINOv2-S/14": 22_441_192,
    "DINOv2-B/14": 87_348_712,
    "DINOv2-L/14": 305_392_616,
    "DINOv2-g/14": 1_138_016_232,
    "R50+ViT-B/32": 110_945_832,
    "R50+ViT-B/16": 98_659_112,
    "R50+ViT-L/32": 328_994_856,
    "R50+ViT-L/16": 316_483_624,
    "R+ViT-Ti/16": 6_337_704,
    "R26+ViT-S/32": 36_431_912,
    "R26+ViT-B/32": 101_383_976,
    "BiT-R50x1": 25_549_352,
    "BiT-R50x2": 97_988_712,
    "BiT-R50x3": 217_319_080,
    "BiT-R101x1": 44_541_480,
    "BiT-R101x3": 387_934_888,
    "BiT-R152x1": 60_185_128,
    "BiT-R152x2": 236_335_208,
    "BiT-R152x4": 936_533_224,
    "BiT-R200x3": 568_633_000,
    "Axial-ViT-B/32": 173_278_696,
    "Axial-ViT-B/16": 171_622_120,
    "AxialResNet-50": 43_973_480,
    "AxialResNet-50-M": 25_179_400,
    "AxialResNet-50-S": 11_586_216,
    "T2T-ViT-14": 21_465_806,
    "T2T-ViT-19": 39_085_070,
    "T2T-ViT-24": 64_000_974,
    "T2T-ViT_t-14": 21_465_422,
    "T2T-ViT_t-19": 39_084_686,
    "T2T-ViT_t-24": 64_000_590,
    "EfficientNet-B0": 5_288_548,
    "EfficientNet-B1": 7_794_184,
    "EfficientNet-B2": 9_109_994,
    "EfficientNet-B3": 12_233_232,
    "EfficientNet-B4": 19_341_616,
    "EfficientNet-B5": 30_389_784,
    "EfficientNet-B6": 43_040_704,
    "EfficientNet-B7": 66_347_960,
    "ViT-Ti/8": 5_581_480,
    "ViT-Ti/4": 5_553_832,
    "ViT-Nano/16": 3_048_232,
    "ViT-Nano/8": 2_912_296,
    "ViT-Nano/4": 2_884_648,
    "ViT-Pico/8": 569_416,
    "ViT-Pico/4": 555_592,
    "ViT-Pico/2": 552_136,
    "ViT-Femto/2": 170_152,
    "R5+ViT-Pico/4": 660_104,
    "BiT-R14x1": 10_057_256,
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
    ("R+ViT-Ti/16", 224, "0.43"), ("R+ViT-Ti/16", 384, "1.33"),
    ("R26+ViT-S/32", 224, "3.46"), ("R26+ViT-S/32", 384, "10.26"),
    ("R26+ViT-B/32", 224, "6.71"), ("R26+ViT-B/32", 384, "19.81"),
    ("R50+ViT-B/16", 224, "21.54"), ("R50+ViT-B/16", 384, "67.16"),
    ("R50+ViT-L/32", 224, "19.41"), ("R50+ViT-L/32", 384, "57.14"),
    ("R50+ViT-B/32", 224, "8.46"), ("R50+ViT-B/32", 384, "24.94"),
    ("R50+ViT-L/16", 224, "65.54"), ("R50+ViT-L/16", 384, "202.8"),
    ("BiT-R50x1", 224, "4.09"), ("BiT-R50x2", 224, "16.1"), ("BiT-R50x3", 224, "36.1"),
    ("BiT-R101x1", 224, "7.80"), ("BiT-R101x3", 224, "69.5"), ("BiT-R152x1", 224, "11.5"),
    ("BiT-R152x2", 224, "45.8"), ("BiT-R152x4", 224, "182.8"), ("BiT-R200x3", 224, "134.35"),
]  # fmt: skip

OPTIONS = [
    {"distillation_token": True, "registers": 3},
    {"pooling": "token+mean", "layer_scale": 0.1, "mlp": "swiglu"},
    {"positions": "2d", "positions_at": "layers"},
    {"positions": "relative"},
    {"pooling": "map"},
    {"pooling": "map", "mlp": "swiglu", "hidden_head": True},
    {"attention": ("row", "column", "window:7", "stride:4", "global", "window:14x2")},
    {"attention": ("window:7",), "pooling": "mean"},
    {"stem": (1, 2), "stem_width": 32, "patch": 2},
    {"stem": (), "image_size": (96, 64)},
    {"pooling": "mean"},
    {"hidden_head": True},
    {"classes": 10, "image_size": (32, 48)},
    {"pooling": "mean", "hidden_head": True, "image_size": (48, 16), "classes": 3},
]


def counted_flops(net: NetConfig, device: str = "meta", dtype=torch.float32) -> int:
    """What torch counts during a forward pass; on the meta device nothing is computed."""
    with torch.device(device), FlopCounterMode(display=False) as counter:
        make(net).to(dtype).eval()(torch.empty(1, 3, *net.image_size, dtype=dtype))
    return counter.get_total_flops()


def test_every_variant_is_tested_here():
    assert set(PARAMETERS) == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_net_has_the_known_number_of_parameters(name):
    assert cost.parameters(config(name, image_size=VARIANTS[name].side)) == PARAMETERS[name]


def test_the_pre_training_net_of_the_paper_has_the_known_number_of_parameters():
    assert cost.parameters(config("ViT-B/16", classes=21843, hidden_head=True)) == 103_186_515


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_flops_hold_for_every_option(options):
    net = config("ViT-Nano/8", **{"image_size": 224} | options)
    assert cost.flops(net) == counted_flops(net)


@pytest.mark.parametrize("name", [n for n, row in VARIANTS.items() if row.kind in ("ViT", "BiT")])
def test_flops_equal_what_torch_counts(name):
    net = config(name, image_size=VARIANTS[name].side)
    assert cost.flops(net) == counted_flops(net)


def test_flops_are_the_same_where_attention_is_written_out():
    net = config("ViT-Nano/4", image_size=32)
    # In bfloat16 a CPU has it written out; torch does not count the fused kernel there.
    assert cost.flops(net) == counted_flops(net, device="cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("name, size, giga", GIGA_MULTIPLY_ADDS)
def test_half_the_flops_are_the_published_multiply_adds(name, size, giga):
    digits = len(giga.partition(".")[2])
    assert f"{cost.flops(config(name, image_size=size)) / 2e9:.{digits}f}" == giga


@pytest.mark.parametrize("name", VARIANTS)
def test_an_architecture_knows_its_name(name):
    assert name_of(config(name, classes=7, image_size=VARIANTS[name].side)) == name


@pytest.mark.parametrize("name", ["ViT-B/16", "R26+ViT-S/32", "BiT-R50x1", "T2T-ViT-14"])
def test_a_net_is_described_by_its_kind_where_the_table_has_no_name(name):
    net = config(name)
    other = "units" if hasattr(net, "units") else "depth"
    changed = replace(net, **{other: (1, 1, 1, 2) if other == "units" else 5})
    assert name_of(changed) not in VARIANTS
    assert "1, 1, 1, 2" in name_of(changed) or "depth 5" in name_of(changed)


def test_multiply_adds_of_the_others_are_near_those_of_their_papers():
    """T2T-ViT-14: 4.8 G (arXiv 2101.11986, Table 2); EfficientNet-B0: 0.39 G (arXiv 1905.11946)."""
    assert cost.flops(config("T2T-ViT-14")) / 2e9 == pytest.approx(4.8, abs=0.1)
    assert cost.flops(config("EfficientNet-B0")) / 2e9 == pytest.approx(0.39, abs=0.01)


def test_an_option_that_a_kind_of_net_does_not_have_is_refused_by_name():
    with pytest.raises(UsageError, match="option of BiT-R50x1 'pooling'"):
        build("BiT-R50x1", pooling="mean")


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


# Values of another type


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("ViT-Ti/16", {"width": "64"}, "width is '64'; it must be a whole number"),
        ("ViT-Ti/16", {"heads": 2.0}, "heads is 2.0; it must be a whole number"),
        ("ViT-Ti/16", {"registers": 1.5}, "registers is 1.5; it must be a whole number"),
        ("ViT-Ti/16", {"stem": 3}, "stem is 3; it must be of type tuple"),
        ("ViT-Ti/16", {"norm_eps": math.nan}, "norm_eps is nan; it must be a finite number"),
        (
            "ViT-Ti/16",
            {"distillation_token": 1},
            "distillation_token is 1; it must be",
        ),
        ("BiT-R50x1", {"width_factor": True}, "width_factor is True; it must be a whole number"),
        ("BiT-R50x1", {"units": 3}, "units is 3; it must be of type tuple"),
        ("T2T-ViT-14", {"depth": None}, "depth is None; it must be a whole number"),
        ("AxialResNet-50-S", {"heads": "8"}, "heads is '8'; it must be a whole number"),
        ("EfficientNet-B0", {"dropout": "no"}, "dropout is 'no'; it must be a finite number"),
        ("EfficientNet-B0", {"image_size": 224.5}, "image_size is 224.5; it must be a height"),
    ],
)
def test_a_value_of_another_type_is_named(name, options, says):
    with pytest.raises(UsageError, match=re.escape(says)):
        config(name, **options)


def test_a_whole_number_is_a_float_however_large():
    made = config("ViT-Ti/16", norm_eps=1, layer_scale=2**64)
    assert (type(made.norm_eps), made.layer_scale) == (float, 2.0**64)
