"""timm's checkpoints are read, and written so that timm itself reads them: the same net each time.

The nets have the sizes of timm's own and random weights, saved as timm's users have them.
"""

import json
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

import vitkit
from vitkit.checkpoints.bundle import Bundle
from vitkit.checkpoints.convert import write_foreign
from vitkit.checkpoints.infer import usual_heads
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.their_json import TIMM_OTHERS, said_by_timm
from vitkit.models.bit import BiTConfig
from vitkit.models.vit_config import ViTConfig
from vitkit.prediction.model import Model

timm = pytest.importorskip("timm")
save_for_hf = pytest.importorskip("timm.models").save_for_hf

SMALL = {"embed_dim": 192, "depth": 2, "num_heads": 3}
SWIGLU = {"embed_dim": 96, "depth": 2, "num_heads": 3, "img_size": 56, "num_classes": 5}

# What is to be known of a net from nothing but its file.
B16 = {"patch": 16, "width": 768, "depth": 12, "heads": 12, "mlp_width": 3072, "gelu": "erf"}
S14 = {"patch": 14, "width": 384, "heads": 6, "image_size": (518, 518), "classes": 0}
BARE = [  # (timm's architecture, its arguments, some fields of our config)
    ("vit_base_patch16_224", {}, {**B16, "pooling": "token", "norm_eps": 1e-6}),
    ("vit_small_patch32_224", {}, {"patch": 32, "width": 384, "heads": 6, "depth": 12}),
    ("vit_small_r26_s32_224", {}, {"patch": 1, "stem": (2, 2, 2, 2), "stem_variance_eps": 1e-8}),
    ("vit_tiny_r_s16_p8_224", {}, {"patch": 8, "stem": (), "image_size": (224, 224)}),
    ("resnetv2_50x1_bit", {}, {"units": (3, 4, 6, 3), "variance_eps": 1e-8}),
    ("deit_tiny_distilled_patch16_224", {}, {"distillation_token": True, "width": 192}),
    ("deit_tiny_distilled_patch16_224", {"num_classes": 0}, {"distillation_token": True}),
    ("deit3_small_patch16_224", {}, {"layer_scale": 1e-5, "registers": 0}),
    ("vit_small_patch14_dinov2", {"num_classes": 0}, {**S14, "layer_scale": 1e-5, "registers": 0}),
    ("vit_small_patch14_reg4_dinov2", {"num_classes": 0}, {**S14, "registers": 4}),
    ("vit_tiny_patch16_224", {"global_pool": "avg"},
     {"pooling": "patch-mean", "norm_after_pool": True}),  # as MAE is fine-tuned
    ("vit_tiny_patch16_224", {"global_pool": "map", "class_token": False},
     {"pooling": "map"}),  # as SigLIP
    ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False, "fc_norm": False},
     {"pooling": "mean", "norm_after_pool": False}),
    ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False},
     {"pooling": "mean", "norm_after_pool": True}),
    ("vit_wee_patch16_reg1_gap_256", {}, {"registers": 1, "pooling": "mean"}),
]  # fmt: skip
SAID = [  # the same, where config.json has to say it
    ("vit_giant_patch14_dinov2", SWIGLU, {"mlp": "swiglu", "heads": 3, "image_size": (56, 56)}),
    ("vit_tiny_patch16_224", {"global_pool": "avg", "fc_norm": False},
     {"pooling": "patch-mean", "norm_after_pool": False}),
    ("vit_tiny_patch16_224", {"global_pool": "token", "fc_norm": True},
     {"pooling": "token", "norm_after_pool": True}),
    ("vit_tiny_patch16_224", {"act_layer": "gelu_tanh"}, {"gelu": "tanh"}),
    ("vit_tiny_patch16_224", {"img_size": (224, 160)}, {"image_size": (224, 160)}),
    ("vit_tiny_patch16_224", {"num_heads": 6, "init_values": 0.5},
     {"heads": 6, "layer_scale": 0.5}),
    ("vit_so400m_patch16_siglip_256", {"embed_dim": 128, "depth": 1, "num_heads": 2},
     {"gelu": "tanh", "pooling": "map"}),
    ("vit_base_patch16_gap_224", {"depth": 1}, {"heads": 16, "pooling": "mean"}),
    ("vit_so150m_patch16_reg4_gap_256", SMALL, {"registers": 4}),  # which have positions
    ("vit_so150m_patch16_reg4_map_256", SMALL, {"registers": 4, "pooling": "map"}),
]  # fmt: skip


