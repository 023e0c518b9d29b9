"""One update of the weights, and what it needs: the setup of a run, its batches on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from vitkit.data.augmentation.augment import Augmenter, resolved
from vitkit.data.pipeline import Batch
from vitkit.data.transforms import HALF, Preprocessing, normalised, normalising_constants
from vitkit.errors import VitkitError
from vitkit.models.nets import Net
from vitkit.objectives.distillation import Teacher
from vitkit.objectives.learner import Learner
from vitkit.objectives.supervised import class_weights, cross_entropy
from vitkit.training.config import TrainConfig
from vitkit.training.learners import learner_of
from vitkit.training.optimizers import make_optimizer
from vitkit.training.parallel import (
    Engine,
    apply,
    batch_norm_buffers,
    parts_of_a_step,
    settle_buffers,
    whole,
)
from vitkit.training.state import TrainState
from vitkit.training.trained import batch_norms, choose_trained, set_to_train, trained_weights

EVALUATIONS = 4  # in a run, where the config does not say
EVALUATIONS_TO_STOP_BY = 20  # the same with early stopping


@dataclass(frozen=True)
class Setup:
    """What stays the same during a run."""

    config: TrainConfig
    steps: int
    engine: Engine
    preprocessing: Preprocessing
    classes: int = 0
    class_images: tuple[int, ...] = ()  # to train on, of each class
    scored: str = "held-out images"  # what evaluations are on, for people

    @cached_property
    def constants(self) -> Tensor:
        """Made once: bringing numbers to a GPU waits for it."""
        kept = self.preprocessing
        return normalising_constants(kept.mean, kept.std, self.engine.device)

    @cached_property
    def augmenter(self) -> Augmenter:
        """What is done to a batch on the device, after the random crops."""
        asked = self.config.augment
        layers, magnitude, mixup = resolved(
            asked.level, asked.randaugment_layers, asked.randaugment_magnitude, asked.mixup
        )
        return Augmenter(
            self.config.seed, self.classes, layers, magnitude, mixup, asked.cutmix, asked.erase,
            asked.jitter, asked.jitter_share, asked.grayscale, asked.blur,
        )  # fmt: skip

    @cached_property
    def class_weights(self) -> Tensor | None:
        """(K,) of the loss, on the device; None where all images count alike."""
        if not self.config.loss_balance:
            return None
        weights = class_weights(self.class_images, self.config.loss_balance)
        return weights.to(self.engine.device)

    def augmented(self, batch: Batch) -> Batch:
        assert batch.positions is not None  # only evaluation knows none
        images, labels = self.augmenter(batch.images, batch.labels, batch.positions)
        return Batch(images, labels, batch.positions)

    @property
    def evaluate_every(self) -> int:
        return self.config.evaluate_every or math.ceil(self.steps / evaluations(self.config))

    @property
    def save_every(self) -> int:
        return self.config.save_every or self.evaluate_every


def evaluations(config: TrainConfig) -> int:
    """In a run whose config does not say how often."""
    return EVALUATIONS_TO_STOP_BY if config.early_stopping else EVALUATIONS


class Diverged(VitkitError):
    """The loss or a gradient is NaN or infinite."""

    everywhere = True


def fresh_state(
    net: Net,
    config: TrainConfig,
    engine: Engine,
    *,
    mean: tuple[float, ...] = HALF,
    std: tuple[float, ...] = HALF,
    teacher: Teacher | None = None,
) -> TrainState:
    """A net that is about to be trained, ready for its engine, with optimizer and average.

    Images are normalised by `mean` and `std`; `teacher` as for `learner_of`. UsageError where what
    is to be trained of it cannot be.
    """
    choose_trained(net, tuple(config.freeze), config.lora, config.head_norm)
    if teacher is not None:
        teacher.to(engine.device)
    learner = learner_of(net, config, mean, std, teacher)
    return with_optimizer(learner, apply(learner, engine), config)


def with_optimizer(net: nn.Module, forward: nn.Module, config: TrainConfig) -> TrainState:
    average = None
    if config.polyak:
        average = {name: p.detach().clone() for name, p in trained_weights(net).items()}
    optimizer = make_optimizer(net, config.optimizer)
    return TrainState(net, forward, optimizer, average, parts=config.accumulation)


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
    `check_finite` raises Diverged. Nothing here waits for a GPU, but for LARS, and SGD over sharded
    weights.
    """
    config, optimizer = setup.config, state.optimizer
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["scale"]
    set_to_train(state.net)
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
    set_to_train(state.net)
    if gradients(setup, state, placed(batch, setup.engine.device)) is None:
        halve_parts(setup, state, len(batch.labels), print)  # of several it lets none go on
    state.optimizer.zero_grad()
    for buffer, old in zip(buffers, before, strict=True):
        buffer.copy_(old)


