"""Resumable states: whole or absent, verified, kept by twos."""

import errno
import json
import math
import os
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from vitkit.files import sync
from vitkit.models.variants import build
from vitkit.training import saving, storage
from vitkit.training.config import TrainConfig
from vitkit.training.parallel import Engine
from vitkit.training.precision import Precision
from vitkit.training.saving import (
    Saver,
    load_state,
    newest_state,
    rotate,
    save_state,
    set_aside,
    states_in,
)
from vitkit.training.step import fresh_state
from vitkit.training.storage import (
    MANIFEST,
    StateError,
    problem_with,
    seal,
    write_state,
)

ENGINE = Engine(torch.device("cpu"), Precision("fp32", "for a test"), threads=1)


def trained_state(seed=0, steps=3, **config):
    torch.manual_seed(seed)
    state = fresh_state(build("ViT-Pico/4", 3, 8), TrainConfig(polyak=0.9, **config), ENGINE)
    for _ in range(steps):
        state.net(torch.randn(2, 3, 8, 8)).square().mean().backward()
        state.optimizer.step()
        state.update_average(0.9)
        state.step += 1
    return state


def everything(state):
    slots = state.optimizer.state_dict()["state"]
    return {
        **{f"net {k}": t for k, t in state.net.state_dict().items()},
        **{f"average {k}": t for k, t in state.average.items()},
        **{f"optimizer {i} {k}": t for i, slot in slots.items() for k, t in slot.items()},
    }