def made(architecture: str, **arguments) -> Any:
    return randomised(on_meta(timm.create_model, architecture, **arguments))


def label(value) -> str:
    return value if isinstance(value, str) else ",".join(f"{n}={v}" for n, v in value.items())


def fields(model: Model, expected: dict) -> dict:
    return {name: getattr(model.net.config, name) for name in expected}


@torch.inference_mode()
def assert_computes_the_same(model: Model, *peers: Any) -> None:
    """Features and logits of ours, and of every peer, are those of the first peer."""
    images = images_for(model.net)
    tokens = peers[0].forward_features(images)
    features = peers[0].forward_head(tokens, pre_logits=True)
    if features.ndim == 4:  # timm's BiT leaves its pool's 1 x 1
        features = features.flatten(1)
    logits = peers[0].forward_head(tokens)
    assert_close(model.net.features(images), features)
    if model.net.config.classes:
        assert_close(model.net(images), logits)
    for peer in peers[1:]:
        assert_close(peer(images), logits)


def assert_there_and_back(peer: Any, folder, model: Model) -> None:
    """Ours, written for timm, loaded by timm and by us, is the same net."""
    write_foreign(bundle_of(model), folder, "timm")
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert_computes_the_same(model, peer, again)
    assert_same_net(vitkit.load(folder).net, model.net)


def bundle_of(model: Model) -> Bundle:
    return Bundle(model.net, model.class_names, model.preprocessing)


@pytest.mark.parametrize(("architecture", "arguments", "expected"), BARE, ids=label)
def test_a_folder_and_a_bare_file_are_read_and_written(room, architecture, arguments, expected):
    peer = made(architecture, **arguments)
    save_for_hf(peer, room / "theirs", safe_serialization=True)
    model = vitkit.load(room / "theirs")
    assert fields(model, expected) == expected
    (room / "theirs" / "config.json").unlink()
    bare = vitkit.load(room / "theirs" / "model.safetensors")
    assert fields(bare, expected) == expected
    assert_equal(bare.net.state_dict(), model.net.state_dict())
    assert_there_and_back(peer, room / "ours", model)


@pytest.mark.parametrize(("architecture", "arguments", "expected"), SAID, ids=label)
def test_what_config_json_says_decides(room, architecture, arguments, expected):
    peer = made(architecture, **arguments)
    save_for_hf(peer, room / "theirs", safe_serialization=True)
    model = vitkit.load(room / "theirs")
    assert fields(model, expected) == expected
    assert_there_and_back(peer, room / "ours", model)


@pytest.mark.parametrize(
    "file",
    ["net.safetensors", "net.pth", "net.bin", "model in it.pth", "state_dict in it.tar"],
)
def test_a_bare_file_is_read_whatever_the_weights_are_under(room, file):
    peer = made("vit_tiny_patch16_224")
    weights = peer.state_dict()
    for part in ("model", "state_dict"):
        weights = {part: weights, "epoch": 7} if file.startswith(part) else weights
    model = vitkit.load(saved(weights, room / file))
    assert_computes_the_same(model, peer)
    assert model.provenance["format"] == "timm"
    assert "3 heads, as ViT-Ti/16 has" in model.provenance["assumed"]
    of_deit = file.startswith("model")  # whose own files, as MAE's, have the weights there
    assert (model.preprocessing.mean == (0.485, 0.456, 0.406)) == of_deit


