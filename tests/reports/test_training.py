"""report.html of a run."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import vitkit
from vitkit.data.opening import digits
from vitkit.reports.classes import OfClass
from vitkit.reports.learned import learned_parts
from vitkit.reports.page import Text
from vitkit.reports.training import differences_of, line_of, write_report
from vitkit.training.config import TrainConfig, to_json


def test_what_went_wrong_is_in_the_report_and_damaged_lines_are_passed_over(tmp_path):
    run = vitkit.pretrain("digits", out=tmp_path / "run", steps=4, batch_size=16, quiet=True)
    assert "Incidents" not in (run.folder / "report.html").read_text()
    lines = [
        json.dumps({"step": 3, "kind": "skipped", "loss": None}),
        json.dumps({"step": 2, "kind": "rewind", "spike_at": 1234, "left_out": [1000, 1233]}),
        "no JSON", "3", "{}",
    ]  # fmt: skip
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write("\n".join(lines))
    page = write_report(run.folder).read_text()
    assert "<th>step 3</th><td>the gradient was not finite; nothing was changed" in page
    assert "<th>step 1,234</th><td>the loss shot up; back to step 2, without batches 1,000" in page


def test_the_recall_of_each_class_is_a_table_the_lowest_first(tmp_path):
    run = vitkit.pretrain("digits", out=tmp_path / "run", steps=4, batch_size=16, quiet=True)
    page = (run.folder / "report.html").read_text()
    rows = re.findall(r"<tr><td.*?>(\d)</td>\n<td .*?>([\d.]+)%</td>\n<td .*?>(\d+)</td>", page)
    assert {name: int(images) for name, _, images in rows} == run.class_images
    shares = [float(share) for _, share, _ in rows]
    assert shares == sorted(shares)
    assert shares == pytest.approx([100 * run.class_recall[name] for name, _, _ in rows], abs=0.01)
    assert f"mean {run.metrics['mean_class_recall']:.2%} of 10 classes" in page


def test_names_of_classes_are_text_in_the_report(tmp_path):
    run = vitkit.pretrain("digits", out=tmp_path / "run", steps=4, batch_size=16, quiet=True)
    many = [OfClass(f"<b>{n}", 0.5, 1234) for n in range(30)]
    page = write_report(run.folder, many, several=True).read_text()
    assert "&lt;b&gt;29" in page and "<b>" not in page
    assert "<details><summary>mean 50.00% of 30 labels" in page  # of many it is opened by a click


def test_what_differs_from_the_recipe_comes_first_then_the_whole_config(tmp_path):
    run = vitkit.pretrain(
        "digits", out=tmp_path / "run", steps=4, batch_size=16, quiet=True, learning_rate=0.5
    )
    page = (run.folder / "report.html").read_text()
    said = "What differs from what the recipe quickstart says for these data and this net"
    table, whole = page[page.index(said) :].split("The whole config")
    rows = re.findall(r"<tr><td.*?>(.*?)</td>\n<td.*?>(.*?)</td>\n<td.*?>(.*?)</td>", table)
    assert ("optimizer.learning_rate", "0.001", "0.5") in rows
    assert ("steps", "none", "4") in rows and ("batch_size", "64", "16") in rows
    assert {name for name, _, _ in rows} <= {
        "optimizer.learning_rate", "steps", "batch_size", "epochs",
    }  # fmt: skip
    assert "schedule.warmup_share" in whole


def test_a_run_as_its_recipe_says_tells_so(tmp_path):
    run = vitkit.pretrain("digits", out=tmp_path / "run", steps=4, batch_size=16, quiet=True)
    recipe = TrainConfig()
    config = json.loads((run.folder / "config.json").read_text())
    config["config"] = json.loads(json.dumps(to_json(recipe)))
    (run.folder / "config.json").write_text(json.dumps(config))
    page = write_report(run.folder, recipe=recipe).read_text()
    assert "As the recipe custom says for these data and this net." in page
    assert "What differs" not in write_report(run.folder).read_text()  # without a recipe


def test_many_points_are_drawn_as_means_of_neighbours():
    records = [{"step": n + 1, "kind": "train", "loss": float(n % 2)} for n in range(5000)]
    steps, losses = line_of(records, "train", "loss")
    assert len(steps) <= 800 and steps[-1] == 5000
    assert losses[0] == pytest.approx(3 / 7)
    assert line_of(records, "train", "memory_bytes") == ([], [])


def test_fields_of_another_version_make_no_difference():
    old, new = {"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": (1, 3), "d": 5}}
    assert differences_of({"old": old, "new": new}) == {"b.c": ["1 2", "1 3"]}


WITHOUT_LABELS = {
    "model": "ViT-Femto/2", "steps": 4, "evaluate_every": 4, "batch_size": 16, "image_size": 8,
    "device": "cpu",
}  # fmt: skip


def test_a_run_without_labels_begins_with_what_untrained_features_are_worth(tmp_path):
    run = vitkit.pretrain("digits", "quickstart-masked-patches", out=tmp_path / "run", quiet=True,
                          **WITHOUT_LABELS)  # fmt: skip
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    first, last = (line for line in lines if line["kind"] == "evaluation")
    assert (first["step"], last["step"]) == (0, 4)
    assert run.metrics["loss"] == min(first["loss"], last["loss"])
    page = (run.folder / "report.html").read_text()
    best = f"Best loss {run.metrics['loss']:.4f}, few-shot top-1 {run.metrics['few_shot']:.2%}"
    assert best in page
    assert f"Few-shot top-1 was {first['few_shot']:.1%} before the first step and is" in page
    assert "On held-out images: few-shot top-1" in page  # the chart
    assert "feature_spread says how far apart" in page
    assert "patches that were corrupted in grey" in page


def test_images_without_classes_are_named_as_the_user_did_and_views_counted(tmp_path, capfd):
    folder, source = tmp_path / "photos", digits().train
    folder.mkdir()
    for index in range(40):
        Image.fromarray(np.asarray(source.image(index).permute(1, 2, 0))).save(
            folder / f"{index}.png"
        )
    run = vitkit.pretrain(folder, "quickstart-simclr", out=tmp_path / "run", **WITHOUT_LABELS)
    said = " ".join(capfd.readouterr().err.split())
    assert f"data {folder}: 36 images without labels, 4 held out" in said
    assert "4 steps of 8 images in 2 views each" in said
    page = (run.folder / "report.html").read_text()
    assert f"on {folder}<" in page and "lasses</" not in page


@pytest.mark.parametrize(("other", "hardly"), [(0.1, False), (0.72, True)])
def test_a_small_gap_between_cosines_is_said_to_tell_little(other, hardly):
    cosines = np.full((4, 4), other)
    cosines[[0, 1, 2, 3], [2, 3, 0, 1]] = 0.75
    np.fill_diagonal(cosines, 1.0)
    said, *_ = learned_parts({"images": np.zeros((4, 3, 8, 8), np.uint8), "similarities": cosines})
    assert isinstance(said, Text)
    assert ("hardly tells an image from others" in said.text) == hardly
