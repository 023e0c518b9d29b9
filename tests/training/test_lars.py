"""LARS beside a version that is written out, and through steps and states of a run."""

import numpy as np
import pytest
import torch
from test_loop import first_batch, setup, state_of, stream_of

from vitkit.training.config import OptimizerConfig
from vitkit.training.optimizers import make_optimizer
from vitkit.training.saving import load_state, save_state
from vitkit.training.step import train_step

DECAY, RATE = 0.2, 3.0


def linear(dtype=torch.float64):
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2).to(dtype)


def lars(net, decay=DECAY):
    return make_optimizer(net, OptimizerConfig("lars", RATE, decay, momentum=0.9))


def test_it_moves_weights_as_written_out():
    net = linear()
    optimizer = lars(net)
    weight, bias = (p.detach().numpy().copy() for p in (net.weight, net.bias))
    speeds = [np.zeros_like(weight), np.zeros_like(bias)]
    draw = np.random.default_rng(0)
    for _ in range(5):
        of_weight, of_bias = draw.normal(size=(2, 3)), draw.normal(size=2)
        net.weight.grad, net.bias.grad = torch.tensor(of_weight), torch.tensor(of_bias)
        optimizer.step()
        decayed = of_weight + DECAY * weight
        ratio = 0.001 * np.linalg.norm(weight) / np.linalg.norm(decayed)
        speeds = [0.9 * speeds[0] + ratio * decayed, 0.9 * speeds[1] + of_bias]
        weight, bias = weight - RATE * speeds[0], bias - RATE * speeds[1]
    np.testing.assert_allclose(net.weight.detach(), weight, rtol=1e-12)
    np.testing.assert_allclose(net.bias.detach(), bias, rtol=1e-12)


def test_weights_or_gradients_of_zero_are_not_divided_by():
    net = linear()
    torch.nn.init.zeros_(net.weight)
    net.weight.grad, net.bias.grad = torch.ones(2, 3).double(), torch.zeros(2).double()
    before = net.bias.detach().clone()
    lars(net).step()
    assert torch.equal(net.weight, torch.full((2, 3), -RATE).double())  # as SGD from zeros
    assert torch.equal(net.bias, before)
    net.weight.grad = torch.zeros(2, 3).double()
    kept = net.weight.detach().clone()
    lars(net, decay=0.0).step()
    assert torch.equal(net.weight, kept)


def test_without_momentum_nothing_is_kept_beside_the_weights():
    net = linear()
    optimizer = make_optimizer(net, OptimizerConfig("lars", RATE, DECAY, momentum=0.0))
    for _ in range(2):
        weight, gradient = net.weight.detach().clone(), torch.full((2, 3), 0.5).double()
        net.weight.grad, net.bias.grad = gradient.clone(), torch.zeros(2).double()
        optimizer.step()
        decayed = gradient + DECAY * weight
        expected = weight - RATE * 0.001 * weight.norm() / decayed.norm() * decayed
        torch.testing.assert_close(net.weight.detach(), expected)
    assert not optimizer.state_dict()["state"]


def given(**fields):
    return setup(optimizer=OptimizerConfig("lars", weight_decay=0.01), **fields)


def values(state):
    slots = state.optimizer.state_dict()["state"]
    return [*state.net.state_dict().values(), *(slots[n]["momentum_buffer"] for n in sorted(slots))]


def test_a_step_whose_gradient_is_not_finite_changes_nothing():
    run = given()
    state, batch = state_of(run), first_batch(run)
    train_step(run, state, batch, 0.05)
    before = [tensor.clone() for tensor in values(state)]
    broken = state.net.get_submodule("head").register_forward_hook(
        lambda head, inputs, out: out * torch.nan
    )
    train_step(run, state, batch, 0.05)
    assert all(torch.equal(*pair) for pair in zip(values(state), before, strict=True))
    broken.remove()
    train_step(run, state, batch, 0.05)
    assert not torch.equal(values(state)[0], before[0])


@pytest.mark.parametrize("saved_after", [0, 3])
def test_a_resumed_run_has_the_bits_of_one_that_was_never_stopped(tmp_path, saved_after):
    run = given()

    def trained(state, steps):
        batches = stream_of(run).batches(first=state.position)
        for _ in range(steps):
            train_step(run, state, next(batches), 0.05)
            state.step, state.position = state.step + 1, state.position + 1
        batches.close()
        return values(state)

    whole = trained(state_of(run), 6)
    stopped, fresh = state_of(run), state_of(run, seed=1)
    trained(stopped, saved_after)
    load_state(save_state(tmp_path, stopped), fresh)
    again = trained(fresh, 6 - saved_after)
    assert len(whole) == len(again)
    assert all(torch.equal(*pair) for pair in zip(whole, again, strict=True))
