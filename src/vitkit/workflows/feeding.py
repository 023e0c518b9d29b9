"""How a run's images reach its net: in which order, kept where, decoded by what."""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import torch

from vitkit.data.audit import modes_of_some
from vitkit.data.cache import cache_folder, cache_limit
from vitkit.data.checks import DataError, digest, some
from vitkit.data.crops import RandomCrop
from vitkit.data.decode import ImageError
from vitkit.data.kept import KeptOnDevice, KeptOnDisk
from vitkit.data.pipeline import TrainingStream
from vitkit.data.sampling import Order
from vitkit.data.source import Source
from vitkit.errors import UsageError
from vitkit.training.config import TrainConfig
from vitkit.training.fitting import free_memory
from vitkit.training.parallel import Engine
from vitkit.training.world import World
from vitkit.workflows.task import Task

LOOKED_AT = 32  # images, to guess whether all are of one size
LARGEST_SIDE = 96  # pixels of what is kept on the device unasked
AT_MOST = 2**31  # bytes of it
OF_MEMORY = 1 / 20  # and the share of the device's free memory; a plan leaves a tenth
MOST_THREADS = 16
KEPT_SIDE = 8 / 7  # of the image side: 256 for 224


def training_stream(task: Task, config: TrainConfig, engine: Engine) -> TrainingStream:
    """The stream that a run trains on; DataError or UsageError where it cannot be."""
    world, order = engine.world, checked_order(task, config, engine)
    asked = config.augment
    crop = RandomCrop(config.image_size, asked.crop_area, asked.flip, asked.crop_aspect)
    kept = None
    if engine.keep == "device":
        kept = KeptOnDevice(size_of_all(task), engine.device)
    elif engine.keep == "disk":
        kept = kept_on_disk(task, config)
    return TrainingStream(
        task.train, crop, config.batch_size, config.seed, loader_threads(config, world),
        world.rank, world.size, order=order, kept=kept,
        device=engine.device if config.data.decode == "cuda" else torch.device("cpu"),
    )  # fmt: skip


def checked_order(task: Task, config: TrainConfig, engine: Engine) -> Order:
    """The order of a run's images; DataError or UsageError where a run cannot be fed so."""
    if config.data.decode == "cuda" and engine.device.type != "cuda":
        raise UsageError("--data.decode cuda needs a GPU to train on; leave it out")
    if config.data.decode == "cuda" and engine.keep != "none":
        raise UsageError(
            f"--data.keep {engine.keep} decodes each image once, on the CPU; leave out "
            "--data.decode cuda"
        )
    if engine.keep == "device":
        size_of_all(task)
    return Order(
        task.train, config.batch_size, config.seed, config.data.repeats, config.data.weights,
        config.data.balance,
    )  # fmt: skip


def note_modes(task: Task) -> None:
    """Warn of images of several modes, counted and named among some: all are read as colour."""
    found = modes_of_some(task.train)
    if len(found) < 2:
        return
    colour = len(found.pop("colour", ()))
    listed = [f"{len(names):,} {mode} ({some(names, 2)})" for mode, names in found.items()]
    if colour:
        listed.insert(0, f"{colour:,} colour")
    looked_at = colour + sum(map(len, found.values()))
    warnings.warn(
        f"{task.name}: the modes of {looked_at:,} images looked at differ: {', '.join(listed)}; "
        "all are read as colour; vitkit data check counts them",
        stacklevel=2,
    )


def size_of_all(task: Task) -> tuple[int, int]:
    size = common_size(task.train)
    if size is None:
        raise DataError(
            f"{task.name}: its images differ in size, so that they cannot be kept on the device; "
            "give --data.keep disk or none"
        )
    return size


def kept_on_disk(task: Task, config: TrainConfig) -> KeptOnDisk:
    side = config.data.keep_side or round(KEPT_SIDE * max(config.image_size))
    name = digest([task.fingerprint, str(side)])[:16]
    return KeptOnDisk(cache_folder() / "decoded" / name, len(task.train), side, cache_limit())


def loader_threads(config: TrainConfig, world: World) -> int:
    if config.threads is not None:
        return config.threads
    return max(1, min(MOST_THREADS, cores() // world.local_size))


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_keep(config: TrainConfig, source: Source, device: torch.device, world: World) -> str:
    """Where decoded images are kept: "device", "disk" or "none"."""
    if config.data.keep != "auto":
        return config.data.keep
    if config.data.decode == "cuda" or source.shard_lengths is not None:
        return "none"
    size = common_size(source)
    if size is None or max(size) > LARGEST_SIDE:
        return "none"
    free = free_memory(device, world.local_size)
    limit = AT_MOST if free is None else min(AT_MOST, OF_MEMORY * free)
    return "device" if 3 * size[0] * size[1] * len(source) <= limit else "none"


def common_size(source: Source) -> tuple[int, int] | None:
    """(height, width) of some images spread over the source, if all of them have the same."""
    sizes: set[Any] = set()
    for index in np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int):
        try:
            sizes.add(tuple(source.image(int(index)).shape[1:]))
        except (ImageError, OSError):
            continue
    return sizes.pop() if len(sizes) == 1 else None
