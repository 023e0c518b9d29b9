"""The processes of a run: one, or as many as torchrun or `--gpus` started.

Everything here works alike in a run of one process, where nothing is sent anywhere.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from vitkit.errors import ElsewhereError, UsageError, VitkitError
from vitkit.training.watch import Heartbeats

PATIENCE = timedelta(minutes=30)  # the longest that processes wait for each other
GRACE = 3.0  # seconds that the others have to end when one has failed


@dataclass(frozen=True)
class World:
    """Which process this is."""

    rank: int = 0  # among all
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.rank == 0


def from_environment() -> World:
    """As torchrun says it in RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        found = [int(os.environ.get(n, d)) for n, d in zip(names, (0, 1, 0, 1), strict=True)]
    except ValueError as error:
        given = {name: os.environ.get(name) for name in names}
        raise UsageError(f"{given}: expected numbers; start the run by torchrun") from error
    return World(*found)


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The processes of a run are connected inside the block: by NCCL for CUDA, gloo for the CPU."""
    world = from_environment()
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if world.size == 1 or dist.is_initialized():
        yield world
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise VitkitError(
            f"process {world.rank} of {world.size} cannot reach the others: {error}; check "
            "MASTER_ADDR and MASTER_PORT, or start the run by torchrun"
        ) from error
    try:
        with Heartbeats(store, rank, size):
            yield world
    except RuntimeError as error:
        ended = another_ended(error)
        if ended is None:
            raise
        raise ended from error
    # Not after an error: NCCL would wait here for the others, who do not know of it.
    dist.destroy_process_group()


def another_ended(error: BaseException) -> VitkitError | None:
    """What an error says where it came from the connections between the processes."""
    if not isinstance(error, dist.DistError) and "gloo" not in str(error):
        return None
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return VitkitError(
        f"another process of the run ended; its words, if it had any, are near these "
        f"({first_line}); the same command with --resume auto goes on from the newest state"
    )


def rank_and_size() -> tuple[int, int]:
    if not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def most(number: int) -> int:
    """The largest of the processes' numbers, in all of them; waits on the host, not the device."""
    return most_of(number)[0]


def most_of(*numbers: int) -> list[int]:
    """The same for several numbers at once."""
    found = torch.tensor([int(number) for number in numbers])
    if dist.is_initialized():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def total(values: Tensor) -> Tensor:
    """The sum of the processes' values; any shape, on any device."""
    if dist.is_initialized():
        values = values.clone()
        dist.all_reduce(values)
    return values


def mean(value: Tensor) -> Tensor:
    return total(value) / (dist.get_world_size() if dist.is_initialized() else 1)


def from_main(work: Callable[[], Any]) -> Any:
    """What `work` gives in the main process, in all of them; where it fails, all of them fail."""
    if not dist.is_initialized():
        return work()
    told: list[Any] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            told[0] = work()
        except Exception as error:
            failure = error
            told[1] = (str(error), getattr(error, "exit_code", 1))
    dist.broadcast_object_list(told)
    if failure is not None:
        raise failure
    if told[1] is not None:
        elsewhere = ElsewhereError(told[1][0])
        elsewhere.exit_code = told[1][1]
        raise elsewhere
    return told[0]


def together(work: Callable[[], Any]) -> Any:
    """What `work` gives here; where it fails in one process, all of them fail with its error."""
    if not dist.is_initialized():
        return work()
    found, failure = None, None
    try:
        found = work()
    except VitkitError as error:
        failure = error
    told = of_all(None if failure is None else (str(failure), failure.exit_code))
    if not any(told):
        return found
    rank, (text, code) = next((r, t) for r, t in enumerate(told) if t is not None)
    elsewhere = ElsewhereError(text if rank == 0 else f"process {rank}: {text}")
    elsewhere.exit_code = code
    raise elsewhere


def of_all(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    if not dist.is_initialized():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def start(work: Callable[[Any], int], argument: Any, processes: int) -> int:
    """Run `work(argument)` in that many processes of this machine -> the first exit code not 0.

    Ctrl-C and SIGTERM are handed on, and a second Ctrl-C ends everything at once; where one process
    fails, the others are ended.
    """
    from torch.multiprocessing.spawn import (
        ProcessExitedException,
        ProcessRaisedException,
        start_processes,
    )

    meeting = socket.socket()  # held, so that nobody else is given its port while they start
    meeting.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    meeting.bind(("127.0.0.1", 0))
    port = meeting.getsockname()[1]
    context = start_processes(
        process, (work, argument, processes, port), nprocs=processes, join=False
    )
    assert context is not None
    received: list[int] = []

    def hand_on(number: int, frame: object) -> None:
        received.append(number)
        for child in context.processes:
            # Never SIGINT: a terminal has sent one already, and a second ends a process unsaved.
            # Of SIGTERM schedulers send as many as they like, while the state is being saved.
            if child is not None and child.is_alive():
                (child.kill if received.count(signal.SIGINT) > 1 else child.terminate)()

    before = {n: signal.signal(n, hand_on) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not context.join(grace_period=GRACE):
            pass
    except ProcessExitedException as error:
        code = error.exit_code if error.exit_code > 0 else 128 - error.exit_code
        by_signal = code in (128 + signal.SIGTERM, 128 + signal.SIGKILL)
        return 128 + received[0] if received and by_signal else code
    except ProcessRaisedException:
        return 1
    finally:
        meeting.close()
        for number, handler in before.items():
            # A scheduler's second SIGTERM must not change the exit code of what has ended well.
            late = number in received and number == signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if late else handler)
    return 0


def process(rank: int, work: Callable[[Any], int], argument: Any, size: int, port: int) -> None:
    """One of the processes that `start` starts."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    leave(work(argument))


def leave(code: int) -> NoReturn:
    """End a process that is one of several.

    Python's own way out now and then aborts in the threads of gloo (torch 2.14: "terminate called
    without an active exception"), after all work is done.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
