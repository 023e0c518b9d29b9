"""Numbers that go wrong: NaN and infinity, loss spikes, memory that does not suffice."""

import json
import random
from pathlib import Path

import pytest
import torch
from runs import STEPS, Run, check_same_data, records, same, tensors_in

from vitkit.training.saving import newest_state, states_in

pytestmark = pytest.mark.faults


def final(out):
    return tensors_in(newest_state(Path(out) / "checkpoints")[0])


def spoil(out, fault, *words):
    """A run with a bad number -> its final state; no state of it is poisoned."""
    run = Run(out, *words, fault=fault)
    code = run.ended(120)
    for folder in states_in(Path(out) / "checkpoints"):
        for name, tensor in tensors_in(folder).items():
            assert torch.isfinite(tensor.float()).all(), f"{folder.name} is poisoned: {name}"
    assert code == 0, run.words()
    skipped = [r["step"] for r in records(out, "skipped")]
    assert skipped == [fault["batch"] + 1]
    assert [r["step"] for r in records(out, "train")] == list(range(1, STEPS + 1))
    return final(out)


def bad_numbers(draws):
    return {
        "batch": draws.randint(3, STEPS - 1),
        "value": draws.choice(["nan", "inf", "-inf"]),
        "where": draws.choice(["loss", "gradient"]),
        "part": draws.choice([0, 1]),
    }


