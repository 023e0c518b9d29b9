"""A run that ends once its evaluations get no better: what it leaves, and how it is resumed."""

import json
import shutil

import pytest
import torch

import vitkit
from vitkit.workflows.doctor import advise, look_at

# Of 100 steps every fifth is evaluated, and the head that was fitted first. So small a rate
# changes weights, but no prediction.
WORDS = {"steps": 100, "batch_size": 8, "linear_probe": True, "early_stopping": 2,
         "learning_rate": 1e-7, "precision": "fp32", "quiet": True}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "base"
    return vitkit.pretrain("digits", out=out, steps=20, precision="fp32", quiet=True).folder


@pytest.fixture
def run(base, tmp_path):
    return vitkit.finetune("digits", base, out=tmp_path / "run", **WORDS)


def resumed(run, base):
    return vitkit.finetune("digits", base, out=run.folder, resume="auto", **WORDS)


def weights(run):
    return vitkit.load(run.folder / "last").net.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def records(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_it_ends_after_so_many_evaluations_without_a_better_one_and_says_when(run):
    assert run.steps == 10
    evaluated = [r["step"] for r in records(run) if r["kind"] == "evaluation"]
    assert evaluated == [0, 5, 10]
    ends = [r for r in records(run) if r["kind"] == "early_stop"]
    assert ends == [{"step": 10, "kind": "early_stop", "without_better": 2}]
    page = (run.folder / "report.html").read_text()
    assert "at step 0 of 100. The run ended at step 10: 2 evaluations in a row" in page
    assert (run.folder / "checkpoints" / "step-00000010").is_dir()


def test_resuming_it_ends_at_once_with_the_same_result(run, base):
    before, lines = weights(run), records(run)
    shutil.rmtree(run.folder / "last")
    again = resumed(run, base)
    assert again.steps == 10 and again.metrics == run.metrics
    assert again.class_recall == run.class_recall
    assert same(weights(again), before) and records(again) == lines


def test_resumed_in_the_middle_it_ends_at_the_same_step_with_the_same_bits(run, base):
    before = weights(run)
    for part in ("checkpoints/step-00000010", "last", "report.html"):
        path = run.folder / part
        path.unlink() if path.is_file() else shutil.rmtree(path)
    again = resumed(run, base)
    assert again.steps == 10 and again.metrics == run.metrics
    assert same(weights(again), before)
    assert [r["step"] for r in records(again) if r["kind"] == "evaluation"] == [0, 5, 10]


def test_a_best_net_that_was_lost_is_made_up_for_and_the_run_stays_ended(run, base):
    shutil.rmtree(run.folder / "best")
    again = resumed(run, base)
    assert again.steps == 10 and (again.folder / "best").is_dir()


def test_the_doctor_knows_that_it_has_ended(run):
    found = look_at(run.folder)
    assert found.finished and advise(found)[0].startswith(
        "Finished: early stopping ended it at step 10"
    )
    shutil.rmtree(run.folder / "last")
    assert (
        "early stopping has ended it, and last/ is written anew" in advise(look_at(run.folder))[0]
    )
