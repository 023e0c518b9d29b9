"""Few images of some classes: the run says so, and balancing finds more of them."""

import warnings

import numpy as np
import pytest

import vitkit
from vitkit.cli import main
from vitkit.data.opening import digits
from vitkit.data.source import ArraySource, Splits, Subset
from vitkit.errors import UsageError
from vitkit.training.config import DataConfig, TrainConfig
from vitkit.workflows.task import note_skew, open_task

SGD = {"optimizer.name": "sgd", "learning_rate": 0.03, "optimizer.layer_decay": 1.0}


def skewed_digits(few: int) -> Splits:
    """`few` images to train on of each digit from 5 on, all of the others; all to validate on."""
    splits = digits()
    kept = [np.flatnonzero(splits.train.labels == n)[: few if n >= 5 else None] for n in range(10)]
    return Splits("skewed digits", Subset(splits.train, np.sort(np.concatenate(kept))), splits.val)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "base"
    return vitkit.pretrain("digits", out=out, steps=150, batch_size=64, precision="fp32",
                           learning_rate=3e-3, quiet=True).model  # fmt: skip


def mean_recall(base, folder, **fields) -> float:
    """Over two seeds, of the net at the end."""
    found = []
    for seed in (0, 1):
        run = vitkit.finetune(skewed_digits(8), base, out=folder / "run", steps=40, batch_size=32,
                              evaluate_every=40, seed=seed, precision="fp32", quiet=True,
                              **SGD, **fields)  # fmt: skip
        found.append(run.metrics["mean_class_recall"])
    return float(np.mean(found))


@pytest.mark.filterwarnings("ignore:skewed digits")
def test_balancing_by_loss_or_by_drawing_finds_more_of_the_classes(base, tmp_path):
    as_they_are = mean_recall(base, tmp_path)
    assert mean_recall(base, tmp_path, loss_balance=1.0) > as_they_are + 0.05
    assert mean_recall(base, tmp_path, **{"data.balance": 1.0}) > as_they_are + 0.05


def test_skewed_classes_are_noted_with_numbers_and_what_can_be_done():
    task = open_task(skewed_digits(5))
    with pytest.warns(
        UserWarning,
        match=r"146 are of 3, the commonest class, and 5 of 5, the "
        r"rarest; --loss-balance 1 or --data.balance 1 makes",
    ):
        note_skew(task, TrainConfig())


@pytest.mark.parametrize("config", [
    TrainConfig(loss_balance=0.5), TrainConfig(data=DataConfig(balance=0.5)),
])  # fmt: skip
def test_nothing_is_noted_where_balancing_was_asked_for(config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        note_skew(open_task(skewed_digits(5)), config)


def test_nothing_is_noted_below_ten_times_the_images():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        note_skew(open_task(skewed_digits(15)), TrainConfig())


def test_of_several_labels_only_the_loss_can_be_balanced():
    rows = np.zeros((30, 2), np.uint8)
    rows[:, 0], rows[:2, 1] = 1, 1
    source = ArraySource(np.zeros((30, 8, 8), np.uint8), rows, ["often", "seldom"])
    task = open_task(Splits("rows", source, source))
    assert task.class_images == (30, 2)
    with pytest.warns(UserWarning, match="--loss-balance 1 makes classes count alike"):
        note_skew(task, TrainConfig())


def test_balancing_twice_is_refused():
    with pytest.raises(UsageError, match="both make rare classes count more; give one"):
        vitkit.pretrain("digits", steps=1, loss_balance=1.0, **{"data.balance": 1.0})


def test_a_batch_with_a_rare_class_is_no_loss_spike(tmp_path):
    """The guard would go back and leave out the very images that are to count more."""
    source = digits().train
    common = np.flatnonzero(source.labels < 9)
    rare = np.flatnonzero(source.labels == 9)[:1]
    data = Splits("skewed", Subset(source, np.append(np.tile(common, 3), rare)), digits().val)
    run = vitkit.pretrain(data, out=tmp_path / "run", model="ViT-Femto/2", steps=260, seed=0,
                          device="cpu", quiet=True, batch_size=16, learning_rate=3e-3,
                          loss_balance=1.0)  # fmt: skip
    metrics = (run.folder / "metrics.jsonl").read_text()
    assert run.steps == 260 and '"kind": "rewind"' not in metrics


def test_a_run_with_class_weights_can_be_planned(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--loss-balance", "0.5", "--model", "ViT-Femto/2", "--batch-size", "8", "--steps", "5",
             "--image-size", "8"]  # fmt: skip
    assert main(["pretrain", "digits", *words, "--dry-run"]) == 0
    assert "5 steps of 8 images" in capsys.readouterr().out
