"""Freezing, adapters and layer decay in whole runs on real digits, by words and by arguments."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import vitkit
from vitkit.cli import main
from vitkit.data.opening import digits
from vitkit.errors import UsageError
from vitkit.training.saving import newest_state
from vitkit.training.storage import shapes_in

FAST = {"batch_size": 16, "quiet": True, "precision": "fp32", "device": "cpu"}
ADAPTERS = {"lora.rank": 4, "lora.dropout": 0.1}
WORDS = ["--device", "cpu", "--precision", "fp32", "--batch-size", "16"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A net that knows digits somewhat."""
    out = tmp_path_factory.mktemp("base") / "run"
    return vitkit.pretrain("digits", out=out, steps=60, **FAST).folder


def weights(folder):
    return vitkit.load(folder / "last").net.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def changed(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


def test_a_head_alone_is_trained_by_words(base, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["finetune", "digits", "--from", str(base), *WORDS, "--out", str(out), "--steps", "40",
             "--freeze", "*", "!head.*", "--optimizer.name", "sgd"]  # fmt: skip
    assert main(words) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "0.10 M parameters, 650 trained" in said
    assert changed(weights(out), vitkit.load(base).net.state_dict()) == {"head.weight", "head.bias"}
    saved = shapes_in(newest_state(out / "checkpoints")[0])
    momentum = {name for name in saved if name.startswith("optimizer/")}
    assert momentum == {f"optimizer/head.{n}/momentum_buffer" for n in ("weight", "bias")}


def test_a_probe_behind_a_norm_leaves_a_plain_head_that_computes_the_same(base, tmp_path):
    """As docs/few-labels.md probes: nearly as well as logistic regression does."""
    fields = {"optimizer.name": "sgd", "learning_rate": 0.1, "augment.crop_area": (1.0, 1.0)}
    run = vitkit.finetune("digits", base, "mae-linear", out=tmp_path / "run", epochs=10,
                          any_net=True, **(FAST | {"batch_size": 64} | fields))  # fmt: skip
    exact = vitkit.evaluate(base, "digits", protocol="linear")["metrics"]["top1"]
    assert run.metrics["top1"] > exact - 0.1
    before = vitkit.load(base).net.state_dict()
    assert weights(run.folder).keys() == before.keys()
    assert changed(weights(run.folder), before) == {"head.weight", "head.bias"}
    again = vitkit.evaluate(run.folder, digits().val)["metrics"]
    assert again["loss"] == pytest.approx(run.metrics["loss"], rel=1e-4)
    assert again["top1"] == pytest.approx(run.metrics["top1"], abs=0.005)  # one image


def test_adapters_learn_digits_and_the_bundles_are_plain_nets(base, tmp_path):
    layers = ("qkv", "out", "dense1", "dense2")
    fields = {"lora.rank": 8, "lora.layers": layers, "optimizer.name": "adamw",
              "learning_rate": 5e-3}  # fmt: skip
    run = vitkit.finetune("digits", base, out=tmp_path / "run", steps=300,
                          **(FAST | {"batch_size": 32} | fields))  # fmt: skip
    assert run.metrics["top1"] > 0.45  # chance is 0.1; the head alone comes to 0.38
    before = vitkit.load(base).net.state_dict()
    assert weights(run.folder).keys() == before.keys()
    assert changed(weights(run.folder), before) == {"head.weight", "head.bias"} | {
        f"blocks.{n}.{layer}.weight" for n in (0, 1)
        for layer in ("attention.qkv", "attention.out", "mlp.dense1", "mlp.dense2")
    }  # fmt: skip
    # best/ computes what the net with its adapters did when it was evaluated.
    again = vitkit.evaluate(run.folder, digits().val)["metrics"]
    assert again["loss"] == pytest.approx(run.metrics["loss"], rel=1e-4)
    assert again["top1"] == pytest.approx(run.metrics["top1"], abs=0.005)  # one image


@pytest.mark.parametrize(
    "fields",
    [
        {**ADAPTERS, "polyak": 0.9, "dropout": 0.1, "precision": "bf16"},
        {"freeze": ("*embedding*", "blocks.0.*"), "polyak": 0.9, "optimizer.name": "adamw",
         "optimizer.layer_decay": 0.5},
    ],
    ids=["adapters", "frozen, layer decay"],
)  # fmt: skip
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(base, tmp_path, fields):
    options = FAST | {"steps": 6, "save_every": 3} | fields
    run = vitkit.finetune("digits", base, out=tmp_path / "run", **options)
    before = weights(run.folder)
    shutil.rmtree(run.folder / "checkpoints" / "step-00000006")
    for bundle in ("last", "best"):
        shutil.rmtree(run.folder / bundle)
    again = vitkit.finetune("digits", base, out=run.folder, resume="auto", **options)
    assert again.folder == run.folder and same(weights(run.folder), before)
    with pytest.raises(UsageError, match="another config"):
        vitkit.finetune("digits", base, out=run.folder, resume="auto",
                        **(options | {"freeze": ("norm.*",)}))  # fmt: skip


def test_a_killed_run_with_adapters_ends_with_the_bits_of_one_that_was_not(base, tmp_path):
    words = ["finetune", "digits", "--from", str(base), *WORDS, "--steps", "40", "--save-every",
             "5", "--lora.rank", "4", "--lora.dropout", "0.1", "--polyak", "0.9"]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main([*words, "--out", str(whole)]) == 0
    words += ["--out", str(killed)]
    process = subprocess.Popen([sys.executable, "-m", "vitkit", *words], stderr=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    until = time.monotonic() + 240
    while not (killed / "checkpoints" / "step-00000010").exists() and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "last").exists()
    assert main([*words, "--resume", "auto"]) == 0
    assert same(weights(killed), weights(whole))


def test_layers_have_their_own_learning_rates_by_words(base, tmp_path):
    moved = {}
    for decay in ("1", "0.01"):
        out = tmp_path / decay
        words = ["finetune", "digits", "--from", str(base), *WORDS, "--out", str(out), "--steps",
                 "8", "--optimizer.layer-decay", decay]  # fmt: skip
        assert main(words) == 0
        before, after = vitkit.load(base).net.state_dict(), weights(out)
        moved[decay] = {name: float((after[name] - before[name]).norm()) for name in before}
    name = "patch_embedding.weight"
    assert 0 < moved["0.01"][name] < 1e-3 * moved["1"][name]


def test_a_dry_run_plans_for_what_is_trained(base, capsys):
    def planned(*words):
        command = ["finetune", "digits", "--from", str(base), *WORDS, "--optimizer.name", "adamw",
                   "--polyak", "0.9", "--dry-run", "--json", *words]  # fmt: skip
        assert main(command) == 0
        printed = capsys.readouterr().out
        return printed, json.loads(printed.splitlines()[-1])["plan"]

    printed, alone = planned("--freeze", "*", "!head.*")
    assert "0.10 M parameters, 650 trained" in printed
    net = vitkit.load(base).net
    everything = 4 * sum(p.numel() for p in net.parameters())
    head = 4 * sum(p.numel() for p in net.head.parameters())
    assert alone["trained_parameters"] == head / 4
    for row in alone["memory"]:
        assert (row["weights"], row["gradients"]) == (everything, head)
        assert (row["optimizer"], row["average"]) == (2 * head, head)
        assert row["saving"] == everything + 3 * head
    assert alone["disk_checkpoints"] == 3 * (everything + 3 * head) + 2 * everything
    _, adapters = planned("--lora.rank", "4")
    added = adapters["memory"][0]["weights"] - everything
    assert added == 2 * 4 * 4 * (64 + 3 * 64 + 64 + 64)  # two blocks, float32, rank 4: qkv and out
    assert adapters["memory"][0]["gradients"] == added + head


def test_what_cannot_be_trained_so_is_one_sentence(base, tmp_path, capsys):
    def refusal(verb, *words):
        source = ["--from", str(base)] if verb == "finetune" else []
        command = [verb, "digits", *source, "--out", str(tmp_path / "run"), "--steps", "1", *words]
        assert main(command) == 2
        return capsys.readouterr().err

    assert "matches no weight" in refusal("finetune", "--freeze", "block.*")
    assert "matches no weight" in refusal("pretrain", "--freeze", "block.*")
    assert "no weight to train" in refusal("finetune", "--freeze", "*")
    assert "nothing yet that could be adapted" in refusal("pretrain", "--lora.rank", "4")
    assert "did you mean 'qkv'" in refusal(
        "finetune", "--lora.rank", "4", "--lora.layers", "qkvs", "--dry-run"
    )
    assert "optimizer.layer_decay is 1.5" in refusal("finetune", "--optimizer.layer-decay", "1.5")
    assert not (tmp_path / "run").exists()


def test_pre_training_may_freeze_too(tmp_path):
    run = vitkit.pretrain("digits", out=tmp_path / "run", steps=3, freeze=("patch_embedding.*",),
                          **FAST)  # fmt: skip
    torch.manual_seed(0)
    first = vitkit.models.nets.make(run.model.net.config).state_dict()
    moved = changed(first, weights(run.folder))
    assert "head.weight" in moved and not any("patch_embedding" in name for name in moved)


@pytest.mark.parametrize(
    ("sharding", "words"),
    [
        ("ddp", ("--lora.rank", "4")),
        ("fsdp", ("--lora.rank", "4", "--lora.layers", "qkv", "dense1", "--checkpointing", "full")),
        ("fsdp", ("--freeze", "*embedding*", "blocks.0.*", "--optimizer.layer-decay", "0.5")),
    ],
    ids=["ddp, adapters", "fsdp, adapters", "fsdp, frozen"],
)  # fmt: skip
def test_two_processes_do_what_one_does(base, tmp_path, sharding, words):
    words = ["finetune", "digits", "--from", str(base), *WORDS, "--steps", "6", "--polyak", "0.9",
             *words]  # fmt: skip
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    two = [sys.executable, "-m", "vitkit", *words, "--out", str(tmp_path / "two"), "--gpus", "2",
           "--sharding", sharding]  # fmt: skip
    done = subprocess.run(two, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_blocks_with_adapters_train_as_uncompiled_ones(base, tmp_path):
    words = ["finetune", "digits", "--from", str(base), *WORDS, "--steps", "4", "--lora.rank", "4",
             "--checkpointing", "selective"]  # fmt: skip
    for compiled in ("on", "off"):
        assert main([*words, "--compile", compiled, "--out", str(tmp_path / compiled)]) == 0
    on, off = weights(tmp_path / "on"), weights(tmp_path / "off")
    for name in off:
        torch.testing.assert_close(on[name], off[name], rtol=1e-3, atol=1e-4)
