"""Hugging Face's checkpoints are read, and written so that transformers itself reads them.

The nets have the sizes of published ones and random weights. transformers 5 keeps the names of
version 4 in files and has others in memory, which a file of `state_dict()` then has.
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
from torch import Tensor

import vitkit
from vitkit.checkpoints.bundle import Bundle
from vitkit.checkpoints.containers import read_tensors
from vitkit.checkpoints.convert import write_foreign
from vitkit.checkpoints.problems import CheckpointError
from vitkit.prediction.model import Model

hf = pytest.importorskip("transformers")
hf.logging.set_verbosity_error()

TI16 = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_labels": 10}
S14 = {
    "hidden_size": 384, "num_attention_heads": 6, "image_size": 518, "patch_size": 14,
    "num_labels": 7,
}  # fmt: skip
SHORT = {"num_hidden_layers": 3}
SMALL = {**S14, **SHORT, "image_size": 56}

NETS = [  # (class, config, some fields of our config)
    ("ViTForImageClassification", {"num_labels": 1000},
     {"width": 768, "depth": 12, "heads": 12, "gelu": "erf", "norm_eps": 1e-12, "classes": 1000}),
    ("ViTForImageClassification", {**TI16, "hidden_act": "gelu_pytorch_tanh"}, {"gelu": "tanh"}),
    ("ViTForImageClassification", {**TI16, "image_size": [224, 160], "layer_norm_eps": 1e-5},
     {"image_size": (224, 160), "norm_eps": 1e-5}),
    ("ViTForImageClassification", {**TI16, "num_attention_heads": 12}, {"heads": 12}),
    ("ViTModel", TI16, {"hidden_head": True, "classes": 0}),
    ("DeiTForImageClassification", TI16, {"registers": 1, "distillation_token": False}),
    ("DeiTForImageClassificationWithTeacher", TI16, {"distillation_token": True, "classes": 10}),
    ("DeiTModel", TI16, {"hidden_head": True, "registers": 1}),
    ("Dinov2Model", S14, {"patch": 14, "layer_scale": 1.0, "pooling": "token", "registers": 0}),
    ("Dinov2ForImageClassification", {**S14, **SHORT}, {"pooling": "token+mean", "classes": 7}),
    ("Dinov2Model", {**SMALL, "use_swiglu_ffn": True}, {"mlp": "swiglu", "mlp_width": 1024}),
    ("Dinov2WithRegistersModel", {**S14, **SHORT}, {"registers": 4, "image_size": (518, 518)}),
    ("Dinov2WithRegistersForImageClassification", SMALL, {"registers": 4, "classes": 7}),
    ("ViTMSNForImageClassification", TI16, {"norm_eps": 1e-6, "classes": 10}),
]  # fmt: skip
BASES = ("ViT", "DeiT", "Dinov2WithRegisters", "Dinov2", "ViTMAE", "ViTMSN")


def made(name: str, **options) -> Any:
    base = max((base for base in BASES if name.startswith(base)), key=len)
    return randomised(on_meta(getattr(hf, name), getattr(hf, f"{base}Config")(**options)))


def label(value) -> str:
    return value if isinstance(value, str) else ",".join(f"{n}={v}" for n, v in value.items())


def bundle_of(model: Model) -> Bundle:
    return Bundle(model.net, model.class_names, model.preprocessing)


@torch.inference_mode()
def outputs(peer: Any, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """(features, logits): what the heads read, and what they say, if there are any."""
    name, base = type(peer).__name__, peer.base_model
    made = base(images)
    tokens = made.last_hidden_state
    if "ForImageClassification" not in name:
        pooler = getattr(base, "pooler", None)
        return (tokens[:, 0] if pooler is None else made.pooler_output), None
    features = tokens[:, 0]
    if name.endswith("WithTeacher"):
        features = tokens[:, :2].mean(dim=1)
    if name.startswith("Dinov2"):
        patches = tokens[:, 1 + getattr(peer.config, "num_register_tokens", 0) :]
        features = torch.cat([features, patches.mean(dim=1)], dim=-1)
    return features, peer(images).logits


@torch.inference_mode()
def assert_computes_the_same(model: Model, *peers: Any) -> None:
    images = images_for(model.net)
    for peer in peers:
        features, logits = outputs(peer, images)
        assert_close(model.net.features(images), features)
        if logits is not None:
            assert_close(model.net(images), logits)


def reloaded(name: str, folder) -> Any:
    """By transformers' own loader, which must have met every name in the file and in the net."""
    peer, report = getattr(hf, name).from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    return peer.eval()


