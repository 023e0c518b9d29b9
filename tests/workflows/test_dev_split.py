"""The images that hyper-parameters are chosen by."""

import json

import numpy as np
import pytest

from vitkit.data.checks import DataError
from vitkit.data.opening import digits, held_out
from vitkit.data.source import ArraySource, Splits
from vitkit.errors import UsageError
from vitkit.workflows.dev_split import dev_split, write_split
from vitkit.workflows.task import Task, open_task


def images(counts, val=True):
    """A task with so many images of each class; the first pixel of each is its number."""
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.zeros((len(labels), 4, 4), np.uint8)
    pixels[:, 0, 0] = np.arange(len(labels)) % 256
    names = [f"c{number}" for number in range(len(counts))]
    train = ArraySource(pixels, labels, names, "photos")
    return Task(train, ArraySource(pixels, labels, names), "photos", val_given=val)


def places(source, whole):
    keys = {whole.key(index): index for index in range(len(whole))}
    return [keys[source.key(index)] for index in range(len(source))]


def test_it_is_a_share_of_every_class_and_the_rest_is_trained_on():
    task = images([40, 20, 60])
    trial = dev_split(task, 0.1)
    assert np.bincount(trial.val.labels).tolist() == [4, 2, 6]
    dev, rest = places(trial.val, task.train), places(trial.train, task.train)
    assert sorted(dev + rest) == list(range(120)), "each image is in one of them"


def test_it_is_the_same_every_time_and_known_by_its_fingerprint():
    task = images([40, 20, 60])
    one, two, other = dev_split(task, 0.1), dev_split(task, 0.1), dev_split(task, 0.2)
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert one.held_out_fingerprint == two.held_out_fingerprint != other.held_out_fingerprint
    assert one.fingerprint != task.fingerprint


def test_the_images_to_validate_on_have_no_part_in_it():
    splits = digits()
    wrong = ArraySource(np.zeros((2, 8, 8), np.uint8), [0, 1], splits.train.class_names)
    right, other = (open_task(Splits("d", splits.train, val)) for val in (splits.val, wrong))
    assert dev_split(right, 0.1).held_out_fingerprint == dev_split(other, 0.1).held_out_fingerprint


def test_where_data_has_none_to_validate_on_the_tenth_held_out_is_not_in_it(tmp_path):
    source = digits().train
    task = open_task(source)
    trial = dev_split(task, 0.1)
    measured = set(places(held_out(source, "d").val, source))
    dev, rest = (set(places(part, source)) for part in (trial.val, trial.train))
    assert not measured & dev and not measured & rest and not dev & rest
    assert len(measured | dev | rest) == len(source)
    write_split(tmp_path, task, trial, 0.1)
    recorded = json.loads((tmp_path / "split.json").read_text())
    assert set(recorded["held_out"]) == measured
    assert {task.train.key(index) for index in recorded["dev"]} == {source.key(i) for i in dev}
    assert recorded["fingerprint"] == task.fingerprint


def test_classes_that_have_no_dev_image_are_named_with_the_share_that_would_do():
    task = images([100, 100, 4, 100, 5])
    with pytest.raises(UsageError) as error:
        dev_split(task, 0.02)
    said = str(error.value)
    assert "2 of 5 classes" in said and "c2, c4" in said and "in the dev split" in said
    share = float(said.rsplit("--dev-share ", 1)[1])
    assert 0.02 < share <= 0.25
    assert set(dev_split(task, share).val.labels) == {0, 1, 2, 3, 4}


def test_a_class_of_one_image_cannot_be_in_both_and_that_is_said():
    with pytest.raises(DataError, match=r"1 of 3 classes.*c1.*no share would do, since c1 has"):
        dev_split(images([50, 1, 50]), 0.1)


def test_a_class_without_any_image_is_no_fault_of_the_split():
    task = images([50, 0, 50])
    assert set(dev_split(task, 0.1).val.labels) == {0, 2}


def test_of_several_labels_each_is_in_both_parts_or_it_is_said():
    table = np.zeros((60, 3), bool)
    table[:, 0] = True
    table[:30, 1] = True
    table[7, 2] = True  # beside the others, on one image alone
    pixels = np.zeros((60, 4, 4), np.uint8)
    task = Task(ArraySource(pixels, table, ["a", "b", "c"]), images([1]).val, "photos", True)
    with pytest.raises(DataError, match=r"1 of 3 classes.* c; no share would do"):
        dev_split(task, 0.1)
    table[7, 2] = False
    table[:20, 2] = True
    task = Task(ArraySource(pixels, table, ["a", "b", "c"]), images([1]).val, "photos", True)
    trial = dev_split(task, 0.1)
    assert trial.val.labels.sum(axis=0).min() >= 1
    assert len(trial.val) == pytest.approx(6, abs=1)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UsageError, match="above 0 and below 1"):
        dev_split(images([10, 10]), share)
