"""The commands of docs/*.md, run one after another in an empty folder."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vitkit
from vitkit.cli import main
from vitkit.inspection.result import Inspection
from vitkit.plain import load

EVALUATION_PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"
DATA_PAGE = Path(__file__).parents[1] / "docs" / "data.md"
TRANSFER_PAGE = Path(__file__).parents[1] / "docs" / "transfer.md"
FEW_LABELS_PAGE = Path(__file__).parents[1] / "docs" / "few-labels.md"
PAGE = Path(__file__).parents[1] / "docs" / "checkpoints.md"
COMMAND = re.compile(r"^vitkit (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w+)( fails)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder after all commands of the page, and what each printed."""
    folder = tmp_path_factory.mktemp("docs")
    printed = []
    for language, fails, text in BLOCK.findall(PAGE.read_text()):
        if language != "console":
            continue
        for words in COMMAND.findall(text):
            done = subprocess.run(
                [sys.executable, "-m", "vitkit", *words.split()], cwd=folder, text=True,
                capture_output=True, timeout=300, check=False,
            )  # fmt: skip
            assert (done.returncode == 0) != bool(fails), f"vitkit {words}\n{done.stderr}"
            printed.append((words, done.stderr + done.stdout))
    return folder, printed


def test_the_accuracy_is_the_same_in_every_format(walked):
    metrics = [
        json.loads(text.strip().splitlines()[-1])["metrics"]
        for words, text in walked[1]
        if words.startswith("evaluate")
    ]
    assert len(metrics) == 3
    assert metrics[0]["top1"] > 0.2, "the net has learned something"
    assert metrics[1]["top1"] == metrics[2]["top1"] == metrics[0]["top1"]


def test_a_dry_run_shows_every_tensor_and_writes_nothing(walked):
    text = next(text for words, text in walked[1] if "--dry-run" in words)
    assert "blocks.0.attention.qkv.weight" in text
    assert "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel" in text


def test_a_format_that_cannot_hold_the_net_says_what_it_cannot_hold(walked):
    text = walked[1][-1][1]
    assert "pooling 'mean'" in text
    assert not (walked[0] / "small-hf").exists()


def test_timm_loads_what_was_written_for_it_and_gives_the_same_logits(walked):
    timm = pytest.importorskip("timm")
    folder = walked[0]
    model = vitkit.load(folder / "runs" / "small")
    peer = timm.create_model(f"local-dir:{folder / 'small-timm'}", pretrained=True).eval()
    side = model.net.config.image_size[0]
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, side, side))).float()
    with torch.no_grad():
        ours, theirs = model.net(images), peer(images)
    assert (ours - theirs).abs().max() <= 1e-5 * max(1, theirs.abs().max())


def test_the_commands_of_the_data_page_work_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = [text for language, _, text in BLOCK.findall(DATA_PAGE.read_text())
              if language == "console"]  # fmt: skip
    commands = [words for text in blocks for words in COMMAND.findall(text)]
    verbs = {words.split()[1] for words in commands if words.startswith("data ")}
    assert verbs == {"check", "stats", "dedup", "split", "index"}
    for words in commands:
        assert main(words.split()) == 0, f"vitkit {words}\n{capsys.readouterr().err}"
    for written in ("checked/quarantine.txt", "described/classes.png", "clean/duplicates.csv",
                    "digits.index/index.json", "all.index/index.json"):  # fmt: skip
        assert (tmp_path / written).is_file()


def test_the_commands_of_the_transfer_page_work_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = BLOCK.findall(TRANSFER_PAGE.read_text())
    blocks = [text for language, _, text in found if language == "console"]
    for words in [words for text in blocks for words in COMMAND.findall(text)]:
        assert main(words.split()) == 0, f"vitkit {words}\n{capsys.readouterr().err}"
    shown = json.loads((tmp_path / "runs" / "sweep" / "sweep.json").read_text())
    assert shown["choice"] in [row["label"] for row in shown["trials"]]
    assert len(json.loads((tmp_path / "runs" / "table4" / "sweep.json").read_text())["trials"]) == 4
    base, upper = (vitkit.load(tmp_path / "runs" / name).net for name in ("base", "upper"))
    same = [torch.equal(base.blocks[n].mlp.dense1.weight, upper.blocks[n].mlp.dense1.weight)
            for n in range(len(base.blocks))]  # fmt: skip
    assert all(same), "a net of two blocks, both frozen"


def test_the_commands_of_the_page_on_few_labels_work_one_after_another(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    found = BLOCK.findall(FEW_LABELS_PAGE.read_text())
    blocks = [text for language, _, text in found if language == "console"]
    for words in [words for text in blocks for words in COMMAND.findall(text)]:
        assert main(words.split()) == 0, f"vitkit {words}\n{capsys.readouterr().err}"
    nets = {name: vitkit.load(tmp_path / "runs" / name).net for name in ("mae", "probe", "few")}
    assert nets["mae"].config.classes == 0 and nets["probe"].config.classes == 10
    body = nets["mae"].state_dict()
    same = {name: torch.equal(body[name], nets["probe"].state_dict()[name]) for name in body}
    assert all(same.values()), "a probe trains the head alone"
    few = nets["few"].state_dict()
    assert not torch.equal(few["blocks.0.mlp.dense1.weight"], body["blocks.0.mlp.dense1.weight"])


def test_the_commands_of_the_evaluation_page_work_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    found = BLOCK.findall(EVALUATION_PAGE.read_text())
    blocks = [text for language, _, text in found if language == "console"]
    printed = {}
    for words in [words for text in blocks for words in COMMAND.findall(text)]:
        assert main(words.split()) == 0, f"vitkit {words}\n{capsys.readouterr().err}"
        printed[words] = capsys.readouterr().out
    assert "5shot " in "".join(printed.values())
    for written in (
        "runs/top-k/report.html", "runs/top-k/report.npz", "weights.html", "compare.html",
        "runs/opened/report.json", "figures/positions.svg",
    ):  # fmt: skip
        assert (tmp_path / written).is_file(), written
    for language, _, text in found:
        if language == "python":
            exec(compile(text, str(EVALUATION_PAGE), "exec"), {})
    found = load(Inspection, tmp_path / "runs" / "opened" / "report")
    assert found.distances.images == 64
    assert found.distances.untrained.shape == found.distances.pixels.shape
