"""A bundle: everything a consumer needs, whole or absent, verified before it is used."""

import hashlib
import json
import locale
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

import vitkit.checkpoints.bundle as module
from vitkit.checkpoints.bundle import Bundle, CheckpointError, read_bundle, write_bundle
from vitkit.data.transforms import Preprocessing
from vitkit.models import nets
from vitkit.models.vit import VisionTransformer
from vitkit.models.vit_config import ViTConfig
from vitkit.prediction.model import load


def bundle(fill: float | None = None, **options) -> Bundle:
    """A small net with random weights, or with all of them one value."""
    config = ViTConfig(4, 12, 2, 3, 24, **{"classes": 3, "image_size": (8, 12)} | options)
    net = VisionTransformer(config)
    with torch.no_grad():
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter) if fill is None else parameter.fill_(fill)
    names = [f"class {number}" for number in range(config.classes)]
    preprocessing = Preprocessing.small_crop(config.image_size, 16)
    return Bundle(net, names, preprocessing, {"source": "a test", "step": 7})


def assert_same(first: Bundle, second: Bundle) -> None:
    assert first.net.config == second.net.config
    assert first.class_names == second.class_names
    assert first.preprocessing == second.preprocessing
    assert first.provenance == second.provenance
    theirs = second.net.state_dict()
    assert first.net.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in first.net.state_dict().items())


@pytest.fixture
def written(tmp_path) -> Path:
    write_bundle(tmp_path / "bundle", bundle())
    return tmp_path / "bundle"


def config_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text(encoding="utf-8"))


def change_config(path: Path, **changes) -> None:
    """Set fields of config.json, nested ones as a__b; `...` takes one away."""
    config = config_of(path)
    for name, value in changes.items():
        *outer, last = name.split("__")
        inner = config
        for key in outer:
            inner = inner[key]
        inner.pop(last, None)
        if value is not ...:
            inner[last] = value
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")


def change_weights(path: Path, data: bytes) -> None:
    """Other weights with the right hash, as somebody who means harm would write them."""
    (path / "model.safetensors").write_bytes(data)
    change_config(path, weights_sha256=hashlib.sha256(data).hexdigest())


# Round trip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "mean", "gelu": "erf", "norm_eps": 1e-12},
        {"hidden_head": True, "dropout": 0.1, "stochastic_depth": 0.2, "head_bias": -10.0},
    ],
)
def test_what_is_written_is_read_back_exactly(tmp_path, options):
    original = bundle(**options)
    write_bundle(tmp_path / "bundle", original)
    assert_same(read_bundle(tmp_path / "bundle"), original)


def test_a_bundle_from_before_nets_had_stochastic_depth_has_none(tmp_path):
    original = bundle(dropout=0.1)
    write_bundle(tmp_path / "bundle", original)
    change_config(tmp_path / "bundle", architecture__stochastic_depth=...)
    assert_same(read_bundle(tmp_path / "bundle"), original)


@settings(max_examples=10, deadline=None)
@given(names=st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=5))
def test_class_names_may_hold_any_text(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("names") / "bundle"
    original = bundle(classes=len(names))
    write_bundle(path, Bundle(original.net, names, original.preprocessing))
    assert read_bundle(path).class_names == names


def test_class_names_are_written_as_utf8_whatever_the_locale(tmp_path):
    if sys.flags.utf8_mode:
        pytest.skip("Python runs in UTF-8 mode")
    original = bundle()
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")
        write_bundle(
            tmp_path / "b", Bundle(original.net, ["é", "日本", "🐱"], original.preprocessing)
        )
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert read_bundle(tmp_path / "b").class_names == ["é", "日本", "🐱"]


def test_class_names_that_are_no_text_for_utf8_are_kept_too(tmp_path):
    """Folder names need not be UTF-8; Python hands over such bytes as lone surrogates."""
    original = bundle()
    names = ["caf\udce9", "b", "c"]
    write_bundle(tmp_path / "b", Bundle(original.net, names, original.preprocessing))
    assert read_bundle(tmp_path / "b").class_names == names


def test_the_net_that_is_read_is_in_eval_mode_and_float32_and_can_be_trained(written):
    net = read_bundle(written).net
    assert not net.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in net.parameters())
    net(torch.zeros(1, 3, 8, 12)).sum().backward()


def test_bfloat16_weights_are_stored_as_they_are_and_read_as_float32(tmp_path):
    half = bundle()
    half.net.to(torch.bfloat16)
    write_bundle(tmp_path / "bundle", half)
    stored = load_file(tmp_path / "bundle" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    read = read_bundle(tmp_path / "bundle").net
    for name, tensor in half.net.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor.float())


