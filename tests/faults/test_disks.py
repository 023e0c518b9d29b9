"""Disks that are full, that fail, and that change what is written on them."""

import random
import shutil
import subprocess

import pytest
import torch
from runs import SLOWLY, Run, check_same_run, records, steps_saved

from vitkit.models.variants import build
from vitkit.training import saving
from vitkit.training.config import TrainConfig
from vitkit.training.parallel import Engine
from vitkit.training.precision import Precision
from vitkit.training.saving import load_state, newest_state, save_state
from vitkit.training.step import fresh_state
from vitkit.training.storage import StateError

pytestmark = pytest.mark.faults


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 16 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    (tmp_path / "notes").mkdir()
    (disk / "run-notes").symlink_to(tmp_path / "notes")  # what the test notes lies elsewhere
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def on_a_full_disk(disk, reference, full, free, fault=None):
    """The disk is full for a save or two; the run goes on, and nothing is lost."""
    filler = str(disk / "filler")
    Run(disk / "run", fault={**SLOWLY, "disk": True, "how": "full", "filler": filler, "full": full,
                             "free": free, **(fault or {})}).done()  # fmt: skip
    check_same_run(disk / "run", reference)


def test_a_disk_that_is_full_for_a_while_costs_nothing(
    small_disk, undisturbed, rounds, long, table
):
    number_of = max(1, rounds // 10) if long else 1
    for number in range(number_of):
        full = 22 + number % 3
        on_a_full_disk(small_disk, undisturbed, full, full + 7)
        shutil.rmtree(small_disk / "run")
        for path in (small_disk / "run-notes").iterdir():
            path.unlink()
    table("a full disk for a save or two", number_of, "told; the run went on, 0 differing bits")


@pytest.mark.usefixtures("long_only")
def test_a_run_that_does_not_bear_a_failed_save_is_found_out(small_disk, undisturbed):
    with pytest.raises(AssertionError, match="No space left"):
        on_a_full_disk(small_disk, undisturbed, 22, 29, fault={"without": "tolerance"})


@pytest.mark.usefixtures("long_only")
def test_a_disk_that_stays_full_ends_the_run_which_goes_on_when_there_is_room(
    small_disk, undisturbed
):
    filler = small_disk / "filler"
    fault = {**SLOWLY, "disk": True, "how": "full", "filler": str(filler), "full": 22}
    run = Run(small_disk / "run", fault=fault)
    assert run.ended() == 1
    said = " ".join(run.words().split())
    assert "cannot be written" in said and "No space left on device" in said
    assert steps_saved(run.out)[0] in (15, 20)  # step 20 was perhaps still being written
    filler.unlink()
    Run(small_disk / "run", resume=True).done()
    check_same_run(small_disk / "run", undisturbed)


def write_that_fails(out, reference, call, rank, fault=None):
    run = Run(
        out, fault={"disk": True, "how": "fsync", "call": call, "rank": rank, **(fault or {})}
    )
    assert "Input/output error" in " ".join(run.done().words().split())
    check_same_run(out, reference)


def test_a_write_that_fails_is_told_and_tried_again_at_the_next_save(
    tmp_path, undisturbed, rounds, long, table
):
    number_of = max(1, rounds // 5) if long else 1
    for number in range(number_of):
        rank, first = number % 2, (6, 2)[number % 2]  # after the save with which a run begins
        call = first + random.Random(number).randint(0, 10)
        write_that_fails(tmp_path / f"{number}", undisturbed, call, rank)
    table("an I/O error in a save of one process", number_of,
          "told; the run went on, 0 differing bits")  # fmt: skip


def test_a_disk_that_takes_no_state_ends_the_run_before_its_first_step(tmp_path):
    run = Run(tmp_path / "run", fault={"disk": True, "how": "fsync", "call": 1, "rank": 1})
    assert run.ended() == 1
    assert "cannot be written: process 1: [Errno 5] Input" in " ".join(run.words().split())
    assert not records(run.out, "train")


@pytest.mark.usefixtures("long_only")
def test_a_run_that_does_not_try_again_is_found_out(tmp_path, undisturbed):
    with pytest.raises(AssertionError, match="exit code 1"):
        write_that_fails(tmp_path / "run", undisturbed, 5, 1, fault={"without": "tolerance"})


def tiny_state(seed=0, steps=3):
    torch.manual_seed(seed)
    engine = Engine(torch.device("cpu"), Precision("fp32", "for a test"), threads=1)
    state = fresh_state(build("ViT-Pico/4", 3, 8), TrainConfig(polyak=0.9), engine)
    for _ in range(steps):
        state.net(torch.randn(2, 3, 8, 8)).square().mean().backward()
        state.optimizer.step()
        state.step += 1
    return state


FILES = ["shard-00000-00000.safetensors", "progress.json", "manifest.json"]


def flip(path, other, draws):
    data = bytearray(path.read_bytes())
    data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    path.write_bytes(data)


def truncate(path, other, draws):
    data = path.read_bytes()
    path.write_bytes(data[: draws.randrange(len(data))])


def zero(path, other, draws):
    data = bytearray(path.read_bytes())
    begin = draws.randrange(0, len(data), 4096)
    block = data[begin : begin + 4096]
    if not any(block):  # zeros already: another block
        return zero(path, other, draws)
    data[begin : begin + len(block)] = bytes(len(block))
    path.write_bytes(data)


def delete(path, other, draws):
    path.unlink()


def exchange(path, other, draws):
    path.write_bytes((other / path.name).read_bytes())


DAMAGES = {flip: 400, truncate: 200, zero: 200, delete: 100, exchange: 100}  # of 1,000


def damaged_states(checkpoints, damage, times, seed=0):
    """Each damage is refused by name before a tensor changes, and the state before is found."""
    state = tiny_state()
    for step in (10, 20):
        state.step = step
        newest = save_state(checkpoints, state)
        tiny_step(state)
    originals = {name: (newest / name).read_bytes() for name in FILES}
    target = tiny_state(seed=1)
    before = torch.cat([p.detach().flatten() for p in target.net.parameters()])
    for number in range(times):
        draws = random.Random(f"{damage.__name__} {seed} {number}")
        name = draws.choices(FILES, [8, 1, 1])[0]
        damage(newest / name, newest.with_name("step-00000010"), draws)
        if not (newest / name).exists() or (newest / name).read_bytes() != originals[name]:
            found, damaged = newest_state(checkpoints)
            assert found is not None and found.name == "step-00000010"
            assert name in damaged[0].problem
            with pytest.raises(StateError, match=name):
                load_state(newest, target)
            now = torch.cat([p.detach().flatten() for p in target.net.parameters()])
            assert torch.equal(before, now)
        (newest / name).write_bytes(originals[name])
    assert newest_state(checkpoints)[0] == newest


def tiny_step(state):
    state.net(torch.randn(2, 3, 8, 8)).square().mean().backward()
    state.optimizer.step()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_by_name_and_the_one_before_is_used(
    damage, tmp_path, rounds, long, table
):
    times = DAMAGES[damage] * rounds // 50 if long else DAMAGES[damage] // 10
    damaged_states(tmp_path, damage, times)
    table(f"a state damaged: {damage.__name__}", times, "refused by name, the one before used")


@pytest.mark.usefixtures("long_only")
def test_states_that_are_not_verified_are_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "problem_with", lambda *given, **named: None)
    with pytest.raises(AssertionError):
        damaged_states(tmp_path, flip, 1)
