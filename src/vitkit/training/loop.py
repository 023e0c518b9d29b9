"""The training loop, for pre-training and fine-tuning alike."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from vitkit.data.pipeline import Batch, TrainingStream
from vitkit.data.transforms import Preprocessing, normalise
from vitkit.errors import VitkitError
from vitkit.objectives.supervised import cross_entropy
from vitkit.training.config import TrainConfig
from vitkit.training.log import RunLog, memory_used
from vitkit.training.optimizers import make_optimizer
from vitkit.training.precision import Precision
from vitkit.training.schedules import warmup_decay
from vitkit.training.state import TrainState, save_state
from vitkit.training.stopping import Interrupted, StopSignals

EVALUATIONS = 4  # in a run, where the config does not say
LOG_SECONDS = 1.0  # the loss is read, which waits for the device, about this often
PROBE_WARMUP, PROBE_SECONDS = 3, 5.0  # steps not timed, then time spent on timing


@dataclass(frozen=True)
class Setup:
    """What stays the same during a run."""

    config: TrainConfig
    steps: int
    device: torch.device
    precision: Precision
    threads: int  # that compute
    preprocessing: Preprocessing

    @property
    def evaluate_every(self) -> int:
        return self.config.evaluate_every or math.ceil(self.steps / EVALUATIONS)

    @property
    def save_every(self) -> int:
        return self.config.save_every or self.evaluate_every


class Diverged(VitkitError):
    """The loss or a gradient is NaN or infinite."""


def fresh_state(net: nn.Module, config: TrainConfig) -> TrainState:
    """A net that is about to be trained, with its optimizer and Polyak average."""
    average = None
    if config.polyak:
        average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(config.polyak))
    return TrainState(net, make_optimizer(net, config.optimizer), average)


def train(
    setup: Setup,
    state: TrainState,
    stream: TrainingStream,
    evaluate: Callable[[nn.Module], dict[str, float]],
    keep_best: Callable[[], None],
    log: RunLog,
    checkpoints: Path,
) -> None:
    """Train `state` from its step to `setup.steps`.

    `evaluate` takes the net (the Polyak average, where one is kept) and gives named floats, "top1"
    among them; `keep_best` is called when top1 has risen. Raises Diverged, and Interrupted when
    Ctrl-C or SIGTERM came, with the state saved.
    """
    rate = learning_rates(setup)
    batches = stream.batches(first=state.step)
    meter = Meter(setup.config.batch_size)
    try:
        with StopSignals() as stop:
            while True:
                if stop.received is None and evaluation_is_due(state, setup):
                    evaluate_now(setup, state, evaluate, keep_best, log)
                    meter.restart()
                if stop.received is not None or is_due(setup.save_every, state, setup):
                    saved = save_state(checkpoints, state)
                    meter.restart()
                    if stop.received is not None:
                        raise Interrupted(stop.received, saved)
                if state.step == setup.steps:
                    return
                learning_rate = rate(state.step)
                loss, norm = train_step(setup, state, next(batches), learning_rate)
                state.step += 1
                meter.add(loss)
                if meter.due() or state.step == setup.steps:
                    mean_loss, speed = meter.read()
                    log.progress(state.step, mean_loss, speed)
                    values = {
                        "loss": mean_loss, "learning_rate": learning_rate,
                        "gradient_norm": float(norm), "images_per_second": speed,
                        "memory_bytes": memory_used(),
                    }  # fmt: skip
                    log.record(state.step, "train", values)
    finally:
        batches.close()


def train_step(
    setup: Setup, state: TrainState, batch: Batch, learning_rate: float
) -> tuple[Tensor, Tensor]:
    """One update of the weights -> (mean loss, gradient norm before clipping), both scalars."""
    config = setup.config
    torch.manual_seed(config.seed + state.step + 1)  # dropout follows from (seed, step)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    state.net.train()
    state.optimizer.zero_grad()
    images, labels = batch.images.to(setup.device), batch.labels.to(setup.device)
    total = torch.zeros((), device=setup.device)
    for some_images, some_labels in zip(
        images.chunk(config.accumulation), labels.chunk(config.accumulation), strict=True
    ):
        pixels = normalise(some_images, setup.preprocessing.mean, setup.preprocessing.std)
        with setup.precision.autocast(setup.device):
            logits = state.net(pixels)
        loss = cross_entropy(logits, some_labels, config.loss, config.label_smoothing)
        loss = loss * (len(some_labels) / len(labels))  # parts may differ by an image
        loss.backward()
        total += loss.detach()
    limit = config.optimizer.clip_norm or math.inf
    norm = nn.utils.clip_grad_norm_(state.net.parameters(), limit)
    if not torch.isfinite(norm):
        raise Diverged(
            f"step {state.step}: the gradient is not finite (loss {float(total):.3g}); the weights "
            "are as they were before this step; start again with a lower --learning-rate"
        )
    state.optimizer.step()
    if state.average is not None:
        state.average.update_parameters(state.net)
    return total, norm


def evaluate_now(
    setup: Setup,
    state: TrainState,
    evaluate: Callable[[nn.Module], dict[str, float]],
    keep_best: Callable[[], None],
    log: RunLog,
) -> None:
    metrics = evaluate(state.evaluated())
    log.record(state.step, "evaluation", metrics)
    log.say(f"step {state.step}/{setup.steps}  top-1 {metrics['top1']:.1%} on the held-out images")
    state.evaluated_at = state.step
    if metrics["top1"] > state.best.get("top1", -1.0):
        state.best = metrics
        keep_best()


def is_due(every: int, state: TrainState, setup: Setup) -> bool:
    return state.step > 0 and (state.step % every == 0 or state.step == setup.steps)


def evaluation_is_due(state: TrainState, setup: Setup) -> bool:
    """Also where a run was stopped before it could evaluate at this step."""
    return state.evaluated_at < state.step and is_due(setup.evaluate_every, state, setup)


def learning_rates(setup: Setup) -> Callable[[int], float]:
    schedule = setup.config.schedule
    warmup = schedule.warmup_steps
    if warmup is None:
        warmup = round(schedule.warmup_share * setup.steps)
    base = setup.config.optimizer.learning_rate
    return warmup_decay(schedule.kind, base, setup.steps, warmup, schedule.linear_end)


def steps_in(seconds: float, setup: Setup, state: TrainState, stream: TrainingStream,
             held_out: int) -> int:  # fmt: skip
    """How many steps fit into a time, evaluations included, by timing some on a copy."""
    trial = copy.deepcopy(state)
    batches = stream.batches()
    started = time.perf_counter()
    try:
        for _ in range(PROBE_WARMUP):
            train_step(setup, trial, next(batches), 0.0)
        timed, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < PROBE_SECONDS or timed < PROBE_WARMUP:
            train_step(setup, trial, next(batches), 0.0)
            timed += 1
        each = (time.perf_counter() - begin) / timed
    finally:
        batches.close()
    left = seconds - (time.perf_counter() - started)
    evaluation = held_out * each / setup.config.batch_size / 3  # forward is a third of a step
    if setup.config.evaluate_every is None:
        left -= EVALUATIONS * evaluation
    else:
        each += evaluation / setup.config.evaluate_every
    return max(1, int(left / each))


class Meter:
    """Mean loss and speed since it was last read, without waiting for the device at each step."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        self.losses: list[Tensor] = []
        self.began = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        self.losses.append(loss)

    def due(self) -> bool:
        return time.perf_counter() - self.began >= LOG_SECONDS

    def read(self) -> tuple[float, float]:
        loss = float(torch.stack(self.losses).mean())
        speed = len(self.losses) * self.batch_size / (time.perf_counter() - self.began)
        self.restart()
        return loss, speed
