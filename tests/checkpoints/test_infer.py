"""An architecture from the names and shapes of its tensors, and from what else is said of it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitkit.checkpoints.bundle import Bundle
from vitkit.checkpoints.convert import read_foreign, write_foreign
from vitkit.checkpoints.formats import (
    FORMATS,
    HF_VIT,
    NPZ_BIT,
    NPZ_VIT,
    T2T,
    TIMM_VIT,
    TORCHVISION_EFFICIENTNET,
    Format,
    clean_names,
    detect,
)
from vitkit.checkpoints.infer import infer_config, settle_positions, usual_heads
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.tables import FileNames, Tensors
from vitkit.data.transforms import Preprocessing
from vitkit.models.bit import BiTConfig
from vitkit.models.efficientnet import EfficientNetConfig
from vitkit.models.nets import NetConfig, make_meta
from vitkit.models.t2t import T2TConfig
from vitkit.models.variants import VARIANTS, config
from vitkit.models.vit import VisionTransformer
from vitkit.models.vit_config import ViTConfig


def tensors_of(net: NetConfig) -> Tensors:
    return dict(make_meta(net).state_dict())


def inferred(form: Format, tensors: Tensors, **said: Any) -> tuple[NetConfig, list[str]]:
    notes: list[str] = []
    names = FileNames([], form.table)
    return infer_config(form, tensors, names, said, "net.pth", notes), notes


def vit(**options: Any) -> ViTConfig:
    sizes: dict[str, Any] = {
        "patch": 4,
        "width": 128,
        "depth": 2,
        "heads": 2,
        "mlp_width": 256,
        "classes": 5,
    }
    return ViTConfig(**sizes | {"image_size": (32, 32), "gelu": "erf"} | options)


# Every net that has a name

OF_KIND = {"ViT": NPZ_VIT, "BiT": NPZ_BIT, "T2T-ViT": T2T, "EfficientNet": TORCHVISION_EFFICIENTNET}
NAMED = [
    name
    for name, row in VARIANTS.items()
    if row.kind in OF_KIND and "attention" not in row.sizes  # of which the weights say nothing
]


@pytest.mark.parametrize("name", NAMED)
def test_every_named_net_is_known_from_its_tensors(name):
    row = VARIANTS[name]
    side = 480 if row.kind == "BiT" else row.side
    net = config(name, image_size=side)
    form = OF_KIND[row.kind]
    gated = {"gelu": "erf"} if row.sizes.get("mlp") == "swiglu" else {}
    found, _ = inferred(form, tensors_of(net))
    constants = {name: v for name, v in form.constants.items() if hasattr(net, name)}
    assert found == replace(net, **constants | gated)


# All that a ViT can have


@st.composite
def vits(draw) -> ViTConfig:
    cell, heads = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    classes, pooling = draw(st.integers(0, 3)), draw(st.sampled_from(["token", "mean", "map"]))
    distilled = pooling == "token" and draw(st.booleans())
    return ViTConfig(
        patch=cell,
        width=heads * draw(st.sampled_from([4, 8])),
        depth=draw(st.integers(1, 11)),
        heads=heads,
        mlp_width=draw(st.integers(1, 40)),
        classes=classes,
        image_size=(draw(st.integers(1, 6)) * cell, draw(st.integers(1, 6)) * cell),
        pooling=pooling,
        hidden_head=not distilled and draw(st.booleans()),
        mlp=draw(st.sampled_from(["gelu", "swiglu"])),
        gelu="erf",
        distillation_token=distilled,
        registers=draw(st.integers(0, 3)),
        layer_scale=draw(st.sampled_from([None, 1e-5])),
    )


@given(net=vits())
@settings(max_examples=80, deadline=None)
def test_what_cannot_be_seen_in_the_tensors_is_enough_to_say(net):
    """Heads, an oblong's sides, the GELU, and whether patches are averaged."""
    pooling = "mean" if "mean" in net.pooling else "token"
    said = {"heads": net.heads, "image_size": net.image_size, "gelu": net.gelu, "pooling": pooling}
    assert inferred(TIMM_VIT, tensors_of(net), **said) == (net, [])


# What the tensors do not say


@pytest.mark.parametrize(
    ("width", "depth", "mlp_width", "gated", "heads", "note"),
    [
        (768, 12, 3072, False, 12, "12 heads, as ViT-B/32 has"),
        (96, 4, 384, False, 3, "3 heads, as ViT-Pico/8 has"),
        (1280, 32, 5120, False, 16, "16 heads, as ViT-H/14 has"),
        (1536, 40, 4096, True, 24, "24 heads, as DINOv2-g/14 has"),
        (1152, 27, 4304, False, 16, "16 heads, as nets 1152 wide usually have"),
        (1536, 40, 6144, False, 16, "16 heads, as nets 1536 wide usually have"),
        (1536, 12, 4096, True, 24, "24 heads, as nets 1536 wide usually have"),
        (640, 12, 2560, False, 10, "10 heads, as nets 640 wide usually have"),
    ],
)
def test_heads_are_those_of_the_named_net_of_this_shape_else_64_wide(
    width, depth, mlp_width, gated, heads, note
):
    notes: list[str] = []
    assert usual_heads(width, depth, mlp_width, gated, notes) == heads
    assert notes == [note]


