"""SIGTERM, once or twice, whenever it comes; processes and loaders that die or hang."""

import random
import re
import signal
import time
from pathlib import Path

import pytest
from runs import SLOWLY, STEPS, Run, check_same_run, records, steps_saved

pytestmark = pytest.mark.faults

LIMIT = 10.0  # seconds from the signal to the end of all, the state saved
WHEN = {
    "training": {},
    "an evaluation": {"slow_evaluation": 2.0},  # of two batches in each process
    "a save": {"slow_save": 1.5},
}


def stop(out, whom, when, twice, delay, fault=None, launcher="gpus"):
    """Send SIGTERM -> the seconds until all had ended; the last step is saved."""
    fault = {**SLOWLY, **WHEN[when], **(fault or {})}
    run = Run(out, fault=fault, launcher=launcher).training()
    if when == "an evaluation":
        until_step(run, 20)
    time.sleep(delay)
    began = time.monotonic()
    run.signal(whom, signal.SIGTERM)
    if twice:
        time.sleep(0.3)
        run.signal(whom, signal.SIGTERM)
    code = run.ended(60)
    taken = time.monotonic() - began
    assert code in (143, -15) or (launcher == "torchrun" and code), (
        run.words()
    )  # -15: by the second, at the end
    assert taken <= LIMIT, f"{taken:.1f} seconds"
    assert run.words().count("--resume auto") == 1
    done = max((r["step"] for r in records(out, "train")), default=0)
    assert steps_saved(out)[:1] == [done], "steps are lost"
    return taken


def until_step(run, step):
    while not any(r["step"] == step for r in records(run.out, "train")):
        assert all(p.poll() is None for p in run.processes), run.words()
        time.sleep(0.02)


CASES = [
    ("everyone", "training", True),
    ("launcher", "an evaluation", False),
    (1, "a save", False),
    ("all", "an evaluation", True),
    (0, "training", False),
    ("launcher", "a save", True),
]


