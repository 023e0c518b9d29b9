"""What is written for other libraries, and what is refused: whole or not at all, and by name.

That the libraries themselves read it and compute the same is in tests/parity.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from torch import Tensor

import vitkit
from vitkit.checkpoints import convert
from vitkit.checkpoints.bundle import Bundle
from vitkit.checkpoints.containers import read_tensors, write_tensors
from vitkit.checkpoints.convert import read_foreign, read_with_keys, write_foreign
from vitkit.checkpoints.problems import CheckpointError
from vitkit.checkpoints.published import PUBLISHED
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError
from vitkit.models.bit import BiTConfig
from vitkit.models.efficientnet import EfficientNetConfig
from vitkit.models.nets import Net, NetConfig, make
from vitkit.models.t2t import T2TConfig
from vitkit.models.vit import VisionTransformer
from vitkit.models.vit_config import ViTConfig
from vitkit.prediction.model import Model
from vitkit.workflows.convert import convert as convert_any

NAMES = ["ant", "bee", "cat", "dog", "eel"]


def vit(**options) -> ViTConfig:
    sizes: dict[str, Any] = {"patch": 8, "width": 128, "depth": 2, "heads": 2, "mlp_width": 256}
    return ViTConfig(**sizes | {"classes": 5, "image_size": (32, 32), "gelu": "erf"} | options)


def random_net(config: NetConfig) -> Net:
    """A net in eval mode; none of its numbers is zero or one."""
    torch.manual_seed(1)
    net = make(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return net.eval()


def bundle(config: NetConfig) -> Bundle:
    names = NAMES[: config.classes]
    return Bundle(random_net(config), names, Preprocessing(config.image_size, antialias=True))


def weights(net: Net) -> dict[str, Tensor]:
    return dict(net.state_dict())


def assert_same_net(ours: Net, other: Net) -> None:
    assert ours.config == other.config
    torch.testing.assert_close(weights(ours), weights(other), rtol=0, atol=0)


# Into each format and back

DINO = {"layer_scale": 1e-5, "classes": 0}
STEM = {"patch": 1, "stem": (2, 2, 2, 2), "image_size": (64, 64), "stem_variance_eps": 1e-8,
        "stem_std_eps": 0.0, "stem_norm_eps": 1e-5}  # fmt: skip
TANH = {"gelu": "tanh"}
ROUND_TRIPS = [
    ("npz", "net.npz", vit(**TANH)),
    ("npz", "net.npz", vit(**TANH, hidden_head=True)),
    ("npz", "net.npz", vit(**TANH, pooling="mean", heads=8)),
    ("npz", "net.npz", vit(**TANH, pooling="map", classes=0)),
    ("npz", "net.npz", vit(**TANH, patch=1, stem=(1, 2), stem_width=32)),
    ("npz", "net.npz", vit(**TANH, patch=4, stem=())),
    ("npz", "net.npz", BiTConfig((1, 2), 1, 32, classes=1000, image_size=(480, 480))),
    ("timm", "net", vit()),
    ("timm", "net", vit(**TANH, heads=4, image_size=(32, 48))),
    ("timm", "net", vit(pooling="mean", norm_after_pool=True)),
    ("timm", "net", vit(pooling="map", registers=3)),
    ("timm", "net", vit(pooling="patch-mean")),
    ("timm", "net", vit(distillation_token=True, layer_scale=0.1)),
    ("timm", "net", vit(distillation_token=True, classes=0)),
    ("timm", "net", vit(mlp="swiglu", registers=4, layer_scale=1e-5, pooling="mean")),
    ("timm", "net", vit(**STEM, layer_scale=1e-5, registers=1, pooling="mean")),
    ("timm", "net", BiTConfig((3, 4, 6, 3), classes=5, variance_eps=1e-8)),
    ("timm", "net.safetensors", vit()),
    ("timm", "net.pth", vit(**DINO)),
    ("hf", "net", vit(norm_eps=1e-12)),
    ("hf", "net", vit(**TANH, image_size=(32, 48), heads=4)),
    ("hf", "net", vit(hidden_head=True, classes=0)),
    ("hf", "net", vit(distillation_token=True)),
    ("hf", "net", vit(registers=1)),
    ("hf", "net", vit(**DINO, heads=4)),
    ("hf", "net", vit(layer_scale=0.5, pooling="token+mean", registers=4)),
    ("hf", "net", vit(**DINO, mlp="swiglu", mlp_width=176)),  # two thirds of 256, in eights
    ("hf", "net.bin", vit(norm_eps=1e-12)),
    ("torchvision", "net.pth", vit()),
    ("torchvision", "net.safetensors", vit(hidden_head=True)),
    ("torchvision", "net.pth", EfficientNetConfig("B0", classes=5)),
]


@pytest.mark.parametrize(
    ("to", "file", "config"), ROUND_TRIPS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_a_net_comes_back_from_each_format_as_it_was(tmp_path, to, file, config):
    written = bundle(config)
    if getattr(config, "registers", 0) and getattr(config, "has_class_token", False):
        without_position_of_the_register(written.net)
    pieces = write_foreign(written, tmp_path / file, to).pieces
    reading = read_with_keys(tmp_path / file)
    assert_same_net(reading.bundle.net, written.net)
    assert reading.form.name == to
    kept = read_tensors(tmp_path / file)
    assert {piece.theirs: piece.shape for piece in pieces} == {
        name: tuple(tensor.shape) for name, tensor in kept.items()
    }
    read = {(piece.theirs, piece.ours) for piece in reading.pieces}
    assert read <= {(piece.theirs, piece.ours) for piece in pieces} | {
        # Where a register is kept as DeiT's token.
        (piece.theirs, "distillation_token") for piece in pieces if piece.ours == "registers"
    }  # fmt: skip


@torch.no_grad()
def without_position_of_the_register(net: Net) -> None:
    """timm keeps no position for a class token beside registers: it adds it to the token."""
    assert isinstance(net, VisionTransformer)
    assert net.position_embedding is not None
    net.position_embedding[:, 0] = 0


PREPARED = {
    "crop": Preprocessing(
        (40, 40), "shorter-side", 44, "bicubic", antialias=True, mean=(0.1, 0.2, 0.3)
    ),
    "squash, then crop": Preprocessing((40, 40), resize_to=(48, 48), antialias=True),
    "squash": Preprocessing((40, 40), antialias=True, interpolation="bicubic"),
    "area": Preprocessing((40, 40), "shorter-side", 50, "area", antialias=True),
    # timm keeps 40 / 53, and rounds 40 over that down: to 52, unless it is told otherwise
    "rounded": Preprocessing((40, 40), "shorter-side", 53, antialias=True),
}


@pytest.mark.parametrize("case", PREPARED)
@pytest.mark.parametrize("to", ["timm", "hf"])
def test_names_and_preprocessing_come_back_from_a_folder(tmp_path, to, case):
    written = replace(bundle(vit(image_size=(40, 40))), preprocessing=PREPARED[case])
    write_foreign(written, tmp_path / "net", to)
    again = read_foreign(tmp_path / "net")
    rounding = {"timm": "torchvision", "hf": "floor"}[to]  # what that library does
    assert again.class_names == NAMES
    assert again.preprocessing == replace(PREPARED[case], rounding=rounding)
    assert ("assumed" in again.provenance) == (case == "area")  # Pillow's box is not quite that


# What a format cannot hold

REFUSED = [  # (format, config, what is named)
    ("npz", vit(**TANH, registers=2), "registers 2"),
    ("npz", vit(**TANH, image_size=(32, 48)), "an oblong image size of 32x48"),
    ("npz", vit(**TANH, layer_scale=1e-5), "layer_scale 1e-05"),
    ("npz", vit(**TANH, pooling="patch-mean"), "pooling 'patch-mean'"),
    ("npz", vit(**TANH, norm_after_pool=True), "norm_after_pool True"),
    ("npz", vit(**TANH, mlp="swiglu"), "mlp 'swiglu'"),
    ("npz", vit(**TANH, distillation_token=True), "distillation_token True"),
    *((to, vit(positions=kind), f"positions '{kind}'")
      for to in ("npz", "timm", "hf", "torchvision") for kind in ("relative", "2d", "none")),
    *((to, vit(attention=("window:2", "global")), "attention ('window:2', 'global')")
      for to in ("npz", "timm", "hf", "torchvision")),
    ("timm", vit(positions_at="layers"), "positions_at 'layers'"),
    ("timm", vit(hidden_head=True), "hidden_head True"),
    ("timm", vit(pooling="token+mean"), "pooling 'token+mean'"),
    ("timm", vit(**STEM | {"stem": (1, 2)}), "a stem of (1, 2) units"),
    ("timm", vit(**STEM, stem_width=32), "stem_width 32"),
    ("timm", vit(**STEM, mlp="swiglu"), "a stem together with SwiGLU"),
    ("timm", vit(pooling="map", mlp="swiglu"), "attention pooling together with SwiGLU"),
    ("timm", vit(distillation_token=True, registers=1), "a distillation token together with"),
    ("timm", BiTConfig((1, 1), classes=5), "units (1, 1) of width factor 1"),
    ("hf", vit(pooling="mean"), "pooling 'mean'"),
    ("hf", vit(hidden_head=True), "a hidden layer before the head"),
    ("hf", vit(registers=2), "registers 2"),
    ("hf", vit(registers=1, distillation_token=True), "a register beside a distillation token"),
    ("hf", vit(distillation_token=True, classes=0), "a distillation token without heads"),
    ("hf", vit(**STEM), "stem (2, 2, 2, 2)"),
    ("hf", vit(mlp="swiglu"), "mlp 'swiglu'"),
    ("hf", vit(layer_scale=1e-5), "5 classes read by pooling 'token'"),
    ("hf", vit(**DINO, pooling="token+mean"), "0 classes read by pooling 'token+mean'"),
    ("hf", vit(**DINO, mlp_width=200), "an mlp_width of 200, which no whole mlp_ratio makes"),
    ("hf", vit(**DINO, image_size=(32, 48)), "an oblong image size of 32x48"),
    ("torchvision", vit(layer_scale=1e-5), "layer_scale 1e-05"),
    ("torchvision", vit(image_size=(32, 48)), "an oblong image size of 32x48"),
    ("torchvision", vit(pooling="mean"), "pooling 'mean'"),
    ("torchvision", vit(registers=1), "registers 1"),
]  # fmt: skip
KIND_REFUSED = [  # (format, config, the kind of net, what has nets of that kind)
    ("hf", BiTConfig((1, 1), classes=5), "BiT", "bundle, npz, timm"),
    ("torchvision", BiTConfig((1, 1), classes=5), "BiT", "bundle, npz, timm"),
    ("npz", EfficientNetConfig("B0", classes=5), "EfficientNet", "bundle, torchvision"),
    ("timm", T2TConfig(64, 1, 1, 64, classes=5, image_size=(32, 32)), "T2T-ViT", "bundle"),
]
FILES = {"npz": "net.npz", "torchvision": "net.pth"}


def nothing_in(folder: Path) -> bool:
    return not any(folder.iterdir())


@pytest.mark.parametrize(("to", "config", "named"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_a_format_cannot_hold_is_named_and_nothing_is_written(tmp_path, to, config, named):
    with pytest.raises(CheckpointError) as caught:
        write_foreign(bundle(config), tmp_path / FILES.get(to, "net"), to)
    assert f"cannot represent this net: {named}" in str(caught.value)
    assert "keep it as a bundle" in str(caught.value)
    assert nothing_in(tmp_path)


@pytest.mark.parametrize(("to", "config", "kind", "others"), KIND_REFUSED, ids=str)
def test_a_kind_of_net_that_a_library_does_not_have_is_named(tmp_path, to, config, kind, others):
    with pytest.raises(CheckpointError) as caught:
        write_foreign(bundle(config), tmp_path / FILES.get(to, "net"), to)
    assert str(caught.value) == f"{to} has no nets of kind {kind}; what has: {others}"
    assert nothing_in(tmp_path)


def test_all_that_a_format_cannot_hold_is_named_at_once(tmp_path):
    config = vit(**TANH, registers=2, layer_scale=0.1, image_size=(32, 48))
    with pytest.raises(CheckpointError, match=r"registers 2, layer_scale 0\.1, an oblong image"):
        write_foreign(bundle(config), tmp_path / "net.npz", "npz")


# What a library computes otherwise


def test_a_tanh_gelu_is_refused_with_what_the_difference_is_and_the_way_on(tmp_path):
    written = bundle(vit(**TANH))
    erf = random_net(vit())
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, 32, 32, generator=generator) * 2 - 1
    with torch.no_grad():
        moved = [
            (one - other).abs().max() / one.abs().max().clamp(min=1)
            for images in (noise, torch.zeros_like(noise))
            for one, other in (
                (written.net.features(images), erf.features(images)),
                (written.net(images), erf(images)),
            )
        ]
    assert 1e-5 < max(moved) < 1e-2
    with pytest.raises(CheckpointError) as caught:
        write_foreign(written, tmp_path / "net.pth", "torchvision")
    assert "gelu tanh (here) and erf" in str(caught.value)
    assert f"outputs differ by {float(max(moved)):.2g} of their scale" in str(caught.value)
    assert "keep it as a bundle or accept that by --their-constants" in str(caught.value)
    assert nothing_in(tmp_path)


def test_with_their_constants_a_net_goes_on_and_what_that_changes_is_said(tmp_path):
    Model(*astuple(bundle(vit(**TANH, norm_eps=1e-12)))).save(tmp_path / "bundle")
    made = convert_any(
        tmp_path / "bundle", tmp_path / "net.pth", "torchvision", their_constants=True
    )
    assert_same_net(vitkit.load(tmp_path / "net.pth").net, random_net(vit()))
    assert (
        "gelu tanh (here) and erf, norm_eps 1e-12 (here) and 1e-06; outputs differ by"
        in (made["lost"][0])
    )


def test_constants_that_are_theirs_already_change_nothing(tmp_path):
    written = write_foreign(bundle(vit()), tmp_path / "net", "timm", their_constants=True)
    assert written.lost == []
    assert_same_net(read_foreign(tmp_path / "net").net, random_net(vit()))


def astuple(one: Bundle) -> tuple:
    return one.net, one.class_names, one.preprocessing


@pytest.mark.parametrize("to", ["timm", "hf"])
def test_weights_alone_do_not_say_a_tanh_gelu_and_a_folder_does(tmp_path, to):
    with pytest.raises(CheckpointError, match=r"write a folder, whose config\.json says it"):
        write_foreign(bundle(vit(**TANH)), tmp_path / "net.safetensors", to)
    write_foreign(bundle(vit(**TANH)), tmp_path / "net", to)
    assert getattr(read_foreign(tmp_path / "net").net.config, "gelu", "") == "tanh"


@torch.no_grad()
def with_tokens_times(factor: float, net: Net) -> Net:
    """The smaller the tokens of the first block are, the more the epsilon of its norm decides."""
    for name, parameter in net.named_parameters():
        if name.startswith(("patch_embedding", "class_token", "position_embedding")):
            parameter.mul_(factor)
    return net


@pytest.mark.parametrize(("to", "file"), [("timm", "net"), ("torchvision", "net.pth")])
def test_an_epsilon_that_changes_nothing_is_allowed_and_one_that_does_is_refused(
    tmp_path, to, file
):
    """Hugging Face's nets have 1e-12 in their norms, timm's and torchvision's 1e-6."""
    large = bundle(vit(norm_eps=1e-12))
    with_tokens_times(10, large.net)
    write_foreign(large, tmp_path / file, to)
    assert vars(read_foreign(tmp_path / file).net.config)["norm_eps"] == 1e-6

    small = bundle(vit(norm_eps=1e-12))
    with_tokens_times(0.1, small.net)
    with pytest.raises(CheckpointError, match=r"norm_eps 1e-12 \(here\) and 1e-06; outputs diff"):
        write_foreign(small, tmp_path / f"other {file}", to)
    assert [path.name for path in tmp_path.iterdir()] == [file]


