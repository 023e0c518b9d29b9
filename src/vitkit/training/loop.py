"""The training loop, for pre-training and fine-tuning alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitkit.data.pipeline import Batch, TrainingStream
from vitkit.errors import VitkitError
from vitkit.training.log import RunLog, headline, memory_used, numbers, told
from vitkit.training.parallel import buckets_change
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
from vitkit.training.step import (
    Diverged,
    Setup,
    check_changed,
    check_finite,
    ready,
    settle,
    train_step,
)
from vitkit.training.stopping import Interrupted, StopNow, StopSignals
from vitkit.training.storage import StateError
from vitkit.training.watch import Patience
from vitkit.training.world import from_main, mean, most, most_of

LOG_SECONDS = 1.0  # the losses are read, which waits for the device, about this often
USUAL_FROM = 20  # losses, from which on it is known what is usual
FAILED_SAVES = 3  # in a row end a run


@dataclass
class Training:
    """The loop of a run, `Training(...).to_the_end()`: `state` from its step to `setup.steps`, or
    until so many evaluations in a row found none better as `early_stopping` says.

    `evaluate` takes the net (the Polyak average, where one is kept) and what it must call at each
    batch, and gives named floats, those of `headline` among them, and lists by class; `keep_best`
    is called when the `headline` of them has risen.

    All processes do the same at every step: what only one can know (a signal, the time) is agreed
    upon first. The losses are read now and then, since that waits for the device, and always
    before an evaluation or a save: no state is saved that a bad loss has come before.
    """

    setup: Setup
    state: TrainState
    stream: TrainingStream
    evaluate: Callable[[nn.Module, Callable[[], None]], dict[str, Any]]
    keep_best: Callable[[], None]
    log: RunLog
    checkpoints: Path

    def __post_init__(self) -> None:
        self.rate = learning_rates(self.setup)
        config = self.setup.config
        self.meter = Meter(config.batch_size // config.data.repeats)
        self.patience = Patience(self.setup.config.engine.patience)
        self.stop = StopSignals()
        cuda = self.setup.engine.device.type == "cuda"
        self.saver = Saver(self.checkpoints, cuda, self.patience.beat)
        self.settled = not buckets_change(self.state.forward)
        self.failed_saves = 0
        self.given: torch.cuda.Event | None = None  # reached when a GPU has done the last step
        self.saved_at, self.saved_when = self.state.step, time.perf_counter()

    def to_the_end(self) -> None:
        """Train, evaluate and save.

        Raises Diverged, also where no step changed anything, StateError where states cannot be
        saved, and Interrupted when Ctrl-C or SIGTERM came, with the state saved.
        """
        self.log.cut_back(self.state.logged_bytes, self.state.step)
        with self.patience, self.stop:
            config = self.setup.config
            fresh = self.state.step == 0 and not self.state.best
            if fresh and (config.linear_probe or config.self_supervised):
                self.evaluate_now()  # what the head, or the features, are worth before any step
            if from_main(lambda: not states_in(self.checkpoints)):
                self.save()  # something to go back to
                self.finish_saving()  # where states cannot be saved, that is told now
                self.meter.restart()
            self.batches = self.batches_ahead()
            self.meter.restart()
            try:
                while self.between_steps():
                    self.step(self.next_batch())
            finally:
                self.batches.close()
                self.saver.finish()
        check_changed(self.state)

    def batches_ahead(self) -> Generator[Batch, None, None]:
        self.stream.pulse = self.pulse
        return ready(self.stream.batches(self.state.position), self.setup)

    def pulse(self) -> None:
        """While images are decoded to be kept: it is no hang, and Ctrl-C ends it."""
        self.patience.beat()
        if self.stop.received and self.setup.engine.world.size == 1:
            raise Interrupted(self.stop.received, folder_of(self.checkpoints, self.state.step))

    def next_batch(self) -> Batch:
        """The next batch; the time in which the device had nothing to do but wait is noted."""
        began, idle_before = time.perf_counter(), self.idle()
        batch = next(self.batches)
        waited = time.perf_counter() - began
        # Where the device ran dry meanwhile, nobody knows when: half of the time is taken.
        self.meter.waited += waited * (idle_before + self.idle()) / 2
        return batch

    def idle(self) -> bool:
        """Whether the device has done all that it was given; a CPU always has."""
        return self.given is None or self.given.query()

    def between_steps(self) -> bool:
        """Read the losses, evaluate and save where that is due -> whether a step follows."""
        state = self.state
        self.patience.beat()
        stopped, read, save = self.agreed()
        ended, limit = self.ended(), self.setup.config.early_stopping
        evaluation = not stopped and evaluation_is_due(state, self.setup)
        save = save or is_due(self.setup.save_every, state, self.setup)
        if stopped or read or evaluation or save or ended:
            spike = self.read()
            if spike is not None:
                self.rewind(*spike)
                return self.between_steps()
        if evaluation:
            stopped = self.evaluate_now()
            if self.ended() and not ended:
                ended = True
                if state.step < self.setup.steps:
                    self.log.record(state.step, "early_stop", {"without_better": limit})
        if (stopped or save or ended) and self.saved_at < state.step:
            self.save()
        if stopped or ended:
            self.finish_saving()
        if stopped:
            raise Interrupted(stopped, folder_of(self.checkpoints, state.step))
        if ended and state.step < self.setup.steps:
            self.log.say(
                f"ended at step {state.step:,} of {self.setup.steps:,}: {limit} evaluation(s) in a "
                "row found none better (early_stopping)"
            )
        return not ended

    def ended(self) -> bool:
        """Whether no step follows."""
        limit = self.setup.config.early_stopping
        return self.state.step == self.setup.steps or 0 < limit <= self.state.without_better

    def step(self, batch: Batch) -> None:
        setup, state = self.setup, self.state
        if not self.settled:
            settle(setup, state, batch)
            self.settled = True
        loss, norm = train_step(setup, state, batch, self.rate(state.step), self.log.say)
        if setup.engine.device.type == "cuda":
            self.given = torch.cuda.Event()
            self.given.record()
        self.meter.add(loss, norm)
        state.step += 1
        state.position += 1

    def agreed(self) -> tuple[int, bool, bool]:
        """The signal that a process received or 0, whether to read the losses, whether to save."""
        config, now = self.setup.config, time.perf_counter()
        if config.log_every is None:
            read = now - self.meter.began >= LOG_SECONDS
        else:
            read = self.state.step % config.log_every == 0
        save = 0 < config.save_minutes * 60 <= now - self.saved_when
        stopped, read, save = most_of(self.stop.received or 0, read, save)
        return stopped, bool(read), bool(save)

    def read(self) -> tuple[float, int] | None:
        """Read and log the losses since the last time -> a spike, and how many steps ago it was.

        Raises Diverged where too many gradients were not finite.
        """
        state, meter = self.state, self.meter
        if not meter.losses:
            return None
        losses, norms, speed, data_share = meter.read()
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
        self.log.progress(state.step, mean_loss, speed, data_share)
        values = {
            "loss": mean_loss, "learning_rate": self.rate(state.step - 1),
            "gradient_norm": norms[-1], "images_per_second": speed, "data_share": data_share,
            "memory_bytes": memory_used(), "next_batch": state.position,
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
        self.batches.close()
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
        best = state.best, state.without_better  # best/ stays, whatever the run has seen since
        load_state(folder, state)
        state.best, state.without_better = best
        self.log.cut_back(state.logged_bytes, state.step)
        values = {"spike_at": step, "left_out": [state.position, past - 1], "rewinds": rewinds}
        state.position, state.rewinds = past, rewinds
        self.saved_at = state.step
        self.log.record(state.step, "rewind", values)
        self.log.say(
            f"step {step}: the loss has shot up to {loss:.3g}; back to step {state.step}, and on "
            f"without the batches {values['left_out'][0]} to {past - 1}"
        )
        self.batches = self.batches_ahead()
        self.meter.restart()

    def newest_whole(self) -> Path | None:
        folder, damaged = newest_state(self.checkpoints)
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
        log.record(state.step, "evaluation", numbers(metrics))
        log.say(f"step {state.step}/{self.setup.steps}  {told(metrics)} on the {self.setup.scored}")
        state.evaluated_at = state.step
        state.without_better += 1
        if not state.best or headline(metrics)[1] > headline(state.best)[1]:
            state.without_better = 0
            try:
                self.keep_best()
                state.best = metrics
            except (VitkitError, OSError) as error:  # all processes fail alike
                log.say(f"best/ cannot be written: {error}; going on without it")
        self.meter.restart()
        return 0

    def save(self) -> None:
        """Start saving; before that a failure of the last save is told, one too many raised."""
        self.patience.beat()
        problem = self.saver.finish()
        self.failed_saves = 0 if problem is None else self.failed_saves + 1
        if problem is not None:
            if self.failed_saves == FAILED_SAVES or not isinstance(problem, StateError):
                raise problem
            self.log.say(f"{problem}; going on, and trying again now")
        self.state.logged_bytes = self.log.size()
        self.saver.begin(self.state)
        self.saved_at, self.saved_when = self.state.step, time.perf_counter()
        self.meter.restart()

    def finish_saving(self) -> None:
        problem = self.saver.finish()
        if problem is not None:
            raise problem


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
    return warmup_decay(
        schedule.kind, base, setup.steps, warmup, schedule.linear_end, schedule.stairs
    )


class Meter:
    """Loss of all processes, gradient norm, speed, and the seconds that were spent waiting for
    data, since it was last read; only reading waits."""

    def __init__(self, images: int) -> None:
        """`images` are those of a step, each counted once."""
        self.images = images
        self.restart()

    def restart(self) -> None:
        self.losses: list[Tensor] = []
        self.norms: list[Tensor] = []
        self.waited = 0.0
        self.began = time.perf_counter()

    def add(self, loss: Tensor, norm: Tensor) -> None:
        self.losses.append(loss)
        self.norms.append(norm)

    def read(self) -> tuple[list[float], list[float], float, float]:
        """The loss and the gradient norm of each step, images a second, and the share of the time
        in which this process waited for data."""
        losses = mean(torch.stack(self.losses)).tolist()
        norms = torch.stack(self.norms).tolist()
        seconds = time.perf_counter() - self.began
        speed, data_share = len(losses) * self.images / seconds, self.waited / seconds
        self.restart()
        return losses, norms, speed, data_share
