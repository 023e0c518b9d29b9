"""What is refused before the first step, in one sentence, with nothing written."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from PIL import Image

import vitkit
from vitkit.cli import main
from vitkit.training.storage import MANIFEST, seal
from vitkit.workflows import run_folder

WORDS = ["pretrain", "digits", "--device", "cpu", "--batch-size", "16", "--steps", "8",
         "--save-every", "4"]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main([*WORDS, "--out", str(out)]) == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def files(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(capsys, *words, code=1):
    capsys.readouterr()
    assert main([*WORDS, *words]) == code
    said = capsys.readouterr().err.strip()
    assert said.startswith("vitkit: ") and "\n" not in said, said
    return said


def test_a_folder_that_cannot_be_written_is_told_before_the_first_step(capsys):
    said = refused(capsys, "--out", "/proc/vitkit/run")  # not even root can write there
    assert "/proc/vitkit/run: cannot be written" in said and "choose another --out" in said


def test_states_that_cannot_be_written_are_told_before_the_first_step(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    loop = tmp_path / "run" / "checkpoints"
    loop.symlink_to(loop)
    said = refused(capsys, "--out", str(tmp_path / "run"), "--resume", "auto")
    assert f"{loop}: cannot be written" in said
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


def test_a_disk_without_room_is_told_before_the_first_step(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(
        run_folder.shutil, "disk_usage", lambda folder: SimpleNamespace(free=2_000_000)
    )
    said = refused(capsys, "--out", str(tmp_path / "some" / "run"))
    assert "0.002 GB are free, but the run's states take 0.00" in said and "make room" in said
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_a_newer_version_is_no_damage_and_stays(capsys, run):
    path = run / "checkpoints" / "step-00000008" / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["sha256"]
    manifest["format_version"] = 7
    path.write_text(json.dumps(manifest | {"sha256": seal(manifest)}))
    before = files(run)
    said = refused(capsys, "--out", str(run), "--resume", "auto")
    assert "step-00000008: is a state of format 7; this version of vitkit reads 1" in said
    assert files(run) == before


def test_a_run_that_is_in_use_is_left_alone(capsys, run, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.5)
    before = files(run)
    with (run / ".lock").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = refused(capsys, "--out", str(run), "--resume", "auto", code=2)
    assert f"{run}: is in use by process {os.getpid()} on" in said
    assert files(run) == before


def test_what_is_left_of_a_killed_run_gets_time_to_end(run):
    file = (run / ".lock").open("a+")
    fcntl.flock(file, fcntl.LOCK_EX)
    threading.Timer(1.0, file.close).start()
    began = time.monotonic()
    assert main([*WORDS, "--out", str(run), "--resume", "auto"]) == 0
    assert time.monotonic() - began > 1


def test_data_that_have_changed_are_refused_on_resume(capsys, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(12):
            shade = Image.new("RGB", (8, 8), (20 * number, 0, 0 if name == "cat" else 200))
            shade.save(tmp_path / "data" / name / f"{number}.png")
    data, out = tmp_path / "data", tmp_path / "run"
    words = ["pretrain", str(data), *WORDS[2:], "--batch-size", "4", "--out", str(out)]
    assert main(words) == 0
    Image.new("RGB", (9, 9)).save(data / "cat" / "0.png")
    before = files(out)
    capsys.readouterr()
    assert main([*words, "--resume", "auto"]) == 2
    said = capsys.readouterr().err
    assert "was started with another config: the data" in said or "the held-out data" in said
    assert files(out) == before


def test_every_field_that_differs_is_told_and_harmless_ones_pass(capsys, run):
    before = files(run)
    words = ["--out", str(run), "--resume", "auto"]
    said = refused(capsys, *words, "--seed", "5", "--polyak", "0.5", "--learning-rate", "0.5",
                   code=2)  # fmt: skip
    for field in ("seed (0 -> 5)", "polyak (0.0 -> 0.5)", "learning_rate (0.001 -> 0.5)"):
        assert field in said
    assert files(run) == before
    harmless = ["--save-every", "3", "--threads", "1", "--patience", "99", "--log-every", "2",
                "--accumulation", "2", "--guard.rewinds", "1"]  # fmt: skip
    assert main([*WORDS, *words, *harmless]) == 0


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"kind": "pretrain"}'])
def test_a_config_that_cannot_be_read_is_told_on_resume(capsys, run, content):
    (run / "config.json").unlink()
    if content is not None:
        (run / "config.json").write_bytes(content)
    before = files(run)
    said = refused(capsys, "--resume", str(run), code=2)
    assert "config.json: is missing or damaged" in said and "start a new run" in said
    assert files(run) == before


def test_a_bundle_that_a_killed_process_had_in_its_hands_is_put_back(run):
    shutil.rmtree(run / "last")
    (run / "best").rename(run / ".best.1234abcd.old")
    (run / ".last.1234abcd.tmp").mkdir()
    assert main([*WORDS, "--out", str(run), "--resume", "auto"]) == 0
    assert vitkit.load(run / "best") and vitkit.load(run / "last")
    assert not [p.name for p in run.iterdir() if p.name.startswith((".best", ".last"))]


def test_what_is_no_bundle_any_more_is_set_aside_and_the_run_goes_on(run):
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    for name in ("best", "last"):
        (run / name / "config.json").write_text("{")
    assert main([*WORDS, "--out", str(run), "--resume", "auto"]) == 0
    assert vitkit.load(run / "last") and (run / "damaged-last").is_dir()
    assert vitkit.load(run / "best")
    assert (run / "checkpoints" / "step-00000008").is_dir()


def test_what_was_set_aside_stays(run):
    for text in ("{", "["):
        (run / "best" / "config.json").write_text(text)
        (run / "best" / "mine").write_text(text)
        assert main([*WORDS, "--out", str(run), "--resume", "auto"]) == 0
    aside = [run / name / "mine" for name in ("damaged-best", "damaged-best-2")]
    assert [path.read_text() for path in aside] == ["{", "["]


def test_a_bundle_of_a_newer_version_is_no_damage_and_stays(capsys, run):
    path = run / "best" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 9}))
    before = files(run)
    said = refused(capsys, "--out", str(run), "--resume", "auto", code=2)
    assert "best: is a bundle of format 9; this version of vitkit writes 1" in said
    assert files(run) == before


def test_two_runs_of_one_process_may_follow_each_other(tmp_path):
    for _ in range(2):
        vitkit.pretrain(
            "digits", out=tmp_path / "run", resume="auto", steps=4, batch_size=16, quiet=True
        )


def test_a_finished_run_without_states_is_not_started_anew(capsys, run):
    shutil.rmtree(run / "checkpoints")
    before = files(run)
    said = refused(capsys, "--out", str(run), "--resume", "auto", code=2)
    assert "has no saved state to go on from, but best/ or last/" in said
    assert files(run) == before


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_pipe_in_place_of_a_file_is_told(capsys, run, name):
    (run / name).unlink()
    os.mkfifo(run / name)
    said = refused(capsys, "--resume", str(run), code=2)
    assert f"{name}: is no regular file" in said


def test_a_bundle_with_something_else_in_it_is_set_aside_and_written(run):
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    (run / "last" / ".DS_Store").touch()
    assert main([*WORDS, "--out", str(run), "--resume", "auto"]) == 0
    assert not (run / "last" / ".DS_Store").exists()


def test_words_for_out_that_cannot_be(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert "is the current folder; give the run a name" in refused(capsys, "--out", ".", code=2)
    assert "file: is a file; choose another" in refused(capsys, "--out", "file", code=2)


def test_a_run_does_not_end_because_nobody_reads_it(tmp_path):
    for number, redirection in enumerate(["2>/dev/full", "2>&1 | head -n 1"]):
        out = tmp_path / f"run{number}"
        words = " ".join([*WORDS, "--log-every", "1", "--out", str(out)])
        subprocess.run(
            f"{sys.executable} -m vitkit {words} {redirection}", shell=True, timeout=120,
            capture_output=True,
        )  # fmt: skip
        assert vitkit.load(out / "last")
