"""Whole runs that learn from a teacher on real digits: resumed, refused, shared, planned."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import vitkit
from vitkit.cli import main
from vitkit.data.opening import digits
from vitkit.data.source import ArraySource, Splits
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError
from vitkit.models import cost
from vitkit.models.variants import config
from vitkit.objectives.settings import DistillationConfig
from vitkit.prediction.model import Model
from vitkit.training.config import TrainConfig
from vitkit.training.memory import memory
from vitkit.workflows.teaching import teacher_of

NAMES = [str(n) for n in range(10)]
FAST = {"model": "ViT-Femto/2", "image_size": 8, "pooling": "token", "steps": 4, "batch_size": 8,
        "evaluate_every": 2, "save_every": 2, "quiet": True, "device": "cpu", "precision": "fp32",
        "threads": 0}  # fmt: skip
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def some_digits(first, count, shift=0):
    """Real digits; with a shift each is called by another name."""
    source = digits().train
    chosen = range(first, first + count)
    images = np.stack([source.image(i).permute(1, 2, 0).numpy() for i in chosen])
    labels = [(int(source.labels[i]) + shift) % 10 for i in chosen]
    return ArraySource(images, labels, NAMES)


@pytest.fixture(scope="module")
def data():
    return Splits("few digits", some_digits(0, 40), some_digits(40, 20))


def a_teacher(folder, seed=0, names=NAMES):
    """A convolutional one of larger images, normalised in another way."""
    torch.manual_seed(seed)
    net = vitkit.build("BiT-R14x1", len(names), 16)
    torch.nn.init.normal_(net.head.weight)
    Model(net, names, Preprocessing((16, 16), **IMAGENET)).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return a_teacher(tmp_path_factory.mktemp("teacher") / "bit")


def weights(run):
    return vitkit.load(run / "last").net.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_a_run_keeps_the_student_and_records_the_teacher(data, teacher, tmp_path):
    words = FAST | {"distillation.teacher": teacher, "distillation.token": True}
    run = vitkit.pretrain(data, out=tmp_path / "run", **words)
    net = run.model.net
    assert net.config == replace(net.config, distillation_token=True, width=64)
    assert net.head.weight.any() and net.head_distillation.weight.any()  # of zeros at first
    assert not any(name.startswith("net.") for name in net.state_dict())
    assert vitkit.evaluate(run.folder, data.val)["metrics"]["loss"] == pytest.approx(
        run.metrics["loss"], rel=1e-4
    )
    recorded = json.loads((run.folder / "config.json").read_text())["teacher"]
    assert recorded["checkpoint"] == teacher and len(recorded["weights_sha256"]) == 64
    assert run.model.provenance["teacher"] == recorded


def test_with_a_share_of_1_no_label_is_learned(data, teacher, tmp_path):
    wrong = Splits("wrong digits", some_digits(0, 40, shift=3), data.val)
    words = FAST | {"distillation.teacher": teacher, "distillation.targets": "soft",
                    "distillation.temperature": 2.0}  # fmt: skip
    for share, alike in ((1.0, True), (0.9, False)):
        runs = [
            vitkit.pretrain(some, out=tmp_path / "run", **words, **{"distillation.share": share})
            for some in (data, wrong)
        ]
        assert same(*(weights(run.folder) for run in runs)) == alike


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_run_goes_on_from_its_middle_to_the_same_bits(kind, data, teacher, tmp_path):
    words = {**FAST, "distillation.teacher": teacher, "dropout": 0.1, "polyak": 0.5,
             "augment.mixup": 0.5, "label_smoothing": 0.1}  # fmt: skip
    base = Model(vitkit.build("ViT-Femto/2", 3, 8), ["a", "b", "c"], Preprocessing((8, 8)))

    def train(out, **more):
        if kind == "pretrain":
            return vitkit.pretrain(data, out=out, **words, **{"distillation.token": True}, **more)
        return vitkit.finetune(data, base, out=out, **words, **more)

    run = train(tmp_path / "run")
    before = weights(run.folder)
    for name in ("checkpoints/step-00000004", "last", "best"):
        shutil.rmtree(run.folder / name)
    assert same(weights(train(run.folder, resume="auto").folder), before)
    words["distillation.share"] = 0.4
    assert not same(weights(train(tmp_path / "other").folder), before)


def test_class_weights_beside_a_teacher_are_refused():
    with pytest.raises(UsageError, match=r"loss_balance weights.*or no teacher"):
        TrainConfig(loss_balance=0.5, distillation=DistillationConfig(teacher="runs/base"))


def test_a_run_goes_on_with_the_same_teacher_wherever_it_is_and_no_other(data, tmp_path):
    teacher, other = a_teacher(tmp_path / "one"), a_teacher(tmp_path / "other", seed=1)
    shutil.copytree(teacher, tmp_path / "moved")
    out = tmp_path / "run"
    vitkit.pretrain(data, out=out, **FAST, **{"distillation.teacher": teacher})
    again = {**FAST, "out": out, "resume": "auto"}
    vitkit.pretrain(data, **again, **{"distillation.teacher": str(tmp_path / "moved")})
    for words in ({"distillation.teacher": other}, {}):
        with pytest.raises(UsageError, match="another config: the teacher's weights"):
            vitkit.pretrain(data, **again, **words)


def test_the_teachers_classes_may_come_in_another_order(teacher, tmp_path):
    net = vitkit.load(teacher).net
    backwards = tmp_path / "backwards"
    Model(net, NAMES[::-1], Preprocessing((16, 16), **IMAGENET)).save(backwards)
    images, kept = torch.rand(2, 3, 8, 8), Preprocessing((8, 8))
    straight, other = (
        teacher_of(DistillationConfig(str(each)), NAMES, kept)(images)
        for each in (teacher, backwards)
    )
    torch.testing.assert_close(other, straight.flip(1))


def test_classes_of_imagenet_are_known_by_any_of_their_names(tmp_path):
    a_teacher(tmp_path / "it", names=["tench", "goldfish"])
    found = teacher_of(
        DistillationConfig(str(tmp_path / "it")), ["n01443537", "n01440764"], Preprocessing((8, 8))
    )
    assert found.order.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([*NAMES[:-1], "nine"], r"10 classes, and the data have 10.*number 9, are its 'nine' and "
         r"the data's '9'"),
        (NAMES[:9], r"9 classes, and the data have 10.*number 9, are its None and the data's '9'"),
        ([], "has no head, so it cannot teach"),
    ],
)  # fmt: skip
def test_a_teacher_of_other_classes_is_refused(names, said, data, tmp_path):
    net = vitkit.build("ViT-Femto/2", len(names), 8)
    Model(net, names, Preprocessing((8, 8))).save(tmp_path / "teacher")
    words = FAST | {"distillation.teacher": str(tmp_path / "teacher")}
    with pytest.raises(UsageError, match=said):
        vitkit.pretrain(data, out=tmp_path / "run", **words)
    assert not (tmp_path / "run").exists()


def test_settings_without_a_teacher_are_refused(data, tmp_path):
    words = {"distillation.token": True, "distillation.share": 0.3}
    with pytest.raises(
        UsageError, match=r"share is 0.3 and distillation.token is True, but there is no teacher"
    ):
        vitkit.pretrain(data, out=tmp_path / "run", **FAST, **words)
    assert not (tmp_path / "run").exists()


def test_a_token_is_refused_where_the_net_has_none(data, teacher, tmp_path):
    words = FAST | {"distillation.teacher": teacher, "distillation.token": True}
    with pytest.raises(UsageError, match="BiT-R14x1 has no distillation token; leave it out"):
        vitkit.pretrain(data, out=tmp_path / "run", **words | {"model": "BiT-R14x1"})
    with pytest.raises(UsageError, match="the net of this checkpoint has no such token"):
        base = Model(vitkit.build("ViT-Femto/2", 2, 8), ["a", "b"], Preprocessing((8, 8)))
        vitkit.finetune(data, base, out=tmp_path / "run", **words)


def test_a_sigmoid_loss_is_refused(data, teacher, tmp_path):
    with pytest.raises(UsageError, match=r"learned by a softmax.*give --loss softmax"):
        vitkit.pretrain(
            data, out=tmp_path / "run", **FAST, loss="sigmoid", **{"distillation.teacher": teacher}
        )


WORDS = ["pretrain", "digits", "--device", "cpu", "--precision", "fp32", "--batch-size", "16",
         "--model", "ViT-Femto/2", "--pooling", "token", "--distillation.token"]  # fmt: skip


@pytest.mark.parametrize("sharding", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_make_the_run_of_one(sharding, teacher, tmp_path):
    words = [*WORDS, "--distillation.teacher", teacher, "--steps", "4"]
    assert main([*words, "--out", str(tmp_path / "alone")]) == 0
    command = [sys.executable, "-m", "vitkit", *words, "--gpus", "2", "--sharding", sharding]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "two")], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    one, two = (weights(tmp_path / name) for name in ("alone", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


def test_a_dry_run_plans_for_the_teacher_and_writes_nothing(teacher, tmp_path, capsys):
    words = [*WORDS, "--steps", "4", "--out", str(tmp_path / "run"), "--dry-run", "--json"]
    assert main([*words, "--distillation.teacher", teacher]) == 0
    (first, *_) = json.loads(capsys.readouterr().out.splitlines()[-1])["plan"]["memory"]
    student = config("ViT-Femto/2", 10, 8, distillation_token=True)
    both = cost.parameters(student) + cost.parameters(vitkit.load(teacher).net.config)
    assert first["weights"] == pytest.approx(4 * both, rel=1e-3)
    assert not (tmp_path / "run").exists()
    assert main(words) == 2  # the token without a teacher


def test_what_the_teacher_computes_is_planned_for_and_gone_before_the_net_computes():
    student, small = (config("ViT-Femto/2", 10, side) for side in (16, 8))
    large = config("BiT-R50x1", 10, 64)
    alone, *taught = (
        memory(student, TrainConfig(), batch=16, teacher=each).activations
        for each in (None, small, large)
    )
    assert taught[0] == pytest.approx(alone, rel=0.02)
    assert taught[1] > alone


def test_deits_recipe_waits_for_a_teacher(data, teacher, tmp_path):
    words = {name: value for name, value in FAST.items() if name != "pooling"}
    words |= {"any_net": True, "batch_size": 12}
    with pytest.raises(UsageError, match=r"no teacher; give --distillation.teacher CHECKPOINT"):
        vitkit.pretrain(data, "deit-distilled", out=tmp_path / "run", **words)
    run = vitkit.pretrain(
        data, "deit-distilled", out=tmp_path / "run", **words, **{"distillation.teacher": teacher}
    )
    assert run.model.net.config.distillation_token
