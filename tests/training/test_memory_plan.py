"""The planned memory of a step is what real steps take: peak RSS of a process of its own."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from vitkit.models.variants import config as net_config
from vitkit.training.config import DataConfig, LoraConfig, OptimizerConfig, TrainConfig
from vitkit.training.memory import largest_batch, memory

# What a process takes once, for libraries and their threads, is taken by a small run before.
STEPS = """
import ctypes, gc, json, pathlib, sys, torch
import numpy as np
from vitkit.data.pipeline import Batch
from vitkit.data.transforms import Preprocessing
from vitkit.models.variants import build
from vitkit.objectives.distillation import Teacher
from vitkit.training.config import DataConfig, LoraConfig, OptimizerConfig, TrainConfig
from vitkit.training.step import Setup, fresh_state, train_step
from vitkit.training.parallel import Engine
from vitkit.training.precision import Precision

case = json.loads(sys.argv[1])
torch.set_num_threads(2)

def kilobytes(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])

def steps(model, side, batch, accumulation, compiled, number, teacher=None,
          objective="supervised", repeats=1):
    config = TrainConfig(
        objective=objective, data=DataConfig(repeats=repeats),
        model=model, image_size=(side, side), batch_size=batch, accumulation=accumulation,
        polyak=case["polyak"], optimizer=OptimizerConfig(case["optimizer"]),
        freeze=tuple(case["freeze"]), lora=LoraConfig(case["rank"]),
    )
    precision = Precision(case["precision"], "")
    engine = Engine(torch.device("cpu"), precision, 2, compiled, case["checkpointing"])
    kept = Preprocessing.direct((side, side))
    setup = Setup(config, number, engine, kept)
    teacher = teacher and Teacher(build(teacher, 1000, side), kept, kept)
    net = build(model, 1000 if objective == "supervised" else 0, side)
    state = fresh_state(net, config, engine, teacher=teacher)
    images = torch.randint(0, 255, (batch, 3, side, side), dtype=torch.uint8)
    batch = Batch(images, torch.zeros(batch, dtype=torch.int64), np.arange(batch))
    for _ in range(number):
        train_step(setup, state, batch, 1e-4)
        state.step += 1

