"""States of a run: saved in the background, found, verified, loaded, and dropped when old."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from vitkit.errors import VitkitError
from vitkit.training.config import TrainConfig
from vitkit.training.state import TrainState
from vitkit.training.storage import (
    Stamp,
    StateError,
    problem_with,
    progress_in,
    read_state,
    shapes_in,
    write_state,
)
from vitkit.training.world import another_ended, rank_and_size, together

FLOAT32 = 4  # bytes
KEPT = 2  # states kept in a run directory
SLOW_DISK = 10e6  # bytes a second; as long as such a one takes, nothing is thought to hang
READ_BACK = 300.0  # seconds; once in so many an older state goes only when the next was read back
NICE = 10  # how much the writing thread gives way to training


@dataclass(frozen=True)
class Damaged:
    """A state that cannot be used, and why."""

    folder: Path
    problem: str


class Saver:
    """Writes states in the background; training waits for the copy only.

    All processes use it alike, and call `finish` before they begin another. While that waits, it
    calls `beat`, for as long as a slow disk may take.
    The copy is kept, and costs as much host memory as weights, optimizer and average of a process.
    """

    def __init__(
        self, checkpoints: Path, cuda: bool = False, beat: Callable[[], None] = lambda: None
    ) -> None:
        self.checkpoints, self.beat = checkpoints, beat
        # Its messages must not meet those of training, so it has its own connections.
        self.group: Any = dist.new_group(backend="gloo") if dist.is_initialized() else None
        options = StagingOptions(
            use_pinned_memory=cuda, use_shared_memory=False, use_async_staging=False,
            use_non_blocking_copy=False,
        )  # fmt: skip
        self.stager = DefaultStager(options)
        self.thread: threading.Thread | None = None
        self.problem: VitkitError | None = None
        self.seconds = 0.0
        self.trusted: Mapping[Path, Stamp] = {}  # shards of the last state that were hashed here
        self.trusting_until = 0.0

    def begin(self, state: TrainState) -> None:
        """Save the state as it is now."""
        folder = folder_of(self.checkpoints, state.step)
        tensors = tensors_of(state)
        size = sum(tensor.nbytes for tensor in tensors.values())
        self.seconds = 2 * size / SLOW_DISK  # to write it, and to read the one before
        copy: Any = self.stager.stage(share_of(tensors))
        arguments = (folder, copy, set(tensors), state.progress())
        self.thread = threading.Thread(target=self.write, args=arguments, daemon=True)
        self.thread.start()

    def finish(self) -> VitkitError | None:
        """Wait until the last state is written -> what went wrong, None if nothing did.

        A StateError where another save may succeed.
        """
        until = time.monotonic() + self.seconds
        while self.thread is not None and self.thread.is_alive():
            self.thread.join(1.0)
            if time.monotonic() < until:
                self.beat()
        self.thread = None
        problem, self.problem = self.problem, None
        return problem

    def write(
        self, folder: Path, tensors: dict[str, Tensor], names: set[str], progress: dict[str, Any]
    ) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            with suppress(OSError):  # of a process that gives way already
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            stamps = write_state(folder, tensors, names, progress, self.group)
        except StateError as error:
            self.problem = error
            return
        except Exception as error:  # told by `finish`, not lost in a thread
            self.problem = another_ended(error) or StateError(
                f"{folder}: cannot be written: {error}"
            )
            return
        if rank_and_size()[0] == 0:
            with suppress(OSError, StateError):  # the next save tries again
                trusting = time.monotonic() < self.trusting_until
                rotate(self.checkpoints, folder, self.trusted if trusting else {})
                if not trusting:
                    self.trusting_until = time.monotonic() + READ_BACK
            self.trusted = stamps
        if self.group is not None:  # who ends sooner would have this one killed while it removes
            with suppress(RuntimeError):  # another process has ended; the state is whole
                dist.barrier(self.group)


def state_bytes(weights: int, trained: int, config: TrainConfig) -> int:
    """The size of one saved state, adapters and all: so many weights, and of so many trained ones
    the optimizer's moments and the Polyak average."""
    moments = 2 if config.optimizer.name == "adamw" else int(config.optimizer.momentum > 0)
    return FLOAT32 * (weights + trained * (moments + bool(config.polyak)))


def save_state(checkpoints: Path, state: TrainState) -> Path:
    """Save a state and wait until it is written. All processes call it together."""
    saver = Saver(checkpoints)
    saver.begin(state)
    problem = saver.finish()
    if problem is not None:
        raise problem
    return folder_of(checkpoints, state.step)