def test_a_loaded_state_is_bit_for_bit_the_saved_one(tmp_path):
    saved = trained_state()
    saved.best = {"top1": 0.4}
    folder = save_state(tmp_path, saved)
    fresh = trained_state(seed=1, steps=0)
    load_state(folder, fresh)
    assert (fresh.step, fresh.best) == (3, {"top1": 0.4})
    expected, found = everything(saved), everything(fresh)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_two_states_are_kept_and_the_newest_is_found(tmp_path):
    state = trained_state()
    for step in (10, 20, 30):
        state.step = step
        save_state(tmp_path, state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000030"]
    assert newest_state(tmp_path)[0].name == "step-00000030"


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "no manifest"])
def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, damage):
    state = trained_state()
    for step in (10, 20):
        state.step = step
        newest = save_state(tmp_path, state)
    tensors = newest / "shard-00000-00000.safetensors"
    data = bytearray(tensors.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        tensors.write_bytes(data)
    elif damage == "cut":
        tensors.write_bytes(data[:-1])
    else:
        (tensors if damage == "delete" else newest / MANIFEST).unlink()
    found, damaged = newest_state(tmp_path)
    assert found.name == "step-00000010"
    assert "step-00000020" in damaged[0].problem
    with pytest.raises(StateError, match="step-00000020"):
        load_state(newest, trained_state(seed=1))
    assert "it is now damaged-step-00000020" in set_aside(damaged)[0]
    assert newest_state(tmp_path)[1] == []  # it lies aside now, and the step is saved anew
    assert newest_state(save_state(tmp_path, state).parent)[0].name == "step-00000020"


def test_a_state_of_many_shards_is_loaded_and_verified_like_one(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SHARD_BYTES", 20_000)
    saved, fresh = trained_state(), trained_state(seed=1, steps=0)
    folder = save_state(tmp_path, saved)
    shards = sorted(folder.glob("*.safetensors"))
    sizes = [sum(t.nbytes for t in load_file(shard).values()) for shard in shards]
    largest = max(t.nbytes for t in everything(saved).values())
    assert 5 < len(shards) < len(everything(saved)) and max(sizes) <= max(largest, 20_000)
    assert sum(sizes) == sum(t.nbytes for t in everything(saved).values())
    load_state(folder, fresh)
    expected, found = everything(saved), everything(fresh)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    shards[3].write_bytes(shards[2].read_bytes())
    assert shards[3].name in problem_with(folder)
    shards[3].unlink()
    assert f"{shards[3]}: missing" == problem_with(folder)


def test_a_save_that_fails_in_its_third_shard_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SHARD_BYTES", 20_000)
    state, synced = trained_state(), []
    before = save_state(tmp_path, state)
    state.step += 1

    def failing(path):
        synced.append(path)
        if len(synced) == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "sync", failing)
        with pytest.raises(StateError, match="Input/output error"):
            save_state(tmp_path, state)
    assert len(synced) == 3 and list(tmp_path.iterdir()) == [before]
    assert newest_state(save_state(tmp_path, state).parent)[0].name == "step-00000004"


def test_a_state_of_one_shard_by_an_older_version_is_loaded(tmp_path):
    saved, fresh = trained_state(), trained_state(seed=1, steps=0)
    folder = save_state(tmp_path, saved)
    (folder / "shard-00000-00000.safetensors").rename(folder / "shard-00000.safetensors")
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"]
    files = manifest["files"]
    files["shard-00000.safetensors"] = files.pop("shard-00000-00000.safetensors")
    (folder / MANIFEST).write_text(json.dumps(manifest | {"sha256": seal(manifest)}))
    load_state(folder, fresh)
    expected, found = everything(saved), everything(fresh)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_state_of_another_net_is_refused(tmp_path):
    folder = save_state(tmp_path, trained_state())
    torch.manual_seed(0)
    other = fresh_state(build("ViT-Pico/2", 3, 8), TrainConfig(polyak=0.9), ENGINE)
    with pytest.raises(StateError, match="another net"):
        load_state(folder, other)


def test_half_written_folders_are_not_states(tmp_path):
    (tmp_path / ".step-00000010.abc.tmp").mkdir()
    assert newest_state(tmp_path) == (None, [])


OPERATIONS = st.lists(
    st.sampled_from(["save", "damage newest", "damage older", "half a state", "stuck"]),
    min_size=1, max_size=8,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(OPERATIONS)
def test_whatever_happens_the_two_newest_whole_states_are_kept(operations):
    """`stuck` is an old state that cannot be removed at the next save."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, step, stuck, trusted = Path(folder), 0, False, {}
        for operation in operations:
            whole = [f for f in states_in(checkpoints) if problem_with(f) is None]
            if operation == "save":
                step += 1
                fresh = checkpoints / f"step-{step:08d}"
                stamps = write_state(fresh, {"a": torch.ones(3)}, {"a"}, {"step": step})
                with monkeypatched(stuck):
                    rotate(checkpoints, fresh, trusted)
                trusted = stamps
                stuck = False
                left = [f for f in states_in(checkpoints) if problem_with(f) is None]
                assert left[:2] == [fresh, *whole][:2]
            elif operation == "half a state":
                (checkpoints / f".step-{step + 1:08d}.abc.tmp").mkdir(exist_ok=True)
                (checkpoints / f"step-{step + 1000:08d}").mkdir(exist_ok=True)
            elif operation == "stuck":
                stuck = True
            elif whole:
                state = whole[0 if operation == "damage newest" else -1]
                (state / "shard-00000-00000.safetensors").write_bytes(b"")


def saves_and_hashes(folder, monkeypatch):
    """(save a step -> the states there then, the shards that were hashed, in turn)."""
    hashed, facts_of = [], storage.facts_of

    def noted(path):
        if path.suffix == ".safetensors":
            hashed.append(path.parent.name)
        return facts_of(path)

    monkeypatch.setattr(storage, "facts_of", noted)
    saver, state = Saver(folder), trained_state()

    def save(step):
        state.step = step
        saver.begin(state)
        assert saver.finish() is None
        hashed[:] = [name for name in hashed if not name.startswith(".")]  # of its own
        return [folder.name for folder in states_in(folder)]

    return save, hashed


def test_a_state_that_was_just_hashed_is_hashed_again_where_somebody_touched_it(
    tmp_path, monkeypatch
):
    """A second hash a minute costs a run much; without it a flipped bit must not pass."""
    save, hashed = saves_and_hashes(tmp_path, monkeypatch)
    assert [save(1), save(2), save(3)][-1] == ["step-00000003", "step-00000002"]
    assert hashed == []
    shard = tmp_path / "step-00000003" / "shard-00000-00000.safetensors"
    before, content = shard.stat(), bytearray(shard.read_bytes())
    content[-1] ^= 1
    time.sleep(0.05)  # the clock of file systems moves in steps
    shard.write_bytes(content)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert save(4) == ["step-00000004", "step-00000003", "step-00000002"]
    assert hashed == ["step-00000003", "step-00000002"]


def test_a_file_that_was_touched_while_it_was_hashed_is_hashed_again(tmp_path, monkeypatch):
    save, hashed = saves_and_hashes(tmp_path, monkeypatch)
    facts_of = storage.facts_of

    def touched(path):
        facts = facts_of(path)
        time.sleep(0.05)
        path.touch()
        return facts

    monkeypatch.setattr(storage, "facts_of", touched)
    assert save(1) and save(2) == ["step-00000002", "step-00000001"]
    assert hashed == ["step-00000001"]


def test_once_in_five_minutes_a_state_is_read_back_before_an_older_one_goes(tmp_path, monkeypatch):
    """What a disk does to a file changes none of its stamps."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(saving, "time", clock)
    save, hashed = saves_and_hashes(tmp_path, monkeypatch)
    for step in range(1, 14):
        save(step)
        clock.now += 60.0
    assert hashed == ["step-00000005", "step-00000010"]


@contextmanager
def monkeypatched(stuck):
    with pytest.MonkeyPatch.context() as patch:
        if stuck:
            patch.setattr(Path, "rename", lambda *given: (_ for _ in ()).throw(OSError("stuck")))
        yield


@pytest.mark.parametrize("content", [b"[]", b"1", b"{" * 10**5, b"\x00", b'{"sha256": 3}'])
def test_a_manifest_of_anything_is_damage(tmp_path, content):
    folder = save_state(tmp_path, trained_state())
    (folder / MANIFEST).write_bytes(content)
    assert "manifest.json: damaged" in problem_with(folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"files": None}, "names no files"),
        ({"files": {"../../secret": {}}}, "outside its folder"),
        ({"files": {"shard-00000-00000.safetensors": 3}}, "names no files"),
        ({"step": "3"}, "is the manifest of step 3"),
        ({"step": 4}, "is the manifest of step 4"),
        ({"files": {"absent": {"bytes": 1}}}, "does not belong to this state"),
    ],
)
def test_a_sealed_manifest_may_lie(tmp_path, change, problem):
    folder = save_state(tmp_path, trained_state())
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"]
    manifest |= change
    (folder / MANIFEST).write_text(json.dumps(manifest | {"sha256": seal(manifest)}))
    assert problem in problem_with(folder)