def test_sigterm_saves_the_last_step_and_ends_all_within_seconds(
    tmp_path, undisturbed, rounds, long, table
):
    longest, number_of = 0.0, max(1, rounds * 2 // 5) if long else 3
    for number in range(number_of):
        whom, when, twice = CASES[number % len(CASES)]
        draws, out = random.Random(number), tmp_path / f"{number}"
        launcher = "torchrun" if long and number % 5 == 4 else "gpus"
        taken = stop(out, whom, when, twice, draws.uniform(0, 1), launcher=launcher)
        longest = max(longest, taken)
        if long or number == 1:
            Run(out, fault=SLOWLY, resume=True).done()
            check_same_run(out, undisturbed)
    table(
        "SIGTERM, once or twice, to one, all or the launcher, in training, evaluation and saves",
        number_of, f"0 steps lost, ended within {longest:.1f} s, then 0 differing bits",
    )  # fmt: skip


@pytest.mark.usefixtures("long_only")
def test_a_run_that_does_not_listen_to_sigterm_is_found_out(tmp_path):
    with pytest.raises(AssertionError):
        stop(tmp_path / "run", "everyone", "training", False, 0.5, fault={"without": "signals"})


def stop_slowly(out, fault=None):
    """SIGTERM where the old states, which the first process removes, are large."""
    run = Run(out, fault={"slow": 0.1, "slow_rotation": 10.0, **(fault or {})}, launcher="gpus")
    until_step(run.training(), 8)
    run.signal("launcher", signal.SIGTERM)
    assert run.ended(60) == 143
    assert "stopped by SIGTERM, the state saved" in " ".join(run.words().split())


@pytest.mark.usefixtures("long_only")
def test_a_process_that_still_removes_old_states_is_waited_for(tmp_path):
    stop_slowly(tmp_path / "run")


@pytest.mark.usefixtures("long_only")
def test_a_process_that_is_not_waited_for_is_found_out(tmp_path):
    with pytest.raises(AssertionError, match="stopped by SIGTERM"):
        stop_slowly(tmp_path / "run", fault={"without": "waiting"})


def orphan(out, early, fault=None):
    """The launcher is killed, perhaps while the others still start -> they stop and save."""
    run = Run(out, fault={"slow": 0.3, **(fault or {})}, launcher="gpus")
    if early:
        while len(starting(run.processes[0].pid)) < 2:
            time.sleep(0.02)
        time.sleep(0.5)  # until they have read what they are to do
        assert not run.ranks()
    else:
        until_step(run.training(), 5)
    run.processes[0].kill()
    until = time.monotonic() + 60
    while len(run.ranks()) < 2:
        assert time.monotonic() < until, run.words()
        time.sleep(0.02)
    run.ended(30)
    done = max((r["step"] for r in records(out, "train")), default=0)
    assert steps_saved(out)[:1] == [done]
    assert done < STEPS, "the others went on alone"


def starting(launcher):
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.parametrize("early", [False, True])
def test_when_the_launcher_is_killed_the_others_stop_and_save(early, tmp_path, table):
    orphan(tmp_path / "run", early)
    when = "while the others start" if early else "while they train"
    table(f"kill -9 of the launcher {when}", 1, "they stopped, the last step saved")


@pytest.mark.usefixtures("long_only")
def test_processes_that_do_not_miss_their_launcher_are_found_out(tmp_path):
    with pytest.raises(AssertionError, match="went on alone"):
        orphan(tmp_path / "run", early=True, fault={"without": "launcher"})


ENDED = 30.0  # seconds from a death or a hang to the end of all processes


def disturb(out, how, rank, batch=30, fault=None):
    """A process dies or hangs -> the seconds until all had ended, each with its stacks."""
    hangs = {"hang": True, "how": how, "rank": rank, "batch": batch} if how != "dead" else {}
    patience = ["--patience", "5"] if how == "asleep" else []
    run = Run(out, *patience, fault={**SLOWLY, **hangs, **(fault or {})}, launcher="gpus")
    run.training()
    if how == "dead":
        until_step(run, batch)
        run.signal(rank)
    else:
        until_step(run, batch - 1)
    began = time.monotonic()
    code = run.ended(ENDED)
    taken = time.monotonic() - began
    assert code != 0
    if how != "dead":
        # A process that is stopped cannot tell where it is, one that sleeps can.
        why = "no step and no" if how == "asleep" else "sign of life|have not answered"
        tellers = 2 if how == "asleep" else 1
        assert len(re.findall(why, run.words())) >= tellers, run.words()
        # One after the other, though both tell at the same time.
        stack = r"Thread .+:\n(?:  .+\n)+"
        told = re.findall(rf"its threads:\n{stack}(?:\n{stack})*", run.words())
        assert sum('driver.py", line' in stacks for stacks in told) >= tellers, run.words()
    return taken


HOWS = ["stopped", "dead", "asleep", "holding the GIL"]


def test_when_a_process_dies_or_stops_all_end_within_thirty_seconds(
    tmp_path, undisturbed, rounds, long, table
):
    longest, number_of = 0.0, max(1, rounds * 3 // 5) if long else 3
    for number in range(number_of):
        out = tmp_path / f"{number}"
        how, draws = HOWS[number % 4], random.Random(number)
        taken = disturb(out, how, draws.choice([0, 1]), batch=draws.randint(10, 40))
        longest = max(longest, taken)
        if number in (0, 9, 19):
            Run(out, fault=SLOWLY, resume=True).done()
            check_same_run(out, undisturbed)
    table("a process dies, is stopped, sleeps or holds the GIL", number_of,
          f"all ended within {longest:.1f} s, with stacks where one hung")  # fmt: skip


@pytest.mark.usefixtures("long_only")
def test_a_run_whose_processes_do_not_look_after_each_other_is_found_out(tmp_path):
    with pytest.raises(AssertionError, match="not ended"):
        disturb(tmp_path / "run", "stopped", 1, fault={"without": "heartbeats"})


def loader(out, how, patience="4", fault=None):
    fault = {"loader": True, "how": how, "image": 300, **(fault or {})}
    began = time.monotonic()
    run = Run(out, "--patience", patience, "--data.keep", "none", fault=fault, processes=1)
    code = run.ended(ENDED)
    assert code == 1, run.words()
    return run, time.monotonic() - began


def test_a_loader_that_hangs_ends_the_run_with_its_stacks(tmp_path, rounds, table):
    for number in range(max(1, rounds // 10)):
        run, _ = loader(tmp_path / f"{number}", "hangs")
        assert "no step and no evaluated batch in 4 seconds" in run.words()
        assert 'driver.py", line' in run.words()  # where it hangs
        assert steps_saved(run.out)
    table("a loader hangs, patience 4 seconds", max(1, rounds // 10), "ended with stacks")


def test_a_loader_that_dies_ends_the_run_with_its_words(tmp_path, rounds, table):
    for number in range(max(1, rounds // 10)):
        run, _ = loader(tmp_path / f"{number}", "dies")
        assert "the loader died" in run.words()
    table("a loader dies", max(1, rounds // 10), "ended with its words")


@pytest.mark.usefixtures("long_only")
def test_a_run_that_bears_whatever_its_loader_does_is_found_out(tmp_path):
    with pytest.raises(AssertionError, match="step 60/60"):
        loader(tmp_path / "run", "dies", fault={"without": "strictness"})


@pytest.mark.usefixtures("long_only")
def test_a_run_with_endless_patience_is_found_out(tmp_path):
    with pytest.raises(AssertionError, match="not ended"):
        loader(tmp_path / "run", "hangs", patience="0")


def test_the_end_of_a_run_is_not_disturbed(undisturbed):
    assert [r["step"] for r in records(undisturbed, "train")] == list(range(1, STEPS + 1))
