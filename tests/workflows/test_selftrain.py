"""Self-training on real digits: which pseudo-labels are learned, what leaks, and going on."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vitkit
from small_nets import small_net, vit_config
from vitkit.cli import main
from vitkit.data.checks import DataError
from vitkit.data.facts import DataFacts
from vitkit.data.opening import digits
from vitkit.data.source import ArraySource, Splits, Subset, Without
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError, VitkitError
from vitkit.models.nets import make
from vitkit.prediction.model import Model
from vitkit.recipes.noisy_student import noisy_student
from vitkit.reports.selftraining import rounds_table
from vitkit.training import loop
from vitkit.training.config import DataConfig
from vitkit.workflows import plan, selftrain_record
from vitkit.workflows import selftrain as workflow
from vitkit.workflows.pseudo_labels import balanced, guess, per_class_by, read, save, to_learn
from vitkit.workflows.selftrain_data import open_images

NAMES = [str(digit) for digit in range(10)]
LABELLED, UNLABELLED = 60, 150
FAST = {
    "steps": 12, "batch_size": 16, "evaluate_every": 12, "save_every": 3, "log_every": 1,
    "precision": "fp32",
}  # fmt: skip
WORDS = {"rounds": 2, "threshold": 0.1, "device": "cpu", "quiet": True}
TIMED = ("images_per_second", "data_share", "memory_bytes")


def few_labels():
    """60 labelled digits, 40 held out, and 150 others."""
    found = digits()
    assert found.val is not None
    labelled = Splits(
        "digits", Subset(found.train, np.arange(LABELLED)), Subset(found.val, np.arange(40))
    )
    return labelled, Subset(found.train, np.arange(LABELLED, LABELLED + UNLABELLED))


def trained(out, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that are rare among 60 digits
        return vitkit.selftrain(*few_labels(), out=out, **(WORDS | FAST | more))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("undisturbed") / "found")


def model(seed=0):
    """Ten classes over 8x8 images."""
    net = small_net(vit_config(image_size=(8, 8), classes=10), seed)
    return Model(net, NAMES, Preprocessing.direct((8, 8)))


def pool(count=30):
    return Subset(digits().train, np.arange(count))


# Which images are learned.


def test_of_a_large_class_the_most_certain_are_learned_and_of_a_small_one_all_repeatedly():
    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    confidences = np.array([0.5, 0.9, 0.7, 0.9, 0.4, 0.6, 0.8])
    chosen = balanced(labels, confidences, 3, seed=0)
    assert chosen[:3].tolist() == [1, 2, 3], "those of 0.9, 0.7 and 0.9"
    assert chosen[3:6].tolist() == [4, 4, 4]
    assert sorted(set(chosen[6:].tolist())) == [5, 6] and len(chosen) == 9
    assert balanced(labels, confidences, 2, seed=0).tolist() == [1, 3, 4, 4, 5, 6]
    assert balanced(labels, confidences, None, seed=0).tolist() == list(range(7))


def test_no_image_is_repeated_more_than_ten_times():
    labels = np.array([0] * 40 + [1])
    chosen = balanced(labels, np.linspace(0.4, 0.9, 41), 21, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [21, 10]


def test_images_that_fill_up_a_class_follow_from_the_seed():
    labels, confidences = np.zeros(50, int), np.linspace(0.4, 0.9, 50)
    chosen = [balanced(labels, confidences, 75, seed).tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert np.bincount(chosen[0]).tolist().count(2) == 25, "no image before another's turn"


def test_auto_is_as_many_of_each_class_that_the_student_learns_as_many_as_passed():
    assert per_class_by(np.array([0, 0, 0, 0, 3, 7, 7])) == 3  # 7 images of 3 classes, rounded up


def test_images_above_the_threshold_pass_with_the_nets_own_probabilities():
    found = guess(model(), pool(), NAMES, "soft", 0.3, threads=1)
    told = model().predict([pool().image(i).permute(1, 2, 0).numpy() for i in range(30)], top=10)
    assert [NAMES[label] for label in found.labels] == [p.label for p in told]
    certain = [p.probability for p in told]
    assert found.confidences == pytest.approx(certain, abs=1e-6)
    assert found.passed.tolist() == [i for i, share in enumerate(certain) if share > 0.3]
    assert 0 < len(found.passed) < 30
    assert found.targets.sum(1) == pytest.approx(1, abs=1e-5)
    assert (found.targets.argmax(1) == found.labels[found.passed]).all()


def test_hard_pseudo_labels_are_the_likeliest_classes():
    soft, hard = (guess(model(), pool(), NAMES, kind, 0.3, threads=1) for kind in ("soft", "hard"))
    assert hard.targets.tolist() == hard.labels[hard.passed].tolist()
    assert hard.labels.tolist() == soft.labels.tolist()
    learned = to_learn(pool(), hard, np.array([1, 1]), NAMES)
    assert [learned.target(i) for i in range(2)] == [hard.targets[1]] * 2
    learned = to_learn(pool(), soft, np.array([1, 1]), NAMES)
    assert (learned.target(0) == soft.targets[1]).all()
    assert learned.key(0) == pool().key(int(soft.passed[1]))


def test_a_teacher_that_knows_the_classes_in_another_order_labels_by_name():
    usual = guess(model(), pool(), NAMES, "soft", 0.0, threads=1)
    turned = guess(model(), pool(), NAMES[::-1], "soft", 0.0, threads=1)
    assert (turned.labels == 9 - usual.labels).all()
    assert turned.targets == pytest.approx(usual.targets[:, ::-1], abs=1e-6)


def test_an_image_that_cannot_be_read_has_no_label_and_shifts_no_other():
    class Broken(Subset):
        def image(self, index):
            if index == 7:
                raise OSError(5, "Input/output error")
            return super().image(index)

    whole = guess(model(), pool(), NAMES, "soft", 0.0, threads=1)
    with pytest.warns(UserWarning, match=r"1 unlabelled images cannot be read.*digit"):
        found = guess(model(), Broken(digits().train, np.arange(30)), NAMES, "soft", 0.0, threads=1)
    others = np.arange(30) != 7
    assert found.labels[7] == -1 and 7 not in found.passed
    assert (found.labels[others] == whole.labels[others]).all()


def test_where_no_image_passes_the_error_tells_what_confidences_there_are():
    most = guess(model(), pool(), NAMES, "soft", 0.0, threads=1).confidences.max()
    with pytest.raises(VitkitError, match=rf"none of 30 .* above 0\.999.* 100 % {most:.3f}"):
        guess(model(), pool(), NAMES, "soft", 0.999, threads=1)


def test_a_teacher_whose_answers_are_not_finite_is_named_with_what_to_do():
    broken = model()
    with torch.no_grad():
        next(broken.net.parameters()).fill_(float("nan"))
    with pytest.raises(VitkitError, match=r"round-1 are not finite.*--teacher.*--learning-rate"):
        guess(broken, pool(), NAMES, "soft", 0.3, threads=1, teacher="runs/s/round-1")


def test_pseudo_labels_are_read_back_only_from_the_file_that_was_written(tmp_path):
    found = guess(model(), pool(), NAMES, "soft", 0.3, threads=1)
    sha = save(tmp_path / "pseudo.npz", found)
    assert set(np.load(tmp_path / "pseudo.npz")) == {"labels", "confidences", "passed", "targets"}
    back = read(tmp_path / "pseudo.npz", sha)
    assert back is not None and (back.targets == found.targets).all()
    assert save(tmp_path / "again.npz", found) == sha, "the same bytes at any time"
    data = bytearray((tmp_path / "pseudo.npz").read_bytes())
    data[-100] ^= 1
    (tmp_path / "pseudo.npz").write_bytes(data)
    assert read(tmp_path / "pseudo.npz", sha) is None
    assert read(tmp_path / "nothing.npz", sha) is None


# How nets are trained.


def test_the_noise_is_the_papers_where_images_are_large_enough_and_the_net_has_it():
    config = noisy_student(DataFacts(side=224))
    assert config.model == "EfficientNet-B0"
    assert (config.dropout, config.stochastic_depth) == (0.5, 0.2)
    augment = config.augment
    assert (augment.randaugment_layers, augment.randaugment_magnitude) == (2, 27)
    vit = noisy_student(DataFacts(side=224), "ViT-S/16")
    assert vit.stochastic_depth == 0.2 and vit.dropout < 0.5
    assert noisy_student(DataFacts(side=224), "BiT-R50x1").stochastic_depth == 0
    small = noisy_student(DataFacts(side=8))
    assert small.model == "ViT-Femto/2" and small.augment.randaugment_layers is None


# The rounds.


def test_each_round_is_a_run_and_the_record_says_what_came_of_it(undisturbed):
    record = json.loads((undisturbed.folder / "selftrain.json").read_text())
    assert record == undisturbed.record
    assert [row["folder"] for row in record["rounds"]] == ["round-0", "round-1", "round-2"]
    for row in record["rounds"]:
        run = json.loads((undisturbed.folder / row["folder"] / "config.json").read_text())
        learned = row.get("pseudo", {}).get("learned", 0)
        assert run["data"]["train_images"] == LABELLED + learned
        assert run["data"]["class_names"] == NAMES
        assert row["metrics"]["images"] == 40
    scores = [row["metrics"]["top1"] for row in record["rounds"]]
    assert scores[record["best"]] == max(scores)
    assert undisturbed.best == undisturbed.folder / f"round-{record['best']}"
    assert record["unlabelled"]["images"] == UNLABELLED


def test_labels_and_pseudo_labels_are_weighed_in_students_alone(tmp_path):
    found = trained(tmp_path / "run", rounds=1, steps=2, **{"data.weights": (3.0, 1.0)})
    weights = [json.loads((found.folder / f"round-{n}/config.json").read_text())["config"]["data"]
               ["weights"] for n in (0, 1)]  # fmt: skip
    assert weights == [[], [3, 1]]


def test_the_record_counts_what_passed_what_was_learned_and_what_stayed(undisturbed):
    first, second = (row["pseudo"] for row in undisturbed.rounds[1:])
    for pseudo in (first, second):
        passed, learned = (
            np.array(list(pseudo[f"{name}_of_class"].values())) for name in ("passed", "learned")
        )
        assert passed.sum() == pseudo["passed"] <= UNLABELLED
        alike = -(-passed.sum() // (passed > 0).sum())
        assert (learned == np.minimum(alike, 10 * passed)).all()
        assert learned.sum() == pseudo["learned"] >= pseudo["different"]
    labels = [np.load(undisturbed.folder / f"pseudo-{n}.npz")["labels"] for n in (1, 2)]
    assert first["same_as_before"] is None
    assert second["same_as_before"] == (labels[0] == labels[1]).mean()


def test_a_student_is_labelled_for_by_the_best_net_of_the_round_before(undisturbed):
    images = few_labels()[1]
    teacher = vitkit.load(undisturbed.folder / "round-1")
    found = guess(teacher, images, NAMES, "soft", 0.1, threads=1)
    assert (np.load(undisturbed.folder / "pseudo-2.npz")["targets"] == found.targets).all()


def test_the_page_shows_rounds_classes_and_images(undisturbed):
    page = (undisturbed.folder / "report.html").read_text()
    for words in ("0 teacher", "2 student", "that passed", "ViT-Femto/2", "data:image/jpeg"):
        assert words in page


def test_classes_with_no_image_or_few_are_told_and_the_columns_explained():
    pseudo = {
        "passed": 44, "different": 24, "learned": 33, "same_as_before": None,
        "passed_of_class": {"cat": 40, "dog": 0, "eel": 1, "fox": 3},
        "learned_of_class": {"cat": 15, "dog": 0, "eel": 10, "fox": 15},
    }  # fmt: skip
    metrics = {"top1": 0.5, "loss": 1.0, "images": 9}
    rows = [{"round": 0, "model": "N", "metrics": metrics},
            {"round": 1, "model": "N", "metrics": metrics, "pseudo": pseudo}]  # fmt: skip
    note = rounds_table({"rounds": rows, "best": 0, "threshold": 0.3}).note
    assert "different: each of them counted once" in note
    assert "Round 1: no image passed of dog; few passed, and were repeated, of eel (1 image" in note
    assert "fox" not in note and "cat" not in note and "Round 0" not in note


# Going on.


def nets(folder):
    return {path.parent.parent.name: load_file(path)
            for path in sorted(folder.glob("round-*/last/model.safetensors"))}  # fmt: skip


def check_same(folder, reference):
    found, expected = (json.loads((f / "selftrain.json").read_text()) for f in (folder, reference))
    for record in (found, expected):
        del record["command"]
        for row in record["rounds"]:
            del row["seconds"]
    assert found == expected
    for name, net in nets(reference).items():
        mine = nets(folder)[name]
        assert net.keys() == mine.keys()
        assert all(torch.equal(net[key], mine[key]) for key in net), name
    for number in (1, 2):
        name = f"pseudo-{number}.npz"
        assert (folder / name).read_bytes() == (reference / name).read_bytes()


class Killed(BaseException):
    """Like a signal that cannot be caught: nothing is saved."""


@pytest.mark.parametrize(
    ("where", "name", "call"),
    [
        (loop, "train_step", 20),  # in the middle of the first student
        (workflow, "pretrain", 2),  # when its pseudo-labels are written
        (workflow.pseudo_labels, "save", 2),  # before the second student's are
        (workflow.pseudo_labels, "answers", 5),  # in the middle of making them
    ],
)
def test_killed_anywhere_it_goes_on_to_the_same_bits(
    where, name, call, undisturbed, tmp_path, monkeypatch
):
    calls, usual = [], getattr(where, name)

    def killed(*given, **more):
        calls.append(given)
        if len(calls) == call:
            raise Killed
        return usual(*given, **more)

    monkeypatch.setattr(where, name, killed)
    with pytest.raises(Killed):
        trained(tmp_path / "found")
    monkeypatch.undo()
    trained(tmp_path / "found", resume="auto")
    check_same(tmp_path / "found", undisturbed.folder)


@pytest.fixture
def copied(undisturbed, tmp_path):
    shutil.copytree(undisturbed.folder, tmp_path / "found")
    return tmp_path / "found"


def test_a_finished_one_trains_nothing_again(copied, undisturbed, monkeypatch):
    monkeypatch.delattr(workflow, "pretrain")
    trained(copied, resume="auto")
    check_same(copied, undisturbed.folder)


def test_more_rounds_go_on_where_it_ended(copied, undisturbed):
    found = trained(copied, resume="auto", rounds=3)
    assert len(found.rounds) == 4 and found.rounds[:3] == undisturbed.rounds
    with pytest.raises(UsageError, match="in round 3 already; give --rounds 3"):
        trained(copied, resume="auto")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"threshold": 0.2}, r"--threshold \(0.1 -> 0.2\)"),
        ({"pseudo": "hard"}, r"--pseudo \(soft -> hard\)"),
        ({"per_class": 7}, r"--per-class \(auto -> 7\)"),
        ({"steps": 13}, r"steps \(12 -> 13\)"),
        ({"students": ("ViT-Pico/2",)}, "the nets"),
        ({"data.weights": (1, 2)}, r"data.weights \(\[\] -> \[1, 2\]\)"),
    ],
)
def test_other_words_are_refused(copied, words, said):
    with pytest.raises(UsageError, match=said):
        trained(copied, resume="auto", **words)


def test_other_images_are_refused(copied):
    labelled, images = few_labels()
    with pytest.raises(UsageError, match="differ in the unlabelled images"):
        vitkit.selftrain(labelled, Without(images, [3]), out=copied, resume="auto",
                         **(WORDS | FAST))  # fmt: skip


def test_a_teacher_that_was_exchanged_is_found_out(copied):
    weights = copied / "round-1" / "best" / "model.safetensors"
    weights.write_bytes((copied / "round-0" / "best" / "model.safetensors").read_bytes())
    with pytest.raises(VitkitError, match="round-1"):
        trained(copied, resume="auto")


def test_pseudo_labels_that_were_lost_are_made_again(copied, undisturbed):
    (copied / "pseudo-2.npz").unlink()
    trained(copied, resume="auto")
    check_same(copied, undisturbed.folder)


def test_pseudo_labels_that_cannot_be_made_again_are_told_with_what_to_do(copied):
    path = copied / "selftrain.json"
    record = json.loads(path.read_text())
    record["rounds"][2]["pseudo"]["sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"pseudo-2.npz: was damaged.*differs.*from a backup"):
        trained(copied, resume="auto")


@pytest.mark.parametrize("file", ["best/config.json", "best/model.safetensors", "."])
def test_a_teacher_that_was_lost_is_told_with_what_to_do(copied, file):
    path = copied / "round-0" / file
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UsageError, match=r"round-0: its best net cannot be read.*from a backup"):
        trained(copied, resume="auto")


def altered(record, place, value):
    """The record with another value there; without it where the value is DELETED."""
    *above, last = place
    for name in above:
        record = record[name]
    if value is DELETED:
        del record[last]
    else:
        record[last] = value


DELETED = object()


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (["nets"], DELETED, "it has no nets"),
        (["data", "fingerprint"], DELETED, "data of it has no fingerprint"),
        (["data"], None, "data of it cannot be null"),
        (["config"], [], r"config of it cannot be \[\]"),
        (["rounds"], {}, r"rounds of it cannot be {}"),
        (["rounds", 0, "weights"], DELETED, "round 0 has no weights"),
        (["rounds", 0, "folder"], DELETED, "round 0 has another number or folder"),
        (["rounds", 1, "folder"], 3, "round 1 has another number or folder"),
        (["rounds", 1, "pseudo"], None, "pseudo of round 1 cannot be null"),
        (["rounds", 1, "metrics"], {}, "metrics of round 1 has no top1"),
        (["rounds", 1, "metrics"], DELETED, "round 1 has no metrics"),
        (["rounds", 2, "pseudo", "learned"], DELETED, "pseudo of round 2 has no learned"),
        (["rounds", 2, "pseudo", "learned_of_class", "7"], DELETED, "pseudo of round 2 has no 7"),
        (["rounds", 2, "metrics", "loss"], float("nan"), "loss of metrics of round 2 cannot be"),
        (["rounds", 1], 5, "round 1 cannot be 5"),
    ],
)
def test_a_damaged_record_is_told_to_be(copied, place, value, said):
    path = copied / "selftrain.json"
    record = json.loads(path.read_text())
    altered(record, place, value)
    path.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=rf"selftrain.json: is damaged \({said}.*backup"):
        trained(copied, resume="auto")


def test_a_trained_teacher_outlives_words_with_which_there_are_no_pseudo_labels(tmp_path):
    out = tmp_path / "found"
    labelled, images = few_labels()
    words = WORDS | FAST | {"rounds": 1, "steps": 2, "out": out, "threshold": 0.999}
    with pytest.raises(VitkitError, match="give a lower --threshold"):
        vitkit.selftrain(labelled, images, **words)
    weights = (out / "round-0" / "best" / "model.safetensors").stat()
    listed = tmp_path / "list.txt"
    listed.write_text(f"{images.key(3)}\n")
    words |= {"threshold": 0.0, "pseudo": "hard", "per_class": 3, "resume": "auto"}
    words |= {"data.quarantine": (str(listed),)}
    found = vitkit.selftrain(labelled, images, **words)
    assert (out / "round-0" / "best" / "model.safetensors").stat() == weights
    record = json.loads((out / "selftrain.json").read_text())
    assert (record["threshold"], record["pseudo"], record["per_class"]) == (0.0, "hard", "3")
    assert record["unlabelled"]["images"] == UNLABELLED - 1
    assert found.rounds[1]["pseudo"]["passed"] == UNLABELLED - 1


def test_a_net_that_diverged_is_no_finished_round(tmp_path):
    for resume in (None, "auto"):
        with pytest.raises(VitkitError, match=r"found.round-0: .*diverged.*lower --learning-rate"):
            trained(tmp_path / "found", learning_rate=1e30, resume=resume)
    record = json.loads((tmp_path / "found" / "selftrain.json").read_text())
    assert not record["rounds"]


def test_a_record_is_json_whatever_was_measured(tmp_path):
    selftrain_record.write(tmp_path, {"rounds": [{"loss": float("nan")}]})
    assert json.loads((tmp_path / "selftrain.json").read_text()) == {"rounds": [{"loss": None}]}


# Images and words that cannot be.


def test_held_out_images_among_the_unlabelled_are_named_and_can_be_left_out(tmp_path):
    labelled, images = few_labels()
    assert labelled.val is not None
    pixels = [source.image(i).permute(1, 2, 0).numpy()
              for source, indices in ((images, range(20)), (labelled.val, (3, 5)),
                                      (labelled.train, (1,))) for i in indices]  # fmt: skip
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(mixed / f"{number:02}.png")

    def run(**more):
        return vitkit.selftrain(labelled, mixed, out=tmp_path / "run", **(WORDS | FAST | more))

    with pytest.raises(UsageError, match=r"2 of its images .*20\.png \(held out as digit"):
        run()
    listed = tmp_path / "run-quarantine.txt"
    assert not (tmp_path / "run").exists()
    found = run(rounds=1, **{"data.quarantine": (str(listed),)})
    assert found.record["unlabelled"]["images"] == 20
    assert found.record["unlabelled"]["labelled_too"] == 1
    assert found.record["data"]["held_out_images"] == 40


def test_a_list_may_name_unlabelled_images_but_not_leave_it_open_which(tmp_path):
    labelled, images = few_labels()
    listed = tmp_path / "list.txt"
    key = images.key(4)
    listed.write_text(f"{key}\n")
    config = DataConfig(quarantine=(str(listed),))
    found = open_images(labelled, images, config, tmp_path / "leaks")
    assert len(found.unlabelled) == UNLABELLED - 1
    values = np.arange(20 * 64, dtype=np.uint8).reshape(20, 8, 8)
    labelled = ArraySource(values, [*range(10)] * 2, NAMES)
    others = ArraySource(values[:3] // 2, [0] * 3, NAMES)  # their keys are numbers as well
    listed.write_text("1\n")
    with pytest.raises(UsageError, match="write unlabelled/1 for the latter"):
        open_images(labelled, others, config, tmp_path / "leaks")
    listed.write_text("unlabelled/1\n")
    found = open_images(labelled, others, config, tmp_path / "leaks")
    assert len(found.unlabelled) == 2 and len(found.task.train) + len(found.task.val) == 20


def test_lists_that_leave_out_all_unlabelled_images_are_refused(tmp_path):
    labelled, images = few_labels()
    listed = tmp_path / "list.txt"
    keys = [images.key(index) for index in range(UNLABELLED)]
    listed.write_text("\n".join([*keys[:70], *(f"unlabelled/{key}" for key in keys[70:])]))
    with pytest.raises(DataError, match=f"leave out all {UNLABELLED} unlabelled images"):
        open_images(labelled, images, DataConfig(quarantine=(str(listed),)), tmp_path / "leaks")


def test_labelled_images_of_several_labels_are_refused(tmp_path):
    table = ArraySource(np.zeros((10, 8, 8), np.uint8), np.eye(10, dtype=int), NAMES)
    both = Splits("table", table, table)
    with pytest.raises(UsageError, match="table: its images may have several labels each"):
        open_images(both, few_labels()[1], DataConfig(), tmp_path / "leaks")


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="one process; start it without torchrun"):
        trained(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_unlabelled_images_that_are_all_labelled_already_teach_nothing():
    labelled, _ = few_labels()
    with pytest.raises(UsageError, match="all 60 images are labelled ones"):
        vitkit.selftrain(labelled, labelled.train, **WORDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"rounds": 0}, "--rounds is 0"),
        ({"threshold": 1.0}, "--threshold is 1.0"),
        ({"per_class": "many"}, "--per-class is many"),
        ({"pseudo": "solid"}, "unknown pseudo 'solid'"),
        ({"students": ("ViT-Pico/2",) * 3}, "3 nets are given for the students of 2 rounds"),
        ({"students": ("ViT-Pika/2",)}, "unknown model 'ViT-Pika/2'"),
        ({"recipe": "quickstart"}, "a recipe of its own.*leave out --recipe"),
        ({"objective": "simclr"}, "learns labels.*leave out --objective"),
        ({"masking.rate": 0.5}, "leave out --masking.rate"),
        ({"learning_rat": 1}, "unknown field"),
        ({"data.weights": (1.0,)}, "names 1 shares; give two"),
    ],
)
def test_words_that_cannot_be_are_refused_before_anything_is_made(words, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        trained(tmp_path / "run", **words)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    net = small_net(vit_config(image_size=(8, 8), classes=2))
    stranger = Model(net, ["cat", "dog"], Preprocessing.direct((8, 8)))
    with pytest.raises(UsageError, match="knows 2 classes, and the data have 10"):
        trained(tmp_path / "run", teacher=stranger)


def test_a_teacher_without_a_head_is_told_how_to_become_one(tmp_path):
    net = make(vit_config(image_size=(8, 8), classes=0))
    headless = Model(net, [], Preprocessing.direct((8, 8)))
    with pytest.raises(UsageError, match=r"has no head, so it cannot teach.*vitkit finetune"):
        trained(tmp_path / "run", teacher=headless)


def test_a_given_teacher_is_measured_and_labels_for_the_first_student(tmp_path):
    given = model()
    found = trained(tmp_path / "run", teacher=given, rounds=1, model="ViT-Femto/2")
    assert found.rounds[0]["folder"] is None and found.rounds[0]["metrics"]["images"] == 40
    expected = guess(given, few_labels()[1], NAMES, "soft", 0.1, threads=1)
    assert (np.load(found.folder / "pseudo-1.npz")["targets"] == expected.targets).all()
    with pytest.raises(UsageError, match="differ in the teacher"):
        trained(
            tmp_path / "run", teacher=model(seed=1), rounds=1, model="ViT-Femto/2", resume="auto"
        )


def test_a_given_teacher_with_damaged_weights_is_named_before_it_labels(tmp_path):
    given = model()
    torch.nn.init.constant_(given.net.head.bias, torch.nan)
    with pytest.raises(VitkitError, match=r"held-out images is not finite.*sound checkpoint"):
        trained(tmp_path / "run", teacher=given, students=("ViT-Femto/2",))


def test_a_teacher_of_no_name_needs_students_that_have_one(tmp_path):
    with pytest.raises(UsageError, match=r"is a ViT \(patch 4.*give --student NET"):
        trained(tmp_path / "run", teacher=model())
    assert not (tmp_path / "run").exists()
    words = {"teacher": model(), "rounds": 1, "steps": 2, "students": ("ViT-Femto/2",)}
    found = trained(tmp_path / "run", **words)
    assert found.rounds[1]["model"] == "ViT-Femto/2"


def test_a_student_that_is_smaller_than_its_teacher_is_noted(tmp_path):
    words = WORDS | FAST | {"rounds": 1, "steps": 2, "loss_balance": 0.1}
    with pytest.warns(UserWarning, match="fewer parameters than its teacher ViT-Pico/2"):
        vitkit.selftrain(*few_labels(), out=tmp_path / "run", students=("ViT-Femto/2",),
                         model="ViT-Pico/2", **words)  # fmt: skip


@pytest.fixture
def folders(tmp_path):
    """Digits as files: 60 of them in class folders, 40 in none."""
    source = digits().train
    for index in range(100):
        name = NAMES[source.target(index)] if index < LABELLED else ""
        path = tmp_path / ("labelled" if name else "others") / name / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.image(index).permute(1, 2, 0).numpy()).save(path)
    return tmp_path


def words_for(folders):
    return [
        "selftrain", str(folders / "labelled"), str(folders / "others"), "--rounds", "1",
        "--threshold", "0.1", "--per-class", "9", "--pseudo", "hard", "--steps", "4",
        "--batch-size", "8", "--device", "cpu", "--out", str(folders / "run"),
    ]  # fmt: skip


def test_the_command_tells_every_round_and_what_comes_next(folders, capsys):
    assert main([*words_for(folders), "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    told = json.loads(last)
    assert told["threshold"] == 0.1 and told["per_class"] == "9" and told["pseudo"] == "hard"
    assert told["config"]["steps"] == 4 and told["config"]["batch_size"] == 8
    assert any(line.startswith("1 student  ViT-Femto/2") for line in lines)
    assert lines[-1] == f"Next: vitkit predict {told['best_net']} IMAGES/ -o predictions.csv"


def test_a_dry_run_plans_the_teacher_and_a_student_and_writes_nothing(folders, capsys, monkeypatch):
    monkeypatch.setattr(plan, "probed", lambda *_: 0.5)  # seconds of a step
    assert main([*words_for(folders), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "the teacher, of 54 labelled images:" in said
    assert "a student of all 54 + 90 images:" in said, "9 of each of the classes, with repeats"
    # 4 steps of half a second for each of both nets.
    assert "  2 seconds" in said and "1 rounds, about 4 seconds in all" in said
    assert not (folders / "run").exists()


def test_the_help_offers_nothing_that_is_not_for_students(capsys):
    with pytest.raises(SystemExit):
        main(["selftrain", "--help"])
    said = capsys.readouterr().out
    assert "--optimizer.learning-rate" in said and "docs/selftraining.md" in said
    for option in ("--recipe", "--objective", "--masking.", "--contrastive."):
        assert option not in said
    assert main(["selftrain", "digits", "digits", "--objective", "mae"]) == 2
    assert "learns labels by a recipe of its own" in capsys.readouterr().err


def test_the_command_needs_both_kinds_of_images(capsys):
    assert main(["selftrain", "digits"]) == 2
    assert "needs UNLABELLED" in capsys.readouterr().err