@pytest.mark.parametrize(("speed", "patient"), [(1.0, True), (math.inf, False)])
def test_waiting_for_a_disk_calls_beat_as_long_as_a_slow_one_takes(
    tmp_path, monkeypatch, speed, patient
):
    """The watchdog must not end a run whose states are large, and must where the disk hangs."""
    original, beats = storage.save_file, []
    monkeypatch.setattr(saving, "SLOW_DISK", speed)
    monkeypatch.setattr(storage, "save_file", lambda *a, **k: (time.sleep(2.5), original(*a, **k)))
    saver = Saver(tmp_path, beat=lambda: beats.append(time.monotonic()))
    saver.begin(trained_state())
    assert saver.finish() is None
    assert len(beats) >= 2 if patient else not beats


def test_a_manifest_that_cannot_be_read_now_is_no_damage(tmp_path, monkeypatch):
    folder = save_state(tmp_path, trained_state())
    original = Path.open

    def failing(self, *given, **named):
        if self.name == MANIFEST:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return original(self, *given, **named)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(StateError, match=r"manifest.json: cannot be read \(Input/output error\)"):
        newest_state(tmp_path)
    monkeypatch.undo()
    assert newest_state(tmp_path) == (folder, [])


def test_a_state_is_saved_while_the_weights_go_on(tmp_path, monkeypatch):
    """What is written is what was there when the save began."""
    go_on = threading.Event()
    original = storage.save_file
    monkeypatch.setattr(storage, "save_file", lambda *a, **k: (go_on.wait(), original(*a, **k))[1])
    state, saver = trained_state(), Saver(tmp_path)
    expected = {name: tensor.clone() for name, tensor in everything(state).items()}
    saver.begin(state)
    with torch.no_grad():
        for parameter in state.net.parameters():
            parameter.add_(1)
    go_on.set()
    assert saver.finish() is None
    fresh = trained_state(seed=1, steps=0)
    load_state(tmp_path / "step-00000003", fresh)
    found = everything(fresh)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