def test_a_bad_number_in_one_process_is_skipped_by_all(tmp_path, rounds, long, table):
    """Whichever process it was in, the same step is left out, and nothing else differs."""
    pairs = max(1, rounds // 2) if long else 1
    for number in range(pairs):
        fault = bad_numbers(random.Random(number))
        finals = [
            spoil(tmp_path / f"{number}-{rank}", fault | {"rank": rank}, "--accumulation", "2")
            for rank in (0, 1)
        ]
        assert same(*finals), fault
    table("NaN or infinity in a loss or gradient of one process", 2 * pairs,
          "the same step skipped by all, no state poisoned")  # fmt: skip


@pytest.mark.usefixtures("long_only")
def test_a_run_that_does_not_hold_back_is_found_out(tmp_path):
    fault = {"batch": 30, "value": "nan", "where": "loss", "rank": 1, "without": "hold"}
    with pytest.raises(AssertionError, match="poisoned"):
        spoil(tmp_path / "run", fault)


@pytest.mark.usefixtures("long_only")
def test_too_many_bad_numbers_end_the_run_with_the_weights_of_before(tmp_path):
    run = Run(tmp_path / "run", "--guard.skipped-steps", "0", "--log-every", "7",
              fault={"batch": 30, "value": "nan", "where": "loss", "rank": 1})  # fmt: skip
    assert run.ended() == 1
    assert run.words().count("gradients were not finite, more than the 0 tolerated") == 1
    resumed = Run(tmp_path / "run", "--guard.skipped-steps", "0", resume=True)
    resumed.done()  # without what went wrong it goes on


# Dropout would differ, since the draws follow from the place in the data.
SPIKY = ["--dropout", "0", "--evaluate-every", "60"]


def spike(out, reference, batch, of, *words):
    """A batch brings a loss spike -> all is as if it, and those since the state, never were."""
    Run(out, *SPIKY, *words, fault={"batch": batch, "of": of}).done()
    rewinds = records(out, "rewind")
    assert len(rewinds) == 1, f"{len(rewinds)} rewinds"
    begin, end = rewinds[0]["left_out"]
    assert begin <= batch <= end and begin == rewinds[0]["step"]
    Run(reference, *SPIKY, *words, fault={"leave_out": [begin, end]}).done()
    assert same(final(out), final(reference)), "the weights differ"
    found, expected = (
        [(r["step"], r["loss"], r["gradient_norm"]) for r in records(o, "train")]
        for o in (out, reference)
    )
    assert found == expected, "the losses differ"


def test_a_loss_spike_takes_the_run_back_and_past_the_batches(tmp_path, rounds, long, table):
    number_of = max(1, rounds * 2 // 5) if long else 1
    for number in range(number_of):
        batch = random.Random(number).randint(20, STEPS - 2)
        spike(tmp_path / f"{number}", tmp_path / f"{number}-expected", batch, "loss")
    table("a batch whose loss is 10,000 times as large", number_of,
          "taken back, the batches left out and logged, 0 differing bits")  # fmt: skip


@pytest.mark.usefixtures("long_only")
def test_a_run_that_does_not_look_for_spikes_is_found_out(tmp_path):
    with pytest.raises(AssertionError, match="0 rewinds"):
        spike(tmp_path / "a", tmp_path / "b", 40, "loss", "--guard.spike-factor", "0")


@pytest.mark.usefixtures("long_only")
def test_spikes_without_end_end_the_run(tmp_path):
    run = Run(tmp_path / "run", *SPIKY, "--guard.rewinds", "0", fault={"batch": 40, "of": "loss"})
    assert run.ended() == 1
    assert run.words().count("the run was taken back 0 time(s) before") == 1


def starve(out, reference, batch, fault=None):
    Run(out, "--dropout", "0", fault={"oom": True, "batch": batch, **(fault or {})},
        processes=1).done()  # fmt: skip
    losses = [{r["step"]: r["loss"] for r in records(o, "train")} for o in (out, reference)]
    # The halves of a batch add up in another order; Adam makes more of that with each step.
    for step in range(1, min(STEPS, batch + 20) + 1):
        assert losses[0][step] == pytest.approx(losses[1][step], rel=1e-6 if step <= batch + 1
                                                else 1e-4)  # fmt: skip
    parts = json.loads((newest_state(out / "checkpoints")[0] / "progress.json").read_text())
    assert parts["parts"] == 2
    check_same_data(out, reference)


def test_memory_that_does_not_suffice_halves_the_parts_of_the_same_batch(
    tmp_path, rounds, long, table
):
    reference = Run(tmp_path / "reference", "--dropout", "0", processes=1).done().out
    number_of = max(1, rounds // 5) if long else 1
    for number in range(number_of):
        starve(tmp_path / f"{number}", reference, random.Random(number).randint(0, STEPS - 1))
    table("out of memory at a random step, 1 process", number_of,
          "the same batch in smaller parts")  # fmt: skip


@pytest.mark.usefixtures("long_only")
def test_a_run_that_does_not_halve_is_found_out(tmp_path):
    with pytest.raises(AssertionError):
        starve(tmp_path / "run", tmp_path, 30, fault={"without": "halving"})


def starve_one_of_several(out, fault=None):
    run = Run(out, fault={"oom": True, "batch": 30, "rank": 1, **(fault or {})})
    assert run.ended(30) != 0
    assert "--accumulation 2 --resume auto" in " ".join(run.words().split())
    Run(out, "--accumulation", "2", resume=True).done()


@pytest.mark.usefixtures("long_only")
def test_memory_that_does_not_suffice_in_one_of_several_ends_all_with_the_remedy(tmp_path):
    starve_one_of_several(tmp_path / "run")


@pytest.mark.usefixtures("long_only")
def test_memory_that_does_not_suffice_while_buckets_settle_ends_all_with_the_remedy(tmp_path):
    fault = {"oom": "at once", "rank": 1}
    run = Run(tmp_path / "run", "--batch-size", "15", processes=3, fault=fault)
    assert run.ended(30) != 0
    assert "--accumulation 2 --resume auto" in " ".join(run.words().split())


@pytest.mark.usefixtures("long_only")
def test_a_run_of_several_that_does_not_know_its_want_of_memory_is_found_out(tmp_path):
    with pytest.raises(AssertionError, match="--accumulation 2"):
        starve_one_of_several(tmp_path / "run", fault={"without": "halving"})
