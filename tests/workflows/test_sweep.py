"""Sweeps on real digits: what is chosen, by which images, and that they go on where they were."""

import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

import vitkit
from vitkit.cli import main
from vitkit.data.opening import digits
from vitkit.data.source import ArraySource, Splits, Subset
from vitkit.errors import UsageError, VitkitError
from vitkit.training.config import TrainConfig, override
from vitkit.workflows import sweep as workflow
from vitkit.workflows.dev_split import dev_split
from vitkit.workflows.finetune import finetune_on, recipe_config
from vitkit.workflows.sweep import chosen, opening, result, usual_share
from vitkit.workflows.task import open_task

FAST = {"steps": 12, "batch_size": 16, "device": "cpu", "quiet": True}
TUNED = FAST | {"optimizer.name": "sgd", "optimizer.layer_decay": 1.0}
RATES = {"learning_rate": (0.0001, 0.1)}
TIMED = ("images_per_second", "data_share", "memory_bytes")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A checkpoint to start from, and another one."""
    folder = tmp_path_factory.mktemp("base")
    for name, seed in (("one", 0), ("other", 1)):
        vitkit.pretrain("digits", out=folder / name, seed=seed, **(FAST | {"steps": 40}))
    return folder


@pytest.fixture(scope="module")
def swept(base, tmp_path_factory):
    return sweep(base, tmp_path_factory.mktemp("swept") / "sweep", seeds=2)


def sweep(base, out, data="digits", over=RATES, **more):
    return vitkit.sweep(data, base / "one", over=over, out=out, **(TUNED | more))


def records(run, kind=None):
    """The lines of a run's metrics.jsonl without what differs from day to day."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMED}
            for line in lines if kind in (None, line["kind"])]  # fmt: skip


def weights(run):
    return vitkit.load(run / "last").net.state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def pixels_of(source):
    return np.stack([source.image(i).permute(1, 2, 0).numpy() for i in range(len(source))])


def saved(folder):
    return json.loads((folder / "sweep.json").read_text())


def test_each_candidate_is_scored_on_dev_images_that_it_did_not_train_on(swept):
    task = open_task("digits")
    trial = dev_split(task, 0.1)
    assert [row["label"] for row in swept.trials] == ["learning-rate 0.0001", "learning-rate 0.1"]
    for row in swept.trials:
        run = swept.folder / row["folder"]
        data = json.loads((run / "config.json").read_text())["data"]
        assert data["fingerprint"] == trial.fingerprint
        assert data["held_out_fingerprint"] == trial.held_out_fingerprint
        assert data["train_images"] + data["held_out_images"] == len(task.train)
        assert row["metrics"]["images"] == len(trial.val)


def test_a_score_is_that_of_the_last_evaluation_not_the_best(swept):
    for row in [*swept.trials, *swept.finals]:
        last = records(swept.folder / row["folder"], "evaluation")[-1]
        assert last["step"] == row["steps"] == 12
        assert row["score"] == last["top1"] == row["metrics"]["top1"]


def test_the_best_trains_on_all_images_with_each_seed(swept):
    scores = [row["score"] for row in swept.trials]
    assert scores[1] > scores[0] and swept.choice == "learning-rate 0.1"
    task = open_task("digits")
    for seed, row in enumerate(swept.finals):
        made = json.loads((swept.folder / f"final/seed-{seed}/config.json").read_text())
        assert made["config"]["seed"] == seed
        assert made["config"]["optimizer"]["learning_rate"] == 0.1
        assert made["data"]["fingerprint"] == task.fingerprint
        assert row["metrics"]["images"] == len(task.val)


def test_the_result_is_mean_and_sample_deviation_over_the_seeds(swept):
    assert len({row["metrics"]["loss"] for row in swept.finals}) == 2, "the seeds differ"
    mean = statistics.fmean(row["score"] for row in swept.finals)
    assert swept.record["result"]["mean"] == mean
    found = result([{"top1": score} for score in (0.5, 0.6, 0.8)])
    assert found == {
        "metric": "top-1", "mean": pytest.approx(1.9 / 3), "seeds": 3,
        "deviation": pytest.approx(np.std([0.5, 0.6, 0.8], ddof=1)),
    }  # fmt: skip


def test_of_one_seed_no_deviation_is_claimed():
    assert result([{"top1": 0.5, "images": 4}])["deviation"] is None


