"""kill -9 at any time, in every stage of a save, again and again: not a bit is lost."""

import math
import random
import time

import pytest
from runs import SLOWLY, STEPS, Run, check_same_run, steps_saved

from vitkit.training.saving import newest_state, states_in
from vitkit.training.storage import problem_with

pytestmark = pytest.mark.faults

STAGES = [
    "nothing written", "shard half written", "shard unsynced", "shard synced",
    "manifest half written", "not yet renamed", "renamed", "old state half removed",
]  # fmt: skip


def kill_and_resume(out, reference, whom, draws, kills=1, launcher="gpus", fault=None):
    fault = {**SLOWLY, **(fault or {})}
    for number in range(kills):
        run = Run(out, fault=fault, launcher=launcher, resume=number > 0).training()
        time.sleep(draws.uniform(0, 2.5 / kills))
        run.signal(whom)
        run.ended(60)
    Run(out, fault=fault, resume=True).done()
    check_same_run(out, reference)


@pytest.mark.parametrize("whom", [0, 1, "all", "launcher"])
def test_killed_at_a_random_time_it_goes_on_to_the_same_bits(
    whom, tmp_path, undisturbed, rounds, long, table
):
    if not long and whom in (0, "all"):
        pytest.skip("in the long version, --rounds N")
    mine = math.ceil(rounds / 4) if long else 1
    for number in range(mine):
        draws = random.Random(f"{whom} {number}")
        launcher = "torchrun" if long and number % 4 == 3 else "gpus"
        kill_and_resume(tmp_path / f"{number}", undisturbed, whom, draws, launcher=launcher)
    table(f"kill -9 of {named(whom)} at a random time, 2 processes", mine, "0 differing bits")


def named(whom):
    return {"all": "all processes", "launcher": "the launcher"}.get(whom, f"process {whom}")


@pytest.mark.usefixtures("long_only")
def test_killed_five_times_in_an_epoch_it_goes_on_to_the_same_bits(
    tmp_path, undisturbed, rounds, table
):
    chains, kills = max(1, rounds // 5), 5
    for number in range(chains):
        draws = random.Random(f"chain {number}")
        whom = draws.choice([0, 1, "all"])
        launcher = draws.choice(["gpus", None])
        kill_and_resume(tmp_path / f"{number}", undisturbed, whom, draws, kills, launcher)
    table(f"{kills} kills in one epoch", chains, "0 differing bits")


def stop_three(folder, sharding, fault=None):
    words = ["--batch-size", "15", "--sharding", sharding]
    reference = Run(folder / "reference", *words, processes=3, fault=fault).done().out
    stopped = {"stop": True, "batch": 23, "rank": 0, **(fault or {})}
    assert Run(folder / "run", *words, processes=3, fault=stopped).ended() == 143
    Run(folder / "run", *words, processes=3, resume=True, fault=fault).done()
    check_same_run(folder / "run", reference)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_three_processes_go_on_to_the_same_bits(sharding, tmp_path, long, table):
    """Sums of three are rounded by their order, which must be the same after a resume."""
    if not long and sharding == "fsdp":
        pytest.skip("in the long version")
    stop_three(tmp_path, sharding)
    table(f"3 processes with {sharding}, SIGTERM", 1, "0 differing bits")


@pytest.mark.usefixtures("long_only")
def test_three_processes_whose_sums_change_their_order_are_found_out(tmp_path):
    with pytest.raises(AssertionError, match="differ"):
        stop_three(tmp_path, "ddp", fault={"without": "settling"})


@pytest.mark.usefixtures("long_only")
def test_a_run_that_loses_its_place_in_the_data_is_found_out(tmp_path, undisturbed):
    with pytest.raises(AssertionError, match="differ"):
        kill_and_resume(
            tmp_path / "run", undisturbed, "all", random.Random(2), fault={"without": "position"}
        )


def kill_in_save(out, stage, save, rank, processes=2, fault=None):
    """Kill a process in a save -> the newest state that is whole, and those that are there."""
    fault = {"stage": stage, "save": save, "rank": rank, **(fault or {})}
    run = Run(out, fault=fault, processes=processes)
    assert run.ended(120) != 0, "it was not killed"
    checkpoints = out / "checkpoints"
    whole = [folder for folder in states_in(checkpoints) if problem_with(folder) is None]
    assert whole == states_in(checkpoints), "a state is there that is not whole"
    newest = newest_state(checkpoints)[0]
    return 0 if newest is None else int(newest.name[5:])


@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_a_stage_of_a_save_the_old_or_the_new_state_is_whole(
    stage, tmp_path, undisturbed, rounds, long, table
):
    saves = range(3, 3 + max(1, rounds // 10)) if long else [3]
    for save in saves:
        out = tmp_path / f"{save}"
        # The first save is of step 0, the third of step 10; the first removal comes in the third.
        removal = stage == "old state half removed"
        at = 5 * (save - 1) + (10 if removal else 0)
        found = kill_in_save(out, stage, save, rank=save % 2 if long else 0,
                             processes=2 if long else 1)  # fmt: skip
        new = stage in ("renamed", "old state half removed")
        assert found == (at if new else at - 5)
        if long:
            Run(out, resume=True).done()
            check_same_run(out, undisturbed)
    table(f"kill -9 in a save, {stage}", len(saves), "the old or the new state, whole")


@pytest.mark.usefixtures("long_only")
@pytest.mark.parametrize("rank", [0, 1])
def test_killed_in_the_last_save_the_other_process_tells(rank, tmp_path):
    fault = {"stage": "shard unsynced", "save": 1 + STEPS // 5, "rank": rank}
    run = Run(tmp_path / "run", fault=fault)
    assert run.ended() != 0
    assert "another process of the run ended" in " ".join(run.words().split())


@pytest.mark.usefixtures("long_only")
def test_a_state_that_is_written_in_its_place_is_found_out(tmp_path):
    with pytest.raises(AssertionError, match="not whole"):
        kill_in_save(
            tmp_path / "run", "shard half written", 3, 0, processes=1, fault={"without": "rename"}
        )


def test_two_states_are_kept_to_the_end(undisturbed):
    assert steps_saved(undisturbed) == [STEPS, STEPS - 5]
