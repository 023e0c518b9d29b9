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
from vitkit.training.parallel import (
    Engine,
    apply,
    batch_norm_buffers,
    buckets_change,
    parts_of_a_step,
    settle_buffers,
    whole,
)
from vitkit.training.saving import (
    Saver,
    folder_of,
    load_state,
    newest_state,
    set_aside,
    states_in,
)
from vitkit.training.schedules import warmup_decay
from vitkit.training.state import TrainState
from vitkit.training.stopping import Interrupted, StopNow, StopSignals
from vitkit.training.watch import Patience
from vitkit.training.world import from_main, mean, most, most_of

EVALUATIONS = 4  # in a run, where the config does not say
LOG_SECONDS = 1.0  # the losses are read, which waits for the device, about this often
USUAL_FROM = 20  # losses, from which on it is known what is usual
FAILED_SAVES = 3  # in a row end a run
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
    evaluate: Callable[[nn.Module, Callable[[], None]], dict[str, float]],
    keep_best: Callable[[], None],
    log: RunLog,
    checkpoints: Path,
) -> None:
    """Train `state` from its step to `setup.steps`.

    `evaluate` takes the net (the Polyak average, where one is kept) and what it must call at each
    batch, and gives named floats, "top1" among them; `keep_best` is called when top1 has risen.
    Raises Diverged, StateError where states cannot be saved, and Interrupted when Ctrl-C or
    SIGTERM came, with the state saved.
    """
    log.cut_back(state.logged_bytes)
    patience = Patience(setup.config.engine.patience)
    saver = Saver(checkpoints, setup.engine.device.type == "cuda", patience.beat)
    with patience, StopSignals() as stop:
        Training(setup, state, stream, evaluate, keep_best, log, saver, stop, patience).to_the_end()


