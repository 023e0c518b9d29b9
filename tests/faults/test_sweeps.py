"""A sweep that is killed at any moment goes on with the same command, to the same bits."""

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
from vitkit.files import write_whole

pytestmark = pytest.mark.faults

SWEEP = [
    "finetune", "digits", "--device", "cpu", "--precision", "fp32", "--batch-size", "16",
    "--steps", "20", "--dropout", "0.1", "--polyak", "0.9", "--log-every", "1", "--save-every", "5",
    "--sweep", "learning-rate=0.01,0.1", "--seeds", "2", "--resume", "auto",
]  # fmt: skip
RUNS, KILLS = 4, 3  # kills in the long version, two in the short one
LINES = RUNS * 20  # at least, in all metrics.jsonl


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    vitkit.pretrain("digits", out=folder, steps=40, batch_size=16, device="cpu", quiet=True)
    return folder


@pytest.fixture(scope="module")
def undisturbed(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "sweep"
    assert started(base, out).wait(300) == 0
    return out


def started(base, out, slow=0.02):
    with open(f"{out}-said.txt", "ab") as said:
        return subprocess.Popen(
            [sys.executable, str(DRIVER), *SWEEP, "--from", str(base), "--out", str(out)],
            stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | {"FAULT": json.dumps({"slow": slow})},
        )  # fmt: skip


def logged(out):
    return sum(len(records(path.parent)) for path in out.glob("*/*/metrics.jsonl"))


def stopped(base, out, lines, number=signal.SIGKILL, moment=0.0):
    """Start or go on, and send a signal once so many lines are logged -> the exit code."""
    process = started(base, out)
    until = time.monotonic() + 200
    while logged(out) < lines and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(moment)
    process.send_signal(number)
    return process.wait(60)


def check_same_sweep(out, reference):
    """That trials, choice, final runs and their nets are those of an undisturbed sweep."""
    found, expected = (json.loads((o / "sweep.json").read_text()) for o in (out, reference))
    for record in (found, expected):
        for row in (*record["trials"], *record["finals"]):
            del row["seconds"]
        del record["command"]
    assert found == expected
    for row in (*found["trials"], *found["finals"]):
        lines = [
            [{k: v for k, v in r.items() if k not in TIMED} for r in records(o / row["folder"])]
            for o in (out, reference)
        ]
        assert lines[0] == lines[1], row["folder"]
    for row in found["finals"]:
        nets = [vitkit.load(o / row["folder"] / "last").net.state_dict() for o in (out, reference)]
        assert same(*nets), row["folder"]


def test_killed_again_and_again_it_ends_with_the_same_bits(
    base, undisturbed, tmp_path, rounds, long, table
):
    mine = rounds if long else 1
    for number in range(mine):
        draws = random.Random(f"sweep {number}")
        out = tmp_path / f"{number}"
        for lines in sorted(draws.sample(range(LINES), KILLS if long else 2)):
            stopped(base, out, lines, moment=draws.uniform(0, 0.3))
        assert started(base, out).wait(300) == 0
        check_same_sweep(out, undisturbed)
    table(f"{KILLS} times kill -9 of a sweep at a random time", mine, "0 differing bits")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_by_a_signal_it_saves_and_goes_on_to_the_same_bits(
    number, code, base, undisturbed, tmp_path, long, table
):
    if not long and number == signal.SIGINT:
        pytest.skip("in the long version, --rounds N")
    out = tmp_path / "sweep"
    assert stopped(base, out, LINES // RUNS + 8, number) == code
    said = " ".join(out.with_name("sweep-said.txt").read_text().split())
    assert "trials/2-learning-rate-0.1/checkpoints/step-" in said
    assert "--resume auto goes on" in said
    assert started(base, out).wait(300) == 0
    check_same_sweep(out, undisturbed)
    table(f"{number.name} in a sweep", 1, "saved, 0 differing bits")


@pytest.mark.usefixtures("long_only")
def test_a_result_that_is_taken_from_another_sweep_is_found_out(base, undisturbed, tmp_path):
    """The negative control: what is compared above can differ."""
    out = tmp_path / "sweep"
    assert started(base, out).wait(300) == 0
    record = json.loads((out / "sweep.json").read_text())
    record["trials"][0]["score"] += 1e-9
    write_whole(out / "sweep.json", json.dumps(record))
    with pytest.raises(AssertionError):
        check_same_sweep(out, undisturbed)