def test_its_runs_are_those_that_finetune_does(swept, base, tmp_path):
    model = vitkit.load(base / "one")
    alone = vitkit.finetune("digits", base / "one", out=tmp_path / "a", learning_rate=0.1, **TUNED)
    assert same(weights(alone.folder), weights(swept.final))
    assert records(alone.folder) == records(swept.final)
    task = open_task("digits")
    config = override(
        recipe_config(task, "quickstart", model),
        {name: value for name, value in TUNED.items() if name not in ("device", "quiet")}
        | {"learning_rate": 0.0001},
    )
    trial = finetune_on(
        dev_split(task, 0.1), config, model, "", out=tmp_path / "b", device="cpu", quiet=True
    )
    assert records(trial.folder) == records(swept.folder / swept.trials[0]["folder"])


def test_what_is_kept_of_a_trial_is_its_record_and_of_a_final_run_its_nets(swept):
    for row in swept.trials:
        names = {path.name for path in (swept.folder / row["folder"]).iterdir()}
        assert {"config.json", "metrics.jsonl", "split.json", "report.html"} <= names
        assert not names & {"checkpoints", "best", "last"}
    model = vitkit.load(swept.folder / "final/seed-0")
    assert model.predict(np.zeros((8, 8, 3), np.uint8))[0].label in model.class_names
    assert same(swept.model.net.state_dict(), weights(swept.folder / "final/seed-0"))


def test_the_record_on_disk_is_what_python_gives_and_names_the_dev_images(swept):
    assert saved(swept.folder) == json.loads(json.dumps(swept.record))
    dev = json.loads((swept.folder / "split.json").read_text())
    assert dev["dev"] == dev_split(open_task("digits"), 0.1).val.indices.tolist()
    assert dev["fingerprint"] == swept.record["data"]["fingerprint"]


def test_the_images_to_validate_on_have_no_say_in_the_choice(swept, base, tmp_path):
    splits = digits()
    spoiled = ArraySource(pixels_of(splits.val), 9 - splits.val.labels, splits.val.class_names)
    other = sweep(base, tmp_path / "s", Splits("digits", splits.train, spoiled))
    assert [row["metrics"] for row in other.trials] == [row["metrics"] for row in swept.trials]
    assert other.choice == swept.choice
    assert other.finals[0]["score"] < swept.finals[0]["score"]


def test_without_resume_a_sweep_is_left_alone_and_a_numbered_one_is_made(swept, base):
    before = saved(swept.folder)
    other = sweep(base, swept.folder, over={"dropout": (0.0, 0.1)}, dev_share=0.2)
    assert other.folder.name == "sweep-2" and saved(swept.folder) == before
    assert other.record["dev"]["images"] == len(dev_split(open_task("digits"), 0.2).val)


@pytest.fixture
def copy(swept, tmp_path):
    """A copy of the sweep that has ended, to go on with."""
    return Path(shutil.copytree(swept.folder, tmp_path / "copy"))


def test_resumed_when_it_has_ended_nothing_is_run_again(copy, swept, base):
    files = {path: path.stat().st_mtime_ns for path in copy.glob("*/*/metrics.jsonl")}
    again = sweep(base, copy, seeds=2, resume="auto")
    assert again.folder == copy and again.record == swept.record and len(files) == 4
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_more_seeds_can_be_trained_later(copy, swept, base):
    more = sweep(base, copy, seeds=3, resume=str(copy))
    assert more.finals[:2] == swept.finals and more.finals[2]["seed"] == 2
    assert more.trials == swept.trials and more.record["result"]["seeds"] == 3
    with pytest.raises(UsageError, match="give --seeds 3 or more"):
        sweep(base, copy, seeds=2, resume=str(copy))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"over": {"learning_rate": (0.0001, 0.2)}}, "the candidates"),
        ({"dev_share": 0.2}, "the dev split"),
        ({"steps": 13}, "steps (12 -> 13)"),
        ({"checkpoint": "other"}, "the checkpoint"),
        ({"data.subset": 0.5}, "the data"),
    ],
)
def test_resumed_by_other_words_it_is_refused(change, said, swept, base):
    words = TUNED | {"over": RATES, "seeds": 2} | change
    checkpoint = base / words.pop("checkpoint", "one")
    before = saved(swept.folder)
    with pytest.raises(UsageError) as error:
        vitkit.sweep("digits", checkpoint, out=swept.folder, resume=str(swept.folder), **words)
    assert said in str(error.value) and "without --resume" in str(error.value)
    assert saved(swept.folder) == before


