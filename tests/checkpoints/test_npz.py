"""The authors' .npz files: both ways to name the keys, and every way to be something else."""

import io
import pickle
import random
import re
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitkit.checkpoints.bundle import CheckpointError
from vitkit.checkpoints.convert import read_foreign
from vitkit.data.transforms import Preprocessing
from vitkit.models.vit_config import ViTConfig

GOLDEN = Path(__file__).parents[1] / "golden"
TOKEN = GOLDEN / "vit-token-prelogits" / "checkpoint.npz"  # keys of the released files
MEAN = GOLDEN / "vit-gap-linen-names" / "checkpoint.npz"  # keys of today's Flax
POSITIONS = "Transformer/posembed_input/pos_embedding"
QUERY = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query"
EMBEDDING = r"embedding/kernel \(patch_embedding\.weight\)"

QKV = ("query", "key", "value")

Arrays = dict[str, np.ndarray]


def arrays_of(path: Path = TOKEN) -> Arrays:
    with np.load(path) as archive:
        return dict(archive)


def write(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def changed(path: Path, **changes) -> Path:
    """The golden checkpoint with arrays replaced, or taken away by `...`; a__b stands for a/b."""
    arrays = arrays_of()
    for name, value in changes.items():
        arrays.pop(name.replace("__", "/"), None)
        if value is not ...:
            arrays[name.replace("__", "/")] = value
    return write(path / "checkpoint.npz", arrays)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return read_foreign(path).net.state_dict()


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = weights_of(one), weights_of(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# Names and shapes


def test_the_architecture_is_inferred_from_a_file_with_the_released_names():
    assert read_foreign(TOKEN).net.config == ViTConfig(
        patch=4, width=48, depth=3, heads=3, mlp_width=96, classes=10, image_size=(32, 32),
        pooling="token", hidden_head=True,
    )  # fmt: skip


def test_the_architecture_is_inferred_from_a_file_with_the_names_of_today():
    config = read_foreign(MEAN).net.config
    assert isinstance(config, ViTConfig)
    assert (config.patch, config.width, config.heads, config.mlp_width) == (8, 64, 4, 128)
    assert (config.image_size, config.classes) == ((32, 32), 7)
    assert (config.pooling, config.hidden_head) == ("mean", False)


def test_old_and_new_names_are_the_same_net(tmp_path):
    renamed = {
        name.replace("LayerNorm_2", "LayerNorm_1")
        .replace("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0")
        .replace("MlpBlock_3", "MlpBlock_0"): array
        for name, array in arrays_of().items()
    }
    assert renamed.keys() != arrays_of().keys()
    assert_same_weights(write(tmp_path / "new.npz", renamed), TOKEN)


@pytest.mark.parametrize("prefix", ["opt/target/", "params/"])
def test_a_prefix_before_all_names_is_taken_off_and_the_optimiser_ignored(tmp_path, prefix):
    arrays = {prefix + name: array for name, array in arrays_of().items()}
    arrays["opt/state/step" if prefix.startswith("opt") else "step"] = np.array(7)
    assert_same_weights(write(tmp_path / "dump.npz", arrays), TOKEN)


def test_weights_are_laid_out_as_torch_has_them():
    arrays, weights = arrays_of(), weights_of(TOKEN)
    np.testing.assert_array_equal(weights["head.weight"], arrays["head/kernel"].T)
    np.testing.assert_array_equal(
        weights["patch_embedding.weight"][5, 2], arrays["embedding/kernel"][:, :, 2, 5]
    )
    query = weights["blocks.0.attention.qkv.weight"][:48].reshape(3, 16, 48)  # (h, d, D)
    np.testing.assert_array_equal(query.permute(2, 0, 1), arrays[f"{QUERY}/kernel"])
    np.testing.assert_array_equal(
        weights["blocks.0.attention.qkv.bias"][:48].reshape(3, 16), arrays[f"{QUERY}/bias"]
    )


@pytest.mark.parametrize("case", ["hybrid-two-stage", "bit-four-stage"])
def test_group_norms_may_have_leading_ones_or_none(tmp_path, case):
    """The released files have (1, 1, 1, C); today's Flax has (C,)."""
    arrays = arrays_of(GOLDEN / case / "checkpoint.npz")
    norms = [name for name in arrays if "/gn" in name or "gn_" in name or "group_norm" in name]
    assert len(norms) > 10
    flat = arrays | {name: arrays[name].reshape(-1) for name in norms}
    led = arrays | {name: arrays[name].reshape(1, 1, 1, -1) for name in norms}
    assert_same_weights(write(tmp_path / "flat.npz", flat), write(tmp_path / "led.npz", led))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_of_another_precision_become_float32(tmp_path, dtype):
    arrays = {name: array.astype(dtype) for name, array in arrays_of().items()}
    weights = weights_of(write(tmp_path / "half.npz", arrays))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    torch.testing.assert_close(weights, weights_of(TOKEN), atol=2e-3, rtol=2e-3)


def test_bfloat16_which_numpy_stores_as_two_bytes_is_understood(tmp_path):
    """The first two bytes of a float32 are its bfloat16, cut off."""
    high = {n: (a.view(np.uint32) >> 16).astype(np.uint16) for n, a in arrays_of().items()}
    halves = write(tmp_path / "half.npz", {n: bits.view("V2") for n, bits in high.items()})
    whole = {n: (bits.astype(np.uint32) << 16).view(np.float32) for n, bits in high.items()}
    assert arrays_of(halves)["cls"].dtype == np.dtype("V2")
    assert_same_weights(halves, write(tmp_path / "whole.npz", whole))


def test_the_batch_and_fortran_order_of_an_array_do_not_matter(tmp_path):
    kernel = np.asfortranarray(arrays_of()["head/kernel"])
    assert_same_weights(changed(tmp_path, head__kernel=kernel), TOKEN)


# Class names and preprocessing, which are not in the files


def test_a_thousand_classes_have_the_names_of_imagenet(tmp_path):
    path = changed(
        tmp_path,
        head__kernel=np.zeros((48, 1000), np.float32), head__bias=np.zeros(1000, np.float32),
    )  # fmt: skip
    names = read_foreign(path).class_names
    assert len(names) == 1000
    assert (names[0], names[1], names[207]) == ("tench", "goldfish", "golden retriever")


def test_any_other_number_of_classes_is_numbered():
    assert read_foreign(TOKEN).class_names == [str(number) for number in range(10)]


def test_the_preprocessing_is_the_authors_direct_resize_and_the_source_is_kept():
    bundle = read_foreign(TOKEN)
    assert bundle.preprocessing == Preprocessing.direct((32, 32))
    (assumed,) = bundle.provenance.pop("assumed")
    assert assumed.endswith("usually have it: " + bundle.preprocessing.summary)
    assert bundle.provenance == {"source": str(TOKEN), "format": "npz"}


# Damaged and foreign files


@pytest.mark.parametrize("kept", [0, 4, 100, 100_000, -1])
def test_a_truncated_file_is_named(tmp_path, kept):
    path = tmp_path / "cut.npz"
    path.write_bytes(TOKEN.read_bytes()[:kept])
    what = "truncated, damaged or not an .npz" if kept else "empty"
    with pytest.raises(CheckpointError, match=rf"cut\.npz: {re.escape(what)}"):
        read_foreign(path)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        npy(np.zeros(3)),
        zipped(),
        zipped(readme=b"hello"),
        zipped(embedding__kernel=b"no array"),
        zipped(cls=npy(np.zeros(3))),
    ],
    ids=["empty", "text", "png", "npy", "no-member", "text-member", "bytes", "unnamed"],
)
def test_a_file_that_is_no_npz_of_a_vision_transformer_is_named(tmp_path, data):
    (tmp_path / "odd.npz").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"odd\.npz: "):
        read_foreign(tmp_path / "odd.npz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.npz"):
        read_foreign(tmp_path / "none.npz")


