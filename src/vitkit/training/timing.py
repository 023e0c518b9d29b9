"""How long a step takes, by taking some that change nothing."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import replace

from torch import nn

from vitkit.data.pipeline import Batch, TrainingStream
from vitkit.training.step import (
    Setup,
    evaluations,
    ready,
    train_step,
    with_optimizer,
)
from vitkit.training.watch import Patience
from vitkit.training.world import most

WARMUP, SECONDS = 3, 5.0  # steps not timed, then time spent on timing


def steps_in(seconds: float, setup: Setup, net: nn.Module, forward: nn.Module,
             stream: TrainingStream, held_out: int) -> int:  # fmt: skip
    """How many steps fit into a time, evaluations included, by timing some that change nothing.

    All processes take the time of the slowest.
    """
    started = time.perf_counter()
    each = seconds_of_a_step(setup, net, forward, stream.batches())
    left = seconds - (time.perf_counter() - started)
    evaluation = held_out * each / setup.config.batch_size / 3  # forward is a third of a step
    if setup.config.evaluate_every is None:
        left -= evaluations(setup.config) * evaluation
    else:
        each += evaluation / setup.config.evaluate_every
    return -most(-max(1, int(left / each)))


def seconds_of_a_step(
    setup: Setup, net: nn.Module, forward: nn.Module, stream: Generator[Batch, None, None]
) -> float:
    """By steps with a learning rate of 0 and an optimizer of their own; compiling is not timed."""
    trial = with_optimizer(net, forward, replace(setup.config, polyak=0.0))
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}  # batch norms' means
    batches = ready(stream, setup)
    patience = Patience(setup.config.engine.patience)

    def step() -> None:
        train_step(setup, trial, next(batches), 0.0)
        patience.beat()

    try:
        with patience:
            for _ in range(WARMUP):
                step()
            int(trial.skipped)  # waits for the device
            timed, begin = 0, time.perf_counter()
            while most(time.perf_counter() - begin < SECONDS or timed < WARMUP):
                step()
                timed += 1
            int(trial.skipped)
            return (time.perf_counter() - begin) / timed
    finally:
        batches.close()
        trial.optimizer.zero_grad()
        for name, buffer in net.named_buffers():
            buffer.copy_(kept[name])