@torch.no_grad()
def with_kernels_times(factor: float, net: Net) -> Net:
    for parameter in net.parameters():
        if parameter.ndim == 4:
            parameter.mul_(factor)
    return net


@pytest.mark.parametrize(
    ("config", "constant"),
    [
        (vit(patch=1, stem=(2, 2, 2, 2), image_size=(64, 64)), "stem_std_eps 1e-05"),
        (BiTConfig((3, 4, 6, 3), classes=5, image_size=(64, 64)), "variance_eps 1e-10"),
    ],
    ids=["hybrid", "BiT"],
)
def test_the_epsilons_of_stems_and_bit_are_allowed_where_kernels_are_large(
    tmp_path, config, constant
):
    """They are added to a kernel's deviation, so what they change is a matter of its size.

    But for the group norms of a stem, whose epsilon is all that a flat image leaves of them.
    """
    large = replace(bundle(config), net=with_kernels_times(100, random_net(config)))
    stemmed = isinstance(config, ViTConfig)
    if stemmed:
        with pytest.raises(CheckpointError, match=r"stem_norm_eps 1e-06 \(here\) and 1e-05"):
            write_foreign(large, tmp_path / "large", "timm")
    written = write_foreign(large, tmp_path / "large", "timm", their_constants=stemmed)
    assert ("compute with other constants" in str(written.lost)) == stemmed
    small = replace(bundle(config), net=with_kernels_times(1e-3, random_net(config)))
    with pytest.raises(CheckpointError, match=rf"{constant} \(here\) and"):
        write_foreign(small, tmp_path / "small", "timm")
    assert [path.name for path in tmp_path.iterdir()] == ["large"]


