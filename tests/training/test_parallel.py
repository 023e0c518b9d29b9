"""What is applied to a net from outside changes how it computes, not what."""

import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import torch
from test_loop import ENGINE, average, first_batch, setup, state_of, weights
from torch.utils._python_dispatch import TorchDispatchMode

from vitkit.errors import UsageError, VitkitError
from vitkit.models.variants import build
from vitkit.training.config import EngineConfig, OptimizerConfig
from vitkit.training.parallel import Engine, apply, choose_compile, shardings
from vitkit.training.precision import Precision
from vitkit.training.saving import load_state, save_state
from vitkit.training.step import train_step
from vitkit.training.world import World

CPU = torch.device("cpu")
BF16 = Precision("bf16", "for a test")
compiled = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")


def engine(**fields):
    fields = {"precision": ENGINE.precision, **fields}
    return Engine(CPU, threads=1, **fields)


def one_step(given, **more):
    state = state_of(given)
    loss, norm = train_step(given, state, first_batch(given), 1e-3, **more)
    return state, loss, norm


def gradients(state):
    return torch.cat([p.grad.flatten() for p in state.net.parameters()])


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_checkpointing_gives_the_same_gradients_dropout_included(kind):
    dropped = {"dropout": 0.2, "stochastic_depth": 0.5}
    plain, other = (setup(engine=engine(checkpointing=k), **dropped) for k in ("none", kind))
    (a, loss_a, norm_a), (b, loss_b, norm_b) = one_step(plain), one_step(other)
    assert torch.equal(loss_a, loss_b) and torch.equal(norm_a, norm_b)
    assert torch.equal(gradients(a), gradients(b))


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_selective_computes_no_product_again_and_full_computes_all():
    def calls(kind):
        given = setup(engine=engine(checkpointing=kind))
        state, batch = state_of(given), first_batch(given)
        with Counting() as counted:
            train_step(given, state, batch, 1e-3)
        return counted.calls

    none, selective, full = calls("none"), calls("selective"), calls("full")
    product, norm = "aten.addmm.default", "aten.native_layer_norm.default"
    again = 3 * 4  # of each of four blocks; nothing in the block needs the output of its last
    assert selective[product] == none[product] == full[product] - again
    assert selective[norm] == full[norm] == none[norm] + 2 * 4


@compiled
@pytest.mark.parametrize("kind", ["none", "full"])
def test_compiled_blocks_give_the_same_gradients(kind):
    plain = setup(engine=engine())
    other = setup(engine=engine(compile=True, checkpointing=kind))
    (a, loss_a, _), (b, loss_b, _) = one_step(plain), one_step(other)
    torch.testing.assert_close(loss_a, loss_b, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients(a), gradients(b), rtol=1e-4, atol=1e-6)


@compiled
def test_what_compiled_blocks_compute_again_they_drop_again():
    """Else the gradient would not be that of the loss, whose slope along it is its norm."""
    given = setup(
        engine=engine(compile=True, checkpointing="full"), dropout=0.2, stochastic_depth=0.5
    )
    state, _, norm = one_step(given)
    state.net.load_state_dict(state_of(given).net.state_dict())
    uphill = [p.grad.clone() for p in state.net.parameters()]  # clipped to a norm of 1
    losses = []
    for offset in (2e-3, -4e-3):  # ahead of the start, then as far behind it
        with torch.no_grad():
            for parameter, direction in zip(state.net.parameters(), uphill, strict=True):
                parameter += offset * direction
        losses.append(train_step(given, state, first_batch(given), 0.0)[0])
    torch.testing.assert_close((losses[0] - losses[1]) / 4e-3, norm, rtol=0.02, atol=0)


def test_in_bfloat16_the_residual_stream_is_bfloat16_and_weights_stay_float32():
    given = setup(engine=engine(precision=BF16))
    state, seen = state_of(given), []
    for block in state.net.blocks:
        block.norm1.register_forward_pre_hook(lambda norm, inputs: seen.append(inputs[0].dtype))
    train_step(given, state, first_batch(given), 1e-3)
    assert seen == [torch.bfloat16] * len(state.net.blocks)
    assert {p.dtype for p in state.net.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in state.net.parameters()} == {torch.float32}


@pytest.mark.parametrize("fields", [{}, {"precision": BF16}, {"checkpointing": "selective"}])
def test_the_names_of_the_weights_do_not_change(fields):
    net = build("ViT-Pico/4", 10, 8)
    before = list(net.state_dict())
    apply(net, engine(**fields))
    assert list(net.state_dict()) == before


def test_every_kind_of_net_can_be_checkpointed():
    images = torch.randn(1, 3, 64, 64)
    for name in ("R50+ViT-B/32", "BiT-R50x1", "T2T-ViT-14"):
        net = build(name, 3, 64).train()
        torch.manual_seed(0)  # stochastic depth
        expected = net(images)
        apply(net, engine(checkpointing="full"))
        torch.manual_seed(0)
        assert torch.equal(net(images), expected), name