def test_a_net_that_was_read_does_not_change_when_its_file_does(written):
    """A file that is still mapped into memory can change, or kill, a server that runs."""
    net = read_bundle(written).net
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with (written / "model.safetensors").open("r+b") as file:
        file.write(bytes((written / "model.safetensors").stat().st_size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


# What is in it


def test_a_bundle_is_two_files_and_nothing_else(written):
    assert sorted(p.name for p in written.iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in written.parent.iterdir()] == ["bundle"]


def test_the_config_says_everything_a_consumer_needs(tmp_path):
    original = bundle()
    write_bundle(tmp_path / "bundle", original)
    weights = (tmp_path / "bundle" / "model.safetensors").read_bytes()
    as_json = json.loads(json.dumps(asdict(original.net.config)))
    assert config_of(tmp_path / "bundle") == {
        "format": "vitkit",
        "format_version": 1,
        "architecture": {"kind": "ViT", **as_json},
        "class_names": original.class_names,
        "preprocessing": json.loads(json.dumps(asdict(original.preprocessing))),
        "provenance": {"source": "a test", "step": 7},
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }


def test_the_weights_have_the_names_of_the_net(tmp_path):
    original = bundle()
    write_bundle(tmp_path / "bundle", original)
    stored = load_file(tmp_path / "bundle" / "model.safetensors")
    assert stored.keys() == original.net.state_dict().keys()


# Damage: each a CheckpointError that names the file


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_file_is_named(written, name):
    (written / name).unlink()
    with pytest.raises(CheckpointError, match=f"bundle: not a bundle: {name} missing"):
        read_bundle(written)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing: .*config\.json and model\.safetensors mi"):
        read_bundle(tmp_path / "nothing")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=30, deadline=None)
def test_any_flipped_bit_in_the_weights_is_noticed(tmp_path_factory, place, bit):
    path = tmp_path_factory.mktemp("flipped") / "bundle"
    write_bundle(path, bundle(fill=0.5))
    data = bytearray((path / "model.safetensors").read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"bundle.model\.safetensors: damaged: its SHA-256"):
        read_bundle(path)


@pytest.mark.parametrize("meddle", ["overwritten", "cut short"])
def test_weights_that_change_while_they_are_read_are_noticed(written, monkeypatch, meddle):
    """The hash is of the very bytes that became tensors, and none of them is mapped."""
    weights, sha256 = written / "model.safetensors", hashlib.sha256

    class Meddling:
        """Changes the file as soon as its first bytes were hashed."""

        def __init__(self):
            self.digest, self.done = sha256(), False

        def update(self, data):
            self.digest.update(data)
            if not self.done:
                self.done, size = True, weights.stat().st_size
                with weights.open("r+b") as file:
                    file.seek(size // 2)
                    file.truncate() if meddle == "cut short" else file.write(bytes(size // 2))

        def hexdigest(self):
            return self.digest.hexdigest()

    monkeypatch.setattr(module.hashlib, "sha256", Meddling)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        read_bundle(written)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_weights_are_damaged(written, kept):
    data = (written / "model.safetensors").read_bytes()
    (written / "model.safetensors").write_bytes(data[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        read_bundle(written)


@pytest.mark.parametrize("data", [b"", b"\x80\x04.", b"\xff" * 64, b"\x02" + bytes(7) + b"{}"])
def test_weights_that_are_no_safetensors_are_refused_even_with_the_right_hash(written, data):
    change_weights(written, data)
    with pytest.raises(CheckpointError, match=r"not a \.safetensors file|do not fit|cannot be"):
        read_bundle(written)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe\0", b"not json", b"[" * 100_000, b'{"a":' * 100_000],
)
def test_a_config_that_is_no_json_is_named(written, data):
    (written / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"config\.json: truncated, damaged or not readable"):
        read_bundle(written)


@pytest.mark.parametrize("data", [b"[]", b"null", b"3", b"{}", b'{"format": "onnx"}'])
def test_a_config_of_something_else_is_refused(written, data):
    (written / "config.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"json: (not of a vitkit bundle|holds \w+, not an)"):
        read_bundle(written)


def test_a_config_of_many_megabytes_is_not_taken_into_memory(written):
    lists = b"[]," * (3 << 20)
    (written / "config.json").write_bytes(b'{"format": "vitkit", "x": [' + lists + b"0]}")
    with pytest.raises(CheckpointError, match=r"config\.json: more than 8 MiB of JSON"):
        load(written)


@pytest.mark.parametrize("version", [0, 2, "1", None, ...])
def test_another_format_version_is_refused_with_the_one_that_is_known(written, version):
    change_config(written, format_version=version)
    with pytest.raises(CheckpointError, match=r"config\.json: bundle format .* reads 1; install"):
        read_bundle(written)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", ...), ("architecture", []), ("class_names", ...), ("class_names", "abc"),
        ("preprocessing", ...), ("preprocessing", None), ("weights_sha256", ...),
        ("weights_sha256", 5),
    ],
)  # fmt: skip
def test_a_missing_or_malformed_part_of_the_config_is_named(written, field, value):
    change_config(written, **{field: value})
    with pytest.raises(CheckpointError, match=rf"config\.json: {field} missing or malformed"):
        read_bundle(written)


@pytest.mark.parametrize("part", ["architecture", "preprocessing"])
def test_unknown_fields_are_named(written, part):
    change_config(written, **{f"{part}__surprise": 1})
    with pytest.raises(CheckpointError, match=r"config\.json: unknown \w+ fields \['surprise'\]"):
        read_bundle(written)


def test_another_kind_of_net_is_named(written):
    for kind in ("Swin", [], None):
        change_config(written, architecture__kind=kind)
        with pytest.raises(
            CheckpointError, match=rf"bundle: holds a net of kind {kind!r}".replace("[", r"\[")
        ):
            read_bundle(written)


@pytest.mark.parametrize("names", [[], ["a"], ["a", "b", "c", "d"]])
def test_as_many_class_names_as_classes_are_expected(written, names):
    change_config(written, class_names=names)
    expected = rf"config\.json: {len(names)} class names for 3 classes"
    with pytest.raises(CheckpointError, match=expected):
        read_bundle(written)


HUGE = 10**12


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture__patch", ...),
        ("architecture__depth", 0),
        ("architecture__depth", HUGE),
        ("architecture__depth", "2"),
        ("architecture__depth", 2.0),
        ("architecture__depth", 3),
        ("architecture__width", 24),
        ("architecture__width", 12.0),
        ("architecture__width", 3 * HUGE),
        ("architecture__mlp_width", HUGE * HUGE),
        ("architecture__mlp_width", None),
        ("architecture__heads", 5),
        ("architecture__heads", 3.0),
        ("architecture__image_size", [8]),
        ("architecture__image_size", [8, 9]),
        ("architecture__image_size", [8.0, 12.0]),
        ("architecture__image_size", [4 * HUGE, 4 * HUGE]),
        ("architecture__classes", 4),
        ("architecture__classes", 3.0),
        ("architecture__pooling", "max"),
        ("architecture__hidden_head", True),
        ("architecture__gelu", ["tanh"]),
        ("architecture__norm_eps", "small"),
        ("architecture__dropout", 1.5),
        ("architecture__stochastic_depth", 1.0),
        ("architecture__head_bias", "none"),
        ("preprocessing__image_size", ...),
        ("preprocessing__image_size", [8.0, 8.0]),
        ("preprocessing__image_size", 8),
        ("preprocessing__resize", "stretch"),
        ("preprocessing__resize_to", 7),
        ("preprocessing__resize_to", "16"),
        ("preprocessing__interpolation", 3),
        ("preprocessing__mean", ["a", "b", "c"]),
        ("preprocessing__std", [0, 1, 1]),
        ("preprocessing__std", [float("nan"), 1, 1]),
    ],
)
def test_a_config_that_cannot_be_is_a_checkpoint_error_that_names_the_bundle(written, field, value):
    change_config(written, **{field: value})
    with pytest.raises(CheckpointError, match=str(written)):
        read_bundle(written)


def test_a_preprocessing_for_another_size_than_the_nets_is_refused_when_it_is_read(written):
    change_config(written, preprocessing__image_size=[8, 8])
    with pytest.raises(CheckpointError, match=str(written)):
        read_bundle(written)


def test_a_hostile_config_allocates_no_memory(written, monkeypatch):
    """The net is built on the meta device: shapes, no storage."""
    devices = []

    class Spy(VisionTransformer):
        def __init__(self, config):
            super().__init__(config)
            devices.append({parameter.device.type for parameter in self.parameters()})

    monkeypatch.setitem(nets.KINDS, "ViT", nets.Kind(ViTConfig, Spy))
    change_config(written, architecture__mlp_width=10**9)
    with pytest.raises(CheckpointError, match="instead of"):
        read_bundle(written)
    assert devices == [{"meta"}]


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    state = load_file(path / "model.safetensors")
    change(state)
    change_weights(path, save(state))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.bias"), r"missing norm\.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "unexpected extra"),
        (
            lambda s: s.update({"head.weight": torch.zeros(3, 13)}),
            r"head\.weight is \(3, 13\) instead of \(3, 12\)",
        ),
        (
            lambda s: [s.pop(name) for name in list(s) if name.startswith("blocks.1.")],
            r"missing blocks\.1\..* and 6 more",
        ),
    ],
)
def test_each_weight_that_does_not_fit_is_named(written, change, message):
    rewritten(written, change)
    with pytest.raises(
        CheckpointError, match=f"bundle: the weights do not fit the net: .*{message}"
    ):
        read_bundle(written)


