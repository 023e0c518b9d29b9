"""Runs that learn without labels, from the outside: what they give, say, refuse and repeat."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import vitkit
from vitkit.checkpoints.bundle import read_bundle
from vitkit.data.checks import DataError
from vitkit.data.opening import digits
from vitkit.data.source import ArraySource, Splits, Subset
from vitkit.errors import UsageError
from vitkit.models.nets import make
from vitkit.objectives.learner import Learner
from vitkit.training.config import TrainConfig, override
from vitkit.training.world import joined, start
from vitkit.workflows.examples import read_examples

FAST = {
    "model": "ViT-Femto/2", "steps": 4, "batch_size": 16, "evaluate_every": 2, "device": "cpu",
    "precision": "fp32", "quiet": True,
}  # fmt: skip
OBJECTIVES = {
    "masked-patches": {},
    "masked-patches, pixels": {"masking.target": "pixels"},
    # 4x4 colours need patches of 4 pixels.
    "masked-patches, colours": {"masking.target": "colours", "model": "ViT-Pico/4"},
    "mae": {},
    "simclr": {},
}


def few_digits(train: int = 160, val: int = 40) -> Splits:
    """As many of each digit, more or less, as come first."""
    whole = digits()
    assert whole.val is not None
    return Splits(
        "digits", Subset(whole.train, np.arange(train)), Subset(whole.val, np.arange(val))
    )


def trained(name: str, out, data=None, **more):
    """A run of the quickstart recipe of an objective."""
    recipe = f"quickstart-{name.split(',')[0]}"
    words = FAST | OBJECTIVES[name] | more
    return vitkit.pretrain(data or few_digits(), recipe, out=out, **words)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One of each objective."""
    folder = tmp_path_factory.mktemp("unlabelled")
    return {name: trained(name, folder / name) for name in OBJECTIVES}


def records(folder, kind):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def weights_of(folder):
    return vitkit.load(folder).net.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# What a run gives


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_bundle_holds_the_net_alone_without_head_and_classes(runs, name):
    for which in ("best", "last"):
        bundle = read_bundle(runs[name].folder / which)
        assert bundle.net.config.classes == 0 and bundle.class_names == []
        assert bundle.net.state_dict().keys() == make(bundle.net.config).state_dict().keys()
        assert not any("head" in name for name in bundle.net.state_dict())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_falls_and_evaluations_tell_what_features_are_worth(runs, name):
    found = records(runs[name].folder, "evaluation")
    assert [r["step"] for r in found] == [0, 2, 4]
    for r in found:
        assert r["images"] == 40 and r["loss"] > 0
        assert 0 < r["feature_spread"] <= 1.01 and 0 < r["few_shot"] < 1
        assert "top1" not in r
    if name != "simclr":  # which takes more than a few steps
        assert found[2]["loss"] < found[0]["loss"]


@pytest.mark.parametrize("name", ["mae", "simclr"])
def test_the_checkpoint_is_fine_tuned_evaluated_and_inspected(runs, name, tmp_path):
    folder = runs[name].folder
    tuned = vitkit.finetune(few_digits(), folder, out=tmp_path / "tuned", steps=2, batch_size=16,
                            learning_rate=1e-30, device="cpu", quiet=True)  # fmt: skip
    assert tuned.model.class_names == [str(n) for n in range(10)]
    assert tuned.model.provenance["from"]["recipe"] == f"quickstart-{name}"
    body = weights_of(folder / "best")
    assert same({k: v for k, v in weights_of(tuned.folder / "last").items() if k in body}, body)
    shots = vitkit.evaluate(folder, few_digits(), "few-shot", shots=(5,), device="cpu")
    assert shots["metrics"]["5shot"] > 0.2, "twice what chance gives"
    found = vitkit.inspect(folder, data=few_digits(), count=2, device="cpu")
    assert found.filters is not None and found.distances is not None


def test_a_net_without_a_head_has_no_top_k(runs):
    with pytest.raises((UsageError, DataError), match="no head") as refused:
        vitkit.evaluate(runs["mae"].folder, few_digits(), device="cpu")
    assert "\n" not in str(refused.value)


# The best


def test_best_is_the_net_of_the_lowest_loss(runs):
    for run in runs.values():
        found = records(run.folder, "evaluation")
        assert run.metrics["loss"] == min(r["loss"] for r in found)
        first_best = min(found, key=lambda r: r["loss"])["step"]
        assert same(weights_of(run.folder / "best"), weights_of(run.folder / "last")) == (
            first_best == 4
        )


