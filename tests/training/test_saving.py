"""Resumable states: whole or absent, verified, kept by twos."""

import pytest
import torch

from vitkit.models.variants import build
from vitkit.training.config import TrainConfig
from vitkit.training.loop import fresh_state
from vitkit.training.parallel import Engine
from vitkit.training.precision import Precision
from vitkit.training.saving import load_state, newest_state, save_state, set_aside
from vitkit.training.storage import MANIFEST, StateError

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
    tensors = newest / "shard-00000.safetensors"
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


def test_a_state_of_another_net_is_refused(tmp_path):
    folder = save_state(tmp_path, trained_state())
    torch.manual_seed(0)
    other = fresh_state(build("ViT-Pico/2", 3, 8), TrainConfig(polyak=0.9), ENGINE)
    with pytest.raises(StateError, match="another net"):
        load_state(folder, other)


def test_half_written_folders_are_not_states(tmp_path):
    (tmp_path / ".step-00000010.abc.tmp").mkdir()
    assert newest_state(tmp_path) == (None, [])
