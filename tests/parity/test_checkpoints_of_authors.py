"""Files as the authors of the nets keep them: .npz, and DINOv2's, MAE's and DeiT III's own.

timm reads the .npz files too: its loader must find in them what ours finds, and in those that we
write what we meant. The others differ from timm's names by what is renamed here. T2T-ViT's and the
authors' own .npz files are among the golden cases (tests/test_golden.py).
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peers import (
    assert_close,
    assert_equal,
    assert_same_net,
    images_for,
    on_meta,
    randomised,
    saved,
)
from torch import Tensor

import vitkit
from vitkit.checkpoints.bundle import Bundle
from vitkit.checkpoints.convert import in_their_layout, write_foreign
from vitkit.checkpoints.formats import TIMM_BIT, TIMM_VIT
from vitkit.data.transforms import Preprocessing
from vitkit.models.nets import Net, make_meta
from vitkit.models.variants import config
from vitkit.models.vit_config import ViTConfig

timm = pytest.importorskip("timm")

Arrays = dict[str, np.ndarray]


def save(path: Path, arrays: Arrays) -> None:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]


def random_net(name: str, **options) -> Net:
    net = randomised(make_meta(config(name, **options)))
    assert isinstance(net, Net)
    return net


def written(net: Net, path: Path) -> Path:
    names = [str(number) for number in range(net.config.classes)]
    write_foreign(Bundle(net, names, Preprocessing.direct(net.config.image_size)), path, "npz")
    return path


def made(architecture: str, **arguments) -> Any:
    return randomised(on_meta(timm.create_model, architecture, **arguments), seed=2)


@torch.inference_mode()
def assert_computes_the_same(net: Net, peer: Any) -> None:
    images = images_for(net)
    tokens = peer.forward_features(images)
    assert_close(net.features(images), peer.forward_head(tokens, pre_logits=True))
    assert_close(net(images), peer.forward_head(tokens))


# The authors' .npz

TANH = {"act_layer": "gelu_tanh"}
MEAN = {**TANH, "class_token": False, "global_pool": "avg", "fc_norm": False}
MAP = {**TANH, "class_token": False, "global_pool": "map"}


@pytest.mark.parametrize(
    ("name", "options", "architecture", "arguments"),
    [
        ("ViT-B/16", {}, "vit_base_patch16_224", TANH),
        ("ViT-S/32", {"pooling": "mean"}, "vit_small_patch32_224", MEAN),
        ("ViT-Ti/16", {"pooling": "map"}, "vit_tiny_patch16_224", MAP),
        ("ViT-Ti/16", {"positions": "sincos2d"}, "vit_tiny_patch16_224", TANH),
    ],
)
def test_timm_and_we_read_the_npz_that_we_write(room, name, options, architecture, arguments):
    net = random_net(name, **options)
    path = written(net, room / "net.npz")
    peer = made(architecture, **arguments)
    peer.load_pretrained(str(path))
    assert_computes_the_same(net, peer)
    again = vitkit.load(path).net
    assert_equal(again.state_dict(), dict(net.state_dict()))
    assert again.config == config(name, **options | {"positions": "1d"})


@pytest.mark.parametrize(
    ("name", "architecture", "form"),
    [
        ("R26+ViT-S/32", "vit_small_r26_s32_224", TIMM_VIT),
        ("R+ViT-Ti/16", "vit_tiny_r_s16_p8_224", TIMM_VIT),
        ("BiT-R50x1", "resnetv2_50x1_bit", TIMM_BIT),
    ],
)
def test_timm_and_we_read_the_npz_of_hybrids_and_bit_that_we_write(room, name, architecture, form):
    """timm computes with other epsilons; the weights are what can be compared to the bit."""
    net = random_net(name, image_size=480 if "BiT" in name else 224)
    path = written(net, room / "net.npz")
    peer = made(architecture)
    peer.load_pretrained(str(path))
    assert_equal(dict(peer.state_dict()), in_their_layout(net, form)[0])
    assert_same_net(vitkit.load(path).net, net)


def new_names(arrays: Arrays) -> Arrays:
    """As Flax linen numbers the parts of a block."""
    for old, new in (("LayerNorm_2", "LayerNorm_1"), ("MlpBlock_3", "MlpBlock_0"),
                     ("Attention_1", "Attention_0")):  # fmt: skip
        arrays = {name.replace(old, new): array for name, array in arrays.items()}
    return arrays


def big_vision(arrays: Arrays) -> Arrays:
    """The new names, and positions of the patches alone by the name of today."""
    arrays = new_names(arrays)
    positions = arrays.pop("Transformer/posembed_input/pos_embedding")
    return arrays | {"pos_embedding": positions[:, "cls" in arrays :]}


def scanned(arrays: Arrays) -> Arrays:
    """All blocks in one array each, depth first."""
    arrays, block = big_vision(arrays), re.compile(r"Transformer/encoderblock_(\d+)/(.*)")
    depth = 1 + max(int(match[1]) for name in arrays if (match := block.fullmatch(name)))
    parts = {match[2] for name in arrays if (match := block.fullmatch(name))}
    stacked = {
        f"Transformer/encoderblock/{part}": np.stack(
            [arrays[f"Transformer/encoderblock_{layer}/{part}"] for layer in range(depth)]
        )
        for part in parts
    }
    return {name: array for name, array in arrays.items() if not block.fullmatch(name)} | stacked


def within(prefix: str, arrays: Arrays, **others: np.ndarray) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()} | {
        name.replace("__", "/"): array for name, array in others.items()
    }


LAYOUTS = {
    "oldest": lambda arrays: within("opt/target/", arrays, opt__state__step=np.array(7)),
    "big_vision": big_vision,
    "params": lambda arrays: within("params/", big_vision(arrays), opt__0__count=np.array(7)),
    "scanned": lambda arrays: within("params/", scanned(arrays)),
    "image tower": lambda arrays: within(
        "params/img/", scanned(arrays), params__t=np.ones(1), params__txt__head__bias=np.ones(3)
    ),
}  # fmt: skip
POOLINGS = {"token": TANH, "mean": MEAN, "map": MAP}


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_timm_and_we_read_the_same_from_every_layout(room, layout, pooling):
    net = random_net("ViT-Ti/16", depth=2, image_size=64, pooling=pooling, classes=7)
    with np.load(written(net, room / "net.npz")) as archive:
        arrays = LAYOUTS[layout](dict(archive))
    save(room / "other.npz", arrays)
    alone = layout != "oldest"  # positions are those of the patches alone
    peer = made(
        "vit_tiny_patch16_224", depth=2, img_size=64, num_classes=7, **POOLINGS[pooling],
        no_embed_class=alone,
    )  # fmt: skip
    peer.load_pretrained(str(room / "other.npz"))
    assert_computes_the_same(vitkit.load(room / "other.npz").net, peer)


@pytest.mark.parametrize(
    "place",
    ["pos_embedding", "Transformer/pos_embedding", "Transformer/posembed_input/pos_embedding"],
)
def test_positions_are_found_at_every_place_that_they_have_had(room, place):
    net = random_net("ViT-Ti/16", depth=2, image_size=64, classes=7)
    with np.load(written(net, room / "net.npz")) as archive:
        arrays = dict(archive)
    arrays[place] = arrays.pop("Transformer/posembed_input/pos_embedding")
    save(room / "other.npz", arrays)
    assert_same_net(vitkit.load(room / "other.npz").net, net)


def test_what_is_left_out_of_a_training_file_is_said(room):
    net = random_net("ViT-Ti/16", depth=2, image_size=64, classes=7)
    with np.load(written(net, room / "net.npz")) as archive:
        arrays = within("params/", dict(archive), opt__0__count=np.array(7))
    save(room / "other.npz", arrays)
    assumed = vitkit.load(room / "other.npz").provenance["assumed"]
    assert assumed[0] == "left out, as the net does not read them: opt/0/count"


# DINOv2, MAE and DeiT III

SMALL = {"img_size": 56, "depth": 4, "num_classes": 0}


def chunked(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As DINOv2 trains: two chunks of two blocks, each block by its number in the whole."""
    return {
        re.sub(r"^blocks\.(\d+)\.", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}.", name): tensor
        for name, tensor in weights.items()
    }