@pytest.mark.parametrize(("name", "options", "expected"), NETS, ids=label)
def test_a_folder_is_read_and_written(room, name, options, expected):
    peer = made(name, **options)
    peer.save_pretrained(room / "theirs")
    model = vitkit.load(room / "theirs")
    assert {field: getattr(model.net.config, field) for field in expected} == expected
    write_foreign(bundle_of(model), room / "ours", "hf")
    name = name.replace("ViTMSN", "ViT")  # as which it is written
    assert_computes_the_same(model, peer, reloaded(name, room / "ours"))
    assert_same_net(vitkit.load(room / "ours").net, model.net)


@pytest.mark.parametrize(("name", "options", "expected"), NETS[1:], ids=label)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_names_as_version_5_has_them_in_memory_are_read_alike(room, name, options, expected, file):
    options = {**options, "num_hidden_layers": 2}
    peer = made(name, **options)
    peer.save_pretrained(room / "disk")
    config = json.loads((room / "disk" / "config.json").read_text())
    saved(peer.state_dict(), room / "memory" / file, config=config)
    assert_same_net(vitkit.load(room / "memory").net, vitkit.load(room / "disk").net)


@pytest.mark.parametrize("name", ["ViTMAEModel", "ViTMAEForPreTraining"])
def test_of_mae_the_encoder_is_read(room, name):
    """Which sees all patches where nothing is masked; the decoder is left out, and that is said."""
    peer = made(name, **TI16, mask_ratio=0.0, decoder_num_hidden_layers=1)
    peer.save_pretrained(room / "theirs")
    model = vitkit.load(room / "theirs")
    images = images_for(model.net)
    in_order = torch.arange(196.0)[None]
    with torch.inference_mode():
        tokens = peer.base_model(images, noise=in_order).last_hidden_state
    assert_close(model.net.features(images), tokens[:, 0])
    left_out = "left out" in str(model.provenance.get("assumed"))
    assert left_out == (name == "ViTMAEForPreTraining")

    write_foreign(bundle_of(model), room / "ours", "hf")
    again, report = hf.ViTModel.from_pretrained(
        room / "ours", output_loading_info=True, add_pooling_layer=False
    )
    assert not any(report.values()), report
    with torch.inference_mode():
        assert_close(again.eval()(images).last_hidden_state[:, 0], tokens[:, 0])


def test_of_a_net_that_was_trained_on_masks_the_encoder_is_read(room):
    peer = made("ViTForMaskedImageModeling", **TI16)
    peer.save_pretrained(room)
    model = vitkit.load(room)
    images = images_for(model.net)
    with torch.inference_mode():
        assert_close(model.net.features(images), peer.vit(images).last_hidden_state[:, 0])


def test_a_pooler_beside_a_head_is_left_out_as_transformers_leaves_it_out(room):
    peer = made("ViTForImageClassification", **TI16, num_hidden_layers=1)
    weights = dict(peer.state_dict()) | {
        "vit.pooler.dense.weight": torch.rand(192, 192), "vit.pooler.dense.bias": torch.rand(192)
    }  # fmt: skip
    config = peer.config.to_dict()
    model = vitkit.load(saved(weights, room / "model.safetensors", config=config))
    assert_computes_the_same(model, peer)
    assert (
        "left out, as the net does not read them: vit.pooler.dense.bias"
        in (model.provenance["assumed"][0])
    )


def test_without_config_json_conventions_hold_and_are_said(room):
    """The library's own epsilon, an erf GELU, heads 64 wide."""
    peer = made("ViTForImageClassification", **TI16)
    model = vitkit.load(saved(peer.state_dict(), room / "net.safetensors"))
    assert_computes_the_same(model, peer)
    assert "3 heads, as ViT-Ti/16 has" in model.provenance["assumed"]