def test_a_bare_file_is_written_with_timms_names_and_weights(room):
    peer = made("vit_tiny_patch16_224")
    model = vitkit.load(saved(peer.state_dict(), room / "net.safetensors"))
    write_foreign(bundle_of(model), room / "ours.pth", "timm")
    again = torch.load(room / "ours.pth", weights_only=True)
    assert_equal(again, dict(peer.state_dict()))
    made("vit_tiny_patch16_224").load_state_dict(again, strict=True)


def test_a_folder_that_transformers_wrote_around_a_net_of_timm_is_read(room):
    peer = made("vit_tiny_patch16_224", num_classes=3)
    config = {
        "architecture": "vit_tiny_patch16_224", "model_args": None, "num_classes": 3,
        "model_type": "timm_wrapper", "label_names": ["ant", "bee", "cat"],
    }  # fmt: skip
    weights = {f"timm_model.{name}": tensor for name, tensor in peer.state_dict().items()}
    saved(weights, room / "model.safetensors", config=config)
    model = vitkit.load(room)
    assert model.class_names == ["ant", "bee", "cat"]
    assert_computes_the_same(model, peer)


def test_the_hidden_layer_of_old_files_for_imagenet_21k_is_kept(room):
    """timm has dropped it from its nets; its older files have it, by the name pre_logits.fc."""
    peer = made("vit_tiny_patch16_224", num_classes=7)
    hidden = randomised(nn.Linear(192, 192))
    weights = peer.state_dict()
    weights |= {f"pre_logits.fc.{name}": t for name, t in hidden.state_dict().items()}
    model = vitkit.load(saved(weights, room / "net.pth"))
    images = images_for(model.net)
    with torch.inference_mode():
        pooled = peer.forward_head(peer.forward_features(images), pre_logits=True)
        assert_close(model.net(images), peer.head(torch.tanh(hidden(pooled))))


def test_class_names_and_preprocessing_come_back_from_the_folder(room):
    peer = made("vit_tiny_patch16_224", num_classes=2)
    model = vitkit.load(saved(peer.state_dict(), room / "net.pth"), class_names=["café", "茶"])
    write_foreign(bundle_of(model), room / "ours", "timm")
    again = vitkit.load(room / "ours")
    assert again.class_names == ["café", "茶"]
    assert again.preprocessing == model.preprocessing
    assert again.preprocessing.rounding == "torchvision"
    assert "assumed" not in again.provenance


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"crop_pct": 1.0, "input_size": [3, 384, 384]},
        {"crop_pct": 0.875, "interpolation": "bilinear"},
        {"crop_mode": "squash"},
        {"crop_mode": "squash", "crop_pct": 1.0, "mean": [0.485, 0.456, 0.406]},
    ],
    ids=str,
)
def test_images_are_prepared_as_timm_does_before_and_after(room, changes):
    prepared = {
        "input_size": [3, 224, 224], "crop_pct": 0.9, "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5], "std": [0.229, 0.224, 0.225], **changes,
    }  # fmt: skip
    side = prepared["input_size"][-1]
    weights = made("vit_tiny_patch16_224", depth=1, img_size=side).state_dict()
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": prepared}
    saved(weights, room / "theirs" / "model.safetensors", config=config)
    model = vitkit.load(room / "theirs")
    write_foreign(bundle_of(model), room / "ours", "timm")
    again = timm.create_model(f"local-dir:{room / 'ours'}", pretrained=True)
    for data in (
        timm.data.resolve_data_config(pretrained_cfg=prepared),
        timm.data.resolve_model_data_config(again),
    ):
        transform = timm.data.create_transform(**data, is_training=False)
        assert_prepares_alike(model.preprocessing, transform)