# Complete or absent


@pytest.mark.parametrize("broken", ["save_file", "sha256"])
def test_an_error_while_writing_leaves_the_old_bundle_and_nothing_else(
    written, monkeypatch, broken
):
    old = read_bundle(written)

    def fail(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr(module, broken, fail)
    with pytest.raises(OSError, match="disk is full"):
        write_bundle(written, bundle())
    monkeypatch.undo()
    assert_same(read_bundle(written), old)
    assert [p.name for p in written.parent.iterdir()] == ["bundle"]


def test_weights_cut_off_by_an_error_are_not_left_behind(tmp_path, monkeypatch):
    def half(state, path, metadata):
        save_file(state, path, metadata)
        path.write_bytes(path.read_bytes()[:500])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "bundle", bundle())
    assert list(tmp_path.iterdir()) == []


def test_provenance_that_json_cannot_hold_leaves_the_old_bundle(written):
    old, new = read_bundle(written), bundle()
    odd = Bundle(new.net, new.class_names, new.preprocessing, {"when": object()})
    with pytest.raises(TypeError):
        write_bundle(written, odd)
    assert_same(read_bundle(written), old)


def test_a_folder_that_is_no_bundle_is_not_replaced_by_one(tmp_path):
    """model.save("photos") must not take the photos away."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").write_bytes(b"precious")
    with pytest.raises(CheckpointError, match="photos"):
        write_bundle(tmp_path / "photos", bundle())
    assert (tmp_path / "photos" / "1.jpg").read_bytes() == b"precious"


def test_a_file_is_not_replaced_by_a_bundle(tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        write_bundle(tmp_path / "notes.txt", bundle())
    assert (tmp_path / "notes.txt").read_text() == "precious"


KILLED = """
import os, signal, sys
from pathlib import Path