@pytest.fixture
def plain_folder(tmp_path):
    """Images that are in no class folder."""
    images = few_digits().train
    (tmp_path / "images").mkdir()
    for index in range(40):
        picture = images.image(index).permute(1, 2, 0).numpy()
        Image.fromarray(picture).save(tmp_path / "images" / f"{index:03}.png")
    return tmp_path / "images"


def test_without_class_folders_the_best_is_by_the_loss(plain_folder, tmp_path, capfd):
    run = trained("mae", tmp_path / "run", str(plain_folder), image_size=8, quiet=False)
    found = records(run.folder, "evaluation")
    assert not any("few_shot" in r for r in found)
    assert run.metrics["loss"] == min(r["loss"] for r in found)
    said = capfd.readouterr().err
    assert f"loss {found[-1]['loss']:.4f} on the held-out images" in said
    assert "classes" not in said, "there are none"


def test_labels_cannot_be_learned_where_there_are_none(plain_folder, tmp_path):
    with pytest.raises(DataError, match="class"):
        vitkit.pretrain(str(plain_folder), steps=1, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_skewed_classes_are_no_matter_where_labels_are_not_read(tmp_path, recwarn):
    whole = few_digits().train
    labels = np.asarray(whole.labels)
    members = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:1]])
    skewed = Splits("skewed", Subset(whole, members), few_digits().val)
    trained("mae", tmp_path / "run", skewed, steps=1)
    assert not [w for w in recwarn if "loss-balance" in str(w.message)]


# The same again


@pytest.mark.parametrize("name", ["mae", "simclr"])
def test_interrupted_and_resumed_it_comes_to_the_same_bits(tmp_path, name):
    words = {"save_every": 2, "log_every": 1, "polyak": 0.9, "dropout": 0.1}
    run = trained(name, tmp_path / "run", **words)
    before, lines = weights_of(run.folder / "last"), numbers_of(run.folder)
    shown = read_examples(run.folder)
    for part in ("checkpoints/step-00000004", "last"):
        shutil.rmtree(run.folder / part)
    (run.folder / "examples.npz").unlink()
    again = trained(name, run.folder, resume="auto", **words)
    assert again.folder == run.folder
    assert same(weights_of(run.folder / "last"), before)
    assert numbers_of(run.folder) == lines
    found = read_examples(run.folder)
    assert found.keys() == shown.keys()
    assert all(np.array_equal(found[part], shown[part]) for part in shown)


def numbers_of(folder):
    """metrics.jsonl but for what a machine takes."""
    machine = ("images_per_second", "data_share", "memory_bytes")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in machine} for line in lines]


@pytest.mark.parametrize("name", ["mae", "masked-patches"])
def test_a_batch_in_parts_changes_nothing_but_rounding(runs, tmp_path, name, monkeypatch):
    seen, forward = [], Learner.forward

    def watched(learner, images, labels=None, places=None):
        seen.append(len(images))
        return forward(learner, images, labels, places)

    monkeypatch.setattr(Learner, "forward", watched)
    run = trained(name, tmp_path / "run", accumulation=4)
    assert seen.pop() == 8, "the examples"
    assert max(seen) == 4, "evaluation takes no more memory than training"
    for found, expected in zip(
        records(run.folder, "evaluation"),
        records(runs[name].folder, "evaluation"), strict=True,
    ):  # fmt: skip
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    close_to(run.folder / "last", runs[name].folder / "last")


def close_to(found, expected):
    a, b = weights_of(found), weights_of(expected)
    assert a.keys() == b.keys()
    for name in b:
        # A softmax does not see the bias of k, whose gradient is rounding alone; AdamW makes a
        # whole step of it.
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-4, msg=name)


# Several processes


def train_some(given):
    """Runs one after another, in each of some processes."""
    with joined(torch.device("cpu")):
        for objective in given["objectives"]:
            trained(objective, given["out"] / objective, **SEVERAL, **given["words"])
    return 0


SEVERAL = {"steps": 3, "evaluate_every": 3, "threads": 1}


def check_two_are_as_one(tmp_path, *objectives, **words):
    given = {"objectives": objectives, "out": tmp_path / "two", "words": words}
    assert start(train_some, given, 2) == 0
    for objective in objectives:
        two, one = tmp_path / "two" / objective, tmp_path / "one" / objective
        trained(objective, one, **SEVERAL)
        close_to(two / "last", one / "last")
        found, expected = (records(folder, "evaluation")[-1] for folder in (two, one))
        assert found["images"] == expected["images"] == 40
        for name in ("loss", "feature_spread"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3)
        assert found["few_shot"] == pytest.approx(expected["few_shot"], abs=0.05)
        shown, wanted = read_examples(two), read_examples(one)
        assert shown.keys() == wanted.keys()
        assert np.array_equal(shown["images"], wanted["images"])