@pytest.mark.parametrize(
    ("changes", "departure"),
    [
        ({"interpolation": "lanczos"}, "bicubic interpolation in place of 'lanczos'"),
        ({"crop_mode": "border"}, "a crop of the middle in place of timm's crop_mode 'border'"),
        ({"input_size": [3, 224, 160]}, "images distorted to their oblong"),
    ],
    ids=str,
)
def test_what_is_prepared_otherwise_than_timm_does_is_said(room, changes, departure):
    half = [0.5, 0.5, 0.5]
    prepared = {"input_size": [3, 224, 224], "mean": half, "std": half, **changes}
    size = prepared["input_size"][1:]
    weights = made("vit_tiny_patch16_224", depth=1, img_size=size).state_dict()
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": prepared}
    saved(weights, room / "model.safetensors", config=config)
    assert departure in str(vitkit.load(room).provenance["assumed"])


@pytest.mark.parametrize(
    "names", [["vision_transformer"], ["vision_transformer_hybrid"], ["deit"]], ids=str
)
def test_the_heads_of_every_architecture_are_known_whatever_its_depth(names):
    """Where model_args leave them out, timm takes them from the name, and not from the width."""
    unknown = []
    for name in timm.list_models(module=names[0]):
        net = on_meta(timm.create_model, name)
        heads = next(m.num_heads for m in net.modules() if hasattr(m, "num_heads"))
        if TIMM_OTHERS.fullmatch(name):
            continue
        said = said_by_timm({"architecture": name, "global_pool": "token"}).get("heads")
        assert said in (None, heads), name
        unknown += [name] if said is None else []
    assert all(name.startswith("aimv2_") for name in unknown)  # which no net here can be


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_rpn_224", "test_vit3", "vit_small_patch16_rope_ape_224"]
)
def test_nets_with_a_vits_tensors_that_compute_otherwise_are_refused_by_their_name(room, name):
    peer = made(name, depth=1)
    saved(peer.state_dict(), room / "model.safetensors", config={"architecture": name})
    with pytest.raises(CheckpointError, match=rf"architecture '{name}', which no net here is"):
        vitkit.load(room)


@pytest.mark.parametrize("name", ["eva_large_patch14_196", "vit_tiny_patch16_224"])
def test_a_pooling_that_the_json_leaves_out_is_that_of_the_architecture(room, name):
    peer = made(name, depth=1)
    config = {"architecture": name, "model_args": {"depth": 1}}
    saved(peer.state_dict(), room / "model.safetensors", config=config)
    net = vitkit.load(room).net
    images = images_for(net)
    assert_close(net(images), peer(images))


@pytest.mark.parametrize("parts", [["model"], ["model", "model_ema"]])
def test_files_of_deit_and_mae_are_prepared_with_the_mean_of_imagenet(room, parts):
    weights = made("deit_tiny_patch16_224", depth=1).state_dict()
    saved(dict.fromkeys(parts, weights), room / "deit.pth")
    assert vitkit.load(room / "deit.pth").preprocessing.mean == (0.485, 0.456, 0.406)


def test_the_heads_of_a_shallow_huge_are_those_of_a_huge(room):
    peer = made("vit_huge_patch14_224", depth=1, img_size=28)
    config = {"architecture": "vit_huge_patch14_224", "model_args": {"depth": 1, "img_size": 28}}
    saved(peer.state_dict(), room / "model.safetensors", config=config)
    net = vitkit.load(room).net
    assert net.config.heads == 16
    images = images_for(net)
    assert_close(net(images), peer(images))


def test_nets_without_biases_of_q_k_and_v_are_read(room):
    peer = made("vit_tiny_patch16_224", depth=2, qkv_bias=False)
    model = vitkit.load(saved(peer.state_dict(), room / "a.pth"))
    assert "q, k and v without biases: zeros in their place" in model.provenance["assumed"]
    images = images_for(model.net)
    assert_close(model.net(images), peer(images))


