"""The command line as a user meets it: processes, exit codes, signals, files."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import vitkit
from vitkit.cli import VERBS, main
from vitkit.terminal import finite
from vitkit.workflows.convert import convert

COMMAND = [sys.executable, "-m", "vitkit"]


def run(*words, cwd=None):
    return subprocess.run([*COMMAND, *map(str, words)], cwd=cwd, capture_output=True, text=True,
                          timeout=300, check=False)  # fmt: skip


def last_json(text):
    return json.loads(text.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    vitkit.pretrain("digits", out=folder, steps=10, batch_size=16, quiet=True)
    return folder


def test_help_answers_in_half_a_second():
    best = min(timed("--help") for _ in range(5))
    assert best < 0.5


def timed(*words):
    started = time.perf_counter()
    assert run(*words).returncode == 0
    return time.perf_counter() - started


@pytest.mark.parametrize("verb", [*VERBS])
def test_every_verb_of_the_help_has_its_own_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"vitkit {verb}" in out and "--json" in out
    main(["--help"])
    assert f"vitkit {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["pretran"], "'pretrain'"),
        (["pretrain", "digits", "--recipe", "quikstart"], "'quickstart'"),
        (["pretrain", "digits", "--model", "ViT-B/61"], "'ViT-B/16'"),
        (["pretrain", "digits", "--batchsize", "3"], "'--batch-size'"),
        (["pretrain", "digits", "--optimizer.learningrate", "3"], "'--optimizer.learning-rate'"),
        (["evaluate", "x", "digits", "--protocol", "fewshot"], "few-shot"),
    ],
)
def test_wrong_names_exit_2_with_the_nearest_ones(words, nearest, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert nearest in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain", "digits", "--image-size", "9"], "9x9 is not a multiple of the patch size"),
        (["pretrain", "digits", "--steps", "0"], "at least 1"),
        (["pretrain", "digits", "--steps", "many"], "many"),
        (["pretrain", "digits", "--device", "tpu"], "usable"),
        (["pretrain"], "needs DATA"),
        (["finetune", "digits"], "needs --from CHECKPOINT"),
    ],
)
def test_wrong_values_exit_2_and_say_why(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain", "nowhere/"], "nowhere: no such file or folder"),
        (["evaluate", "nothing", "digits"], "nothing: no such checkpoint"),
        (["pretrain", "empty"], "an empty folder"),
        (["evaluate", "text.npz", "digits"], "text.npz: truncated, damaged or not an .npz"),
        (["predict", "empty", "x.png"], "neither a bundle"),
    ],
)
def test_work_that_fails_exits_1_and_names_what_was_found(
    words, said, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("hello")
    assert main(words) == 1
    assert said in capsys.readouterr().err


def test_a_trace_is_shown_only_with_debug(capsys):
    main(["pretrain", "nowhere"])
    assert "Traceback" not in capsys.readouterr().err
    main(["pretrain", "nowhere", "--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_json_ends_the_output_with_one_line(trained, capsys):
    assert main(["evaluate", str(trained), "digits", "--json"]) == 0
    result = last_json(capsys.readouterr().out)
    assert 0 <= result["metrics"]["top1"] <= result["metrics"]["top5"] <= 1
    assert main(["evaluate", str(trained), "digits"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("Next: vitkit ")


def test_any_field_is_overridden_and_a_dry_run_shows_it_and_trains_nothing(capsys, tmp_path):
    out = tmp_path / "run"
    words = ["pretrain", "digits", f"--out={out}", "--learning-rate", "3e-4", "--steps=7",
             "--image-size", "12x8", "--schedule.kind=linear", "--dry-run", "--json"]  # fmt: skip
    assert main(words) == 0
    config = last_json(capsys.readouterr().out)["config"]
    assert config["optimizer"]["learning_rate"] == 3e-4
    assert (config["steps"], config["image_size"]) == (7, [12, 8])
    assert config["schedule"]["kind"] == "linear"
    assert not out.exists()


def test_finetune_predict_and_flags_through_the_command_line(trained, tmp_path, capsys):
    words = ["finetune", "digits", "--from", str(trained), "--out", str(tmp_path / "run"),
             "--image-size=12", "--epochs", "0.05", "--batch-size", "16", "--json"]  # fmt: skip
    assert main([*words, "--augment.flip", "--dry-run"]) == 0
    plan = last_json(capsys.readouterr().out)
    assert (plan["config"]["augment"]["flip"], plan["config"]["steps"]) == (True, None)
    assert plan["steps"] == round(0.05 * 1438 / 16)
    assert main(words) == 0
    assert last_json(capsys.readouterr().out)["steps"] == plan["steps"]
    assert main([*words, "--steps", "3"]) == 2
    assert "steps and epochs are given" in capsys.readouterr().err


def test_predict_writes_a_row_for_each_image_bad_ones_with_their_error(trained, tmp_path, capsys):
    good = tmp_path / "photos" / "good, one.png"
    good.parent.mkdir()
    Image.fromarray(np.full((20, 30), 99, np.uint8)).save(good)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"\xff\xd8 no")
    huge = Image.new("L", (6000, 6000))
    huge.save(tmp_path / "photos" / "huge.png")
    for name in ("out.csv", "out.json"):
        words = ["predict", str(trained), str(tmp_path / "photos"), "-o", str(tmp_path / name)]
        assert main(words) == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = {os.path.basename(row["image"]): row for row in csv.DictReader(file)}
    assert rows["good, one.png"]["label"] in [str(n) for n in range(10)]
    assert not rows["good, one.png"]["error"]
    assert "JPEG" in rows["bad.jpg"]["error"] or "not an image" in rows["bad.jpg"]["error"]
    assert "36 megapixels" in rows["huge.png"]["error"] and not rows["huge.png"]["label"]
    assert len(json.loads((tmp_path / "out.json").read_text())) == 3


def test_a_run_stopped_by_ctrl_c_resumes_to_the_same_bits_as_one_that_was_not(tmp_path):
    words = ["pretrain", "digits", "--steps", "60", "--batch-size", "16", "--out", "run",
             "--evaluate-every", "25", "--dropout", "0.1", "--polyak", "0.9"]  # fmt: skip
    for folder in ("stopped", "whole"):
        (tmp_path / folder).mkdir()
    process = subprocess.Popen([*COMMAND, *words], cwd=tmp_path / "stopped", text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    metrics = tmp_path / "stopped" / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "--resume auto" in said
    resumed = run(*words, "--resume", "auto", cwd=tmp_path / "stopped")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step" in resumed.stderr
    assert run(*words, cwd=tmp_path / "whole").returncode == 0
    a, b = (
        vitkit.load(tmp_path / f / "run" / "last").net.state_dict() for f in ("stopped", "whole")
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    steps = [
        [(r["step"], r["top1"]) for r in map(json.loads, path.read_text().splitlines())
         if r["kind"] == "evaluation"]
        for path in (metrics, tmp_path / "whole" / "run" / "metrics.jsonl")
    ]  # fmt: skip
    assert steps[0] == steps[1]


def test_names_of_classes_do_not_command_the_terminal_and_need_be_no_text(trained, tmp_path):
    """Of a bundle that came from anywhere, and an output that takes ASCII alone."""
    names = ["\x1b[2Jcleared", "caf\udce9", "a\nvitkit: b", "été", "日本"]
    vitkit.load(trained, class_names=names + list("56789")).save(tmp_path / "bundle")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    words = ["predict", tmp_path / "bundle", tmp_path / "a.png", "--top", "10", "--json"]
    for encoding in ("utf-8", "ascii"):
        done = subprocess.run(
            [*COMMAND, *map(str, words)], env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        shown, *_, line = done.stdout.decode(encoding).splitlines()
        assert "\x1b" not in shown and r"\x1b[2Jcleared" in shown and r"caf\udce9" in shown
        top = json.loads(line)["predictions"][0]["top"]
        assert {entry["label"] for entry in top} == {*names, *"56789"}


def test_json_has_no_nan():
    assert finite({"a": [1.5, float("nan")], "b": (float("-inf"), "NaN")}) == {
        "a": [1.5, None], "b": [None, "NaN"],
    }  # fmt: skip


# Nets and conversions


def test_models_lists_the_nets_that_read_images_of_a_size(capsys):
    assert main(["models", "--image-size", "14", "--json"]) == 0
    out = capsys.readouterr().out
    rows = {row["net"]: row for row in last_json(out)["models"]}
    assert "ViT-B/16" not in rows and rows["ViT-H/14"]["parameters"] > 6e8
    assert {"BiT-R50x1", "ViT-g/14", "ViT-Pico/2", "EfficientNet-B0"} <= set(rows)
    assert any(line.split()[:2] == ["ViT-H/14", "14x14"] for line in out.splitlines())


def test_models_lists_published_weights_by_name(capsys):
    assert main(["models", "--published", "--json"]) == 0
    out = capsys.readouterr().out
    rows = {row["name"]: row for row in last_json(out)["published"]}
    assert len(rows) > 60
    row = rows["vit-b16-augreg-i21k-i1k-384"]
    assert (row["model"], row["accuracy"]) == ("ViT-B/16", 0.8549)
    assert row["where"].startswith("https://") and row["source"]
    assert main(["models", "--published", "--image-size", "224"]) == 2


def test_convert_writes_what_predicts_the_same(trained, tmp_path, capsys):
    assert main(["convert", str(trained), str(tmp_path / "a.npz"), "--to", "npz", "--json"]) == 0
    result = last_json(capsys.readouterr().out)
    assert result["model"] == "ViT-Femto/2" and (tmp_path / "a.npz").is_file()
    first, second = vitkit.load(trained), vitkit.load(tmp_path / "a.npz")
    image = np.full((8, 8, 3), 99, np.uint8)
    assert first.predict(image)[0].top == second.predict(image)[0].top


def test_a_dry_conversion_shows_every_tensor_and_writes_nothing(trained, tmp_path, capsys):
    words = ["convert", str(trained), str(tmp_path / "out"), "--to", "timm", "--dry-run", "--json"]
    assert main(words) == 0
    out = capsys.readouterr().out
    keys = {key["name"]: key for key in last_json(out)["keys"]}
    assert keys.keys() == vitkit.load(trained).net.state_dict().keys()
    assert keys["blocks.0.attention.qkv.weight"]["written"] == "blocks.0.attn.qkv.weight"
    assert "blocks.1.mlp.fc2.bias" in out
    assert not (tmp_path / "out").exists()


def test_from_npz_to_npz_each_of_q_k_and_v_goes_into_its_own(trained, tmp_path):
    convert(trained, tmp_path / "a.npz")
    rows = convert(tmp_path / "a.npz", tmp_path / "b.npz", dry_run=True)["keys"]
    assert all((row.read, row.read_shape) == (row.written, row.written_shape) for row in rows)
    assert len(rows) == len(np.load(tmp_path / "a.npz"))


def test_where_one_is_there_is_no_place_for_a_checkpoint(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(trained), "."]) == 2
    assert "is the current folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["a-folder", "--to", "torchvision"], 2, "end it in"),
        (["a.pth", "--to", "torchvision"], 1, "cannot represent this net: pooling 'mean'"),
        (["a.npz", "--to", "timm"], 2, "writes a folder"),
        (["a", "--to", "tensorflow"], 2, "tensorflow"),
    ],
)
def test_a_conversion_that_cannot_be_is_one_sentence(
    trained, tmp_path, capsys, words, code, sentence
):
    out, *rest = words
    assert main(["convert", str(trained), str(tmp_path / out), *rest]) == code
    error = capsys.readouterr().err
    assert error.startswith("vitkit: ") and error.count("\n") == 1
    assert sentence in error
    assert list(tmp_path.iterdir()) == []
