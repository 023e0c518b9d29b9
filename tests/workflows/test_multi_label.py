"""Images of several labels, from the first net to its predictions, on the command line."""

import csv
import json
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vitkit.cli import main

TRAINING = ["--device", "cpu", "--precision", "fp32", "--label-smoothing", "0.02",
            "--loss-balance", "0.5", "--early-stopping", "6", "--augment.mixup", "0.1",
            "--augment.no-flip", "--json"]  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two digits from 0 to 3 side by side, labelled with both; of every 40th nothing and none."""
    folder = tmp_path_factory.mktemp("pairs")
    images, labels = load_digits(n_class=4, return_X_y=True)
    images = (images.reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    random = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "label", "split"])
        for number in range(400):
            two = random.integers(0, len(images), 2)
            found = "" if number % 40 == 39 else ";".join(str(n) for n in set(labels[two].tolist()))
            pixels = np.hstack(images[two]) * (found != "")
            Image.fromarray(pixels).save(folder / f"{number}.png")
            table.writerow([f"{number}.png", found, "val" if number % 5 == 0 else "train"])
    return folder


def result_of(capsys) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def test_a_net_is_pre_trained_and_fine_tuned_from_a_linear_probe(pairs, runs, capsys):
    words = ["pretrain", str(pairs), "--out", str(runs / "base"), "--model", "ViT-Femto/2",
             "--image-size", "8x16", "--steps", "150", "--batch-size", "32", "--learning-rate",
             "3e-3"]  # fmt: skip
    assert main([*words, *TRAINING]) == 0
    first = result_of(capsys)
    assert list(first["class_recall"]) == ["0", "1", "2", "3"]
    words = [
        "finetune",
        str(pairs),
        "--from",
        str(runs / "base"),
        "--steps",
        "40",
        "--out",
        str(runs / "tuned"),
        "--batch-size",
        "32",
        "--linear-probe",
        "--learning-rate",
        "3e-3",
    ]
    assert main([*words, *TRAINING]) == 0
    said = capsys.readouterr()
    line = r"linear probe of \d+ images to train on: \d+\.\d% mean average precision on \d+ of them"
    assert re.search(line, " ".join(said.err.split()))
    assert "label  recall at 0.5  images" in said.out
    second = json.loads(said.out.splitlines()[-1])
    assert second["metrics"]["mean_average_precision"] > 0.7  # chance is about 0.45
    config = json.loads((runs / "tuned" / "config.json").read_text())
    assert config["config"]["loss"] == "sigmoid"
    assert "recall, sigmoid above 0.5" in (runs / "tuned" / "report.html").read_text()


def test_it_is_evaluated_label_by_label(pairs, runs, capsys):
    assert main(["evaluate", str(runs / "tuned"), str(pairs), "--json"]) == 0
    found = result_of(capsys)
    assert set(found["class_recall"]) == {"0", "1", "2", "3"}
    assert sum(found["class_images"].values()) > found["images"]  # many have two
    mean = np.mean(list(found["class_recall"].values()))
    assert found["metrics"]["mean_class_recall"] == pytest.approx(mean)


def test_its_predictions_are_probabilities_of_each_label_by_itself(pairs, runs, capsys):
    assert main(["predict", str(runs / "tuned"), str(pairs), "--top", "4", "--json"]) == 0
    rows = result_of(capsys)["predictions"]
    sums = [sum(row["probability"] for row in p["top"]) for p in rows]
    assert max(sums) > 1.3 and min(sums) < 0.7  # two labels and none; a softmax gives 1
