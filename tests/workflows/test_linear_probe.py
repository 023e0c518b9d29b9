"""Fine-tuning from a head that was fitted to the frozen features first."""

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import vitkit
from vitkit.data.opening import digits
from vitkit.data.source import Splits, Subset
from vitkit.errors import UsageError
from vitkit.models.variants import build
from vitkit.training.config import TrainConfig
from vitkit.workflows import linear_probe

STILL = {"learning_rate": 1e-30, "precision": "fp32", "batch_size": 16}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "base"
    return vitkit.pretrain("digits", out=out, steps=60, precision="fp32", quiet=True).model


def records(run, kind):
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]


def test_the_probe_is_as_accurate_as_scikit_learns_on_the_same_features(
    base, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(linear_probe, "L2", (1.0, 1e-2))
    splits = digits()
    train, val = Subset(splits.train, np.arange(400)), Subset(splits.val, np.arange(200))
    run = vitkit.finetune(Splits("some", train, val), base, out=tmp_path / "run", steps=1,
                          linear_probe=True, **STILL)  # fmt: skip
    said = " ".join(capfd.readouterr().err.split())
    assert "linear probe of 400 images to train on: " in said and ", l2 0.01 " in said
    x, apart = (
        base.features([part.image(i).permute(1, 2, 0).numpy() for i in range(len(part))])
        for part in (train, val)
    )
    scaler = StandardScaler().fit(x)
    theirs = LogisticRegression(C=1 / (len(x) * 1e-2), max_iter=1000, tol=1e-6)
    with threadpool_limits(1):  # its threads spin
        theirs.fit(scaler.transform(x), train.labels)
    expected = theirs.score(scaler.transform(apart), val.labels)
    found = records(run, "evaluation")[0]
    assert found["step"] == 0
    assert found["top1"] == pytest.approx(expected, abs=1.01 / len(apart))  # an image
    assert found["top1"] > 0.4
    body = base.net.blocks[0].mlp.state_dict()  # only the head is another
    for name, weight in run.model.net.blocks[0].mlp.state_dict().items():
        assert torch.equal(weight, body[name])


def test_fine_tuning_starts_better_than_with_a_head_of_zeros(base, tmp_path):
    fields = {"steps": 8, "batch_size": 16, "quiet": True, "evaluate_every": 8}
    zeros = vitkit.finetune("digits", base, out=tmp_path / "zeros", **fields)
    probed = vitkit.finetune("digits", base, out=tmp_path / "lp", linear_probe=True, **fields)
    at_first, later = records(probed, "evaluation")
    assert at_first["step"] == 0 and later["step"] == 8
    assert at_first["top1"] > zeros.metrics["top1"] + 0.1
    assert probed.metrics["top1"] >= at_first["top1"]


def test_a_resumed_run_fits_no_head_again_and_ends_with_the_same_bits(base, tmp_path, monkeypatch):
    words = {"out": tmp_path / "run", "linear_probe": True, "steps": 8, "batch_size": 16,
             "save_every": 4, "quiet": True}  # fmt: skip
    once = vitkit.finetune("digits", base, **words)
    expected = vitkit.load(once.folder / "last").net.state_dict()
    evaluations = records(once, "evaluation")
    shutil.rmtree(once.folder / "checkpoints" / "step-00000008")
    shutil.rmtree(once.folder / "last")
    monkeypatch.setattr(linear_probe, "fit_logistic", lambda *_: pytest.fail("fitted again"))
    again = vitkit.finetune("digits", base, resume="auto", **words)
    found = vitkit.load(again.folder / "last").net.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert records(again, "evaluation") == evaluations
    assert again.metrics == once.metrics and again.class_recall == once.class_recall


def test_of_many_images_a_share_of_every_class_is_fitted_and_that_is_said(
    base, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(linear_probe, "AT_MOST", 200)
    vitkit.finetune("digits", base, out=tmp_path / "run", linear_probe=True, steps=1, **STILL)
    said = " ".join(capfd.readouterr().err.split())
    assert "200 of 1,438 images to train on" in said and "20 of them, held apart" in said


def test_too_few_images_to_hold_any_out_are_fitted_with_a_usual_penalty(base, tmp_path, capfd):
    splits = digits()
    one_each = [int(np.flatnonzero(splits.train.labels == n)[0]) for n in range(10)]
    data = Splits("one of each", Subset(splits.train, one_each), splits.val)
    run = vitkit.finetune(data, base, out=tmp_path / "run", linear_probe=True, steps=1,
                          **STILL | {"batch_size": 5})  # fmt: skip
    assert "too few images to choose the penalty by, l2 0.001" in " ".join(
        capfd.readouterr().err.split()
    )
    assert run.metrics["top1"] > 0.2  # chance is 0.1


def test_a_distilled_net_gets_the_probe_in_both_heads():
    net = build("ViT-Femto/2", 3, 8, distillation_token=True).eval()
    weight, bias = torch.randn(3, net.config.width), torch.randn(3)
    linear_probe.put(net, weight, bias)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(net(images), net.features(images) @ weight.T + bias)


def test_pre_training_has_no_features_to_fit_a_head_to_and_a_fitted_bias_is_not_given():
    with pytest.raises(UsageError, match="linear_probe fits a head to the features of a checkp"):
        vitkit.pretrain("digits", steps=1, linear_probe=True)
    with pytest.raises(UsageError, match="leave out head_bias"):
        TrainConfig(linear_probe=True, head_bias=-10.0)
