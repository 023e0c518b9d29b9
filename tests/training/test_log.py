"""metrics.jsonl: lines that survive a full disk, and are cut back to a state."""

import json

import pytest

from vitkit.training.log import RunLog, headline, told


@pytest.fixture
def log(tmp_path):
    return RunLog(tmp_path / "metrics.jsonl", 100, quiet=True)


def steps(log):
    return [json.loads(line)["step"] for line in log.path.read_text().splitlines()]


def test_it_is_cut_back_to_the_bytes_of_a_state(log):
    log.record(1, "train", {"loss": 2.0})
    at_state = log.size()
    log.record(2, "train", {"loss": float("nan")})
    assert steps(log) == [1, 2] and json.loads(log.path.read_text().splitlines()[1])["loss"] is None
    log.cut_back(at_state, 1)
    log.record(3, "train", {"loss": 1.0})
    assert steps(log) == [1, 3]


@pytest.mark.parametrize("lost", [1, 10, 30])
def test_half_a_line_is_dropped(log, lost):
    for step in (1, 2):
        log.record(step, "train", {"loss": 2.0})
    size = log.size()
    log.path.write_bytes(log.path.read_bytes()[:-lost])  # a machine lost its power
    log.cut_back(size, 2)
    log.record(3, "train", {"loss": 1.0})
    assert steps(log) == [1, 3]


def test_lines_that_lie_in_the_place_of_lost_ones_are_dropped(log):
    for step in (1, 2):
        log.record(step, "train", {"loss": 2.0})
    size = log.size()
    log.path.write_bytes(log.path.read_bytes()[: size // 2])  # the second was never written
    log.record(3, "train", {"loss": 1.0})  # of a run that went on from step 2, and was killed
    log.cut_back(size, 2)
    assert steps(log) == [1]


def test_lines_wait_for_a_disk_that_is_full_and_lose_nothing(log, monkeypatch):
    said = []
    monkeypatch.setattr(log, "say", said.append)
    log.record(1, "train", {})
    path = log.path
    log.path = path.parent / "no such folder" / "metrics.jsonl"  # nothing can be written
    log.record(2, "train", {})
    log.record(3, "train", {})
    assert len(said) == 1 and "kept for later" in said[0]
    log.path = path
    log.record(4, "train", {})
    assert steps(log) == [1, 2, 3, 4]


def test_what_waits_is_written_at_the_end_at_the_latest(log):
    path = log.path
    with log:
        log.path = path.parent / "no such folder" / "metrics.jsonl"
        log.record(1, "train", {})
        log.path = path
    assert steps(log) == [1]


def test_what_waits_is_cut_back_as_well(log):
    log.record(1, "train", {})
    path = log.path
    log.path = path.parent / "no such folder" / "metrics.jsonl"
    log.record(2, "train", {})
    waiting = len(log.unwritten)
    log.path = path
    at_state = log.size()
    log.path = path.parent / "no such folder" / "metrics.jsonl"
    log.record(3, "train", {})
    log.path = path
    log.cut_back(at_state, 2)
    assert len(log.unwritten) == waiting
    log.record(4, "train", {})
    assert steps(log) == [1, 2, 4]


def test_without_a_path_nothing_is_written(tmp_path):
    log = RunLog(None, 100, quiet=True)
    log.record(1, "train", {})
    assert log.size() == 0 and list(tmp_path.iterdir()) == []


def test_nets_that_learn_without_labels_are_compared_by_their_loss_and_few_shot_is_told():
    found = {"loss": 0.53211, "few_shot": 0.2431, "feature_spread": 0.5}
    assert headline(found) == ("negative loss", -0.53211)
    assert told(found) == "loss 0.5321, few-shot top-1 24.3%"
    assert told({"loss": 0.53211, "feature_spread": 0.5}) == "loss 0.5321"
    assert told({"loss": 0.1, "top1": 0.5}) == "top-1 50.0%"
