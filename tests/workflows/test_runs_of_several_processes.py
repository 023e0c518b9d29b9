"""`--gpus N` and torchrun on the command line, by gloo on the CPU: one run, whoever starts it."""

import json
import os
import subprocess
import sys

import pytest
import torch

import vitkit
from vitkit.cli import main
from vitkit.training.saving import newest_state

WORDS = ["pretrain", "digits", "--device", "cpu", "--precision", "fp32", "--batch-size", "16",
         "--polyak", "0.9"]  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def command(*words, torchrun=False):
    return [sys.executable, *(TORCHRUN if torchrun else []), "-m", "vitkit", *WORDS, *words]


def done(*words, torchrun=False):
    return subprocess.run(
        command(*words, torchrun=torchrun), capture_output=True, text=True, timeout=300
    )


def records(run, kind):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "alone"
    assert main([*WORDS, "--steps", "8", "--out", str(out)]) == 0
    return out


def check_same(run, alone):
    for found, expected in zip(
        records(run, "evaluation"), records(alone, "evaluation"), strict=True
    ):
        assert found["step"] == expected["step"] and found["images"] == expected["images"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    a, b = (vitkit.load(folder / "last").net.state_dict() for folder in (run, alone))
    for name in b:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)


def test_gpus_n_is_the_run_of_one_process_and_says_everything_once(tmp_path, alone):
    out = tmp_path / "run"
    result = done(
        "--steps",
        "8",
        "--out",
        str(out),
        "--gpus",
        "2",
        "--sharding",
        "fsdp",
        "--image-size",
        "8",
        "--json",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(" on 359 held-out images, the run's best") == 1
    assert "2 processes with fsdp" in " ".join(result.stderr.split())
    assert json.loads(result.stdout.splitlines()[-1])["steps"] == 8
    resolved = json.loads((out / "config.json").read_text())["resolved"]
    assert (resolved["processes"], resolved["sharding"]) == (2, "fsdp")
    check_same(out, alone)


def test_a_run_stopped_under_torchrun_goes_on_in_one_process(tmp_path, alone):
    out = tmp_path / "run"
    words = ["--steps", "8", "--out", str(out), "--save-every", "4"]
    result = done(*words, "--sharding", "fsdp", torchrun=True)
    assert result.returncode == 0, result.stderr
    check_same(out, alone)
    for late in ("step-00000008",):
        for path in sorted((out / "checkpoints" / late).iterdir()):
            path.unlink()
        (out / "checkpoints" / late).rmdir()
    assert newest_state(out / "checkpoints")[0].name == "step-00000004"
    more = ["--accumulation", "2", "--checkpointing", "full"]  # decide memory, not results
    assert main([*WORDS, *words, "--resume", "auto", *more]) == 0
    check_same(out, alone)


def refusal(capsys, *words, code=2):
    assert main([*WORDS, *words]) == code
    return capsys.readouterr().err


def test_words_that_processes_cannot_follow_are_refused_before_they_start(
    capsys, tmp_path, monkeypatch
):
    # Nothing may start thousands of processes, were one of these not refused.
    monkeypatch.setattr("vitkit.training.world.start", lambda *given: pytest.fail("started"))
    out = ["--steps", "1", "--out", str(tmp_path / "run")]
    assert "16 cannot be shared by 3 processes; give --batch-size 15 or 18" in refusal(
        capsys, "--gpus", "3", *out
    )
    assert "--gpus is 0" in refusal(capsys, "--gpus", "0", *out)
    assert "each needs one" in refusal(capsys, "--gpus", "4000", "--batch-size", "4000", *out)
    assert "several processes" in refusal(capsys, "--sharding", "fsdp", *out)
    assert "accumulation is 16, more than the 8" in refusal(
        capsys, "--gpus", "2", "--accumulation", "16", *out
    )
    if not torch.cuda.is_available():
        assert "'cuda' is not usable here" in refusal(
            capsys, "--gpus", "2", "--device", "cuda", *out
        )
    assert not (tmp_path / "run").exists()


def test_a_failure_of_the_main_process_ends_all_with_one_sentence(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text("{}")
    result = done("--steps", "8", "--gpus", "2", "--resume", str(out))
    assert result.returncode == 2
    assert result.stderr.count("vitkit:") == 1 and "no saved state" in result.stderr
    assert os.listdir(out) == ["config.json"]


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_all_start_from_the_same_linear_probe_and_end_early_together(tmp_path, alone, sharding):
    words = ["finetune", "digits", "--from", str(alone), "--device", "cpu", "--precision", "fp32",
             "--batch-size", "16", "--steps", "40", "--linear-probe", "--early-stopping", "2",
             "--loss-balance", "0.5", "--learning-rate", "1e-7"]  # fmt: skip
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    several = [*words, "--out", str(tmp_path / "two"), "--gpus", "2", "--sharding", sharding]
    result = subprocess.run(
        [sys.executable, "-m", "vitkit", *several, "--json"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stderr.split())
    assert said.count("linear probe of ") == said.count("ended at step 4 of 40") == 1
    assert json.loads(result.stdout.splitlines()[-1])["steps"] == 4
    one, two = (records(tmp_path / name, "evaluation") for name in ("one", "two"))
    assert [r["step"] for r in two] == [0, 2, 4]
    for name in ("top1", "mean_class_recall"):
        assert two[0][name] == pytest.approx(one[0][name], abs=1e-6)
    check_same(tmp_path / "two", tmp_path / "one")