def test_two_processes_learn_what_one_learns(tmp_path):
    check_two_are_as_one(tmp_path, "masked-patches", "mae", "simclr")


@pytest.mark.slow
def test_so_they_do_where_they_share_the_weights(tmp_path):
    words = {"engine.sharding": "fsdp"}
    check_two_are_as_one(tmp_path, "masked-patches", "mae", "simclr", **words)


# What is refused


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("simclr", {"accumulation": 2}, "cannot come in 2 parts"),
        ("simclr", {"batch_size": 2}, "batch-size of at least 4"),
        ("simclr", {"batch_size": 1}, "batch-size of at least 4"),
        ("simclr", {"data.repeats": 1}, "--data.repeats 2"),
        ("mae", {"augment.mixup": 0.2}, "MixUp and CutMix mix labels"),
        ("masked-patches", {"augment.cutmix": 1.0}, "MixUp and CutMix mix labels"),
        ("mae", {"label_smoothing": 0.1}, "objective supervised alone"),
        ("simclr", {"head_bias": -10.0}, "objective supervised alone"),
        ("mae", {"hidden_head": True}, "objective supervised alone"),
        ("mae", {"linear_probe": True}, "objective supervised alone"),
        ("mae", {"loss_balance": 1.0}, "objective supervised alone"),
        ("mae", {"pooling": "map"}, "attention pooling"),
        ("mae", {"masking.rate": 0.001}, "masking.rate 0.001 hides 0"),
    ],
)
def test_what_has_no_meaning_without_labels_is_refused_in_a_sentence(tmp_path, name, words, said):
    with pytest.raises(UsageError, match=said) as refused:
        trained(name, tmp_path / "run", **words)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_fields_that_belong_together_may_come_in_any_order():
    words = {"objective": "simclr", "data.repeats": 2, "batch_size": 6, "seed": 3}
    backwards = dict(reversed(words.items()))
    assert override(TrainConfig(), words) == override(TrainConfig(), backwards)


# Collapse


def constant_images():
    """Which no net can tell apart: its features of them are the same."""
    images = np.full((60, 8, 8, 3), 128, np.uint8)
    source = ArraySource(images, [i % 2 for i in range(60)], ["one", "other"])
    return Splits("grey", Subset(source, np.arange(40)), Subset(source, np.arange(40, 60)))


def test_a_collapse_is_said_and_a_sound_run_does_not_say_it(tmp_path, capfd):
    trained("simclr", tmp_path / "sound", steps=2, quiet=False)
    assert "collapsed" not in said_in(capfd)
    trained("simclr", tmp_path / "grey", constant_images(), steps=2, quiet=False)
    assert said_in(capfd).count("the features have collapsed") == 1


def said_in(capfd):
    return " ".join(capfd.readouterr().err.split())


# What is shown


def test_reports_show_reconstructions_and_similarities(runs):
    for name, run in runs.items():
        page = (run.folder / "report.html").read_text()
        if name == "simclr":
            assert "The mean cosine of the two views" in page
        else:
            assert "with what the net predicts" in page
            assert "held-out image 8, predicted" in page


def test_examples_are_of_held_out_images_and_show_what_was_hidden(runs):
    found = read_examples(runs["mae"].folder)
    assert found["images"].shape == found["predicted"].shape == (8, 3, 8, 8)
    assert (found["hidden"].sum(1) == 12).all(), "three quarters of 16"
    pairs = read_examples(runs["simclr"].folder)
    assert pairs["images"].shape == (16, 3, 8, 8)
    assert np.allclose(np.diag(pairs["similarities"]), 1, atol=1e-5)


# On from a checkpoint


ON = {"steps": 2, "batch_size": 16, "device": "cpu", "quiet": True, "learning_rate": 1e-30}
SMALL_DECODER = {
    "masking.decoder_width": 32, "masking.decoder_depth": 1, "masking.decoder_heads": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "more"),
    [("mae", SMALL_DECODER), ("masked-patches", {}), ("simclr", {"data.repeats": 2})],
)
def test_a_checkpoint_learns_on_without_labels(runs, tmp_path, objective, more):
    begun, words = runs["mae"].folder, ON | more | {"objective": objective}
    with pytest.raises(UsageError, match=r"label_smoothing is 0.1.*set it to 0.0"):  # quickstart's
        vitkit.finetune(few_digits(), begun, out=tmp_path / "run", **words)
    run = vitkit.finetune(few_digits(), begun, out=tmp_path / "run", label_smoothing=0.0, **words)
    assert run.model.net.config.classes == 0 and run.model.class_names == []
    assert same(weights_of(run.folder / "last"), weights_of(begun / "best"))
