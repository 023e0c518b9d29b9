"""Several gloo processes compute what one computes: losses, gradients, weights, states."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_loop import setup

from vitkit.data.crops import RandomCrop
from vitkit.data.opening import digits
from vitkit.data.pipeline import TrainingStream
from vitkit.models.nets import make_meta
from vitkit.models.variants import build, config
from vitkit.training import storage
from vitkit.training.config import OptimizerConfig
from vitkit.training.loop import learning_rates
from vitkit.training.parallel import (
    Engine,
    batch_norm_buffers,
    gathered,
    reshard,
    settle_buffers,
)
from vitkit.training.precision import Precision
from vitkit.training.saving import load_state, newest_state, save_state
from vitkit.training.step import fresh_state, train_step
from vitkit.training.world import from_environment, joined, mean, start

STEPS = 20
CPU = torch.device("cpu")


def work(given: dict) -> int:
    """One process of a run of some steps; the main one writes what came of it to a file."""
    torch.set_num_threads(1)
    with joined(CPU):
        world = from_environment()
        engine = Engine(
            CPU, Precision(given.get("precision", "fp32"), "for a test"), 1,
            compile=given.get("compile", False),
            checkpointing=given.get("checkpointing", "none"), sharding=given["sharding"],
            shard_over=given.get("shard_over", world.size), world=world,
        )  # fmt: skip
        settings = setup(
            STEPS,
            polyak=0.9,
            accumulation=given.get("accumulation", 1),
            engine=engine,
            optimizer=OptimizerConfig(given.get("optimizer", "adamw")),
        )
        torch.manual_seed(0)
        net = build("ViT-Pico/4", 10, 8)
        torch.nn.init.normal_(net.head.weight, std=0.1)
        if engine.sharding in ("fsdp", "hybrid") and not world.main:
            net = make_meta(config("ViT-Pico/4", 10, 8))
        if given.get("double"):
            net.double().register_forward_pre_hook(lambda net, inputs: (inputs[0].double(),))
        state = fresh_state(net, settings.config, engine)
        if given.get("resume"):
            load_state(newest_state(given["resume"])[0], state)
        stream = TrainingStream(
            digits().train, RandomCrop((8, 8), flip=False), 16, 0, 0, world.rank, world.size
        )
        batches, rate, losses, found = stream.batches(state.step), learning_rates(settings), [], {}
        for step in range(state.step, given.get("steps", STEPS)):
            loss, norm = train_step(settings, state, next(batches), rate(step))
            if step == 0:
                gradients = {f"gradient/{n}": p.grad for n, p in state.net.named_parameters()}
                found |= gathered(gradients) | {"norm": norm}
            state.step += 1
            losses.append(mean(loss))
        batches.close()
        if given.get("save"):
            storage.SHARD_BYTES = 10_000  # several shards a process
            save_state(given["save"], state)
        with state.averaged() as averaged:
            with engine.autocast():
                predicted = averaged(torch.linspace(-1, 1, 2 * 3 * 64).view(2, 3, 8, 8))
            reshard(averaged)
            found |= gathered({f"average/{n}": p.clone() for n, p in averaged.named_parameters()})
        found |= gathered({f"weight/{n}": t for n, t in state.net.state_dict().items()})
        if world.main:
            save_file(
                found | {"predicted": predicted.detach(), "losses": torch.stack(losses)},
                given["file"],
            )
    return 0


def outcome(tmp_path, processes, **given):
    given["file"] = str(tmp_path / f"{processes}-{len(list(tmp_path.iterdir()))}.safetensors")
    if processes == 1:
        work(given | {"sharding": "none"})
    else:
        assert start(work, given, processes) == 0
    return load_file(given["file"])


def close(found, expected, kind, tolerance, of_k_bias=None):
    """The largest difference over the largest value, for each tensor of a kind.

    A softmax does not see the bias of k, whose gradient is zero but for rounding, which AdamW
    scales up to a whole step: with `of_k_bias` that third of a tensor has its own tolerance.
    """
    names = [name for name in expected if name.startswith(kind)]
    assert names and found.keys() == expected.keys()
    for name in names:
        scale = expected[name].abs().max() + 1e-30
        difference = (found[name] - expected[name]).abs()
        if of_k_bias is not None and name.endswith("qkv.bias"):
            q, k, v = difference.chunk(3)
            assert k.max() <= of_k_bias * scale, name
            difference = torch.cat([q, v])
        assert difference.max() <= tolerance * scale, name


def way(processes, sharding, *marks, **more):
    name = f"{processes} {sharding}"
    return pytest.param(processes, {"sharding": sharding, **more}, id=name, marks=marks)


WAYS = [
    way(2, "ddp"),
    way(2, "fsdp"),
    way(4, "hybrid", shard_over=2),
    way(4, "ddp", pytest.mark.slow),
    way(4, "fsdp", pytest.mark.slow),
]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return {double: outcome(folder, 1, double=double) for double in (False, True)}


@pytest.mark.parametrize(("processes", "how"), WAYS)
def test_losses_and_gradients_are_those_of_one_process(tmp_path, one, processes, how):
    found = outcome(tmp_path, processes, **how)
    torch.testing.assert_close(found["losses"], one[False]["losses"], rtol=1e-6, atol=0)
    torch.testing.assert_close(found["norm"], one[False]["norm"], rtol=1e-6, atol=0)
    close(found, one[False], "gradient/", 1e-6)


@pytest.mark.parametrize(("processes", "how"), WAYS)
def test_in_float64_the_weights_after_twenty_steps_are_those_of_one_process(
    tmp_path, one, processes, how
):
    found = outcome(tmp_path, processes, double=True, **how)
    close(found, one[True], "weight/", 1e-12, of_k_bias=1e-9)
    close(found, one[True], "average/", 1e-12, of_k_bias=1e-9)
    close(
        found, one[True], "predicted", 1e-10
    )  # by the average, after which training weights stand


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_sharded_sgd_and_lars_move_the_weights_as_in_one_process(tmp_path, optimizer):
    alone = outcome(tmp_path, 1, double=True, optimizer=optimizer)
    found = outcome(tmp_path, 2, sharding="fsdp", double=True, optimizer=optimizer)
    close(found, alone, "weight/", 1e-10)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_parts_of_a_batch_add_up_over_processes(tmp_path, one, sharding):
    found = outcome(tmp_path, 2, sharding=sharding, double=True, accumulation=4)
    close(found, one[True], "weight/", 1e-12, of_k_bias=1e-9)


def test_a_sharded_state_is_whole_and_goes_on_in_another_number_of_processes(tmp_path, one):
    saved = tmp_path / "checkpoints"
    saved.mkdir()
    outcome(tmp_path, 2, sharding="fsdp", double=True, steps=10, save=saved)
    names = sorted(path.name for path in saved.glob("step-00000010/*.safetensors"))
    assert {"shard-00000-00001.safetensors", "shard-00001-00001.safetensors"} < set(names)
    for processes, sharding in ((4, "fsdp"), (1, "none")):
        found = outcome(tmp_path, processes, sharding=sharding, double=True, resume=saved)
        expected = {n: t for n, t in one[True].items() if n.startswith(("weight/", "average/"))}
        close({n: found[n] for n in expected}, expected, "weight/", 1e-10)
        close({n: found[n] for n in expected}, expected, "average/", 1e-10)


def test_processes_that_are_not_the_main_one_hold_no_weights_before_they_are_handed_out():
    net = make_meta(config("ViT-Pico/4", 10, 8))
    assert all(p.device.type == "meta" for p in net.parameters())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_compiled_blocks_train_in_several_processes(tmp_path, one, sharding):
    found = outcome(tmp_path, 2, sharding=sharding, compile=True, checkpointing="full")
    torch.testing.assert_close(found["losses"], one[False]["losses"], rtol=1e-4, atol=0)


def averaging(file: str) -> int:
    with joined(CPU):
        world = from_environment()
        net = build("EfficientNet-B0", 2, 32).train()
        torch.manual_seed(world.rank)
        buffers = batch_norm_buffers(net)
        before = [buffer.clone() for buffer in buffers]
        with torch.no_grad():
            net(torch.randn(4, 3, 32, 32) + world.rank)  # each process sees other images
        own = {f"{world.rank}/{name}": buffer.clone() for name, buffer in net.named_buffers()}
        settle_buffers(buffers, before, torch.tensor(0.0))
        shared = {f"shared {world.rank}/{name}": b.clone() for name, b in net.named_buffers()}
        settle_buffers(buffers, before, torch.tensor(1.0))
        assert all(torch.equal(b, old) for b, old in zip(buffers, before, strict=True))
        save_file(own | shared, f"{file}-{world.rank}")
    return 0


def test_batch_norms_have_the_mean_of_what_the_processes_saw(tmp_path):
    """So that what is evaluated, kept as best/ and saved is one net; a step that is skipped leaves
    them as they were."""
    assert start(averaging, str(tmp_path / "buffers"), 2) == 0
    found = load_file(tmp_path / "buffers-0") | load_file(tmp_path / "buffers-1")
    names = [n.removeprefix("0/") for n in found if n.startswith("0/") and "running" in n]
    assert names
    for name in names:
        mean_of_both = (found[f"0/{name}"] + found[f"1/{name}"]) / 2
        torch.testing.assert_close(found[f"shared 0/{name}"], mean_of_both)
        assert torch.equal(found[f"shared 0/{name}"], found[f"shared 1/{name}"])
    assert any(not torch.equal(found[f"0/{n}"], found[f"1/{n}"]) for n in names)


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_in_bfloat16_with_checkpointing_processes_train_too(tmp_path, sharding):
    alone = outcome(tmp_path, 1, precision="bf16")
    found = outcome(tmp_path, 2, sharding=sharding, precision="bf16", checkpointing="selective")
    torch.testing.assert_close(found["losses"], alone["losses"], rtol=2e-2, atol=0)


def test_the_processes_together_see_the_stream_of_one():
    def stream(rank=0, ranks=1):
        crop = RandomCrop((8, 8))
        return TrainingStream(digits().train, crop, 12, 3, 0, rank, ranks).batches(first=5)

    whole = next(stream())
    for ranks in (2, 3, 4):
        shares = [next(stream(rank, ranks)) for rank in range(ranks)]
        for share in shares:
            inside = share.positions - whole.positions[0]
            assert torch.equal(share.images, whole.images[inside])
            assert torch.equal(share.labels, whole.labels[inside])