def test_heads_that_are_said_need_no_convention():
    said = {"heads": 8, "gelu": "erf", "pooling": "token"}
    assert inferred(TIMM_VIT, tensors_of(vit()), **said) == (vit(heads=8), [])


@pytest.mark.parametrize("form", [TIMM_VIT, HF_VIT])
def test_what_no_tensor_shows_and_no_json_says_is_noted(form):
    assert inferred(form, tensors_of(vit()), heads=8)[1] == ["GELU 'erf'", "pooling 'token'"]


@pytest.mark.parametrize("width", [48, 96, 200])
def test_a_width_without_a_usual_number_of_heads_asks_for_it(width):
    tensors = tensors_of(vit(width=width, heads=1, depth=3))
    with pytest.raises(CheckpointError, match=rf"a net {width} wide has no usual .*num_heads"):
        inferred(TIMM_VIT, tensors)


@pytest.mark.parametrize("said", [{"width": 64}, {"depth": 3}])
def test_a_config_of_another_net_is_told_from_this_one(said):
    (what, value), *_ = said.items()
    message = f"is of another net: its {what} is {value}, that of the weights"
    with pytest.raises(CheckpointError, match=rf"net\.pth: .*{message}"):
        inferred(TIMM_VIT, tensors_of(vit()), **said)


def test_constants_are_those_of_the_library_unless_they_are_said():
    tensors = tensors_of(vit(heads=2))
    assert inferred(NPZ_VIT, tensors)[0] == vit(gelu="tanh")
    assert inferred(HF_VIT, tensors)[0] == vit(norm_eps=1e-12)
    said = {"gelu": "tanh", "norm_eps": 1e-5}
    assert inferred(HF_VIT, tensors, **said)[0] == vit(**said)


@pytest.mark.parametrize(
    ("options", "said", "pooling"),
    [
        ({}, {}, "token"),
        ({}, {"pooling": "mean"}, "patch-mean"),
        ({}, {"norm_after_pool": True}, "patch-mean"),
        ({}, {"norm_after_pool": True, "pooling": "token"}, "token"),
        ({"pooling": "mean"}, {}, "mean"),
        ({"pooling": "map"}, {"pooling": "token"}, "map"),
        ({"pooling": "token+mean"}, {}, "token+mean"),
    ],
)
def test_the_pooling_is_what_there_are_tensors_for_else_what_is_said(options, said, pooling):
    found, _ = inferred(TIMM_VIT, tensors_of(vit(**options)), **said)
    assert isinstance(found, ViTConfig)
    assert found.pooling == pooling


# Positions


def with_positions(count: int, **options: Any) -> Tensors:
    return tensors_of(vit(**options)) | {"position_embedding": torch.zeros(1, count, 128)}


@pytest.mark.parametrize(
    ("count", "options", "side"),
    [
        (1 + 64, {}, 32),
        (64, {}, 32),  # none for the class token
        (64, {"pooling": "mean"}, 32),
        (2 + 49, {"distillation_token": True}, 28),
        (49, {"distillation_token": True}, 28),
        (1 + 25, {"registers": 4}, 20),
        (25, {"registers": 4}, 20),
        (1 + 4 + 25, {"registers": 4}, 20),  # registers with positions
        (3 + 25, {"registers": 3, "pooling": "mean"}, 20),
    ],
)
def test_the_image_is_the_square_that_the_positions_are_for(count, options, side):
    found, _ = inferred(TIMM_VIT, with_positions(count, **options))
    assert found.image_size == (side, side)


@pytest.mark.parametrize("count", [0, 1, 3, 63, 66])
def test_positions_of_no_square_are_refused(count):
    with pytest.raises(CheckpointError, match=rf"net\.pth: {count} position embeddings are no sq"):
        inferred(TIMM_VIT, with_positions(count))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((16, 64), (16, 64)),
        ((64, 16), (64, 16)),
        ((33, 35), (32, 32)),  # what does not fill a patch is cut off
        ((20, 20), (32, 32)),  # not of these weights
        ((224, 224), (32, 32)),
    ],
)
def test_an_image_size_that_is_said_holds_where_the_positions_agree(size, expected):
    found, notes = inferred(TIMM_VIT, with_positions(1 + 64), image_size=size)
    assert found.image_size == expected
    assert any("config.json says" in note for note in notes) == (size != expected)


@pytest.mark.parametrize(("stem", "stride"), [((), 4), ((1,), 4), ((1, 1), 8), ((1, 1, 1, 1), 32)])
def test_behind_a_stem_a_patch_is_so_many_pixels(stem, stride):
    options = {"stem": stem, "stem_width": 32, "patch": 2, "image_size": (2 * 3 * stride,) * 2}
    found, _ = inferred(NPZ_VIT, tensors_of(vit(**options)))
    assert found == vit(**options, gelu="tanh")