def test_a_head_of_zeros_hides_no_difference(tmp_path):
    """The authors' nets for ImageNet-21k have one: logits are equal, features are not."""
    written = bundle(vit(**TANH))
    with torch.no_grad():
        written.net.get_submodule("head").get_parameter("weight").zero_()
    with pytest.raises(CheckpointError, match="gelu tanh"):
        write_foreign(written, tmp_path / "net.pth", "torchvision")


# What is lost

PLAIN = Preprocessing((32, 32))
ALIASED = "that images are resized without antialias"
OBLONG = {"image_size": (32, 48)}
LOST = [  # (format, file, config, preprocessing, the beginnings of what is said)
    ("timm", "net", vit(), None, []),
    ("hf", "net", vit(), None, []),
    ("hf", "net", vit(), PLAIN, [ALIASED]),
    ("timm", "net", vit(), PLAIN, [ALIASED]),
    ("timm", "net", vit(dropout=0.1), None, ["dropout 0.1"]),
    ("timm", "net", vit(stochastic_depth=0.2), None, ["stochastic_depth 0.2"]),
    ("timm", "net", vit(positions="sincos2d"), None, ["that the positions are fixed"]),
    ("timm", "net.pth", vit(), None, ["class names", "preprocessing"]),
    ("timm", "net.pth", vit(heads=4), None,
     ["class names", "preprocessing", "the number of heads, 4"]),
    ("torchvision", "net.pth", vit(width=48, heads=3), None,
     ["class names", "preprocessing", "the number of heads, 3"]),
    ("npz", "net.npz", vit(**TANH, heads=4), PLAIN, ["class names", "preprocessing"]),
    ("torchvision", "net.pth", EfficientNetConfig("B0", classes=5, stochastic_depth=0.5), None,
     ["class names", "preprocessing", "stochastic_depth 0.5", "the image size, 224x224"]),
    ("torchvision", "net.pth", vit(classes=0), None, ["class names", "preprocessing", "a head"]),
    ("timm", "net.pth", vit(**OBLONG), None,
     ["class names", "preprocessing", "the image size, 32x48"]),
    ("timm", "net", vit(**OBLONG), None, []),
    ("timm", "net", vit(**OBLONG), Preprocessing((32, 48), "shorter-side", 48, antialias=True),
     ["how images are prepared: shorter side to 48 (bilinear), its middle 32x48"]),
    ("timm", "net", vit(), Preprocessing((32, 32), resize_to=(40, 50), antialias=True),
     ["how images are prepared: image to 40x50"]),
    ("hf", "net", vit(),
     Preprocessing((32, 32), resize_to=(40, 50), antialias=True, rounding="floor"), []),
    ("hf", "net", vit(), Preprocessing((32, 32), "shorter-side", 45, antialias=True),
     ["how crops are rounded, 'nearest'"]),
    ("timm", "net", vit(),
     Preprocessing((32, 32), "shorter-side", 45, "area", True, rounding="torchvision"),
     ["an area resize"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("to", "file", "config", "preprocessing", "expected"), LOST, ids=lambda v: str(v)[:40]
)
def test_what_the_file_does_not_hold_is_said(tmp_path, to, file, config, preprocessing, expected):
    written = bundle(config)
    written = replace(written, preprocessing=preprocessing or written.preprocessing)
    lost = write_foreign(written, tmp_path / file, to).lost
    assert len(lost) == len(expected)
    assert all(said.startswith(begins) for said, begins in zip(lost, expected, strict=True))


# Where to


def test_a_dry_run_says_all_and_writes_nothing(tmp_path):
    dry = write_foreign(bundle(vit()), tmp_path / "dry", "hf", dry_run=True)
    assert nothing_in(tmp_path)
    assert dry == write_foreign(bundle(vit()), tmp_path / "wet", "hf")
    with pytest.raises(CheckpointError, match="cannot represent"):
        write_foreign(bundle(vit(registers=2)), tmp_path / "dry", "hf", dry_run=True)


@pytest.mark.parametrize(("to", "file"), [("timm", "net"), ("hf", "net.bin"), ("npz", "net.npz")])
def test_what_is_there_already_is_left_alone(tmp_path, to, file):
    path = tmp_path / file
    if path.suffix:
        path.write_text("mine")
    else:
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is there already"):
        write_foreign(bundle(vit(**TANH)), path, to)
    assert (path if path.suffix else path / "notes.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_empty_folder_may_be_written_into(tmp_path):
    (tmp_path / "net").mkdir()
    write_foreign(bundle(vit()), tmp_path / "net", "timm")
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == [
        "config.json", "model.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("to", "file", "message"),
    [
        ("npz", "net", "end it in .npz"),
        ("torchvision", "net", "end it in .safetensors or .pth or .bin"),
        ("torchvision", "net.npz", "end it in .safetensors"),
        ("timm", "net.npz", "--to timm writes a folder"),
        ("tim", "net", "unknown format 'tim'; did you mean 'timm'"),
        ("bundle", "net", "unknown format 'bundle'"),
    ],
)
def test_words_that_cannot_be_are_refused(tmp_path, to, file, message):
    with pytest.raises(UsageError, match=message):
        write_foreign(bundle(vit()), tmp_path / file, to)
    assert nothing_in(tmp_path)


@pytest.mark.parametrize("file", ["net", "net.safetensors"])
def test_a_disk_that_fails_leaves_nothing_half_written(tmp_path, monkeypatch, file):
    def full(*_, **__) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitkit.checkpoints.containers.save_file", full)
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_foreign(bundle(vit()), tmp_path / file, "timm")
    assert nothing_in(tmp_path)


def test_a_folder_whose_json_fails_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "json_beside", lambda *_: {"config.json": {"not": {1, 2}}})
    with pytest.raises(TypeError):
        write_foreign(bundle(vit()), tmp_path / "net", "timm")
    assert nothing_in(tmp_path)


# What is read


def timm_file(folder: Path, **changes) -> Path:
    """A file of timm's with tensors replaced, or taken away by `...`; a__b stands for a.b."""
    write_foreign(bundle(vit()), folder / "whole.safetensors", "timm")
    tensors = dict(read_tensors(folder / "whole.safetensors"))
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not ...:
            tensors[name.replace("__", ".")] = value
    write_tensors(folder / "changed.safetensors", tensors)
    return folder / "changed.safetensors"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks__1__norm1__bias": ...}, r"missing blocks\.1\.norm1\.bias \(blocks\.1\.norm1"),
        ({"patch_embed__proj__bias": ...}, r"missing patch_embed\.proj\.bias"),
        ({"pos_embed": ...}, r"missing pos_embed"),
        ({"blocks__0__mlp__fc2__weight": ...}, r"missing blocks\.0\.mlp\.fc2\.weight"),
        ({"norm__weight": torch.ones(64)}, r"norm\.weight \(norm\.weight\) is \(64,\) instead of"),
        ({"cls_token": torch.ones(1, 1, 64)}, r"cls_token \(class_token\) is \(1, 1, 64\)"),
        ({"pos_embed": torch.ones(17)}, r"too few axes"),
        ({"pos_embed": torch.ones(1, 7, 128)}, r"7 position embeddings are no square grid"),
        ({"norm_pre__weight": torch.ones(128)}, r"holds norm_pre\.weight, which timm's ViT, DeiT"),
        ({"fc_norm__bias": torch.ones(128)}, r"norm\.bias and fc_norm\.bias are both norm\.bias"),
        ({"norm__weight": torch.ones(128, dtype=torch.int32)}, r"norm\.weight.* holds torch\.int"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_as_it_is_in_the_file(tmp_path, changes, message):
    path = timm_file(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=rf"changed\.safetensors: .*{message}"):
        read_foreign(path)


def test_of_a_tensor_in_several_parts_the_missing_part_is_named(tmp_path):
    write_foreign(bundle(vit(norm_eps=1e-12)), tmp_path / "net.bin", "hf")
    tensors = dict(read_tensors(tmp_path / "net.bin"))
    name = "vit.encoder.layer.0.attention.attention.key.bias"
    del tensors[name]
    write_tensors(tmp_path / "part.bin", tensors)
    with pytest.raises(CheckpointError, match=r"missing .*layer\.0\.attention\.attention\.key\.b"):
        read_foreign(tmp_path / "part.bin")


@pytest.mark.parametrize("family", ["resnet18", "swin_t", "convnext_tiny", "mobilenet_v3_small"])
def test_a_file_of_another_family_is_told_what_is_known(tmp_path, family):
    from torchvision import models

    with torch.device("meta"):
        shapes = getattr(models, family)().state_dict()
    tensors = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in shapes.items()
    }
    write_tensors(tmp_path / "other.pth", tensors)
    with pytest.raises(CheckpointError) as caught:
        read_foreign(tmp_path / "other.pth")
    message = str(caught.value)
    assert "none of the known formats: a vitkit bundle; the authors' .npz" in message
    assert "torchvision's vit_*; torchvision's efficientnet_b*" in message


def test_an_efficientnet_v2_is_named_as_one_that_is_not_held(tmp_path):
    from torchvision import models

    with torch.device("meta"):
        shapes = models.efficientnet_v2_s().state_dict()
    tensors = {
        name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in shapes.items()
    }
    write_tensors(tmp_path / "v2.pth", tensors)
    with pytest.raises(CheckpointError, match=r"v2\.pth: missing features\.8\.0\.weight"):
        read_foreign(tmp_path / "v2.pth")


def test_a_bundles_config_beside_a_file_says_nothing_about_it(tmp_path):
    Model(*astuple(bundle(vit()))).save(tmp_path / "bundle")
    write_foreign(bundle(vit()), tmp_path / "bundle" / "other.pth", "timm")
    assert_same_net(read_foreign(tmp_path / "bundle" / "other.pth").net, random_net(vit()))


def test_what_is_read_does_not_hang_on_the_file(tmp_path):
    """torch.load maps it, so that what is done to it in place would be done to the net."""
    path = tmp_path / "net.pth"
    write_foreign(bundle(vit()), path, "timm")
    net = read_foreign(path).net
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    torch.testing.assert_close(weights(net), before, rtol=0, atol=0)


def test_half_precision_becomes_float32(tmp_path):
    path = timm_file(tmp_path)
    tensors = {name: tensor.bfloat16() for name, tensor in read_tensors(path).items()}
    write_tensors(tmp_path / "half.pth", tensors)
    net = read_foreign(tmp_path / "half.pth").net
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32}
    assert (
        net.state_dict()["head.weight"] - weights(random_net(vit()))["head.weight"]
    ).abs().max() < (0.01)


def test_what_was_chosen_of_a_training_file_is_said(tmp_path):
    whole = dict(read_tensors(timm_file(tmp_path)))
    torch.save({"state_dict": whole, "state_dict_ema": whole}, tmp_path / "training.pth.tar")
    assumed = read_foreign(tmp_path / "training.pth.tar").provenance["assumed"]
    assert "taken from 'state_dict' ('state_dict_ema' also there)" in assumed


def test_config_json_that_is_no_json_is_named(tmp_path):
    write_foreign(bundle(vit()), tmp_path / "net", "timm")
    (tmp_path / "net" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_foreign(tmp_path / "net")


@pytest.mark.parametrize(
    "config",
    [
        {"architecture": "x", "model_args": [1]},
        {"architecture": "x", "pretrained_cfg": {"mean": 3, "input_size": 7}},
        {"architecture": "x", "pretrained_cfg": {"mean": 3, "input_size": [3, 32, 32]}},
        {"architecture": "x", "label_names": {"0": "ant"}},
        {"architecture": "x", "global_pool": ["avg"]},
        {"architecture": 7},
        {},
    ],
    ids=str,
)
def test_config_json_that_is_not_timms_raises_nothing_but_checkpoint_errors(tmp_path, config):
    write_foreign(bundle(vit()), tmp_path / "net", "timm")
    (tmp_path / "net" / "config.json").write_text(json.dumps(config))
    try:
        net = read_foreign(tmp_path / "net").net
    except CheckpointError as error:
        assert "config.json" in str(error)
    else:
        assert_same_net(net, random_net(vit()))


@pytest.mark.parametrize("options", [{"pooling": "patch-mean"}, {"norm_after_pool": True}])
def test_weights_alone_do_not_say_a_pooling_and_a_folder_does(tmp_path, options):
    """timm's fc_norm is all that a reader of the weights alone can go by."""
    written = bundle(vit(**options))
    with pytest.raises(CheckpointError, match=r"pooling '.*' in weights alone"):
        write_foreign(written, tmp_path / "net.safetensors", "timm")
    assert nothing_in(tmp_path)
    write_foreign(written, tmp_path / "net", "timm")
    assert_same_net(read_foreign(tmp_path / "net").net, written.net)


def test_an_epsilon_that_only_a_flat_image_shows_is_seen(tmp_path):
    """Without positions to speak of, the tokens of a grey image hardly differ from their mean."""
    net = random_net(vit(norm_eps=1e-12, pooling="mean"))
    with torch.no_grad():
        assert isinstance(net, VisionTransformer) and net.position_embedding is not None
        net.position_embedding.mul_(1e-4)
        net.patch_embedding.bias.mul_(1e-4)
    written = replace(bundle(vit(norm_eps=1e-12, pooling="mean")), net=net)
    with pytest.raises(CheckpointError, match=r"norm_eps 1e-12 \(here\) and 1e-06"):
        write_foreign(written, tmp_path / "net", "timm")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_said(tmp_path, value):
    written = bundle(vit())
    with torch.no_grad():
        written.net.get_parameter("blocks.1.mlp.dense1.weight")[3, 4] = value
    write_foreign(written, tmp_path / "net", "timm")
    assumed = read_foreign(tmp_path / "net").provenance["assumed"]
    assert "NaN or infinity in blocks.1.mlp.fc1.weight" in assumed


@pytest.mark.parametrize("to", ["bundle", "timm", "hf"])
@pytest.mark.parametrize("name", ["net.pt", "net.ckpt", "net.PTH", "net.NPZ", "net.tar"])
def test_a_folder_does_not_get_the_name_of_a_file_of_weights(tmp_path, to, name):
    Model(*astuple(bundle(vit()))).save(tmp_path / "bundle")
    with pytest.raises(UsageError, match=r"written are \.npz, \.safetensors, \.pth and \.bin"):
        convert_any(tmp_path / "bundle", tmp_path / name, to)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("name", "net"),
    [
        ("bit-s-r50x1", BiTConfig((1, 1, 1, 1), classes=1000, image_size=(64, 64))),
        ("torchvision-vit-l16", vit(classes=1000, image_size=(224, 224), patch=32)),
    ],
)
def test_published_weights_are_converted_as_they_are_loaded(tmp_path, monkeypatch, name, net):
    """By their name the preprocessing is known, and with it the size of BiT's images."""
    monkeypatch.setenv("VITKIT_CACHE", str(tmp_path / "cache"))
    url = urlsplit(PUBLISHED[name].where)
    file = tmp_path / "cache" / (url.hostname or "") / url.path.lstrip("/")
    to = "npz" if file.suffix == ".npz" else "torchvision"
    write_foreign(bundle(net), file, to)
    loaded = vitkit.load(name)
    made = convert_any(name, tmp_path / "bundle")
    converted = vitkit.load(tmp_path / "bundle")
    assert loaded.preprocessing == converted.preprocessing == PUBLISHED[name].preprocessing
    assert loaded.net.config.image_size == converted.net.config.image_size == (224, 224)
    for assumed in (loaded.provenance["assumed"], made["assumed"]):
        assert not any("preprocessing" in said or "480" in said for said in assumed)


def test_a_preprocessing_that_their_json_cannot_say_is_refused(tmp_path):
    """timm knows one share for both sides: 3200 of 32 would be 320,000 of 3200."""
    long = Preprocessing((32, 3200), resize_to=(3200, 3200), antialias=True)
    written = replace(bundle(vit(image_size=(32, 3200))), preprocessing=long)
    with pytest.raises(CheckpointError, match="cannot say how images are prepared here"):
        write_foreign(written, tmp_path / "net", "timm")
    assert nothing_in(tmp_path)