@pytest.mark.parametrize("form", ["published", "training"])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2s_own_files_are_read_and_written_for_timm(room, form, registers):
    """Its class token has a position, also beside registers; timm adds the two."""
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    peer = made(name, **SMALL)
    weights = dict(peer.state_dict()) | {"mask_token": torch.rand(1, 384)}
    if registers:
        position = torch.rand(1, 1, 384)
        weights["register_tokens"] = weights.pop("reg_token")
        weights["cls_token"] = weights["cls_token"] - position
        weights["pos_embed"] = torch.cat([position, weights["pos_embed"]], dim=1)
    content: dict = weights
    if form == "training":
        student = {f"backbone.{name}": tensor for name, tensor in chunked(weights).items()}
        content = {"teacher": student | {"dino_head.mlp.0.weight": torch.rand(3, 3)}}
    net = vitkit.load(saved(content, room / "dinov2.pth")).net
    assert_computes_the_same(net, peer)
    assert isinstance(net.config, ViTConfig)
    assert (net.config.registers, net.config.depth) == (registers, 4)
    write_foreign(Bundle(net, [], Preprocessing.direct((56, 56))), room / "timms", "timm")
    again = timm.create_model(f"local-dir:{room / 'timms'}", pretrained=True).eval()
    assert_computes_the_same(net, again)