PROCESSORS = {
    "squash": ("ViTImageProcessor", {}),
    "squash, then the middle": ("DeiTImageProcessor", {}),
    "shorter side": ("BitImageProcessor", {"size": {"shortest_edge": 256}}),
    "bilinear": ("BitImageProcessor", {"size": {"shortest_edge": 248}, "resample": 2}),
    "not normalised": ("ViTImageProcessor", {"do_normalize": False, "resample": 3}),
    "to 0..2": ("ViTImageProcessor", {"rescale_factor": 1 / 127.5, "do_normalize": False}),
    "to -2..2": ("BitImageProcessor", {"rescale_factor": 1 / 51}),
    "whole pixel values": ("ViTImageProcessor", {"do_rescale": False, "image_mean": [127.0] * 3,
                                                 "image_std": [64.0] * 3}),
}  # fmt: skip


@pytest.mark.parametrize("case", PROCESSORS)
def test_images_are_prepared_as_transformers_does_before_and_after(room, case):
    name, options = PROCESSORS[case]
    made("ViTForImageClassification", **TI16, num_hidden_layers=1).save_pretrained(room / "theirs")
    getattr(hf, name)(**options).save_pretrained(room / "theirs")
    model = vitkit.load(room / "theirs")
    assert "assumed" not in model.provenance
    write_foreign(bundle_of(model), room / "ours", "hf")
    assert vitkit.load(room / "ours").preprocessing == model.preprocessing
    for folder in (room / "theirs", room / "ours"):
        processor = hf.AutoImageProcessor.from_pretrained(folder)
        assert_prepares_alike(
            model.preprocessing,
            lambda photo, by=processor: by(images=photo, return_tensors="pt")["pixel_values"][0],
        )


@pytest.mark.parametrize("model", ["ViT", "DeiT", "Dinov2"])
@pytest.mark.parametrize(
    "content",
    [{}, {"image_processor_type": "DeiTImageProcessor"}, {"do_normalize": None},
     {"image_mean": 0.4, "image_std": 0.3},
     {"image_processor_type": "BitImageProcessor"},
     {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 224, "width": 224}}],
)  # fmt: skip
def test_what_a_processors_file_leaves_out_is_as_transformers_fills_it_in(room, model, content):
    made(f"{model}ForImageClassification", **TI16, num_hidden_layers=1).save_pretrained(room)
    (room / "preprocessor_config.json").write_text(json.dumps(content))
    processor = hf.AutoImageProcessor.from_pretrained(room)
    assert_prepares_alike(
        vitkit.load(room).preprocessing,
        lambda photo: processor(images=photo, return_tensors="pt")["pixel_values"][0],
    )


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ({"do_resize": False}, "images resized, which the processor leaves as large as they are"),
        ({"size": {"shortest_edge": 224}}, "the middle of an oblong image"),
        ({"size": 200, "do_center_crop": True}, "images resized to the crop"),
        ({"size": {"shortest_edge": 224, "longest_edge": 300}}, "a longer side of any length"),
        ({"resample": 4}, "an area resize in place of Pillow's box"),
        ({"do_pad": True}, "which the processor pads"),
        ({"size": 384}, "images of 224x224, as the net reads; the JSON beside it says 384x384"),
        ({"image_processor_type": "ConvNextImageProcessor"},
         "where ConvNextImageProcessor has defaults, those of ViT's"),
        ({"resample": 1}, "bicubic interpolation in place of 1"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_processor_does_otherwise_is_said(room, content, note):
    made("ViTForImageClassification", **TI16, num_hidden_layers=1).save_pretrained(room)
    (room / "preprocessor_config.json").write_text(json.dumps(content))
    model = vitkit.load(room)
    assert note in str(model.provenance["assumed"])
    assert model.preprocessing.image_size == (224, 224)


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "ViTMAE", "ViTMSN", "Dinov2"])
def test_a_config_that_leaves_out_what_is_usual_is_read_as_transformers_reads_it(room, kind):
    """12 heads, whatever the width."""
    job = "Model" if kind == "ViTMAE" else "ForImageClassification"
    options = {"hidden_size": 384, "num_hidden_layers": 1, "image_size": 32, "patch_size": 16}
    peer = made(f"{kind}{job}", **options)
    peer.save_pretrained(room)
    config = json.loads((room / "config.json").read_text())
    kept = {name: config[name] for name in ("model_type", "architectures", *options)}
    (room / "config.json").write_text(json.dumps(kept))
    model = vitkit.load(room)
    assert model.net.config.heads == peer.config.num_attention_heads == 12
    assert model.net.config.norm_eps == peer.config.layer_norm_eps


