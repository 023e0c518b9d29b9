"""The training loop, for pre-training and fine-tuning alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from vitkit.data.pipeline import Batch, TrainingStream
from vitkit.data.transforms import Preprocessing, normalised, normalising_constants
from vitkit.errors import VitkitError
from vitkit.objectives.supervised import cross_entropy
from vitkit.training.config import TrainConfig
from vitkit.training.log import RunLog, memory_used
from vitkit.training.optimizers import make_optimizer
from vitkit.training.parallel import Engine, apply, parts_of_a_step, share_buffers, whole
from vitkit.training.schedules import warmup_decay
from vitkit.training.state import TrainState, save_state
from vitkit.training.stopping import Interrupted, StopSignals
from vitkit.training.world import mean, most

EVALUATIONS = 4  # in a run, where the config does not say
LOG_SECONDS = 1.0  # the loss is read, which waits for the device, about this often
PROBE_WARMUP, PROBE_SECONDS = 3, 5.0  # steps not timed, then time spent on timing


@dataclass(frozen=True)
class Setup:
    """What stays the same during a run."""

    config: TrainConfig
    steps: int
    engine: Engine
    preprocessing: Preprocessing

    @cached_property
    def constants(self) -> Tensor:
        """Made once: bringing numbers to a GPU waits for it."""
        kept = self.preprocessing
        return normalising_constants(kept.mean, kept.std, self.engine.device)

    @property
    def evaluate_every(self) -> int:
        return self.config.evaluate_every or math.ceil(self.steps / EVALUATIONS)

    @property
    def save_every(self) -> int:
        return self.config.save_every or self.evaluate_every


class Diverged(VitkitError):
    """The loss or a gradient is NaN or infinite."""

    everywhere = True


def fresh_state(net: nn.Module, config: TrainConfig, engine: Engine) -> TrainState:
    """A net that is about to be trained, ready for its engine, with optimizer and average."""
    return with_optimizer(net, apply(net, engine), config)


def with_optimizer(net: nn.Module, forward: nn.Module, config: TrainConfig) -> TrainState:
    average = None
    if config.polyak:
        average = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = make_optimizer(net, config.optimizer)
    return TrainState(net, forward, optimizer, average, parts=config.accumulation)


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
    batches = on_device(stream.batches(first=state.step), setup.engine.device)
    meter = Meter(setup.config.batch_size)
    try:
        with StopSignals() as stop:
            while True:
                # All processes must do the same, so a stop of one, and the time of the longest
                # since the last reading, are agreed upon; no process waits for its device here.
                stopped = most(stop.received or 0)
                if not stopped and evaluation_is_due(state, setup):
                    check_finite(state)
                    evaluate_now(setup, state, evaluate, keep_best, log)
                    meter.restart()
                if stopped or is_due(setup.save_every, state, setup):
                    check_finite(state)
                    share_buffers(state.net)
                    saved = save_state(checkpoints, state)
                    meter.restart()
                    if stopped:
                        raise Interrupted(stopped, saved)
                if state.step == setup.steps:
                    return
                learning_rate = rate(state.step)
                loss, norm = train_step(setup, state, next(batches), learning_rate, log.say)
                state.step += 1
                meter.add(loss)
                if most(meter.due() or state.step == setup.steps):
                    check_finite(state)
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
    setup: Setup,
    state: TrainState,
    batch: Batch,
    learning_rate: float,
    say: Callable[[str], None] = print,
) -> tuple[Tensor, Tensor]:
    """One update of the weights -> (mean loss, gradient norm before clipping), both scalars.

    `batch` is this process's share of the batch, and the loss that of its images. Where memory
    does not suffice the share is worked through in smaller parts, and `say` is told. Nothing
    here waits for a GPU: a gradient that is not finite leaves the weights alone from then on,
    and is raised as Diverged by `check_finite`; elsewhere at once.
    """
    config, optimizer = setup.config, state.optimizer
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    state.net.train()
    batch = Batch(batch.images.to(setup.engine.device), batch.labels.to(setup.engine.device))
    loss = gradients(setup, state, batch)
    while loss is None:
        halve_parts(setup, state, len(batch.labels), say)
        loss = gradients(setup, state, batch)
    limit = config.optimizer.clip_norm or math.inf
    norm = whole(nn.utils.clip_grad_norm_(state.net.parameters(), limit))
    state.note(loss, norm)
    if setup.engine.device.type == "cuda" and optimizer.defaults["fused"]:
        # The fused optimizers read it on the device, and change nothing where it is 1.
        optimizer.found_inf = state.diverged  # type: ignore[attr-defined]
    else:
        check_finite(state)
    optimizer.step()
    state.update_average(config.polyak)
    return loss, norm


def gradients(setup: Setup, state: TrainState, batch: Batch) -> Tensor | None:
    """Gradients of the batch's mean loss, which is given; None where memory did not suffice."""
    config, world = setup.config, setup.engine.world
    # Dropout follows from (seed, step, process).
    torch.manual_seed(config.seed + state.step + 1 + (world.rank << 32))
    state.optimizer.zero_grad()
    total = torch.zeros((), device=setup.engine.device)
    parts = list(zip(batch.images.chunk(state.parts), batch.labels.chunk(state.parts), strict=True))
    try:
        for number in parts_of_a_step(state.forward, len(parts)):
            images, labels = parts[number]
            pixels = normalised(images, setup.constants)
            with setup.engine.autocast():
                logits = state.forward(pixels)
            loss = cross_entropy(logits, labels, config.loss, config.label_smoothing)
            loss = loss * (len(labels) / len(batch.labels))  # parts may differ by an image
            loss.backward()
            total += loss.detach()
    except RuntimeError as error:  # torch's OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        # Outside this block the error, and with it the activations it refers to, is gone.
        total = None
    return total


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed; the CPU's allocator has no class of its own for that."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def halve_parts(setup: Setup, state: TrainState, images: int, say: Callable[[str], None]) -> None:
    """Work through a batch in twice as many parts; VitkitError where that is not possible."""
    state.optimizer.zero_grad()
    if setup.engine.device.type == "cuda":
        torch.cuda.empty_cache()
    now, wanted = math.ceil(images / state.parts), 2 * state.parts
    advice = f"--accumulation {wanted} --resume auto, or a checkpointing that keeps less"
    alone = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in state.net.modules())
    if setup.engine.world.size > 1 or alone or now == 1:
        # Other processes already wait for this one's gradients; batch norms see a part alone.
        raise VitkitError(
            f"step {state.step}: out of memory with {now} image(s) at once"
            + (f" in process {setup.engine.world.rank}" if setup.engine.world.size > 1 else "")
            + f"; the weights are as they were before; start again with {advice}"
        )
    state.parts = wanted
    say(
        f"step {state.step}: out of memory with {now} images at once; going on with "
        f"{math.ceil(images / wanted)}, and the same batch"
    )