def test_dinov2s_swiglu_is_read_by_its_own_names(room):
    options = {**SMALL, "embed_dim": 192, "num_heads": 3}
    peer = made("vit_giant_patch14_dinov2", **options)
    weights = {
        name.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): tensor
        for name, tensor in peer.state_dict().items()
    }
    net = vitkit.load(saved(weights | {"mask_token": torch.rand(1, 192)}, room / "g.pth")).net
    assert_computes_the_same(net, peer)


def test_maes_own_files_are_read(room):
    """Pre-trained: an encoder with its final norm, a decoder, a mask token; no head."""
    peer = made("vit_tiny_patch16_224", num_classes=0)
    decoder = {
        "mask_token": torch.rand(1, 1, 8), "decoder_pos_embed": torch.rand(1, 197, 8),
        "decoder_embed.weight": torch.rand(8, 192), "decoder_blocks.0.norm1.bias": torch.rand(8),
    }  # fmt: skip
    content = {"model": dict(peer.state_dict()) | decoder, "epoch": 7}
    model = vitkit.load(saved(content, room / "mae.pth"))
    assert_computes_the_same(model.net, peer)
    taken, left_out = model.provenance["assumed"][:2]
    assert taken == "taken from 'model'"
    assert left_out.startswith("left out, as the net does not read them: decoder_blocks.0.norm1")
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)


def test_maes_fine_tuned_files_are_read(room):
    """The mean of the patches, then a norm of its own: as timm's with global_pool "avg"."""
    peer = made("vit_tiny_patch16_224", global_pool="avg")
    model = vitkit.load(saved({"model": dict(peer.state_dict())}, room / "mae.pth"))
    assert_computes_the_same(model.net, peer)


def test_deit_iiis_own_files_are_read(room):
    """LayerScale by another name, and no position for the class token."""
    peer = made("deit3_small_patch16_224", depth=2)
    weights = {
        re.sub(r"ls([12])\.gamma", r"gamma_\1", name): tensor
        for name, tensor in peer.state_dict().items()
    }
    assert weights.keys() != peer.state_dict().keys()
    assert weights["pos_embed"].shape[1] == 14 * 14
    assert_computes_the_same(vitkit.load(saved({"model": weights}, room / "d.pth")).net, peer)