from test_bundle import bundle, module

from vitkit.files import whole_folder

WATCHED = {module.write_bundle.__code__, whole_folder.__wrapped__.__code__}
target, new = Path(sys.argv[1]), bundle(fill=2.0)


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def half_the_weights(state, path, metadata):
    path.write_bytes(b"x" * 500)
    kill()


def killed_at(line):
    "Write the bundle in a process of its own, killed before this line of the writing code is run."
    process = os.fork()
    if process == 0:
        if line is None:
            module.save_file = half_the_weights
        seen = 0

        def trace(frame, event, argument):
            nonlocal seen
            if frame.f_code not in WATCHED:
                return None
            seen += event == "line"
            if seen == line:
                kill()
            return trace

        sys.settrace(trace)
        module.write_bundle(target, new)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def state():
    if not target.exists():
        return "absent"
    weights = module.read_bundle(target).net.state_dict().values()
    values = {float(value) for tensor in weights for value in tensor.unique()}
    return {frozenset({1.0}): "old", frozenset({2.0}): "new"}[frozenset(values)]


line = None
while True:
    if state() != "old":
        module.write_bundle(target, bundle(fill=1.0))
    killed = killed_at(line)
    print("killed" if killed else "done", state(), flush=True)
    if not killed:
        break
    line = 1 if line is None else line + 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork makes this fast enough")
def test_killed_at_any_line_the_path_holds_the_old_bundle_the_new_one_or_nothing(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "bundle")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    *killed, (end, last) = [line.split() for line in result.stdout.splitlines()]
    assert (end, last) == ("done", "new")
    states = [state for _, state in killed]
    assert len(states) > 10
    assert states[0] == "old"
    assert states == sorted(states, key=["old", "absent", "new"].index)
    assert states.count("absent") <= 2  # between two renames


def test_a_bundle_that_could_not_be_read_is_not_written(tmp_path):
    long = replace(bundle(), provenance={"history": "x" * (9 << 20)})
    with pytest.raises(CheckpointError, match=r"config\.json would have more than 8 MiB"):
        write_bundle(tmp_path / "bundle", long)
    assert list(tmp_path.iterdir()) == []
