"""Whole runs on real digits: what lies in the run directory, and that runs repeat exactly."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import vitkit
from vitkit.data.checks import DataError
from vitkit.data.opening import digits
from vitkit.data.source import ArraySource, Splits, only_classes
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError

FAST = {"steps": 8, "batch_size": 16, "quiet": True}


def weights_of(run):
    return vitkit.load(run.folder / "last").net.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_directory_holds_what_the_contract_says(tmp_path):
    run = vitkit.pretrain("digits", out=tmp_path / "run", **FAST)
    config = json.loads((run.folder / "config.json").read_text())
    assert config["config"]["steps"] == 8 and config["resolved"]["steps"] == 8
    assert config["data"]["train_images"] + config["data"]["held_out_images"] == 1797
    assert config["data"]["fingerprint"]
    assert torch.__version__.startswith(config["versions"]["torch"])
    assert config["resolved"]["precision"] in ("fp32", "bf16")
    names = {path.name for path in run.folder.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "best", "last", "report.html"} <= names
    assert (run.folder / "checkpoints" / "step-00000008" / "manifest.json").exists()
    report = (run.folder / "report.html").read_text()
    assert "<svg" in report and not re.search(r"(src|href)=.https?:", report)
    model = run.model
    assert model.class_names == [str(n) for n in range(10)]
    assert model.preprocessing.image_size == model.net.config.image_size
    assert model.provenance["recipe"] == "quickstart"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_words_give_bit_identical_weights_for_any_number_of_threads(tmp_path, precision):
    runs = [
        vitkit.pretrain(
            "digits",
            out=tmp_path / f"{i}",
            threads=threads,
            precision=precision,
            dropout=0.1,
            polyak=0.9,
            **{"data.keep": "none"},
            **FAST,
        )
        for i, threads in enumerate([2, 2, 0, 1, 4])
    ]
    first = weights_of(runs[0])
    assert all(same(first, weights_of(run)) for run in runs[1:])
    other = vitkit.pretrain("digits", out=tmp_path / "other", seed=1, precision=precision, **FAST)
    assert not same(first, weights_of(other))


def test_an_existing_run_is_left_alone_and_a_numbered_one_is_made(tmp_path):
    runs = [vitkit.pretrain("digits", out=tmp_path / "run", **FAST) for _ in range(3)]
    assert [run.folder.name for run in runs] == ["run", "run-2", "run-3"]


def test_held_out_images_are_recorded_and_stratified(tmp_path):
    source = digits().train
    run = vitkit.pretrain(source, out=tmp_path / "run", **FAST)
    held = json.loads((run.folder / "split.json").read_text())["held_out"]
    counts = np.bincount(source.labels[held], minlength=10)
    expected = np.bincount(source.labels) / 10
    assert np.abs(counts - expected).max() <= 0.5 + 1e-9
    assert run.metrics["images"] == len(held)


def test_finetuning_takes_other_classes_and_a_higher_resolution(tmp_path):
    splits = digits()
    old, new = (
        Splits("some", only_classes(splits.train, c), only_classes(splits.val, c))
        for c in (["0", "1", "2"], ["7", "8"])
    )
    base = vitkit.pretrain(old, out=tmp_path / "base", hidden_head=True, **FAST)
    run = vitkit.finetune(new, base.folder, out=tmp_path / "run", image_size=(12, 16), **FAST)
    model = run.model
    assert model.class_names == ["7", "8"]
    assert model.net.config.image_size == model.preprocessing.image_size == (12, 16)
    assert model.net.hidden is None
    assert model.provenance["from"]["data"] == "some"


def test_finetuning_starts_from_the_checkpoint_with_a_head_of_zeros(tmp_path):
    base = vitkit.pretrain("digits", out=tmp_path / "base", **FAST)
    run = vitkit.finetune("digits", base.folder, out=tmp_path / "run", learning_rate=1e-30, **FAST)
    before, after = base.model.net, vitkit.load(run.folder / "last").net
    assert torch.equal(before.blocks[0].attention.qkv.weight, after.blocks[0].attention.qkv.weight)
    assert after.head.weight.abs().max() < 1e-20 < before.head.weight.abs().max()


def test_minutes_become_a_recorded_number_of_steps_and_the_time_is_kept(tmp_path):
    run = vitkit.pretrain("digits", out=tmp_path / "run", minutes=0.4, batch_size=16, quiet=True)
    recorded = json.loads((run.folder / "config.json").read_text())["resolved"]["steps"]
    assert recorded == run.steps > 8
    assert 0.4 * 60 * 0.5 < run.seconds < 0.4 * 60 * 2  # a noisy machine


def shaded_photos(folder, count):
    """`count` light cats and dark dogs in class folders."""
    for name, shade in (("cat", 200), ("dog", 30)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_bad_images_are_passed_over_in_training_and_named_but_an_error_in_evaluation(
    tmp_path, capfd
):
    data = tmp_path / "data"
    shaded_photos(data / "train", 12)
    shaded_photos(data / "val", 2)
    bad = [data / "train" / "cat" / "0.png", data / "val" / "dog" / "1.png"]
    for path in bad:
        path.write_bytes(b"not an image")
    run = vitkit.pretrain(data, out=tmp_path / "run", steps=8, batch_size=16)
    said = capfd.readouterr().err.replace("\n", "")
    assert all(str(path) in said for path in bad)
    assert "not an image" in said
    assert run.metrics["images"] == 3
    with pytest.raises(DataError, match=r"1\.png"):
        vitkit.evaluate(run.model, data)


def test_one_class_is_refused():
    source = ArraySource(np.zeros((9, 8, 8), np.uint8), [0] * 9, ["only", "other"])
    with pytest.raises(DataError, match=r"only.*at least two classes"):
        vitkit.pretrain(source, steps=1)


def test_evaluation_counts_every_image_and_matches_classes_by_name(tmp_path):
    base = vitkit.pretrain("digits", out=tmp_path / "base", **FAST)
    model = base.model
    whole = vitkit.evaluate(model, "digits")
    assert whole["images"] == len(digits().val)
    assert whole["metrics"]["top1"] == pytest.approx(base.metrics["top1"], abs=0.02)
    val = digits().val
    some = only_classes(val, ["7", "2"])  # other numbers, in another order
    expected = np.mean(
        [model.predict(some.image(i).permute(1, 2, 0).numpy())[0].label
         == some.class_names[some.labels[i]] for i in range(len(some))]
    )  # fmt: skip
    assert vitkit.evaluate(model, some)["metrics"]["top1"] == pytest.approx(expected)


def test_classes_that_the_net_does_not_know_are_named(tmp_path):
    base = vitkit.pretrain("digits", out=tmp_path / "base", **FAST)
    foreign = ArraySource(np.zeros((2, 8, 8), np.uint8), [0, 1], ["cat", "dog"])
    with pytest.raises(DataError, match="cat, dog"):
        vitkit.evaluate(base.model, foreign)


def test_few_shot_takes_any_classes(tmp_path):
    base = vitkit.pretrain("digits", out=tmp_path / "base", **FAST)
    foreign = digits()
    foreign.train.class_names = foreign.val.class_names = [f"digit {n}" for n in range(10)]
    metrics = vitkit.evaluate(base.model, foreign, "few-shot")["metrics"]
    assert list(metrics) == ["1shot", "5shot", "10shot", "25shot"]
    assert metrics["25shot"] > 0.15  # chance is 0.1


def test_a_resumed_run_must_be_given_the_same_config(tmp_path):
    vitkit.pretrain("digits", out=tmp_path / "run", **FAST)
    with pytest.raises(UsageError, match=r"batch_size \(16 -> 32\)"):
        vitkit.pretrain(
            "digits", out=tmp_path / "run", resume="auto", **(FAST | {"batch_size": 32})
        )
    again = vitkit.pretrain("digits", out=tmp_path / "run", resume="auto", threads=1, **FAST)
    assert again.folder == tmp_path / "run"


def test_a_finetuning_run_is_resumed_only_from_the_same_checkpoint(tmp_path):
    bases = [vitkit.pretrain("digits", out=tmp_path / f"base{i}", seed=i, **FAST) for i in (0, 1)]
    vitkit.finetune("digits", bases[0].folder, out=tmp_path / "run", **FAST)
    with pytest.raises(UsageError, match="the checkpoint"):
        vitkit.finetune("digits", bases[1].folder, out=tmp_path / "run", resume="auto", **FAST)
    with pytest.raises(UsageError, match="the kind of run"):
        vitkit.pretrain("digits", out=tmp_path / "run", resume="auto", **FAST)


def test_finetuning_keeps_the_checkpoints_preprocessing(tmp_path):
    base = vitkit.pretrain("digits", out=tmp_path / "base", **FAST).model
    base.preprocessing = replace(base.preprocessing, mean=(0.4, 0.4, 0.4), resize_to=(10, 10))
    run = vitkit.finetune("digits", base, out=tmp_path / "run", image_size=16, **FAST)
    found = run.model.preprocessing
    assert found.mean == (0.4, 0.4, 0.4)
    assert (found.image_size, found.resize_to) == ((16, 16), (20, 20))


def test_evaluation_on_the_middle_of_slightly_larger_images_travels_with_the_net(tmp_path):
    words = FAST | {"image_size": (14, 28), "evaluation_resize": "crop"}
    base = vitkit.pretrain("digits", out=tmp_path / "base", **words)
    assert base.model.preprocessing == Preprocessing.small_crop((14, 28), 32)
    direct = vitkit.pretrain("digits", out=tmp_path / "direct", **FAST | {"image_size": (14, 28)})
    assert direct.metrics["loss"] != base.metrics["loss"], "the same net, trained on the same"
    assert same(weights_of(base), weights_of(direct))
    tuned = vitkit.finetune("digits", base.folder, out=tmp_path / "run", image_size=28, **FAST)
    assert tuned.model.preprocessing == Preprocessing.small_crop((28, 28), 64)


def test_finetuning_refuses_another_way_to_evaluate_than_the_checkpoints(tmp_path):
    base = vitkit.pretrain("digits", out=tmp_path / "base", **FAST).model
    with pytest.raises(UsageError, match=r"evaluation_resize is 'crop'.*leave it out"):
        vitkit.finetune("digits", base, out=tmp_path / "run", evaluation_resize="crop", **FAST)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_run_that_drops_at_random_goes_on_from_its_middle_to_the_same_bits(tmp_path, kind):
    words = FAST | {"dropout": 0.1, "stochastic_depth": 0.5, "polyak": 0.9, "save_every": 4}
    base = vitkit.pretrain("digits", out=tmp_path / "base", **FAST).model

    def train(out, **more):
        if kind == "pretrain":
            return vitkit.pretrain("digits", out=out, **words, **more)
        return vitkit.finetune("digits", base, out=out, **words, **more)

    run = train(tmp_path / "run")
    before = weights_of(run)
    assert run.model.net.config.stochastic_depth == 0.5
    for name in ("checkpoints/step-00000008", "last", "best"):
        shutil.rmtree(run.folder / name)
    assert same(weights_of(train(run.folder, resume="auto")), before)
    words["stochastic_depth"] = 0.0
    assert not same(weights_of(train(tmp_path / "other")), before)


def test_resuming_where_nothing_is_saved():
    with pytest.raises(UsageError, match=r"nowhere.*cannot be resumed"):
        vitkit.pretrain("digits", resume="nowhere", **FAST)
