"""What the benchmarks of training share: taking turns, clocks, and what machine this is."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch

Step = Callable[[], Any]  # takes one training step and gives its loss

CLOCKS = {"wall": perf_counter, "cpu": process_time}
MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
# A GPU is given its work ahead of time: waiting for it after each step would not be training.
STEPS_A_TURN = {"cpu": 1, "cuda": 10}
PACKAGES = ("vitkit", "torch", "timm", "transformers", "accelerate", "torchvision", "jax", "flax",
            "optax", "numpy")  # fmt: skip


def timed(step: Step, clock: str = "wall", steps: int = 1) -> float:
    """Seconds of one of so many steps, the device's work included."""
    now = CLOCKS[clock]
    start = now()
    for _ in range(steps):
        found = step()
    if hasattr(found, "block_until_ready"):  # JAX's
        found.block_until_ready()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (now() - start) / steps


def race(runs: Mapping[str, Step], rounds: int, device: str, clock: str) -> dict[str, list[float]]:
    """Seconds of a step of each run, taken in turns: what else the machine does falls on all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run, clock, STEPS_A_TURN[device]))
    return seconds


def matmul(device: str) -> Step:
    """A function of nothing that multiplies two square bfloat16 matrices."""
    side = MATMUL_SIDE[device]
    a, b = torch.randn(2, side, side, device=device).bfloat16()
    return lambda: a @ b


def matmul_rate(seconds: list[float], device: str) -> float:
    """FLOP/s."""
    return 2 * MATMUL_SIDE[device] ** 3 / median(seconds)


def machine(device: str, clock: str) -> dict[str, Any]:
    """All that one needs to know of where and how a figure came about."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *map(anywhere, sys.argv)]),
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "clock": clock,
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := version_of(name))},
        "environment": {n: os.environ.get(n) for n in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")},
    }


def anywhere(word: str) -> str:
    """A word of a command; of a path that means something on this machine alone its last part."""
    return Path(word).name if Path(word).is_absolute() else word


def version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
