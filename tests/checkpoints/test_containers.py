"""Named tensors in and out of every kind of file that weights come in."""

import argparse
import json
import re
import subprocess
import sys
import threading
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vitkit import files
from vitkit.checkpoints.containers import (
    Tensors,
    read,
    read_json,
    read_tensors,
    weights_in,
    write_tensors,
)
from vitkit.checkpoints.problems import CheckpointError

TORCH_SUFFIXES = [".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".PTH"]
SUFFIXES = [".npz", ".safetensors", *TORCH_SUFFIXES]


def weights(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        "blocks.0.norm.weight": torch.randn(5, generator=generator),
        "blocks.0.mlp.weight": torch.randn(3, 5, generator=generator),
        "head/kernel": torch.randn(2, 3, 4, 5, generator=generator),
    }


def save(path: Path, content: object, **options) -> Path:
    torch.save(content, path, **options)
    return path


def save_npz(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(bits(found[name]), bits(tensor)), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def is_mapped(tensor: torch.Tensor, path: Path) -> bool:
    """Whether the tensor's memory is the file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        if line.endswith(str(path)) and start <= tensor.data_ptr() < end:
            return True
    return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")


# .npz


@pytest.mark.parametrize(
    "dtype", ["f4", "f2", "f8", "i8", "i4", "u1", "u2", "?", ">f4", ">i8", "c8"]
)
def test_arrays_are_tensors_of_the_same_numbers_and_type(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    tensor = read_tensors(save_npz(tmp_path / "a.npz", **{"a/b": array}))["a/b"]
    assert tensor.numpy().dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_arrays_lie_as_they_lay(tmp_path):
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    tensor = read_tensors(save_npz(tmp_path / "a.npz", a=array))["a"]
    assert (tensor.shape, tensor.stride()) == ((2, 3), (1, 2))
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_bfloat16_which_numpy_stores_as_two_bytes_keeps_every_bit(tmp_path):
    """Also those of a NaN, which a way through float32 may change."""
    patterns = np.arange(0, 2**16, 7, dtype=np.uint16)
    read_back = read_tensors(save_npz(tmp_path / "a.npz", a=patterns.view("V2")))["a"]
    assert read_back.dtype == torch.bfloat16
    np.testing.assert_array_equal(read_back.view(torch.uint16).numpy(), patterns)


def test_step_counters_of_optimiser_dumps_are_read_too(tmp_path):
    path = save_npz(tmp_path / "a.npz", **{"opt/state/step": np.array(7), "w": np.zeros((0, 3))})
    tensors = read_tensors(path)
    assert (tensors["opt/state/step"].shape, int(tensors["opt/state/step"])) == ((), 7)
    assert tensors["w"].shape == (0, 3)


def test_compressed_arrays_are_read(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(1000.0))
    assert torch.equal(read_tensors(tmp_path / "a.npz")["a"], torch.arange(1000.0).double())


@pytest.mark.parametrize("value", [np.array("text"), np.zeros(2, "V4"), np.zeros(2, "f4,f4")])
def test_an_array_of_a_type_that_torch_lacks_is_named(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"a\.npz: .*odd\.npy holds .* torch has no type for"):
        read_tensors(save_npz(tmp_path / "a.npz", odd=value))


# .safetensors, and what torch.save writes


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_gives_the_tensors_that_were_saved(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        write_tensors(path, weights())
    elif suffix == ".safetensors":
        save_file(weights(), path)
    else:
        torch.save(weights(), path)
    assert_same(read_tensors(path), weights())


def test_files_from_before_torch_1_6_are_read(tmp_path):
    path = save(tmp_path / "a.bin", weights(), _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert_same(read_tensors(path), weights())


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint16, torch.bool],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_tensors_keep_their_type(tmp_path, dtype, suffix):
    tensors = {"a": torch.arange(6).reshape(2, 3).to(dtype), "scalar": torch.tensor(3)}
    write_tensors(tmp_path / f"a{suffix}", tensors)
    assert_same(read_tensors(tmp_path / f"a{suffix}"), tensors)


@needs_proc
@pytest.mark.parametrize(("suffix", "mapped"), [(".safetensors", False), (".pth", True)])
def test_what_is_done_to_tensors_leaves_the_file_alone(tmp_path, suffix, mapped):
    path = tmp_path / f"a{suffix}"
    write_tensors(path, weights())
    before, tensors = path.read_bytes(), read_tensors(path)
    assert all(is_mapped(tensor, path) == mapped for tensor in tensors.values())
    tensors["head/kernel"].zero_()
    assert path.read_bytes() == before


def test_what_is_done_to_a_safetensors_file_leaves_its_tensors_alone(tmp_path):
    write_tensors(tmp_path / "a.safetensors", weights())
    tensors = read_tensors(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"")  # a map of it would now kill who looks
    assert_same(tensors, weights())


def test_a_file_that_was_packed_again_is_read_right(tmp_path):
    """torch.load(mmap=True) takes the packed bytes for numbers."""
    save(tmp_path / "a.pth", weights())
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as stored,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    assert_same(read_tensors(tmp_path / "b.pth"), weights())
    mapped = torch.load(tmp_path / "b.pth", mmap=True, weights_only=True)
    assert not torch.equal(mapped["head/kernel"], weights()["head/kernel"])


@pytest.mark.parametrize("suffix", [".npz", ".pth"])
def test_a_bit_that_flipped_in_a_tensor_is_noticed_where_the_file_has_checksums(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_tensors(path, weights())
    data = bytearray(path.read_bytes())
    data[data.index(weights()["head/kernel"].numpy().tobytes()) + 17] ^= 4
    path.write_bytes(data)
    if suffix == ".pth":  # torch does not notice
        torch.load(path, weights_only=True)
    with pytest.raises(CheckpointError, match=r"damaged .*Bad CRC-32"):
        read_tensors(path)


def test_parameters_become_tensors_without_gradients_or_hooks(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(3))
    tensors = read_tensors(save(tmp_path / "a.pth", {"w": parameter}))
    assert type(tensors["w"]) is torch.Tensor
    assert not tensors["w"].requires_grad
    assert tensors["w"]._backward_hooks is None


# Where in a file the weights are


@pytest.mark.parametrize(
    "part",
    ["model", "state_dict", "model_state_dict", "state_dict_ema", "model_ema", "teacher", "student",
     "net"],
)  # fmt: skip
def test_weights_are_found_under_the_usual_names(tmp_path, part):
    content = {"epoch": 3, "best": torch.tensor(0.5), part: OrderedDict(weights())}
    if part == "net":
        del content["best"]  # no known name: the only tensors there are
    result = read(save(tmp_path / "a.pth", content))
    assert_same(result.tensors, weights())
    assert result.note == f"taken from {part!r}"


def test_of_several_the_one_that_was_taken_is_said(tmp_path):
    content = {"model_ema": weights(1), "optimizer": {"state": {}}, "model": weights(0)}
    result = read(save(tmp_path / "a.pth", content))
    assert_same(result.tensors, weights(0))
    assert result.note == "taken from 'model' ('model_ema' also there)"


def test_a_training_state_with_options_optimizer_and_schedule_is_read(tmp_path):
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])  # holds a Counter
    options = argparse.Namespace(lr=1e-3, device=torch.device("cpu"), dtype=torch.float16, seen={1})
    path = save(
        tmp_path / "a.pth",
        {
            "model": net.state_dict(), "optimizer": optimizer.state_dict(), "args": options,
            "lr_scheduler": schedule.state_dict(), "epoch": 3,
        },
    )  # fmt: skip
    assert_same(read_tensors(path), dict(net.state_dict()))


def test_what_is_no_tensor_beside_the_weights_is_left_out(tmp_path):
    content = weights() | {"step": 7, "name": "ViT", "sizes": [1, 2], "nothing": None}
    assert_same(read_tensors(save(tmp_path / "a.pth", content)), weights())


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"optimizer": {"state": {0: {}}}}])
def test_a_file_without_weights_says_what_it_holds(tmp_path, content):
    held = next(iter(content), "nothing")
    with pytest.raises(CheckpointError, match=rf"a\.pth: holds {held}, and weights neither"):
        read_tensors(save(tmp_path / "a.pth", content))


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], 3])
def test_tensors_without_names_are_refused(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"a\.pth: holds a \w+, not tensors with names"):
        read_tensors(save(tmp_path / "a.pth", content))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "model."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_wrappers_prefix_is_taken_off_and_said(tmp_path, prefix, suffix):
    path = tmp_path / f"a{suffix}"
    write_tensors(path, {prefix + name: tensor for name, tensor in weights().items()})
    assert_same(read(path).tensors, weights())
    assert read(path).note == f"{prefix!r} taken off the names"


def test_wrappers_around_wrappers_are_taken_off(tmp_path):
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in weights().items()}
    result = read(save(tmp_path / "a.pth", {"state_dict": wrapped}))
    assert_same(result.tensors, weights())
    assert result.note == (
        "taken from 'state_dict', 'module.' taken off the names, '_orig_mod.' taken off the names"
    )


def test_a_prefix_that_not_all_names_have_stays(tmp_path):
    tensors = {"backbone.w": torch.ones(1), "head.w": torch.ones(1)}
    assert_same(read_tensors(save(tmp_path / "a.pth", tensors)), tensors)


# torch's list of classes that may be loaded is one for the whole process


def test_what_others_allow_torch_to_load_is_as_it_was_afterwards(tmp_path):
    path = save(tmp_path / "a.pth", {"model": weights(), "args": argparse.Namespace(a=1)})
    before = set(torch.serialization.get_safe_globals())
    assert argparse.Namespace not in before
    read_tensors(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_tensors(path)
        assert argparse.Namespace in torch.serialization.get_safe_globals()


def test_threads_may_read_at_once(tmp_path):
    path = save(tmp_path / "a.pth", {"model": weights(), "args": argparse.Namespace(a=1)})
    failed: list[Exception] = []

    def read_often() -> None:
        try:
            for _ in range(20):
                read_tensors(path)
        except CheckpointError as error:
            failed.append(error)

    threads = [threading.Thread(target=read_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# Folders


def sharded(folder: Path, kind: str) -> Path:
    """weights() in two files and an index."""
    tensors = list(weights().items())
    stem = "model" if kind == ".safetensors" else "pytorch_model"
    shards = {f"{stem}-1-of-2{kind}": tensors[:1], f"{stem}-2-of-2{kind}": tensors[1:]}
    for name, part in shards.items():
        write_tensors(folder / name, dict(part))
    table = {key: name for name, part in shards.items() for key, _ in part}
    index = folder / f"{stem}{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    return index


def test_the_weights_of_a_folder_are_one_file_or_an_index_safetensors_first(tmp_path):
    expected = [
        tmp_path / "model.safetensors", tmp_path / "model.safetensors.index.json",
        tmp_path / "pytorch_model.bin", tmp_path / "pytorch_model.bin.index.json",
    ]  # fmt: skip
    for path in reversed(expected):
        path.touch()
        assert weights_in(tmp_path) == path


def test_a_folder_without_weights_says_what_is_expected(tmp_path):
    with pytest.raises(CheckpointError, match=r"without weights; expected model\.safetensors, "):
        read_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_is_read_by_its_one_file(tmp_path, name):
    write_tensors(tmp_path / name, weights())
    (tmp_path / "config.json").write_text("{}")
    assert_same(read_tensors(tmp_path), weights())


@pytest.mark.parametrize("kind", [".safetensors", ".bin"])
def test_a_model_in_several_files_is_read_by_its_index(tmp_path, kind):
    index = sharded(tmp_path, kind)
    assert_same(read_tensors(tmp_path), weights())
    assert_same(read_tensors(index), weights())


def test_files_may_be_links_as_they_are_in_the_cache_of_the_hub(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for file in [sharded(tmp_path / "blobs", ".safetensors"), *(tmp_path / "blobs").iterdir()]:
        (tmp_path / "snapshot" / file.name).unlink(missing_ok=True)
        (tmp_path / "snapshot" / file.name).symlink_to(Path("..") / "blobs" / file.name)
    assert_same(read_tensors(tmp_path / "snapshot"), weights())


def test_a_tensor_that_the_index_promises_and_its_file_lacks_is_named(tmp_path):
    index = sharded(tmp_path, ".safetensors")
    table = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": table | {"lost": "model-1-of-2.safetensors"}}))
    with pytest.raises(
        CheckpointError, match=r"model-1-of-2\.safetensors: has no lost, as .*index"
    ):
        read_tensors(tmp_path)


# JSON beside weights


def test_an_object_is_read_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text('{"id2label": {"0": "é"}}', encoding="utf-8")
    assert read_json(tmp_path / "config.json") == {"id2label": {"0": "é"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b"\xff\xfe{}", "not readable as JSON"),
        (b"[" * 100_000, "not readable as JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not readable as JSON"),
        (b"[]", "holds list, not an object"),
        (b"3", "holds int, not an object"),
        (b" " * (8 << 20) + b"{}", "more than 8 MiB of JSON"),
    ],
)
def test_json_that_is_no_object_or_too_large_is_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{message}"):
        read_json(tmp_path / "config.json")


def test_json_that_is_not_there_is_a_checkpoint_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: .*No such file"):
        read_json(tmp_path / "config.json")


# Files that cannot be


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file"):
        read_tensors(tmp_path / "none.pth")


def test_an_unknown_suffix_gets_the_known_ones(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(
        CheckpointError, match=r"a\.onnx: not a known .*\.npz, \.safetensors, \.pth"
    ):
        read_tensors(tmp_path / "a.onnx")


def test_a_file_without_tensors_is_refused(tmp_path):
    save_file({}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"a\.safetensors: holds no tensors"):
        read_tensors(tmp_path / "a.safetensors")


def test_every_message_is_one_sentence_in_one_line(tmp_path):
    save(tmp_path / "a.pth", {"w": print})
    with pytest.raises(CheckpointError) as caught:
        read_tensors(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch advises to turn it off


# Writing

WRITTEN = [".npz", ".safetensors", ".pth", ".bin"]


@pytest.mark.parametrize("suffix", WRITTEN)
def test_what_is_written_is_read_back_and_is_the_same_bytes_each_time(tmp_path, suffix):
    for name in ("a", "b"):
        write_tensors(tmp_path / f"{name}{suffix}", weights())
    assert_same(read_tensors(tmp_path / f"a{suffix}"), weights())
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_an_npz_is_one_that_numpy_and_the_authors_code_read(tmp_path):
    tensors = {"a/b/kernel": torch.arange(6.0).reshape(2, 3).T, "step": torch.tensor(7)}
    write_tensors(tmp_path / "a.npz", tensors)
    with np.load(tmp_path / "a.npz") as archive:
        assert archive.files == ["a/b/kernel", "step"]
        np.testing.assert_array_equal(archive["a/b/kernel"], tensors["a/b/kernel"])
        assert archive["step"] == 7
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        for member in archive.infolist():
            assert member.compress_type == zipfile.ZIP_STORED
            assert member.date_time == (1980, 1, 1, 0, 0, 0)  # not today's: the same bytes always


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_in_an_npz(tmp_path, dtype):
    half = torch.randn(4, 3).to(dtype)
    write_tensors(tmp_path / "a.npz", {"w": half})
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["w"].dtype == np.float32
        np.testing.assert_array_equal(archive["w"], half.float())


def test_a_safetensors_has_metadata(tmp_path):
    write_tensors(tmp_path / "a.safetensors", weights(), {"license": "apache-2.0"})
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "license": "apache-2.0"}
    assert_same(load_file(tmp_path / "a.safetensors"), weights())


@pytest.mark.parametrize("suffix", [".npz", ".pth", ".bin"])
def test_metadata_that_would_be_lost_is_refused(tmp_path, suffix):
    with pytest.raises(CheckpointError, match=r"only \.safetensors has a place for metadata"):
        write_tensors(tmp_path / f"a{suffix}", weights(), {"license": "apache-2.0"})


def test_a_pth_is_a_plain_dict_that_torch_loads_by_default(tmp_path):
    net = torch.nn.Linear(3, 2)
    write_tensors(tmp_path / "a.pth", dict(net.named_parameters()))
    loaded = torch.load(tmp_path / "a.pth")
    assert type(loaded) is dict
    assert {type(tensor) for tensor in loaded.values()} == {torch.Tensor}
    net.load_state_dict(loaded)


@pytest.mark.parametrize("suffix", WRITTEN)
def test_views_tied_and_transposed_tensors_are_written_whole_and_alone(tmp_path, suffix):
    base = torch.randn(300, 100)
    tensors = {
        "transposed": base[:20, :10].T, "part": base[5], "tied": base[7], "tied too": base[7],
        "empty": base[:0], "overlapping": base[7:9],
    }  # fmt: skip
    path = tmp_path / f"a{suffix}"
    write_tensors(path, tensors)
    assert_same(read_tensors(path), tensors)
    assert path.stat().st_size < 10_000  # not all of base


@pytest.mark.parametrize("suffix", WRITTEN)
def test_writing_changes_no_tensor_and_copies_none_that_lies_alone(tmp_path, suffix, monkeypatch):
    tensors, clones = weights(), []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda t, **k: clones.append(t) or clone(t, **k))
    write_tensors(tmp_path / f"a{suffix}", tensors)
    assert clones == []
    assert_same(tensors, weights())


@pytest.mark.parametrize("suffix", WRITTEN)
def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"a{suffix}"
    write_tensors(path, weights(0))

    def fail(_: Path) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(files, "sync", fail)
    message = rf"{re.escape(str(path))}: cannot be written: the disk is full"
    with pytest.raises(CheckpointError, match=message):
        write_tensors(path, weights(1))
    assert_same(read_tensors(path), weights(0))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("suffix", WRITTEN)
def test_a_disk_that_is_full_is_a_checkpoint_error(tmp_path, suffix):
    """Python, C++ and Rust write, and each has its own error."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=rf"a{suffix}: cannot be written: .*too large"):
            write_tensors(tmp_path / f"a{suffix}", {"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_folders_above_the_file_are_made(tmp_path):
    write_tensors(tmp_path / "new" / "a.pth", weights())
    assert_same(read_tensors(tmp_path / "new" / "a.pth"), weights())


@pytest.mark.parametrize("name", ["a.onnx", "a", "a.pt2"])
def test_an_unknown_suffix_is_not_written(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"written are \.npz, \.safetensors, \.pth and \.bin"):
        write_tensors(tmp_path / name, weights())
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_numpy_lacks_is_named_and_nothing_is_left(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.npz: cannot be written: .*Float8"):
        write_tensors(tmp_path / "a.npz", {"w": torch.zeros(2).to(torch.float8_e4m3fn)})
    assert list(tmp_path.iterdir()) == []


MEASURE = """
import re, sys
from pathlib import Path
import torch
from vitkit.checkpoints.containers import read_tensors, write_tensors

folder = Path(sys.argv[1])


def peak():
    status = Path("/proc/self/status").read_text()  # ru_maxrss starts with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024


def grown(work, *arguments):
    before = peak()
    kept = work(*arguments)
    return peak() - before


for suffix in (".npz", ".safetensors", ".pth"):  # what is needed once for all
    write_tensors(folder / f"small{suffix}", {"w": torch.ones(3)})
    read_tensors(folder / f"small{suffix}")
"""


def measured(folder: Path, code: str) -> list[int]:
    """The numbers that the code prints in a process of its own, of which each is in MB."""
    result = subprocess.run(
        [sys.executable, "-c", MEASURE + code, str(folder)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [int(line) // 1_000_000 for line in result.stdout.split()]


@needs_proc
def test_reading_takes_the_memory_of_one_copy_at_most(tmp_path):
    for suffix, most in ((".npz", 115), (".safetensors", 115), (".pth", 10)):
        write_tensors(tmp_path / f"a{suffix}", {f"w{i}": torch.ones(2_500_000) for i in range(10)})
        (peak,) = measured(tmp_path, f"print(grown(read_tensors, folder / 'a{suffix}'))")
        assert most - 25 < peak < most  # 100 MB, once; .pth is mapped


@needs_proc
def test_writing_takes_the_memory_of_one_tensor_more_at_most(tmp_path):
    """Contiguous tensors as they lie; of an .npz also transposed halves, 10 MB each widened."""
    npz, *others = measured(
        tmp_path,
        "halves = [torch.ones(2500, 1000, dtype=torch.float16).T for _ in range(16)]\n"
        "print(grown(write_tensors, folder / 'a.npz', dict(zip('abcdefghijklmnop', halves))))\n"
        "tensors = {f'w{i}': torch.ones(2_500_000) for i in range(10)}\n"
        "for suffix in ('.npz', '.safetensors', '.pth'):\n"
        "    print(grown(write_tensors, folder / f'a{suffix}', tensors))",
    )
    assert npz < 60  # of 160; numpy has buffers of 16 MB
    assert max(others) < 20  # of 100