real = (case["model"], case["side"], case["batch"], case["accumulation"], case["compiled"])
steps(*case["small"], 2, 1, False, 1)
if case["compiled"]:
    steps(*real, 1)
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
steps(*real, 3, case["teacher"], case["objective"], case["repeats"])
print(1024 * (kilobytes("VmHWM") - before))
"""

CASES = {
    "ViT-S/16 in bf16": {
        "model": "ViT-S/16", "batch": 8, "precision": "bf16", "small": ("ViT-Pico/8", 64),
    },
    "ViT-Ti/16, SGD, average, two parts": {
        "model": "ViT-Ti/16", "side": 160, "batch": 64, "optimizer": "sgd", "polyak": 0.9,
        "accumulation": 2, "small": ("ViT-Pico/8", 64),
    },
    "ViT-Ti/16, all computed again": {
        "model": "ViT-Ti/16", "batch": 64, "precision": "bf16", "checkpointing": "full",
        "polyak": 0.9, "small": ("ViT-Pico/8", 64),
    },
    "BiT-R50x1, SGD": {
        "model": "BiT-R50x1", "side": 160, "batch": 8, "optimizer": "sgd",
        "small": ("BiT-R50x1", 64),
    },
    "hybrid, products kept": {
        "model": "R50+ViT-B/32", "side": 160, "batch": 8, "precision": "bf16", "optimizer": "sgd",
        "checkpointing": "selective", "small": ("R26+ViT-S/32", 64),
    },
    "ViT-Ti/16, taught by a BiT": {
        "model": "ViT-Ti/16", "side": 160, "batch": 32, "teacher": "BiT-R50x1",
        "small": ("BiT-R50x1", 64),
    },
    "ViT-Ti/16, masked patches, products kept": {
        "model": "ViT-Ti/16", "side": 160, "batch": 64, "objective": "masked-patches",
        "checkpointing": "selective", "small": ("ViT-Pico/8", 64),
    },
    "ViT-Ti/16, mae in two parts": {
        "model": "ViT-Ti/16", "side": 160, "batch": 64, "objective": "mae", "accumulation": 2,
        "small": ("ViT-Pico/8", 64),
    },
    "ViT-Ti/16, simclr in bf16": {
        "model": "ViT-Ti/16", "side": 160, "batch": 64, "objective": "simclr", "repeats": 2,
        "precision": "bf16", "small": ("ViT-Pico/8", 64),
    },
    "ViT-S/16 compiled": {
        "model": "ViT-S/16", "side": 160, "batch": 16, "precision": "bf16", "compiled": True,
        "small": ("ViT-Pico/8", 64),
    },
}  # fmt: skip
SOME = {  # of the weights are trained
    "the head alone": {"freeze": ("*", "!head.*"), "batch": 64},
    "the upper half": {
        "freeze": ("patch_embedding.*", "class_token", "position_embedding", "blocks.[0-5].*"),
    },
    "adapters": {"rank": 8},
}
CASES |= {
    f"{what}, {precision}, {checkpointing}": {
        "model": "ViT-S/16", "batch": 32, "precision": precision, "checkpointing": checkpointing,
        "polyak": 0.9, "small": ("ViT-Pico/8", 64), **how,
    }
    for what, how in SOME.items() for precision in ("fp32", "bf16")
    for checkpointing in ("none", "full")
}  # fmt: skip
QUICK = (
    "ViT-S/16 in bf16", "ViT-Ti/16, SGD, average, two parts", "adapters, bf16, none",
)  # fmt: skip
DEFAULTS = {
    "side": 224, "precision": "fp32", "checkpointing": "none", "compiled": False, "polyak": 0.0,
    "optimizer": "adamw", "accumulation": 1, "freeze": (), "rank": 0, "teacher": None,
    "objective": "supervised", "repeats": 1,
}  # fmt: skip


def measured(case):
    # So that what is freed goes back, and resident memory follows what is alive.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, json.dumps(case)], env=environment, text=True,
        capture_output=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def planned(case):
    config = TrainConfig(
        batch_size=case["batch"], accumulation=case["accumulation"], polyak=case["polyak"],
        optimizer=OptimizerConfig(case["optimizer"]), freeze=case["freeze"],
        lora=LoraConfig(case["rank"]), objective=case["objective"],
        data=DataConfig(repeats=case["repeats"]),
    )  # fmt: skip
    return memory(
        net_config(case["model"], 0 if config.self_supervised else 1000, case["side"]), config,
        batch=case["batch"] // case["accumulation"], precision=case["precision"],
        compiled=case["compiled"], checkpointing=case["checkpointing"],
        teacher=case["teacher"] and net_config(case["teacher"], 1000, case["side"]),
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_the_plan_is_within_a_tenth_of_what_steps_take(name):
    case = DEFAULTS | CASES[name]
    if case["compiled"] and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a compiler")
    taken = measured(case)
    assert taken > 200 * 2**20, "large enough to tell"
    plan = planned(case)
    assert plan.total - plan.saving == pytest.approx(taken, rel=0.1)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_the_largest_batch_fits_and_a_larger_one_does_not(checkpointing):
    net, config, limit = net_config("ViT-Ti/16", 1000, 224), TrainConfig(), 2**30
    how = {"precision": "bf16", "checkpointing": checkpointing}
    most = largest_batch(limit, net, config, **how)
    assert memory(net, config, batch=most, **how).total <= limit
    assert memory(net, config, batch=int(most * 1.02) + 1, **how).total > limit


def test_views_are_compared_with_those_of_all_processes():
    """Of two rows of similarities one is of the other process; backward takes as many again."""
    net, share = net_config("ViT-Femto/2", 0, 4), 1024

    def planned(views):
        config = TrainConfig(objective="simclr", batch_size=views, data=DataConfig(repeats=2))
        return memory(net, config, batch=share).activations

    assert planned(2 * share) - planned(share) > 2 * 4 * share * share


@pytest.mark.parametrize("name", ["ViT-Ti/16", "BiT-R50x1"])
def test_on_a_gpu_norms_keep_float32_also_where_they_are_computed_again(name):
    net = net_config(name, 1000, 64)

    def activations(device, checkpointing="none", compiled=False):
        return memory(net, TrainConfig(), batch=32, device=device, precision="bf16",
                      checkpointing=checkpointing, compiled=compiled).activations  # fmt: skip

    assert activations("cuda") > activations("cuda", compiled=True)
    kinds = [activations("cuda", kind) for kind in ("none", "selective", "full")]
    assert sorted(kinds, reverse=True) == kinds and len(set(kinds)) == 3