def test_short_runs_on_a_cpu_are_not_compiled_and_long_ones_are(monkeypatch):
    vit, bit = build("ViT-Pico/4", 10, 8), build("BiT-R50x1", 10, 32)
    auto, on, off = (EngineConfig(compile=kind) for kind in ("auto", "on", "off"))
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++")
    assert not choose_compile(auto, vit, CPU, 1e12)
    assert choose_compile(auto, vit, CPU, 1e16)
    assert not choose_compile(auto, bit, CPU, 1e16)
    assert choose_compile(on, vit, CPU, 1.0) and not choose_compile(off, vit, CPU, 1e16)
    assert choose_compile(auto, vit, torch.device("cuda"), 1.0)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not choose_compile(auto, vit, CPU, 1e16)
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler"):
        choose_compile(on, vit, CPU, 1e16)


def test_what_sharding_may_be_taken():
    four = World(size=4, local_size=2)

    def chosen(world=four, **words):
        return shardings(EngineConfig(**words), world)

    assert chosen(world=World()) == [("none", 1)]
    assert chosen() == [("ddp", 1), ("fsdp", 4)]
    assert chosen(sharding="fsdp") == [("fsdp", 4)]
    assert chosen(sharding="hybrid") == [("hybrid", 2)]
    assert chosen(sharding="hybrid", shard_over=4) == [("hybrid", 4)]
    with pytest.raises(UsageError, match="divide them"):
        chosen(sharding="hybrid", shard_over=3)
    with pytest.raises(UsageError, match="several processes"):
        chosen(world=World(), sharding="fsdp")
    with pytest.raises(UsageError, match="hybrid"):
        chosen(sharding="ddp", shard_over=2)


def starved(state, most):
    """The net has no memory for more than `most` images at once."""

    def check(net, inputs):
        if len(inputs[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    state.net.register_forward_pre_hook(check)
    return state


def test_out_of_memory_works_through_the_same_batch_in_smaller_parts(tmp_path):
    given, said = setup(), []
    state = starved(state_of(given), 5)
    loss, norm = train_step(given, state, first_batch(given), 1e-3, said.append)
    expected, expected_loss, expected_norm = one_step(given)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(norm, expected_norm, rtol=1e-4, atol=0)
    # A twentieth of a step: Adam divides gradients that are almost none by themselves.
    torch.testing.assert_close(weights(state.net), weights(expected.net), rtol=1e-3, atol=5e-5)
    assert [re.findall(r"\d+", line)[1:] for line in said] == [["16", "8"], ["8", "4"]]
    fresh = state_of(given)
    load_state(save_state(tmp_path, state), fresh)
    assert fresh.parts == 4


def test_out_of_memory_with_a_single_image_is_an_error_that_leaves_the_weights():
    given = setup()
    state = starved(state_of(given), 0)
    before = weights(state.net)
    with pytest.raises(VitkitError, match=r"out of memory with 1 image.*checkpointing"):
        train_step(given, state, first_batch(given), 1e-3, lambda text: None)
    assert torch.equal(weights(state.net), before)


def test_out_of_memory_in_one_of_several_processes_says_what_to_do():
    given = setup(engine=engine(world=World(rank=0, size=2), sharding="ddp"))
    lone = setup()
    state = starved(state_of(lone), 5)
    with pytest.raises(VitkitError, match=r"process 0.*--accumulation 2 --resume auto"):
        train_step(given, state, first_batch(lone), 1e-3)


LIMITED = """
import resource, sys, torch
sys.path.insert(0, sys.argv[1])
from test_loop import ENGINE, first_batch, setup
from vitkit.models.variants import build
from vitkit.data.pipeline import Batch
from vitkit.training.step import fresh_state, train_step
torch.set_num_threads(1)
given = setup(batch_size=96)
state = fresh_state(build("ViT-Ti/16", 10, 224), given.config, ENGINE)
batch = Batch(torch.zeros(96, 3, 224, 224, dtype=torch.uint8), torch.zeros(96, dtype=torch.int64))
small = Batch(batch.images[:2], batch.labels[:2])
train_step(given, state, small, 1e-3)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 1200 * 2**20,) * 2)
train_step(given, state, batch, 1e-3)
print("parts", state.parts)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
def test_a_process_that_is_really_out_of_memory_goes_on_in_parts():
    command = [sys.executable, "-c", LIMITED, str(__file__).rsplit("/", 1)[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "out of memory with 96 images at once; going on with 48" in done.stdout
    assert int(done.stdout.split()[-1]) in (2, 4, 8)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimizer_told_of_a_gradient_that_is_not_finite_changes_nothing(name):
    """So a GPU need not be waited for: all processes see the same norm, and skip alike."""
    given = setup(optimizer=OptimizerConfig(name))
    state, _, _ = one_step(given)
    found = []
    for norm in (1.0, float("nan"), 1.0, float("inf"), 1.0):
        state.note(torch.tensor(norm), limit=1)
        found.append((int(state.skipped), int(state.hold)))
    assert found == [(0, 0), (1, 1), (1, 0), (2, 1), (2, 1)]  # after more than 1, none counts
    before, kept = weights(state.net), average(state)
    slots = {
        k: v.clone() for s in state.optimizer.state.values() for k, v in s.items() if v is not None
    }
    state.optimizer.found_inf = state.hold
    state.optimizer.step()
    state.update_average(0.9)
    assert torch.equal(weights(state.net), before) and torch.equal(average(state), kept)
    after = {k: v for s in state.optimizer.state.values() for k, v in s.items() if v is not None}
    assert all(torch.equal(slots[k], after[k]) for k in slots)
