"""A self-training that is killed at any moment goes on with the same command, to the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from runs import DRIVER, TIMED, records, same

import vitkit

pytestmark = pytest.mark.faults

WORDS = [
    "selftrain", "digits", "digits", "--data.subset", "100", "--rounds", "2", "--threshold", "0.1",
    "--device", "cpu", "--precision", "fp32", "--batch-size", "16", "--steps", "20", "--dropout",
    "0.1", "--log-every", "1", "--save-every", "5", "--resume", "auto",
]  # fmt: skip
RUNS, KILLS = 3, 3  # kills in the long version, one in the short one


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "found"
    assert started(out).wait(300) == 0
    return out


def started(out):
    with open(f"{out}-said.txt", "ab") as said:
        return subprocess.Popen(
            [sys.executable, str(DRIVER), *WORDS, "--out", str(out)],
            stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"FAULT": json.dumps({"slow": 0.02})},
        )  # fmt: skip


def stopped(out, lines, number=signal.SIGKILL, moment=0.0):
    """Start or go on, and send a signal once so many lines are logged -> the exit code."""
    process = started(out)
    until = time.monotonic() + 200
    while sum(len(records(path.parent)) for path in out.glob("*/metrics.jsonl")) < lines:
        assert time.monotonic() < until
        if process.poll() is not None:
            break
        time.sleep(0.01)
    time.sleep(moment)
    process.send_signal(number)
    return process.wait(60)


def check_same(out, reference):
    found, expected = (json.loads((o / "selftrain.json").read_text()) for o in (out, reference))
    for record in (found, expected):
        del record["command"]
        for row in record["rounds"]:
            del row["seconds"]
    assert found == expected
    for row in found["rounds"]:
        runs = [o / row["folder"] for o in (out, reference)]
        lines = [[{k: v for k, v in line.items() if k not in TIMED} for line in records(run)]
                 for run in runs]  # fmt: skip
        assert lines[0] == lines[1], row["folder"]
        assert same(*(vitkit.load(run / "last").net.state_dict() for run in runs)), row["folder"]
    for path in reference.glob("pseudo-*.npz"):
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_killed_again_and_again_it_ends_with_the_same_bits(
    undisturbed, tmp_path, rounds, long, table
):
    mine = rounds if long else 1
    for number in range(mine):
        draws = random.Random(f"self-training {number}")
        out = tmp_path / f"{number}"
        for lines in sorted(draws.sample(range(RUNS * 20), KILLS if long else 1)):
            stopped(out, lines, moment=draws.uniform(0, 0.3))
        assert started(out).wait(300) == 0
        check_same(out, undisturbed)
    table(f"{KILLS} times kill -9 of a self-training at a random time", mine, "0 differing bits")


def test_stopped_by_sigterm_in_a_student_it_saves_and_goes_on_to_the_same_bits(
    undisturbed, tmp_path, table
):
    out = tmp_path / "found"
    assert stopped(out, 24 + 8, signal.SIGTERM) == 143
    said = " ".join(out.with_name("found-said.txt").read_text().split())
    assert "round-1/checkpoints/step-" in said and "--resume auto goes on" in said
    assert started(out).wait(300) == 0
    check_same(out, undisturbed)
    table("SIGTERM in a self-training", 1, "saved, 0 differing bits")
