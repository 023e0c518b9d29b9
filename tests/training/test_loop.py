"""One training step, and the loop around it."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from vitkit.data.crops import RandomCrop
from vitkit.data.opening import digits
from vitkit.data.pipeline import Batch, TrainingStream
from vitkit.data.transforms import Preprocessing
from vitkit.models.variants import build
from vitkit.objectives.supervised import cross_entropy
from vitkit.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from vitkit.training.log import RunLog
from vitkit.training.loop import Training, learning_rates
from vitkit.training.parallel import Engine
from vitkit.training.precision import Precision
from vitkit.training.saving import load_state, newest_state
from vitkit.training.step import (
    Diverged,
    Setup,
    check_changed,
    check_finite,
    fresh_state,
    train_step,
)
from vitkit.training.stopping import Interrupted
from vitkit.training.timing import steps_in

ENGINE = Engine(torch.device("cpu"), Precision("fp32", "for a test"), threads=1)


def setup(steps=10, engine=ENGINE, **fields):
    fields = {"batch_size": 16, "image_size": (8, 8), "threads": 0, "polyak": 0.9, **fields}
    config = TrainConfig(model="ViT-Pico/4", **fields)
    return Setup(config, steps, engine, Preprocessing.direct((8, 8)))


def state_of(given, seed=0):
    torch.manual_seed(seed)
    config = given.config
    net = build(
        "ViT-Pico/4", 10, 8, dropout=config.dropout, stochastic_depth=config.stochastic_depth
    )
    torch.nn.init.normal_(net.head.weight, std=0.1)  # a head of zeros hides what comes before it
    return fresh_state(net, given.config, given.engine)


def stream_of(given):
    crop = RandomCrop((8, 8), flip=False)
    return TrainingStream(digits().train, crop, given.config.batch_size, 0, threads=0)


def first_batch(given) -> Batch:
    batches = stream_of(given).batches()
    batch = next(batches)
    batches.close()
    return batch


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def average(state):
    return torch.cat([p.flatten() for p in state.average.values()])


@pytest.mark.parametrize("parts", [2, 3, 16])
def test_accumulated_parts_move_the_weights_as_the_whole_batch_does(parts):
    whole, divided = setup(), setup(accumulation=parts)
    a, b = state_of(whole), state_of(divided)
    loss_a, norm_a = train_step(whole, a, first_batch(whole), 0.0)
    loss_b, norm_b = train_step(divided, b, first_batch(whole), 0.0)
    torch.testing.assert_close(loss_a, loss_b)
    torch.testing.assert_close(norm_a, norm_b, rtol=1e-4, atol=0)
    for p, q in zip(a.net.parameters(), b.net.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6)


def test_the_gradient_is_clipped_to_the_global_norm():
    given = setup(optimizer=OptimizerConfig(clip_norm=0.01))
    state = state_of(given)
    _, norm = train_step(given, state, first_batch(given), 1e-3)
    clipped = torch.cat([p.grad.flatten() for p in state.net.parameters()]).norm()
    assert norm > 0.02
    assert float(clipped) == pytest.approx(0.01, rel=1e-3)


def test_a_step_moves_each_layer_by_its_own_learning_rate():
    moved = {}
    for decay in (1.0, 0.5):
        optimizer = OptimizerConfig("sgd", weight_decay=0.0, layer_decay=decay)
        given = setup(optimizer=optimizer, polyak=0.0)
        state = state_of(given)
        before = {name: p.detach().clone() for name, p in state.net.named_parameters()}
        train_step(given, state, first_batch(given), 0.1)
        moved[decay] = {n: p.detach() - before[n] for n, p in state.net.named_parameters()}
    for name, share in (("head.weight", 1), ("blocks.3.mlp.dense1.weight", 0.5),
                        ("blocks.0.mlp.dense1.weight", 0.5**4),
                        ("patch_embedding.weight", 0.5**5)):  # fmt: skip
        torch.testing.assert_close(moved[0.5][name], share * moved[1.0][name], rtol=2e-3, atol=1e-7)


def test_no_clipping_when_the_norm_is_zero():
    given = setup(optimizer=OptimizerConfig(clip_norm=0.0))
    state = state_of(given)
    _, norm = train_step(given, state, first_batch(given), 1e-3)
    left = torch.cat([p.grad.flatten() for p in state.net.parameters()]).norm()
    torch.testing.assert_close(left, norm, rtol=1e-3, atol=0)


def test_a_gradient_that_is_not_finite_changes_nothing_and_too_many_end_the_run():
    given = setup()
    state = state_of(given)
    with torch.no_grad():
        state.net.head.bias[0] = float("nan")
    before = weights(state.net)
    kept = average(state)
    for _ in range(3):
        train_step(given, state, first_batch(given), 1e-3)
    assert torch.equal(weights(state.net).nan_to_num(), before.nan_to_num())
    assert torch.equal(average(state), kept)
    assert not state.optimizer.state
    check_finite(state, 3)
    with pytest.raises(Diverged, match="3 gradients were not finite, more than the 2"):
        check_finite(state, 2)
    state.step = 3
    with pytest.raises(Diverged, match="not one of the 3 steps had a finite gradient"):
        check_changed(state)
    state.step = 4
    check_changed(state)  # one was


def test_the_polyak_average_is_the_exponential_mean_of_the_weights():
    given = setup()
    state = state_of(given)
    expected = None
    for _ in range(3):
        train_step(given, state, first_batch(given), 1e-2)
        state.step += 1
        now = weights(state.net)
        expected = now if expected is None else 0.9 * expected + 0.1 * now
    torch.testing.assert_close(average(state), expected)
    with state.averaged() as net:
        torch.testing.assert_close(weights(net), expected)
    assert torch.equal(weights(state.net), now)
    assert torch.equal(state.evaluated()["head.weight"], state.average["head.weight"])


@pytest.mark.parametrize("dropped", [{"dropout": 0.3}, {"stochastic_depth": 0.5}])
def test_what_is_dropped_depends_on_seed_and_position_alone(dropped):
    given = setup(**dropped)
    losses = []
    for noise in (1, 2):
        state = state_of(given)
        torch.manual_seed(noise)
        state.position = 5
        losses.append(train_step(given, state, first_batch(given), 0.0)[0])
    assert torch.equal(*losses)
    state = state_of(given)
    state.position = 6
    assert not torch.equal(losses[0], train_step(given, state, first_batch(given), 0.0)[0])


def test_warm_up_is_a_share_of_the_steps_or_a_number_of_them():
    share = learning_rates(setup(steps=100, schedule=ScheduleConfig(warmup_share=0.2)))
    number = learning_rates(setup(steps=100, schedule=ScheduleConfig(warmup_steps=50)))
    assert share(0) == 0 and share(20) == pytest.approx(1e-3)
    assert number(25) == pytest.approx(0.5e-3)


def test_stairs_are_shares_of_the_steps_and_none_leave_the_learning_rate_as_it_is():
    def rates(**words):
        schedule = ScheduleConfig("stairs", warmup_steps=0, **words)
        rate = learning_rates(setup(steps=10, schedule=schedule))
        return [rate(step) / 1e-3 for step in range(10)]

    assert rates() == pytest.approx(4 * [1] + 3 * [0.1] + 3 * [0.01])
    assert rates(stairs=(0.5, 0.8)) == pytest.approx(6 * [1] + 3 * [0.1] + [0.01])
    assert rates(stairs=()) == pytest.approx(10 * [1])


def test_training_lowers_the_loss_on_real_digits_and_logs_each_evaluation(tmp_path):
    given = setup(steps=60, evaluate_every=20, batch_size=64, polyak=0.0)
    state, kept = state_of(given), []
    data = first_batch(setup(batch_size=256))

    def evaluate(net, pulse=lambda: None):
        net.eval()
        with torch.no_grad():
            logits = net((data.images.float() - 127.5) / 127.5)
        loss = float(cross_entropy(logits, data.labels))
        return {"top1": float((logits.argmax(1) == data.labels).float().mean()), "loss": loss}

    before = evaluate(state.net)["loss"]
    with RunLog(tmp_path / "metrics.jsonl", 60, quiet=True) as log:
        Training(given, state, stream_of(given), evaluate, lambda: kept.append(state.step), log,
                 tmp_path / "checkpoints").to_the_end()  # fmt: skip
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    evaluations = [r for r in records if r["kind"] == "evaluation"]
    assert [r["step"] for r in evaluations] == [20, 40, 60]
    assert evaluations[-1]["loss"] < 0.9 * before
    assert kept and state.best["top1"] == max(r["top1"] for r in evaluations)
    steps = [r["step"] for r in records if r["kind"] == "train"]
    assert steps[-1] == 60


def test_an_evaluation_that_a_stop_prevented_is_made_up_on_resume(tmp_path):
    given = setup(steps=4, evaluate_every=2, batch_size=4)
    state, evaluated = state_of(given), []

    def evaluate(net, pulse):
        evaluated.append(state.step)
        return {"top1": 0.5, "loss": 1.0}

    class StoppingStream(TrainingStream):
        def batches(self, first=0):
            for number, batch in enumerate(super().batches(first), first + 1):
                if number == 2 and first == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    stream = stream_of(given)
    stream.__class__ = StoppingStream
    with RunLog(tmp_path / "metrics.jsonl", 4, quiet=True) as log:
        arguments = (given, state, stream, evaluate, lambda: None, log, tmp_path / "checkpoints")
        with pytest.raises(Interrupted):
            Training(*arguments).to_the_end()
        assert (state.step, evaluated) == (2, [])
        Training(*arguments).to_the_end()
    assert evaluated == [2, 4]


def test_a_time_budget_becomes_steps_without_touching_the_state():
    given = setup()
    state = state_of(given)
    before, norms = weights(state.net), state.step
    short = steps_in(20, given, state.net, state.forward, stream_of(given), held_out=0)
    assert short > 1
    assert torch.equal(weights(state.net), before) and state.step == norms
    assert not state.optimizer.state


# Early stopping


def run_of(given, folder, values, state=None):
    """A run whose evaluations find these shares, one after another -> (state, its records)."""
    state, found = state or state_of(given), iter(values)
    path = folder / "metrics.jsonl"
    with RunLog(path, given.steps, quiet=True) as log:

        def evaluate(net, pulse):
            return {"top1": next(found), "loss": 1.0}

        arguments = (given, state, stream_of(given), evaluate, lambda: None, log)
        Training(*arguments, folder / "checkpoints").to_the_end()
    return state, [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_ends_after_so_many_evaluations_in_a_row_without_a_better_one(tmp_path):
    given = setup(steps=40, evaluate_every=2, batch_size=4, early_stopping=3)
    state, records = run_of(given, tmp_path, [0.5, 0.4, 0.4, 0.6, 0.6, 0.1, 0.5])
    assert state.step == 14 and state.best["top1"] == 0.6
    assert [r["step"] for r in records if r["kind"] == "early_stop"] == [14]
    assert newest_state(tmp_path / "checkpoints")[0].name == "step-00000014"


def test_a_run_whose_evaluations_get_better_again_in_time_goes_to_its_end(tmp_path):
    given = setup(steps=8, evaluate_every=2, batch_size=4, early_stopping=2)
    state, records = run_of(given, tmp_path, [0.5, 0.4, 0.6, 0.5])
    assert state.step == 8 and not [r for r in records if r["kind"] == "early_stop"]


def test_what_was_counted_before_a_stop_counts_after_it(tmp_path):
    given = setup(steps=40, evaluate_every=2, batch_size=4, early_stopping=3)
    run_of(given, tmp_path, [0.5, 0.4, 0.4, 0.4])
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000008")
    state = state_of(given)
    load_state(newest_state(tmp_path / "checkpoints")[0], state)
    assert (state.step, state.without_better) == (6, 2)
    state, records = run_of(given, tmp_path, [0.4], state)
    assert state.step == 8
    assert [r["step"] for r in records if r["kind"] == "evaluation"] == [2, 4, 6, 8]
    state, again = run_of(given, tmp_path, [], state)  # an ended run: no step, no evaluation
    assert state.step == 8 and again == records


def test_with_early_stopping_twenty_evaluations_are_made_in_a_run_and_their_time_is_counted(
    monkeypatch,
):
    assert setup(steps=100).evaluate_every == 25
    assert setup(steps=100, early_stopping=2).evaluate_every == 5
    assert setup(steps=100, early_stopping=2, evaluate_every=50).evaluate_every == 50
    monkeypatch.setattr("vitkit.training.timing.seconds_of_a_step", lambda *_: 0.1)
    few, many = (
        steps_in(100, given, torch.nn.Identity(), torch.nn.Identity(), stream_of(given), 480)
        for given in (setup(), setup(early_stopping=2))
    )  # an evaluation takes as long as ten steps
    assert few == pytest.approx(960, abs=5) and many == pytest.approx(800, abs=5)


# Classes weighted


def test_class_weights_change_the_step_and_accumulated_parts_move_the_weights_as_a_whole_batch():
    plain = setup()
    counts = (10, 100, 100, 100, 100, 100, 100, 100, 100, 100)
    whole, divided = (
        replace(setup(loss_balance=1.0, accumulation=parts), class_images=counts)
        for parts in (1, 3)
    )
    states = [state_of(given) for given in (plain, whole, divided)]
    losses = []
    for given, state in zip((plain, whole, divided), states, strict=True):
        losses.append(train_step(given, state, first_batch(plain), 0.0)[0])
    # What is told goes without the weights: a batch with a rare class is no spike.
    torch.testing.assert_close(losses[1], losses[2])
    torch.testing.assert_close(losses[0], losses[1])
    assert not torch.allclose(states[0].net.head.weight.grad, states[1].net.head.weight.grad)
    for p, q in zip(states[1].net.parameters(), states[2].net.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-6)