class Trap:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["member", "bare"])
def test_pickled_objects_are_refused_and_not_executed(tmp_path, kind):
    trap = Trap(tmp_path / "sprung")
    if kind == "member":
        path = changed(tmp_path, cls=np.array([trap], dtype=object))
    else:
        path = tmp_path / "checkpoint.npz"
        path.write_bytes(pickle.dumps(trap))
    with pytest.raises(CheckpointError, match=r"checkpoint\.npz"):
        read_foreign(path)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(trap))
    assert (tmp_path / "sprung").exists()  # the trap works


RESNET = {
    "resnet/root_block/conv2d/kernel": (7, 7, 3, 64), "resnet/head/conv2d/kernel": (1, 1, 9, 5),
}  # fmt: skip
HYBRID = {
    "conv_root/kernel": (7, 7, 3, 64),
    "gn_root/scale": (1, 1, 1, 64),
    "block1/unit1/conv1/kernel": (1, 1, 64, 64),
}


def test_a_resnet_that_is_no_bit_is_named_as_none_of_the_known_formats(tmp_path):
    path = write(tmp_path / "old.npz", {name: np.zeros(shape) for name, shape in RESNET.items()})
    known = r"none of the known formats.*BiT's \.npz"
    with pytest.raises(CheckpointError, match=rf"old\.npz: holds resnet/head/conv.*{known}"):
        read_foreign(path)


def test_what_a_hybrid_lacks_is_named(tmp_path):
    arrays = arrays_of() | {name: np.zeros(shape) for name, shape in HYBRID.items()}
    arrays["embedding/kernel"] = np.zeros((1, 1, 1024, 48))
    path = write(tmp_path / "hybrid.npz", arrays)
    with pytest.raises(CheckpointError, match=r"hybrid\.npz: .*missing block1/unit1/conv_proj"):
        read_foreign(path)


