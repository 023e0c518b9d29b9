"""What of a run fits into memory, decided before anything is allocated."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitkit.errors import UsageError
from vitkit.models import cost
from vitkit.models.nets import NetConfig
from vitkit.training.config import TrainConfig
from vitkit.training.cost import flops_of
from vitkit.training.parallel import shardings
from vitkit.training.trained import counts
from vitkit.training.world import World, most

SPARE = 0.1  # of what is free, for what the plan does not know
KINDS = ("none", "selective", "full")
GIB = 2**30


def choose_fitting(
    net: NetConfig,
    config: TrainConfig,
    device: torch.device,
    precision: str,
    compiled: bool,
    world: World,
    free: int | None = None,
    teacher: NetConfig | None = None,
) -> tuple[str, str, int]:
    """(checkpointing, sharding, processes that share one copy of the weights) that fit.

    Least is recomputed, then least sharded; what the config names is taken as it is. UsageError
    where nothing fits, with the batch, checkpointing or sharding that would. `free` is the bytes
    that each process may take, by default what its device has free.
    """
    ways = shardings(config.engine, world)
    asked = config.engine.checkpointing
    kinds = KINDS if asked == "auto" else (asked,)
    limit = free_memory(device, world.local_size) if free is None else free
    if limit is not None:  # of all processes, so that all choose the same
        limit = -most(-limit)
    if limit is None:  # unknown
        return kinds[0], *ways[0]
    limit = int(limit * (1 - SPARE))
    images = math.ceil(config.batch_size / world.size / config.accumulation)
    if not config.lora.rank and surely_fits(net, config, teacher, images, limit):
        return kinds[0], *ways[0]
    from vitkit.training.memory import memory  # a second that small runs do without

    how: dict[str, Any] = {
        "device": device.type, "precision": precision, "compiled": compiled, "teacher": teacher,
    }  # fmt: skip
    for kind in kinds:
        for sharding, over in ways:
            planned = memory(
                net, config, batch=images, checkpointing=kind, sharding=sharding, shards=over, **how
            )
            if planned.total <= limit:
                return kind, sharding, over
    sharding, over = ways[-1]
    how |= {"checkpointing": kinds[-1], "sharding": sharding, "shards": over}
    needed = memory(net, config, batch=images, **how).total
    raise UsageError(
        f"{config.model} with {images} images at once takes {needed / GIB:.1f} GiB"
        + (f" with {kinds[-1]} checkpointing" if kinds[-1] != "none" else "")
        + f" in each process, and {limit / GIB:.1f} GiB of {device.type} may be taken; "
        + advice(net, config, limit, how, images, world)
    )


def surely_fits(
    net: NetConfig, config: TrainConfig, teacher: NetConfig | None, images: int, limit: int
) -> bool:
    """By a rough bound: five copies of the weights, and a byte for each FLOP of the forward pass.

    An activation of a few bytes costs many more FLOPs in every net there is.
    """
    weights, flops = counts(net, config)[0], flops_of(net, config)
    if teacher is not None:
        weights, flops = weights + cost.parameters(teacher), flops + cost.flops(teacher)
    return 20 * weights + images * flops <= limit


def advice(
    net: NetConfig, config: TrainConfig, limit: int, how: dict[str, Any], images: int, world: World
) -> str:
    """What would fit, in words of the command line."""
    from vitkit.training.memory import largest_batch, memory

    found, asked = [], how["checkpointing"]
    for kind in KINDS:
        if KINDS.index(kind) < KINDS.index(asked):
            continue
        how = how | {"checkpointing": kind}
        whole = memory(net, config, batch=images, **how).total <= limit
        # In parts it takes more: the gradients of the first are there while the second is computed.
        parts = min(config.batch_size, max(2, config.accumulation))
        in_parts = config if compares(config) else replace(config, accumulation=parts)
        most = images if whole else largest_batch(limit, net, in_parts, batch=images, **how)
        most = min(most // 2 * 2 if compares(config) else most, images)
        if most:
            words = "" if kind == asked else f" --checkpointing {kind}"
            words = ("" if whole else smaller(config, most, world)) + words
            found.append(f"{words.strip()} ({most} images at once)")
    if not found:
        for processes in (2, 4, 8, 16, 32, 64):
            sharded = how | {"sharding": "fsdp", "shards": processes, "checkpointing": "full"}
            share = math.ceil(config.batch_size / processes / config.accumulation)
            fits = memory(net, config, batch=share, **sharded).total <= limit
            if processes > world.size and fits:
                found.append(f"{processes} processes with --sharding fsdp --checkpointing full")
                break
    return f"what would fit: {', or '.join(found)}" if found else "take a smaller --model"


def compares(config: TrainConfig) -> bool:
    """Whether all images of a batch are compared, so that it cannot come in parts."""
    return config.objective == "simclr"


def smaller(config: TrainConfig, most: int, world: World) -> str:
    """Words by which a process works through no more than `most` images at once."""
    if compares(config):
        return f" --batch-size {most * world.size}"
    return f" --accumulation {math.ceil(config.batch_size / world.size / most)}"


def free_memory(device: torch.device, processes: int = 1) -> int | None:
    """Bytes that each of a machine's processes may still take on its device; None if not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024 // processes
    try:  # not what is free, but what there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes
    except (AttributeError, ValueError, OSError):
        return None
