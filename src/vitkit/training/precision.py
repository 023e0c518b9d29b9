"""Which device, precision and number of threads, by a look at the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from vitkit.errors import UsageError


@dataclass(frozen=True)
class Precision:
    """What matrix products are computed in, and why; weights and optimizer stay in float32."""

    name: str  # "fp32" or "bf16"
    why: str

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context that a forward pass runs in."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.name == "bf16")


ONE_THREAD_BELOW = 4e9  # FLOPs of a step


def choose_threads(flops_of_a_step: float, device: torch.device, processes: int = 1) -> int:
    """Threads that compute: one for a step too small to share on a CPU, else what torch takes.

    That is shared among the processes of this machine, each of which has its own step.

    Two threads gain little on such a step, and wait for each other as soon as anything else, the
    loading of images say, wants a core (docs/performance.md).
    """
    small = device.type == "cpu" and flops_of_a_step < ONE_THREAD_BELOW
    if "OMP_NUM_THREADS" in os.environ:  # torchrun or the user has said it for each process
        processes = 1
    return 1 if small else max(1, torch.get_num_threads() // processes)


@contextmanager
def computing_threads(number: int) -> Iterator[None]:
    """torch computes with this many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def choose_device(wanted: str, local_rank: int | None = None) -> torch.device:
    """ "auto" is CUDA, else MPS, else the CPU. Raises UsageError for one that is not there.

    With a `local_rank` each process of a machine takes the CUDA device of its number.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        wanted = next(name for name, available in there.items() if available)
    kind = wanted.split(":")[0]
    if not there.get(kind, False):
        usable = [name for name, available in there.items() if available]
        text = f"device {wanted!r} is not usable here; usable: auto, {', '.join(usable)}"
        raise not_there(text, local_rank)
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(f"device {wanted!r} is none; usable: auto, cpu, cuda, cuda:1") from error
    if kind == "mps" and local_rank is not None:
        raise UsageError(
            "several processes cannot share MPS; give --device cpu, or leave out --gpus"
        )
    if kind == "cuda":
        number = device.index if local_rank is None else local_rank
        count = torch.cuda.device_count()
        if (number or 0) >= count:
            text = f"CUDA device {number} is not there: this machine has {count}, counted from 0"
            raise not_there(text, local_rank)
        return device if number is None else torch.device("cuda", number)
    return device


def not_there(text: str, local_rank: int | None) -> UsageError:
    """Of several processes each tells it for itself: only one machine may lack a device."""
    error = UsageError(text)
    error.everywhere = local_rank is None
    return error


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """ "auto" is bf16 where the device multiplies it faster than fp32, else fp32."""
    if wanted != "auto":
        return Precision(wanted, "as asked for")
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device)[0] >= 8
        name = torch.cuda.get_device_name(device)
        return Precision("bf16" if fast else "fp32", f"{name} has {'' if fast else 'no '}fast bf16")
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        units = [unit for unit in ("amx_bf16", "avx512_bf16") if able.get(unit)]
        if units:
            return Precision("bf16", f"this CPU has {units[0]}")
        return Precision("fp32", "this CPU has no fast bf16")
    return Precision("fp32", f"bf16 is not measured on {device.type}")