def test_class_tokens_without_a_position_get_zeros_which_add_nothing():
    positions = torch.rand(1, 64, 128)
    tensors = {"position_embedding": positions}
    settle_positions(tensors, vit())
    settled = tensors["position_embedding"]
    assert settled.shape == (1, 65, 128)
    assert settled[:, 0].abs().max() == 0
    torch.testing.assert_close(settled[:, 1:], positions, rtol=0, atol=0)


def test_positions_of_registers_are_added_to_the_registers():
    positions, registers = torch.rand(1, 1 + 3 + 64, 128), torch.rand(1, 3, 128)
    tensors = {"position_embedding": positions, "registers": registers}
    settle_positions(tensors, vit(registers=3))
    kept = torch.cat([positions[:, :1], positions[:, 4:]], dim=1)
    torch.testing.assert_close(tensors["position_embedding"], kept, rtol=0, atol=0)
    torch.testing.assert_close(tensors["registers"], registers + positions[:, 1:4])


def test_positions_that_are_as_ours_stay():
    for net in (vit(), vit(registers=3), vit(pooling="mean"), vit(distillation_token=True)):
        tensors = {"position_embedding": torch.rand(1, net.positioned, 128)}
        before = tensors["position_embedding"]
        settle_positions(tensors, net)
        assert tensors["position_embedding"] is before


# What is missing


@pytest.mark.parametrize(
    ("form", "net", "name", "theirs"),
    [
        (NPZ_VIT, vit(), "patch_embedding.weight", "embedding/kernel"),
        (TIMM_VIT, vit(), "position_embedding", "pos_embed"),
        (HF_VIT, vit(), "blocks.0.mlp.dense1.weight", r"encoder\.layer\.0\.intermediate\.dense\.w"),
        (NPZ_BIT, BiTConfig((1,), 1, 32), "root.weight", "resnet/root_block/standardized_conv2d/k"),
        (T2T, T2TConfig(64, 1, 1, 64), "tokens_to_token.projection.weight", "tokens_to_token.proj"),
        (TORCHVISION_EFFICIENTNET, EfficientNetConfig("B0"), "backbone.8.0.weight",
         r"features\.8\.0\.weight"),
    ],
)  # fmt: skip
def test_a_tensor_that_the_architecture_is_read_from_is_named_as_in_the_file(
    form, net, name, theirs
):
    tensors = tensors_of(net)
    del tensors[name]
    with pytest.raises(CheckpointError, match=rf"net\.pth: missing {theirs}"):
        inferred(form, tensors)


def test_a_tensor_with_too_few_axes_is_an_error_of_the_checkpoint():
    for name in ("patch_embedding.weight", "position_embedding", "blocks.0.mlp.dense2.weight"):
        tensors = tensors_of(vit()) | {name: torch.zeros(())}
        with pytest.raises(CheckpointError, match=r"net\.pth: a tensor has too few axes"):
            inferred(TIMM_VIT, tensors)


# Which format


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.title)
def test_a_format_is_known_by_its_marks_and_by_all_of_them(form):
    assert detect([*form.marks, "something else"]) is form
    for mark in form.marks:
        assert detect(set(form.marks) - {mark}) is not form


def test_names_of_no_format_are_of_none():
    assert detect([]) is None
    assert detect(["conv1.weight", "bn1.weight", "fc.weight"]) is None


def test_of_two_names_that_become_one_neither_is_lost():
    names = [f"Transformer/encoderblock_0/LayerNorm_{n}/scale" for n in (1, 2)]
    cleaned = clean_names(names, NPZ_VIT)
    assert sorted(cleaned.values()) == names
    assert len(cleaned) == 2


def test_names_without_the_prefix_that_others_have_are_left_out():
    names = ["backbone.cls_token", "backbone.norm.bias", "dino_head.mlp.0.weight"]
    assert clean_names(names, TIMM_VIT) == {
        "cls_token": "backbone.cls_token", "norm.bias": "backbone.norm.bias",
    }  # fmt: skip


def test_heads_that_no_convention_knows_are_taken_from_a_config_json_of_one_line(tmp_path):
    net = VisionTransformer(ViTConfig(8, 96, 2, 3, 192, classes=5, image_size=(32, 32), gelu="erf"))
    bundle = Bundle(net, list("abcde"), Preprocessing.direct((32, 32)))
    write_foreign(bundle, tmp_path / "net.pth", "timm")
    with pytest.raises(CheckpointError, match=r'one that holds \{"num_heads": N\}'):
        read_foreign(tmp_path / "net.pth")
    (tmp_path / "config.json").write_text('{"num_heads": 3}')
    assert vars(read_foreign(tmp_path / "net.pth").net.config)["heads"] == 3
