"""What a training run will take: memory, time, cost and disk, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitkit.data.pipeline import Batch
from vitkit.data.transforms import Preprocessing
from vitkit.models import cost
from vitkit.models.nets import NetConfig, make, make_meta
from vitkit.objectives.distillation import Teacher
from vitkit.training.accelerators import SHARE_OF_PEAK, accelerator
from vitkit.training.config import EngineConfig, TrainConfig
from vitkit.training.cost import exaflops_of, flops_of
from vitkit.training.fitting import KINDS, SPARE, advice, free_memory
from vitkit.training.memory import FLOAT32, Memory, largest_batch, memory
from vitkit.training.parallel import Engine, choose_compile, shardings
from vitkit.training.precision import Precision, choose_device, computing_threads
from vitkit.training.saving import KEPT, state_bytes
from vitkit.training.step import Setup, fresh_state
from vitkit.training.timing import seconds_of_a_step
from vitkit.training.trained import counts
from vitkit.training.world import World
from vitkit.workflows.run import check_shares, choose_computing, fixed_steps

BUNDLES = 2  # best/ and last/


def plan(
    net: NetConfig,
    config: TrainConfig,
    images: int,
    *,
    processes: int = 1,
    named_accelerator: str | None = None,
    device: str = "auto",
    probe: bool = True,
    data: tuple[str, ...] = (),
    teacher: Teacher | None = None,
) -> dict[str, Any]:
    """Everything that `vitkit plan` prints (reports/plans.py), bytes and seconds as numbers.

    `images` is the number to train on. Time comes from a few seconds of real steps on noise on this
    machine, or from the table of accelerators at an assumed share of their peak; with `probe` off
    and no accelerator there is none. `data` are the words of DATA, whose files' size is told. The
    FLOPs are those of the net, without a `teacher`'s.
    """
    world = World(size=processes, local_size=processes)
    check_shares(config, images, world)
    engine = engine_for(net, config, images, device, named_accelerator, world)
    at_once = math.ceil(config.batch_size / processes / config.accumulation)
    free = (
        accelerator(named_accelerator).memory if named_accelerator
        else free_memory(engine.device, processes)
    )  # fmt: skip
    # A named accelerator is planned for as any CUDA device.
    kind_of_device = "cuda" if named_accelerator else engine.device.type
    taught_by = None if teacher is None else teacher.net.config
    planned = memories(net, config, engine, at_once, kind_of_device, free, taught_by)
    seconds, source = seconds_of(
        net, config, engine, at_once, free, named_accelerator, probe, teacher
    )
    return {
        "model": config.model, "image_size": list(config.image_size),
        "device": named_accelerator or engine.device.type,
        "precision": engine.precision.name, "compile": engine.compile, "processes": processes,
        "parameters": cost.parameters(net), "trained_parameters": counts(net, config)[1],
        "flops_per_image": flops_of(net, config),
        "images_at_once": at_once, "memory_free": free,
        "memory": planned,
        "what_would_fit": what_would_fit(
            planned, net, config, engine, at_once, kind_of_device, free, taught_by),
        "largest_images_at_once": largest(net, config, engine, free, kind_of_device, taught_by),
        "batch_size": config.batch_size, "seconds_per_step": seconds, "time_from": source,
        "disk_checkpoints": disk(net, config), "disk_data": size_of(data),
        **length(net, config, images, seconds, processes),
    }  # fmt: skip


def engine_for(
    net: NetConfig,
    config: TrainConfig,
    images: int,
    device: str,
    named_accelerator: str | None,
    world: World,
) -> Engine:
    """How the run would compute on the device, or on a CUDA device by a name."""
    if named_accelerator is None:
        return choose_computing(config, make_meta(net), images, choose_device(device), world)
    able = accelerator(named_accelerator).bf16 is not None
    wanted = ("bf16" if able else "fp32") if config.precision == "auto" else config.precision
    compiled = choose_compile(config.engine, make_meta(net), torch.device("cuda"), math.inf)
    return Engine(torch.device("cpu"), Precision(wanted, "planned"), 1, compiled, world=world)


def seconds_of(
    net: NetConfig,
    config: TrainConfig,
    engine: Engine,
    images: int,
    free: int | None,
    named_accelerator: str | None,
    probe: bool,
    teacher: Teacher | None,
) -> tuple[float | None, str]:
    """Seconds of a step, None where not known, and where they are from."""
    processes = engine.world.size
    taught_by = None if teacher is None else teacher.net.config
    if named_accelerator is not None:
        peak = seconds_on(
            named_accelerator, net, config, engine.precision.name, processes, taught_by
        )
        return peak, f"{SHARE_OF_PEAK:.0%} of the peak of {named_accelerator}, assumed"
    if not probe:
        return None, "not asked for"
    fitting = first_fitting(net, config, engine, images, free, taught_by)
    if fitting is None:
        return None, "not probed: the net does not fit here"
    share = replace(config, batch_size=config.batch_size // processes)
    source = "steps on noise on this machine"
    source += ", without what processes send each other" if processes > 1 else ""
    return probed(net, share, replace(engine, checkpointing=fitting), teacher), source


def length(
    net: NetConfig, config: TrainConfig, images: int, seconds: float | None, processes: int
) -> dict[str, Any]:
    """Steps, images, time and cost of the run, each None where it is not known."""
    steps = fixed_steps(config, images)
    if steps is None and config.minutes is not None and seconds is not None:
        steps = max(1, int(config.minutes * 60 / seconds))
    seen = None if steps is None else steps * config.batch_size
    whole = None if steps is None or seconds is None else steps * seconds
    return {
        "steps": steps, "images_seen": seen, "seconds": whole,
        "epochs": None if seen is None else seen / images,
        "exaflops": None if seen is None else exaflops_of(net, config, seen),
        "device_days": None if whole is None else processes * whole / 86400,
    }  # fmt: skip


def first_fitting(
    net: NetConfig,
    config: TrainConfig,
    engine: Engine,
    images: int,
    free: int | None,
    teacher: NetConfig | None,
) -> str | None:
    """The least checkpointing with which one process can hold the whole net, for a probe."""
    asked = config.engine.checkpointing
    alone = replace(config, engine=EngineConfig(checkpointing=asked))
    one = replace(engine, world=World())
    for row in memories(net, alone, one, images, engine.device.type, free, teacher):
        if row["fits"] is not False and asked in ("auto", row["checkpointing"]):
            return row["checkpointing"]
    return None


def seconds_on(
    name: str,
    net: NetConfig,
    config: TrainConfig,
    precision: str,
    processes: int,
    teacher: NetConfig | None = None,
) -> float:
    chip = accelerator(name)
    peak = chip.bf16 if precision == "bf16" and chip.bf16 is not None else chip.fp32
    rate = SHARE_OF_PEAK * peak * processes
    flops = 3 * flops_of(net, config) + (0 if teacher is None else cost.flops(teacher))
    return flops * config.batch_size / rate


def noise(config: TrainConfig) -> Generator[Batch, None, None]:
    """One batch, again and again."""
    draw = torch.Generator().manual_seed(0)
    shape = (config.batch_size, 3, *config.image_size)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=draw)
    while True:
        yield Batch(images, torch.zeros(len(images), dtype=torch.int64), np.arange(len(images)))


def probed(
    net: NetConfig, config: TrainConfig, engine: Engine, teacher: Teacher | None = None
) -> float:
    """Seconds of a step, by taking some; without loading images."""
    engine = replace(engine, world=World())
    preprocessing = Preprocessing.direct(config.image_size)
    one_each = (1,) * net.classes  # images, for class weights: of noise they are all alike
    setup = Setup(config, 1, engine, preprocessing, net.classes, one_each)
    state = fresh_state(make(net), config, engine, teacher=teacher)
    with computing_threads(engine.threads):
        return seconds_of_a_step(setup, state.net, state.forward, noise(config))


def memories(
    net: NetConfig,
    config: TrainConfig,
    engine: Engine,
    images: int,
    device: str,
    free: int | None,
    teacher: NetConfig | None,
) -> list[dict[str, Any]]:
    """Peak memory of one process, by part, for each checkpointing and sharding, and if it fits."""
    rows = []
    for sharding, shards in shardings(config.engine, engine.world):
        for kind in KINDS:
            found: Memory = memory(
                net, config, batch=images, device=device, precision=engine.precision.name,
                compiled=engine.compile, checkpointing=kind, sharding=sharding, shards=shards,
                teacher=teacher,
            )  # fmt: skip
            rows.append({
                "sharding": sharding, "checkpointing": kind, **vars(found), "total": found.total,
                "fits": None if free is None else found.total <= (1 - SPARE) * free,
            })  # fmt: skip
    return rows


def what_would_fit(
    planned: list[dict[str, Any]],
    net: NetConfig,
    config: TrainConfig,
    engine: Engine,
    images: int,
    device: str,
    free: int | None,
    teacher: NetConfig | None,
) -> str | None:
    """Words to give where nothing planned fits."""
    if free is None or any(row["fits"] for row in planned):
        return None
    sharding, shards = shardings(config.engine, engine.world)[-1]
    how: dict[str, Any] = {
        "device": device, "precision": engine.precision.name, "compiled": engine.compile,
        "checkpointing": KINDS[0], "sharding": sharding, "shards": shards, "teacher": teacher,
    }  # fmt: skip
    return advice(net, config, int(free * (1 - SPARE)), how, images, engine.world)


def largest(
    net: NetConfig,
    config: TrainConfig,
    engine: Engine,
    free: int | None,
    device: str,
    teacher: NetConfig | None,
) -> dict[str, int] | None:
    """The most images at once in one process that holds the whole net, by checkpointing."""
    if free is None:
        return None
    how: dict[str, Any] = {
        "device": device, "precision": engine.precision.name, "compiled": engine.compile,
        "teacher": teacher,
    }  # fmt: skip
    return {
        kind: largest_batch(int(free * (1 - SPARE)), net, config, checkpointing=kind, **how)
        for kind in KINDS
    }


def disk(net: NetConfig, config: TrainConfig) -> int:
    """Bytes of a run's states, one that is being written among them, and bundles."""
    states = (KEPT + 1) * state_bytes(*counts(net, config), config)
    return states + BUNDLES * FLOAT32 * cost.parameters(net)


def size_of(data: tuple[str, ...]) -> int | None:
    """Bytes of DATA's files; None where there are none."""
    paths = [path for path in map(Path, data) if path.exists()]
    files = [f for path in paths for f in ([path] if path.is_file() else path.rglob("*"))]
    return sum(f.stat().st_size for f in files if f.is_file()) if files else None