class Training:
    """The loop of a run: what happens between two steps, each in a method of its own.

    All processes do the same at every step: what only one can know (a signal, the time) is agreed
    upon first. The losses are read now and then, since that waits for the device, and always
    before an evaluation or a save: no state is saved that a bad loss has come before.
    """

    def __init__(
        self,
        setup: Setup,
        state: TrainState,
        stream: TrainingStream,
        evaluate: Callable[[nn.Module, Callable[[], None]], dict[str, float]],
        keep_best: Callable[[], None],
        log: RunLog,
        saver: Saver,
        stop: StopSignals,
        patience: Patience,
    ) -> None:
        self.setup, self.state, self.stream, self.log = setup, state, stream, log
        self.evaluate, self.keep_best = evaluate, keep_best
        self.saver, self.stop, self.patience = saver, stop, patience
        self.rate = learning_rates(setup)
        self.meter = Meter(setup.config.batch_size)
        self.settled = not buckets_change(state.forward)
        self.failed_saves = 0
        self.saved_at, self.saved_when = state.step, time.perf_counter()

    def to_the_end(self) -> None:
        state = self.state
        if from_main(lambda: not states_in(self.saver.checkpoints)):
            self.save()  # something to go back to; and where saving fails, it fails early
        batches = self.batches()
        try:
            while True:
                self.patience.beat()
                stopped, read, save = self.agreed()
                ended = state.step == self.setup.steps
                evaluation = not stopped and evaluation_is_due(state, self.setup)
                save = save or is_due(self.setup.save_every, state, self.setup)
                if stopped or read or evaluation or save or ended:
                    spike = self.read()
                    if spike is not None:
                        batches.close()
                        self.rewind(*spike)
                        batches = self.batches()
                        continue
                if evaluation:
                    stopped = self.evaluate_now()
                if (stopped or save) and self.saved_at < state.step:
                    self.save()
                if stopped or ended:
                    self.finish_saving()
                if stopped:
                    raise Interrupted(stopped, folder_of(self.saver.checkpoints, state.step))
                if ended:
                    return
                learning_rate, batch = self.rate(state.step), next(batches)
                if not self.settled:
                    settle(self.setup, state, batch)
                    self.settled = True
                loss, norm = train_step(self.setup, state, batch, learning_rate, self.log.say)
                self.meter.add(loss, norm)
                state.step += 1
                state.position += 1
        finally:
            batches.close()
            self.saver.finish()

    def batches(self) -> Generator[Batch, None, None]:
        first = self.state.position
        return on_device(self.stream.batches(first), self.setup.engine.device)

    def agreed(self) -> tuple[int, bool, bool]:
        """The signal that a process received or 0, whether to read the losses, whether to save."""
        config, now = self.setup.config, time.perf_counter()
        if config.log_every is None:
            read = now - self.meter.began >= LOG_SECONDS
        else:
            read = self.state.step % config.log_every == 0
        save = 0 < config.save_minutes * 60 <= now - self.saved_when
        stopped, read, save = most_of(self.stop.received or 0, read, save)
        return stopped, bool(read), bool(save) and self.saved_at < self.state.step

    def read(self) -> tuple[float, int] | None:
        """Read and log the losses since the last time -> a spike, and how many steps ago it was.

        Raises Diverged where too many gradients were not finite.
        """
        state, meter = self.state, self.meter
        if not meter.losses:
            return None
        losses, norms, speed = meter.read()
        first = state.step - len(losses)  # the step that began with the first of these losses
        limit, skipped, finite = self.setup.config.guard.skipped_steps, [], []
        for number, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            if not math.isfinite(norm):
                self.log.record(first + number + 1, "skipped", {"loss": loss})
                skipped.append(str(first + number + 1))
                continue
            if self.is_spike(loss):
                return loss, len(losses) - number
            if not math.isfinite(loss):
                continue
            finite.append(loss)
            if len(state.losses) < USUAL_FROM:
                state.first_loss = max(state.first_loss, loss)
            state.losses.append(loss)
        if skipped:
            self.log.say(
                f"step {', '.join(skipped)}: the gradient is not finite, so nothing was changed; "
                f"{int(state.skipped)} of at most {limit} such steps"
            )
        check_finite(state, limit)
        mean_loss = sum(finite) / len(finite) if finite else math.nan
        self.log.progress(state.step, mean_loss, speed)
        values = {
            "loss": mean_loss, "learning_rate": self.rate(state.step - 1),
            "gradient_norm": norms[-1], "images_per_second": speed, "memory_bytes": memory_used(),
            "next_batch": state.position,
        }  # fmt: skip
        self.log.record(state.step, "train", values)
        return None

    def is_spike(self, loss: float) -> bool:
        state, factor = self.state, self.setup.config.guard.spike_factor
        if not factor or len(state.losses) < USUAL_FROM:
            return False
        return loss > max(factor * max(state.losses), state.first_loss)

    def rewind(self, loss: float, ago: int) -> None:
        """Go back to the newest state, and past the batch that brought a spike `ago` steps ago."""
        state, guard = self.state, self.setup.config.guard
        step, past = state.step - ago + 1, state.position - ago + 1
        problem = self.saver.finish()
        if problem is not None:
            self.log.say(str(problem))
        folder = from_main(self.newest_whole)
        rewinds = state.rewinds + 1
        if folder is None or rewinds > guard.rewinds:
            raise Diverged(
                f"step {step}: the loss has shot up to {loss:.3g}, and the run was taken back "
                f"{state.rewinds} time(s) before; start a new run with a lower --learning-rate, or "
                "go on with --resume auto and a larger --guard.rewinds"
            )
        best = state.best  # best/ stays, whatever the run has seen since
        load_state(folder, state)
        state.best = best
        self.log.cut_back(state.logged_bytes)
        values = {"spike_at": step, "left_out": [state.position, past - 1], "rewinds": rewinds}
        state.position, state.rewinds = past, rewinds
        self.saved_at = state.step
        self.log.record(state.step, "rewind", values)
        self.log.say(
            f"step {step}: the loss has shot up to {loss:.3g}; back to step {state.step}, and on "
            f"without the batches {values['left_out'][0]} to {past - 1}"
        )
        self.meter.restart()

    def newest_whole(self) -> Path | None:
        folder, damaged = newest_state(self.saver.checkpoints)
        for sentence in set_aside(damaged):
            self.log.say(sentence)
        return folder

    def evaluate_now(self) -> int:
        """Evaluate -> the signal that broke it off, or 0."""
        state, log = self.state, self.log
        stopped = 0

        def pulse() -> None:
            nonlocal stopped
            self.patience.beat()
            stopped = most(self.stop.received or 0)
            if stopped:
                raise StopNow

        try:
            with state.averaged() as net:
                metrics = self.evaluate(net, pulse)
        except StopNow:
            return stopped
        log.record(state.step, "evaluation", metrics)
        log.say(
            f"step {state.step}/{self.setup.steps}  top-1 {metrics['top1']:.1%} on the held-out "
            "images"
        )
        state.evaluated_at = state.step
        if metrics["top1"] > state.best.get("top1", -1.0):
            try:
                self.keep_best()
                state.best = metrics
            except (VitkitError, OSError) as error:  # all processes fail alike
                log.say(f"best/ cannot be written: {error}; going on without it")
        self.meter.restart()
        return 0

    def save(self) -> None:
        """Start saving; what became of the state before is told, and too many failures raised."""
        self.patience.beat()
        self.state.logged_bytes = self.log.size()
        problem = self.saver.begin(self.state)
        self.saved_at, self.saved_when = self.state.step, time.perf_counter()
        self.meter.restart()
        if problem is None:
            self.failed_saves = 0
            return
        self.failed_saves += 1
        if self.failed_saves == FAILED_SAVES:
            raise problem
        self.log.say(f"{problem}; going on, and trying again at the next save")

    def finish_saving(self) -> None:
        problem = self.saver.finish()
        if problem is not None:
            raise problem