def test_a_result_that_the_runs_own_record_does_not_bear_out_is_refused(copy, swept, base):
    path = copy / swept.trials[0]["folder"] / "metrics.jsonl"
    path.write_text(path.read_text().replace('"top1": 0.', '"top1": 0.9'))
    with pytest.raises(UsageError, match="last evaluation is not the one"):
        sweep(base, copy, seeds=2, resume="auto")


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: record["trials"][0].update(score=0.99),
        lambda record: record["trials"][0].update(score="high"),
        lambda record: record["trials"][0].pop("metrics"),
        lambda record: record["trials"][0].pop("label"),
        lambda record: record["finals"][0].update(score=0.99),
        lambda record: record["finals"][0].pop("seed"),
        lambda record: record.pop("data"),
    ],
)
def test_a_record_that_no_sweep_has_written_is_refused(damage, copy, swept, base):
    record = json.loads((copy / "sweep.json").read_text())
    damage(record)
    (copy / "sweep.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"sweep\.json: is damaged .*without --resume"):
        sweep(base, copy, seeds=2, resume="auto")


def test_a_run_is_not_put_into_the_folder_of_a_sweep(copy, base):
    before = saved(copy)
    with pytest.raises(UsageError, match="is a sweep; give its --sweep words again"):
        vitkit.finetune("digits", base / "one", out=copy, resume="auto", **TUNED)
    assert saved(copy) == before


def test_a_trial_whose_folder_is_gone_is_run_again_to_the_same_result(copy, swept, base):
    row = swept.trials[1]
    shutil.rmtree(copy / row["folder"])
    again = sweep(base, copy, seeds=2, resume="auto")
    assert again.trials[1]["metrics"] == row["metrics"]
    assert records(copy / row["folder"]) == records(swept.folder / row["folder"])


@pytest.mark.parametrize(("name", "call"), [("write", 2), ("remove", 1), ("write", 5)])
def test_stopped_between_two_runs_it_goes_on_to_the_same_result(
    name, call, swept, base, tmp_path, monkeypatch
):
    """When a result is known but not recorded, recorded but the weights not yet removed."""
    left, original = [call], getattr(workflow, name)

    def stopped(*given):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        original(*given)

    monkeypatch.setattr(workflow, name, stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep(base, tmp_path / "s", seeds=2)
    monkeypatch.undo()
    found = sweep(base, tmp_path / "s", seeds=2, resume="auto")
    for row, expected in zip(
        [*found.trials, *found.finals], [*swept.trials, *swept.finals], strict=True
    ):
        assert row["metrics"] == expected["metrics"]
        assert records(found.folder / row["folder"]) == records(swept.folder / row["folder"])
    assert not list(found.folder.glob("trials/*/checkpoints"))


def test_a_candidate_that_diverges_is_passed_over(base, tmp_path):
    words = {"over": {"optimizer.clip_norm": (0.0, 1.0)}, "learning_rate": 1e30,
             "guard.skipped_steps": 0}  # fmt: skip
    with pytest.raises(VitkitError, match="no candidate could be trained"):
        sweep(base, tmp_path / "all", **words)
    found = sweep(
        base, tmp_path / "one", over={"learning_rate": (1e30, 0.1)},
        **{"guard.skipped_steps": 0, "optimizer.clip_norm": 0.0},
    )  # fmt: skip
    assert found.choice == "learning-rate 0.1"
    assert found.trials[0]["score"] is None and "not finite" in found.trials[0]["problem"]
    again = sweep(
        base, tmp_path / "one", over={"learning_rate": (1e30, 0.1)}, resume="auto",
        **{"guard.skipped_steps": 0, "optimizer.clip_norm": 0.0},
    )  # fmt: skip
    assert again.record == found.record


def test_of_equal_scores_the_first_is_chosen():
    assert chosen([{"score": None}, {"score": 0.5}, {"score": 0.7}, {"score": 0.7}]) == 2


def test_images_with_several_labels_are_compared_by_mean_average_precision(base, tmp_path):
    source = Subset(digits().train, np.arange(400))
    table = np.stack([source.labels % 2 == 0, source.labels > 4, source.labels < 7], axis=1)
    data = ArraySource(pixels_of(source), table, ["even", "large", "not large"])
    found = sweep(base, tmp_path / "s", data)
    assert found.record["result"]["metric"] == "mean average precision"
    for row in [*found.trials, *found.finals]:
        assert row["score"] == row["metrics"]["mean_average_precision"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"over": {"learning_rate": (0.1,)}}, "chooses nothing"),
        ({"over": {"image_size": (8, 9)}}, "image-size 9x9: image size 9x9 is not a multiple"),
        ({"over": {"loss": ("softmax", "sigmoyd")}}, "'sigmoyd' must be one of"),
        ({"over": {"augment.mixup": (0.0, 0.2)}, "batch_size": 15}, "mixup 0.2: MixUp and"),
        ({"over": {"lerning_rate": (0.1, 0.2)}}, "did you mean 'learning-rate'"),
        ({"learning_rate": 0.1}, "leave out one of them"),
        ({"seeds": 0}, "--seeds is 0"),
        ({"dev_share": 0.002}, "give --dev-share"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(words, said, base, tmp_path):
    with pytest.raises(UsageError) as error:
        sweep(base, tmp_path / "s", **words)
    assert said in str(error.value)
    assert not (tmp_path / "s").exists()


def command(base, *more):
    return ["finetune", "digits", "--from", str(base / "one"), "--device", "cpu", "--steps", "4",
            "--batch-size", "16", "--optimizer.name", "sgd", *more]  # fmt: skip


def test_on_the_command_line_the_chosen_one_is_marked_and_the_next_command_works(
    base, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    grid = ["--sweep", "learning-rate=0.0001,0.1", "--sweep", "optimizer.momentum=0.9"]
    assert main(command(base, *grid, "--seeds", "2", "--precision", "fp32", "--json")) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    found = json.loads(lines[-1])
    assert len(found["trials"]) == 2 and len(found["finals"]) == 2
    marked = [line for line in lines if line.endswith("chosen")]
    assert len(marked) == 1 and marked[0].startswith(found["choice"])
    assert f"± {100 * found['result']['deviation']:.2f} over 2 seeds" in shown.out
    assert "trained on 1,294 images, scored on 144 others" in shown.err
    assert "trial 2 of 2: learning-rate 0.1, momentum 0.9" in shown.err
    words = lines[-2].removeprefix("Next: vitkit ").split()
    assert words[:2] == ["predict", "runs/sweep/final/seed-0/last"]
    assert main(["evaluate", words[1], "digits", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    assert metrics["top1"] == pytest.approx(found["finals"][0]["score"], abs=0.005)


def test_a_dry_run_tells_the_candidates_the_split_and_the_cost_and_writes_nothing(
    base, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["--sweep", "steps=4,8", "--seeds", "3", "--dry-run", "--json"]
    assert main([word for word in command(base, *words) if word not in ("--steps", "4")]) == 0
    shown = capsys.readouterr().out
    assert "steps 4" in shown and "steps 8" in shown and "1,294 images" in shown
    plan = json.loads(shown.splitlines()[-1])["plan"]
    assert [row["steps"] for row in plan["trials"]] == [4, 8]
    assert plan["finals"]["steps"] == 3 * 8 and plan["total"]["steps"] == 4 + 8 + 3 * 8
    assert plan["total"]["seconds"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "3"], "add --sweep"),
        (["--dev-share", "0.1"], "add --sweep"),
        (["--sweep", "recipe", "--sweep", "dropout=0,0.1"], "drop the other"),
        (["--sweep", "recipe"], "the recipe quickstart has no candidates"),
        (["--sweep", "learning-rate=0.1,0.2", "--learning-rate", "0.1"], "leave out one"),
        (["--sweep", "augment.flip=true,false", "--augment.no-flip"], "leave out one"),
        (["--sweep", "epochs=1,2"], "leave out one"),
    ],
)
def test_words_that_contradict_each_other_exit_2(words, said, base, capsys):
    assert main(command(base, *words)) == 2
    assert said in capsys.readouterr().err


def test_minutes_are_for_each_run_and_that_is_said(base):
    config = TrainConfig(minutes=1.5)
    said = opening(open_task("digits"), {"images": 1, "train_images": 2}, [("a", config)], 1)
    assert "1.5 minutes for each run" in said


def test_a_recipes_own_candidates_take_the_words_that_are_given(base, tmp_path, capsys):
    words = ["--recipe", "table4-flowers-pets", "--sweep", "recipe", "--image-size", "8"]
    assert main([*command(base, *words), "--steps", "2", "--out", str(tmp_path / "s")]) == 0
    capsys.readouterr()
    record = saved(tmp_path / "s")
    rates = [row["fields"] for row in record["trials"]]
    assert rates == [{"optimizer.learning_rate": rate} for rate in (0.001, 0.003, 0.01, 0.03)]
    assert record["config"]["steps"] == 2 and record["config"]["batch_size"] == 16
    assert record["config"]["optimizer"]["name"] == "sgd" and record["dev"]["share"] == 0.1
    assert main([*command(base, *words), "--learning-rate", "0.1"]) == 2
    assert "are the same config" in capsys.readouterr().err


def test_a_recipe_says_the_share_of_its_dev_split():
    assert usual_share("table4-cifar") == 0.02 and usual_share("quickstart") == 0.1