def test_names_that_describe_the_labels_are_taken(room):
    peer = made("vit_tiny_patch16_224", num_classes=2)
    config = {
        "label_names": ["n01", "n02"], "label_descriptions": {"n01": "tench", "n02": "goldfish"}
    }  # fmt: skip
    save_for_hf(peer, room, safe_serialization=True, model_config=config)
    assert vitkit.load(room).class_names == ["tench", "goldfish"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"act_layer": "quick_gelu"}, "gelu 'quick_gelu' is not known"),
        ({"global_pool": "max"}, "global_pool 'max'"),
        ({"global_pool": ""}, "global_pool ''"),
        ({"pool_include_prefix": True}, "pool_include_prefix"),
        ({"embed_dim": 384}, "its width is 384, that of the weights 192"),
        ({"depth": 6}, "its depth is 6, that of the weights 12"),
        ({"num_heads": 5}, "5 heads do not divide the width 192"),
        ({"img_size": "large"}, "an image size of 'large'"),
    ],
    ids=str,
)
def test_arguments_that_no_net_here_has_are_refused(room, changes, message):
    weights = made("vit_tiny_patch16_224", num_classes=2).state_dict()
    config = {"architecture": "vit_tiny_patch16_224", "model_args": changes}
    saved(weights, room / "model.safetensors", config=config)
    with pytest.raises(CheckpointError, match=message):
        vitkit.load(room)


MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit")
NOT_HELD = {  # arguments that make a net with tensors that no net of ours has a place for, or lacks
    "block_fn", "norm_layer", "embed_norm_layer", "pre_norm", "qk_norm", "scale_mlp_norm",
    "final_norm", "embed_layer", "pool_include_prefix",
}  # fmt: skip


def test_of_every_net_of_timm_that_can_be_held_gelu_and_heads_are_known(monkeypatch):
    """From config.json, which names the architecture; the rest is in the weights."""
    for module in MODULES:  # what timm would make each net of, without making it
        build = f"timm.models.{module}.build_model_with_cfg"
        monkeypatch.setattr(build, lambda *_, **arguments: arguments)
    checked = 0
    for name in (name for module in MODULES for name in timm.list_models(module=module)):
        arguments = timm.models.model_entrypoint(name)()
        if NOT_HELD & arguments.keys():
            continue
        gated, width = "mlp_layer" in arguments, arguments.get("embed_dim", 768)
        shape = (width, arguments.get("depth", 12), int(width * arguments.get("mlp_ratio", 4)))
        said = said_by_timm({"architecture": name})
        heads = said.get("heads") or usual_heads(*shape, gated, [])
        assert heads == arguments.get("num_heads", 12), name
        gelu = {None: "erf", "gelu_tanh": "tanh"}
        assert gated or said["gelu"] == gelu[arguments.get("act_layer")], name
        checked += 1
    assert checked > 100


def test_of_bit_the_size_that_it_was_tuned_at_is_assumed_and_said(room):
    model = vitkit.load(saved(made("resnetv2_50x1_bit").state_dict(), room / "bit.pth"))
    assert isinstance(model.net.config, BiTConfig)
    assert model.net.config.image_size == (480, 480)
    assert (
        "images of 480 pixels, as BiT of 1000 classes usually read" in (model.provenance["assumed"])
    )


def test_the_json_that_is_written_holds_nothing_but_what_timm_reads(room):
    model = vitkit.load(saved(made("vit_tiny_patch16_224").state_dict(), room / "net.pth"))
    write_foreign(bundle_of(model), room / "ours", "timm")
    config = json.loads((room / "ours" / "config.json").read_text())
    assert isinstance(model.net.config, ViTConfig)
    assert config["model_args"]["num_heads"] == 3
    assert sorted(path.name for path in (room / "ours").iterdir()) == [
        "config.json", "model.safetensors",
    ]  # fmt: skip