def test_processors_as_old_files_have_them_are_read(room):
    """A side for both: of the square, or with a crop of what is resized before."""
    made("ViTForImageClassification", **TI16, num_hidden_layers=1).save_pretrained(room)
    old = {"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3,
           "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # fmt: skip
    path = room / "preprocessor_config.json"
    for content, resize_to in ((old, (256, 256)), (old | {"size": 224, "do_center_crop": 0}, None)):
        path.write_text(json.dumps(content))
        preprocessing = vitkit.load(room).preprocessing
        assert (preprocessing.resize, preprocessing.resize_to) == ("direct", resize_to)
        assert preprocessing.image_size == (224, 224)
        assert preprocessing.mean == (0.485, 0.456, 0.406)


def test_nets_without_biases_of_q_k_and_v_are_read(room):
    peer = made("ViTForImageClassification", **TI16, num_hidden_layers=2, qkv_bias=False)
    peer.save_pretrained(room)
    net = vitkit.load(room).net
    images = images_for(net)
    assert_close(net(images), peer(pixel_values=images).logits)


def test_class_names_come_from_id2label_and_go_there(room):
    labels = {0: "cat", 1: "café", 2: "ant"}
    options = {**TI16, "num_labels": 3, "id2label": labels, "label2id": {}}
    made("ViTForImageClassification", **options).save_pretrained(room / "theirs")
    model = vitkit.load(room / "theirs")
    assert model.class_names == ["cat", "café", "ant"]
    write_foreign(bundle_of(model), room / "ours", "hf")
    assert reloaded("ViTForImageClassification", room / "ours").config.id2label == labels
    assert vitkit.load(room / "ours").class_names == ["cat", "café", "ant"]


@pytest.mark.parametrize(
    ("labels", "note"),
    [({"1": "cat", "2": "ant"}, "which does not count from 0"),
     ({"0": "cat", "one": "ant"}, "which does not count from 0"),
     ({"0": "cat", "1": None}, "they are no text"),
     ({"0": "cat"}, "1 for 2 classes")],
)  # fmt: skip
def test_labels_that_name_no_classes_are_left_out_and_that_is_said(room, labels, note):
    made("ViTForImageClassification", **{**TI16, "num_labels": 2}).save_pretrained(room)
    config = json.loads((room / "config.json").read_text())
    (room / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    model = vitkit.load(room)
    assert model.class_names == ["0", "1"]
    assert note in str(model.provenance["assumed"])


def test_labels_without_names_are_no_class_names(room):
    made("ViTForImageClassification", **TI16).save_pretrained(room)
    assert vitkit.load(room).class_names == [str(number) for number in range(10)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu"}, "gelu 'relu' is not known"),
        ({"hidden_size": 768}, "its width is 768, that of the weights 192"),
        ({"num_hidden_layers": 3}, "its depth is 3, that of the weights 2"),
        ({"num_attention_heads": 5}, "5 heads do not divide the width 192"),
        ({"pooler_act": "relu"}, "pooler_act 'relu'"),
        ({"image_size": [224]}, r"an image size of \[224\]"),
        ({"num_attention_heads": "three"}, "heads 'three'"),
        ({"layer_norm_eps": [1e-6]}, r"norm_eps \[1e-06\]"),
    ],
    ids=str,
)
def test_a_config_that_is_not_of_these_weights_is_refused(room, changes, message):
    peer = made("ViTForImageClassification", **TI16, num_hidden_layers=2)
    config = peer.config.to_dict() | changes
    saved(peer.state_dict(), room / "model.safetensors", config=config)
    with pytest.raises(CheckpointError, match=message):
        vitkit.load(room)


def test_a_bare_file_is_written_with_the_names_of_version_4(room):
    peer = made("ViTForImageClassification", **TI16, layer_norm_eps=1e-12)
    peer.save_pretrained(room / "theirs")
    model = vitkit.load(room / "theirs")
    write_foreign(bundle_of(model), room / "ours.bin", "hf")
    theirs = read_tensors(room / "theirs" / "model.safetensors")
    assert_equal(torch.load(room / "ours.bin", weights_only=True), theirs)