def train_step(
    setup: Setup,
    state: TrainState,
    batch: Batch,
    learning_rate: float,
    say: Callable[[str], None] = print,
) -> tuple[Tensor, Tensor]:
    """One update of the weights -> (mean loss, gradient norm before clipping), both scalars.

    `batch` is this process's share of the batch, and the loss that of its images. Where memory
    does not suffice the share is worked through in smaller parts, and `say` is told. A gradient
    that is not finite changes nothing in any process; where there have been too many,
    `check_finite` raises Diverged. Nothing here waits for a GPU, but for SGD over sharded weights.
    """
    config, optimizer = setup.config, state.optimizer
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    state.net.train()
    buffers = batch_norm_buffers(state.net)
    before = [buffer.clone() for buffer in buffers]
    batch = placed(batch, setup.engine.device)
    loss = gradients(setup, state, batch)
    while loss is None:
        halve_parts(setup, state, len(batch.labels), say)
        loss = gradients(setup, state, batch)
    limit = config.optimizer.clip_norm or math.inf
    norm = whole(nn.utils.clip_grad_norm_(state.net.parameters(), limit))
    state.note(norm, config.guard.skipped_steps)
    settle_buffers(buffers, before, state.hold)
    if setup.engine.device.type == "cuda" and optimizer.defaults["fused"]:
        # The fused optimizers read it on the device, and change nothing where it is 1.
        optimizer.found_inf = state.hold  # type: ignore[attr-defined]
        optimizer.step()
    elif not bool(state.hold):
        optimizer.step()
    state.update_average(config.polyak)
    return loss, norm


def settle(setup: Setup, state: TrainState, batch: Batch) -> None:
    """Let DDP order its buckets, which it does after the first backward pass, before a step counts.

    From three processes on sums are rounded by their place in a bucket: without this the first
    step after a resume would not have the bits of the same step in a run that was never stopped.
    """
    buffers = batch_norm_buffers(state.net)
    before = [buffer.clone() for buffer in buffers]
    state.net.train()
    gradients(setup, state, placed(batch, setup.engine.device))
    state.optimizer.zero_grad()
    for buffer, old in zip(buffers, before, strict=True):
        buffer.copy_(old)


def gradients(setup: Setup, state: TrainState, batch: Batch) -> Tensor | None:
    """Gradients of the batch's mean loss, which is given; None where memory did not suffice."""
    config, world = setup.config, setup.engine.world
    # Dropout follows from (seed, position, process).
    torch.manual_seed(config.seed + state.position + 1 + (world.rank << 32))
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


def placed(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.images.to(device), batch.labels.to(device))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an allocation failed; the CPU's allocator and oneDNN have no class for that."""
    words = ("can't allocate memory", "could not create a primitive")
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in words)


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


def check_finite(state: TrainState, limit: int) -> None:
    """Diverged where more gradients than `limit` were not finite; waits for the device."""
    if int(state.skipped) <= limit:
        return
    raise Diverged(
        f"by step {state.step}: {int(state.skipped)} gradients were not finite, more than the "
        f"{limit} tolerated; the weights are as they were before the last of them; start a new run "
        "with a lower --learning-rate, or go on with --resume auto and a larger "
        "--guard.skipped-steps"
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
        check_finite(trial, 0)  # waits for the device
        timed, begin = 0, time.perf_counter()
        while most(time.perf_counter() - begin < PROBE_SECONDS or timed < PROBE_WARMUP):
            train_step(setup, trial, next(batches), 0.0)
            timed += 1
        check_finite(trial, 0)
        return (time.perf_counter() - begin) / timed
    finally:
        batches.close()
        trial.optimizer.zero_grad()
        for name, buffer in net.named_buffers():
            buffer.copy_(kept[name])


class Meter:
    """Loss of all processes, gradient norm and speed since it was last read; only reading waits."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.began = time.perf_counter()

    def add(self, loss: Tensor, norm: Tensor) -> None:
        self.losses.append(loss)
        self.norms.append(norm)

    def read(self) -> tuple[list[float], list[float], float]:
        """The loss and the gradient norm of each step, and images a second."""
        losses = mean(torch.stack(self.losses)).tolist()
        norms = torch.stack(self.norms).tolist()
        speed = len(losses) * self.batch_size / (time.perf_counter() - self.began)
        self.restart()
        return losses, norms, speed