def check_finite(state: TrainState) -> None:
    """Diverged where a gradient was not finite since the run began; waits for the device."""
    if not bool(state.diverged):
        return
    raise Diverged(
        f"by step {state.step}: the gradient is not finite (loss {float(state.bad_loss):.3g}); the "
        "weights are as they were before it; start again with a lower --learning-rate"
    )


def on_device(
    batches: Generator[Batch, None, None], device: torch.device
) -> Generator[Batch, None, None]:
    """The same batches; on CUDA each is copied on a stream of its own while the last is used."""
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def copies() -> Iterator[Batch]:
        for batch in batches:
            with torch.cuda.stream(stream):
                pinned = (batch.images.pin_memory(), batch.labels.pin_memory())
                copied = Batch(*(tensor.to(device, non_blocking=True) for tensor in pinned))
            yield copied  # outside: the stream would stay the current one of whoever reads on

    try:
        copied = copies()
        ahead = next(copied)
        while True:
            torch.cuda.current_stream(device).wait_stream(stream)
            batch, ahead = ahead, next(copied)
            for tensor in (batch.images, batch.labels):
                tensor.record_stream(torch.cuda.current_stream(device))
            yield batch
    finally:
        batches.close()


def evaluate_now(
    setup: Setup,
    state: TrainState,
    evaluate: Callable[[nn.Module], dict[str, float]],
    keep_best: Callable[[], None],
    log: RunLog,
) -> None:
    share_buffers(state.net)
    with state.averaged() as net:
        metrics = evaluate(net)
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
        left -= EVALUATIONS * evaluation
    else:
        each += evaluation / setup.config.evaluate_every
    return -most(-max(1, int(left / each)))


def seconds_of_a_step(
    setup: Setup, net: nn.Module, forward: nn.Module, stream: Generator[Batch, None, None]
) -> float:
    """By steps with a learning rate of 0 and an optimizer of their own; compiling is not timed."""
    trial = with_optimizer(net, forward, replace(setup.config, polyak=0.0))
    kept = {name: buffer.clone() for name, buffer in net.named_buffers()}  # batch norms' means
    batches = on_device(stream, setup.engine.device)
    try:
        for _ in range(PROBE_WARMUP):
            train_step(setup, trial, next(batches), 0.0)
        check_finite(trial)  # waits for the device
        timed, begin = 0, time.perf_counter()
        while most(time.perf_counter() - begin < PROBE_SECONDS or timed < PROBE_WARMUP):
            train_step(setup, trial, next(batches), 0.0)
            timed += 1
        check_finite(trial)
        return (time.perf_counter() - begin) / timed
    finally:
        batches.close()
        trial.optimizer.zero_grad()
        for name, buffer in net.named_buffers():
            buffer.copy_(kept[name])


class Meter:
    """Mean loss of all processes, and speed, since it was last read; only reading waits."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        self.losses: list[Tensor] = []
        self.began = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        self.losses.append(loss)

    def due(self) -> int:
        return int(time.perf_counter() - self.began >= LOG_SECONDS)

    def read(self) -> tuple[float, float]:
        loss = float(mean(torch.stack(self.losses).mean()))
        speed = len(self.losses) * self.batch_size / (time.perf_counter() - self.began)
        self.restart()
        return loss, speed