@pytest.mark.parametrize("patches", [62, 2, 0])
def test_a_grid_that_is_not_square_is_named(tmp_path, patches):
    path = changed(tmp_path, **{POSITIONS: np.zeros((1, 1 + patches, 48), np.float32)})
    with pytest.raises(CheckpointError, match=r"checkpoint\.npz: .*(square grid|image size)"):
        read_foreign(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head/bias", ..., r"missing head/bias \(head\.bias\)"),
        (f"{QUERY}/bias", ..., f"missing {QUERY}/bias"),
        ("head/bias", np.zeros(11), r"head/bias \(head\.bias\) is \(11,\) instead of \(10,\)"),
        ("embedding/kernel", np.zeros((4, 4, 1, 48)), rf"{EMBEDDING} is \(48, 1, 4, 4"),
        ("embedding/kernel", np.zeros((4, 8, 3, 48)), rf"{EMBEDDING} is \(48, 3, 4, 8"),
        ("head/kernel", np.zeros(48), r"head/kernel has shape \(48,\), not 2 axes"),
        ("head/kernel", ..., r"missing head/kernel \(head\.weight\)"),
        ("pre_logits/kernel", np.zeros(48), r"pre_logits/kernel has shape \(48,\), not 2 axes"),
        ("surprise", np.zeros(1), "holds surprise, which the authors' .*do not have in any net"),
        (f"{QUERY}/kernel", np.zeros((48, 5, 16)), f"{QUERY}/kernel, .*are not of one shape"),
        (POSITIONS, np.zeros((1, 0, 48)), "position"),
        ("head/bias", np.full(10, "text"), "head/bias"),
        ("head/bias", np.zeros(10, "V4"), "head/bias"),
        ("head/bias", np.zeros(10, "f4,f4"), "head/bias"),
    ],
)
def test_an_array_that_is_missing_or_does_not_fit_is_named(tmp_path, name, value, message):
    path = changed(tmp_path, **{name: value})
    with pytest.raises(CheckpointError, match=rf"checkpoint\.npz: .*{message}"):
        read_foreign(path)


def test_heads_that_do_not_divide_the_width_are_named(tmp_path):
    kernels = {QUERY.replace("query", n) + "/kernel": np.zeros((48, 5, 16)) for n in QKV}
    with pytest.raises(CheckpointError, match=r"checkpoint\.npz: .*5 heads do not divide the wid"):
        read_foreign(changed(tmp_path, **kernels))


def test_a_block_that_is_missing_is_named(tmp_path):
    second = [name for name in arrays_of() if "encoderblock_1/" in name]
    path = changed(tmp_path, **dict.fromkeys(second, ...))
    with pytest.raises(CheckpointError, match=r"missing Transformer/encoderblock_1/LayerNorm_0/sc"):
        read_foreign(path)


def test_what_is_there_by_an_old_and_a_new_name_is_named(tmp_path):
    twice = "Transformer/encoderblock_0/LayerNorm_1/scale"
    with pytest.raises(CheckpointError, match=rf"checkpoint\.npz: holds {twice}, which"):
        read_foreign(changed(tmp_path, **{twice: np.ones(48)}))


@pytest.mark.parametrize("shape", [(10**10,), (10**12,), (10**30,), (2**31, 2**33)])
def test_an_array_that_says_it_is_huge_is_refused_and_takes_no_memory(tmp_path, shape):
    header = io.BytesIO()
    kind = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, kind)
    path = tmp_path / "huge.npz"
    path.write_bytes(zipped(**{"cls.npy": header.getvalue() + bytes(100)}))
    with pytest.raises(CheckpointError, match=r"huge\.npz"):
        read_foreign(path)


@cache
def golden_bytes(stored: bool) -> bytes:
    if stored:
        return TOKEN.read_bytes()
    file = io.BytesIO()
    np.savez_compressed(file, **arrays_of())  # pyright: ignore[reportArgumentType]
    return file.getvalue()


@given(seed=st.integers(0, 2**32), stored=st.booleans())
@settings(max_examples=60, deadline=None)
def test_mutated_files_raise_nothing_but_checkpoint_errors(tmp_path_factory, seed, stored):
    draws, data = random.Random(seed), bytearray(golden_bytes(stored))
    starts = [at for at in range(len(data)) if data[at : at + 2] == b"PK"]
    for _ in range(draws.choice([1, 1, 4, 30])):
        near_a_header = min(len(data) - 1, draws.choice(starts) + draws.randrange(220))
        data[draws.choice([near_a_header, draws.randrange(len(data))])] = draws.randrange(256)
    path = tmp_path_factory.mktemp("npz") / "mutated.npz"
    path.write_bytes(data)
    try:
        read_foreign(path)
    except CheckpointError as error:
        if "mutated.npz" not in str(error):
            raise AssertionError("the file is not named") from error