def folder_of(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def states_in(checkpoints: Path) -> list[Path]:
    """The folders of states, the newest first."""
    found = [p for p in checkpoints.glob("step-*") if p.is_dir() and p.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def rotate(checkpoints: Path, newest: Path, trusted: Mapping[Path, Stamp]) -> None:
    """Drop what is older than the KEPT newest states that are whole; `newest` is one.

    The hashes of the others are made again, except of files whose stamps are still `trusted`.
    A damaged state does not count, and what cannot be removed now is tried again the next time.
    """
    clear_leftovers(checkpoints)
    whole = 0
    for folder in states_in(checkpoints):
        if whole == KEPT:
            # First another name: a state that is half removed must not look like one.
            old = folder.with_name(f".{folder.name}.old")
            try:
                folder.rename(old)
            except OSError:
                continue
            shutil.rmtree(old, ignore_errors=True)
        elif folder == newest or problem_with(folder, trusted=trusted) is None:
            whole += 1


def clear_leftovers(checkpoints: Path) -> None:
    """Remove what a process that was killed left half-written or half-removed."""
    for left in checkpoints.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def newest_state(checkpoints: Path) -> tuple[Path | None, list[Damaged]]:
    """The newest state whose hashes are right, and the damaged ones that are newer.

    StateError for a state of another version, or that cannot be read now. Nothing is changed.
    """
    damaged = []
    for folder in states_in(checkpoints):
        problem = problem_with(folder)
        if problem is None:
            return folder, damaged
        damaged.append(Damaged(folder, problem))
    return None, damaged


def set_aside(damaged: list[Damaged]) -> list[str]:
    """Rename damaged states, since their steps will be saved again -> a sentence for each."""
    sentences = []
    for one in damaged:
        aside = one.folder.with_name(f"damaged-{one.folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        one.folder.rename(aside)
        sentences.append(f"{one.problem}; it is now {aside.name}")
    return sentences


def load_state(folder: Path, state: TrainState) -> None:
    """Put a saved state into one of the same config. Raises StateError before a tensor is changed.

    All processes call it together, each with a view of the folder; they share its verification.
    """
    rank, size = rank_and_size()
    together(lambda: verify(folder, rank, size))
    saved = shapes_in(folder)
    tensors = tensors_of(state, optimizer=False) | slots_for(state, saved)
    for name in sorted(set(saved) ^ set(tensors)):
        raise StateError(f"{folder}: is of another net or optimizer: {name}")
    for name, tensor in tensors.items():
        if saved[name][0] != tensor.shape:
            raise StateError(
                f"{folder}: is of another net: {name} is {tuple(saved[name][0])}, not "
                f"{tuple(tensor.shape)}"
            )
    read_state(folder, tensors)
    numbers = {name: n for n, (name, _) in enumerate(optimized(state))}
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer/"):
            parameter, key = name.removeprefix("optimizer/").rsplit("/", 1)
            slots.setdefault(numbers[parameter], {})[key] = tensor
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": slots, "param_groups": groups})
    state.restore(progress_in(folder))


def verify(folder: Path, part: int, parts: int) -> None:
    problem = problem_with(folder, part, parts)
    if problem:
        raise StateError(problem)


def tensors_of(state: TrainState, optimizer: bool = True) -> dict[str, Tensor]:
    """All tensors of a state by name, as they are: sharded or not, on their device."""
    tensors = {f"net/{name}": t.detach() for name, t in state.net.state_dict().items()}
    tensors |= {f"average/{name}": t for name, t in (state.average or {}).items()}
    if optimizer:
        for name, parameter in optimized(state):
            slots = state.optimizer.state.get(parameter, {})
            tensors |= {f"optimizer/{name}/{key}": t for key, t in slots.items()
                        if isinstance(t, Tensor)}  # fmt: skip
    return tensors


def optimized(state: TrainState) -> list[tuple[str, Tensor]]:
    """(name, parameter) in the order in which the optimizer numbers them."""
    names = {id(p): name for name, p in state.net.named_parameters()}
    groups = state.optimizer.param_groups
    return [(names[id(p)], p) for group in groups for p in group["params"]]


def slots_for(
    state: TrainState, saved: dict[str, tuple[torch.Size, torch.dtype]]
) -> dict[str, Tensor]:
    """Where the saved state of the optimizer is to go, sharded as its parameters are."""
    parameters = dict(optimized(state))
    slots = {}
    for name, (shape, dtype) in saved.items():
        if name.startswith("optimizer/"):
            parameter_name, key = name.removeprefix("optimizer/").rsplit("/", 1)
            parameter = parameters.get(parameter_name)
            if parameter is None:
                continue
            slot = state.optimizer.state.get(parameter, {}).get(key)
            if isinstance(slot, Tensor) and slot.shape == shape:
                slots[name] = slot  # of a run that goes back: memory has no room for two
            elif parameter.shape == shape:
                slots[name] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            else:
                slots[name] = torch.zeros(shape, dtype=dtype)  # the count of steps
    return slots


def share_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What this process is to write: its parts of sharded tensors, and a share of the others.

    A tensor that every process holds whole is copied and written by one of them.
    """
    rank, size = rank_and_size()
    sharded = {name: t for name, t in tensors.items() if isinstance(t, DTensor)}
    whole = sorted(set(tensors) - set(sharded), key=lambda name: (-tensors[name].nbytes, name))
    return sharded | {name: tensors[name] for name in whole[rank::size]}