def gradients(setup: Setup, state: TrainState, batch: Batch) -> Tensor | None:
    """Gradients of the batch's mean loss, which is given; None where memory did not suffice.

    Given is the loss without class weights: a batch with a rare class must not look like a spike.
    """
    config, world = setup.config, setup.engine.world
    # Dropout follows from (seed, position, process).
    torch.manual_seed(config.seed + state.position + 1 + (world.rank << 32))
    state.optimizer.zero_grad()
    total = torch.zeros((), device=setup.engine.device)
    parts = in_parts(batch, state.parts)
    try:
        for number in parts_of_a_step(state.forward, len(parts)):
            part = parts[number]
            loss, told = loss_of(setup, state, part)
            share = len(part.labels) / len(batch.labels)  # parts may differ by an image
            (loss * share).backward()
            total += told * share
    except RuntimeError as error:  # torch's OutOfMemoryError is one
        if not is_out_of_memory(error):
            raise
        # Outside this block the error, and with it the activations it refers to, is gone.
        total = None
    return total


def loss_of(setup: Setup, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
    """The mean loss of some images, to be minimised, and what is told of it."""
    config, weights = setup.config, setup.class_weights
    pixels = normalised(batch.images, setup.constants)
    with setup.engine.autocast():
        if isinstance(state.net, Learner):
            assert batch.positions is not None  # only evaluation knows none
            loss = state.forward(pixels, batch.labels, batch.positions)
            return loss, loss.detach()
        logits = state.forward(pixels)
    kind, smoothing = config.loss, config.label_smoothing
    loss = cross_entropy(logits, batch.labels, kind, smoothing, weights)
    if weights is None:
        return loss, loss.detach()
    return loss, cross_entropy(logits.detach(), batch.labels, kind, smoothing)


def in_parts(batch: Batch, parts: int) -> list[Batch]:
    """The batch in at most so many parts."""
    images, labels = batch.images.chunk(parts), batch.labels.chunk(parts)
    ends = np.cumsum([len(part) for part in labels])
    places = [None] * len(ends)
    if batch.positions is not None:
        places = np.split(batch.positions, ends[:-1])
    return [Batch(*part) for part in zip(images, labels, places, strict=True)]


def placed(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.images.to(device), batch.labels.to(device), batch.positions)


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
    compares = isinstance(state.net, Learner) and state.net.together
    if compares:
        advice = "a smaller --batch-size, or a --checkpointing that keeps less"
    if setup.engine.world.size > 1 or batch_norms(state.net) or compares or now == 1:
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


def check_changed(state: TrainState) -> None:
    """Diverged where steps were done and not one had a finite gradient."""
    if not 0 < state.step <= int(state.skipped):
        return
    raise Diverged(
        f"not one of the {state.step} steps had a finite gradient, so nothing was learned; start a "
        "new run with a lower --learning-rate, or --precision fp32"
    )


def ready(batches: Generator[Batch, None, None], setup: Setup) -> Generator[Batch, None, None]:
    """The same batches, on the device and augmented there."""
    try:
        for batch in on_device(batches, setup.engine.device):
            yield setup.augmented(batch)
    finally:
        batches.close()


def brought(tensor: Tensor, device: torch.device) -> Tensor:
    """Copied to a GPU while it does other work, unless it is there already."""
    return tensor if tensor.is_cuda else tensor.pin_memory().to(device, non_blocking=True)


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
                images, labels = (brought(t, device) for t in (batch.images, batch.labels))
                copied = Batch(images, labels, batch.positions)
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
