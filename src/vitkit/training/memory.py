"""How much memory a step of training takes, before anything is allocated.

The net's own forward and backward pass is run on tensors that have shapes but no memory, and what
would be alive is added up after each operation: temporaries and whatever autograd keeps are in it,
and a net that is changed needs no new formula. Checked against real steps on a CPU in
tests/training/test_memory_plan.py. Not in it: the process itself (some hundred MB, and about as
much of a GPU for CUDA), images loaded ahead, what libraries take while one operation runs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from vitkit.data.transforms import HALF, Preprocessing, normalise
from vitkit.models import attend, cost
from vitkit.models.nets import NetConfig, make_meta
from vitkit.objectives.distillation import Teacher
from vitkit.objectives.learner import Learner
from vitkit.objectives.supervised import cross_entropy
from vitkit.training.config import DataConfig, TrainConfig
from vitkit.training.learners import bare, learner_of
from vitkit.training.parallel import blocks_of, in_bfloat16, recomputed, transformer_blocks
from vitkit.training.precision import Precision
from vitkit.training.trained import set_to_train, skeleton, trained_weights

FLOAT32 = 4  # bytes
GUESSES = 8  # at the largest batch


@dataclass(frozen=True)
class Memory:
    """Bytes that one process has allocated at the peak of a step, from the second step on, while a
    state is being saved."""

    weights: int
    gradients: int
    optimizer: int
    average: int  # the Polyak average
    activations: int
    """The rest of the peak. Without sharding the peak is reached before the gradients are there,
    which then take the place of activations: this is what the activations need beyond that."""
    saving: int = 0
    """On a CPU, the copy of weights, optimizer and average that is being written meanwhile."""

    @property
    def total(self) -> int:
        step = self.weights + self.gradients + self.optimizer + self.average + self.activations
        return step + self.saving


def memory(
    net: NetConfig,
    config: TrainConfig,
    *,
    batch: int,
    device: str = "cpu",
    precision: str = "fp32",
    compiled: bool = False,
    checkpointing: str = "none",
    sharding: str = "none",
    shards: int = 1,
    teacher: NetConfig | None = None,
) -> Memory:
    """Memory of one process at the peak of a step.

    `batch` is the images that are worked through at once: those of a process, divided by
    `config.accumulation`. `precision` is "fp32" or "bf16"; `sharding` is "none", "ddp", "fsdp" or
    "hybrid", the last two with `shards` processes that share one copy of the weights; a `teacher`
    is whole in each. Of `config` the optimizer, polyak, accumulation, the objective, the loss and
    what is trained count; where images are compared, they are with all of its `batch_size`.
    """
    sharded = sharding in ("fsdp", "hybrid")
    over = shards if sharded else 1
    made = skeleton(net, config)
    weights = FLOAT32 * sum(p.numel() for p in made.parameters())
    trained = FLOAT32 * sum(p.numel() for p in trained_weights(made).values())
    fixed = sum(b.nbytes for b in made.buffers())
    moments = 2 if config.optimizer.name == "adamw" else int(config.optimizer.momentum > 0)
    step = Step(
        net, learned(config), batch, torch.device(device).type, precision, compiled, checkpointing,
        parts=config.accumulation, sharding=sharding, teacher=teacher,
    )  # fmt: skip
    beyond = peak(step)
    if sharded:
        beyond += gathered(made, precision)
        beyond += trained if config.accumulation > 1 else 0  # they are exchanged at the last part
    gradients = trained // over
    # DDP's buckets, which the gradients are views of, are there all the time.
    rest = beyond if sharding == "ddp" else max(0, beyond - gradients)
    kept = (weights // over + fixed, moments * trained // over,
            trained // over if config.polyak else 0)  # fmt: skip
    saving = sum(kept) if torch.device(device).type == "cpu" else 0
    taught = 0 if teacher is None else FLOAT32 * cost.parameters(teacher)
    return Memory(kept[0] + taught, gradients, *kept[1:], rest, saving)


def largest_batch(limit: int, net: NetConfig, config: TrainConfig, *, batch: int = 16,
                  **how: Any) -> int:  # fmt: skip
    """The most images at once whose step fits in `limit` bytes, 0 where not one does.

    `batch` is a first guess; the other arguments are those of `memory`. From two batches on a line
    leads to the next guess, since a step's memory is the largest of several lines; the result is
    within a hundredth of the largest batch.
    """

    def taken(images: int) -> int:
        return memory(net, config, batch=images, **how).total

    small, large = 2, max(3, batch)
    if taken(small) > limit:
        return int(taken(1) <= limit)
    fits, too_large = small, None
    for _ in range(GUESSES):
        if taken(large) <= limit:
            fits = max(fits, large)
        else:
            too_large = large if too_large is None else min(too_large, large)
        if too_large is not None and too_large - fits <= max(1, fits // 100):
            break
        slope = max(1.0, (taken(large) - taken(small)) / (large - small))
        guess = large + int((limit - taken(large)) // slope)
        if too_large is not None:
            guess = min(guess, too_large - 1)
        if guess <= fits:  # the line says that the next one is too large
            guess = fits + 1
        small, large = fits, guess
    return fits


def gathered(net: nn.Module, precision: str) -> int:
    """Bytes of whole weights in a process that holds parts of them (parallel.sharded).

    The two units that are gathered at once, the one computed and the next, in the precision they
    are gathered in; a unit's gradients, which are summed in float32; and what lies outside all
    units, in float32, from the forward pass on.
    """
    transformers = {id(block) for block in transformer_blocks(net)}
    two, summed, inside = 0, 0, 0
    for unit in blocks_of(net):
        numbers = sum(p.numel() for p in unit.parameters())
        half = precision == "bf16" and id(unit) in transformers
        two = max(two, 2 * numbers * (2 if half else FLOAT32))
        learning = sum(p.numel() for p in trained_weights(unit).values())
        summed, inside = max(summed, learning * FLOAT32), inside + numbers
    outside = sum(p.numel() for p in net.parameters()) - inside
    return two + summed + outside * FLOAT32


@dataclass(frozen=True)
class Step:
    """All that the activations of a step follow from."""

    net: NetConfig
    config: TrainConfig  # what `learned` leaves of it
    batch: int
    device: str  # type
    precision: str
    compiled: bool
    checkpointing: str
    parts: int = 1
    sharding: str = "none"
    teacher: NetConfig | None = None

    @property
    def float32_norms(self) -> bool:
        """Whether norms keep copies in float32; compiled, those are made within a kernel."""
        return self.precision == "bf16" and self.device == "cuda" and not self.compiled


def learned(config: TrainConfig) -> TrainConfig:
    """A config with only that by which what a step computes of an image differs."""
    same = (
        "objective",
        "masking",
        "contrastive",
        "distillation",
        "loss",
        "label_smoothing",
        "lora",
        "head_norm",
    )
    kept = {name: getattr(config, name) for name in same}
    if config.objective == "simclr":  # which compares with the views of all processes
        kept["batch_size"] = config.batch_size
    data = DataConfig(repeats=config.data.repeats)
    return TrainConfig(**kept, freeze=tuple(config.freeze), data=data)


def peak(step: Step) -> int:
    """Bytes at the peak of the forward and backward pass, beyond the weights.

    Compiled blocks take the same: what Inductor keeps of a ViT's block for the backward pass is, to
    a thousandth, what autograd keeps, and within a block the two differ little.
    """
    if step.compiled and step.device == "cpu":
        step = replace(step, compiled=False)
    return simulated(replace(step, parts=min(step.parts, 2)))  # the third is like the second


@lru_cache(maxsize=256)
def simulated(step: Step) -> int:
    batch = step.batch
    if step.config.objective == "simclr":  # which has no fewer than two pairs
        batch = max(4, batch + batch % 2)
    elif step.config.head_norm:  # which does not train on a single image
        batch = max(2, batch)
    config = step.config
    if config.objective == "simclr":
        config = replace(config, batch_size=max(batch, config.batch_size))
    net = skeleton(step.net, config)
    set_to_train(net)
    applied(net, step)
    teacher = None if step.teacher is None else teacher_skeleton(step.teacher, step.net)
    cpu, live = torch.device("cpu"), Live()
    with FakeTensorMode(allow_non_fake_inputs=True), live, as_on(step):
        net.to_empty(device=cpu)
        if teacher is not None:
            teacher.net.to_empty(device=cpu)
            # `bare` of a skeleton is a net, of which its type says only that it is a module.
            net = learner_of(bare(net), config, teacher=teacher)  # type: ignore[arg-type]
        weights = live.now
        images = torch.empty(
            (batch * step.parts, 3, *step.net.image_size), dtype=torch.uint8, device=cpu
        )
        labels = torch.zeros(batch, dtype=torch.int64, device=cpu)
        for part in images.chunk(step.parts):
            pixels = normalise(part, HALF, HALF)
            with Precision(step.precision, "planned").autocast(cpu):
                given = (labels, np.arange(batch)) if isinstance(net, Learner) else ()
                loss = net(pixels, *given)
            if not isinstance(net, Learner):
                loss = cross_entropy(loss, labels, config.loss, config.label_smoothing)
            loss.backward()
        del net
    return live.peak - weights


def teacher_skeleton(teacher: NetConfig, net: NetConfig) -> Teacher:
    """A teacher without memory, for the images of a net."""
    theirs, students = (Preprocessing.direct(each.image_size) for each in (teacher, net))
    return Teacher(make_meta(teacher), theirs, students)


def applied(net: nn.Module, step: Step) -> None:
    """What `parallel.apply` does to the net, without compiling or sharding it."""
    sharded = step.sharding in ("fsdp", "hybrid")
    for block in transformer_blocks(net) if step.precision == "bf16" else ():
        block.register_forward_pre_hook(in_bfloat16)
        if sharded:  # weights are gathered in bfloat16: autocast makes no copies
            block.bfloat16()
    for unit in blocks_of(net) if step.checkpointing != "none" else ():
        # `Tensor.backward` leaves the modes of torch functions that it is called in, and a block
        # must be computed again as it was computed at first.
        forward = with_float32_norms(unit.forward) if step.float32_norms else unit.forward
        unit.forward = recomputed(forward, step.checkpointing)
    if step.sharding != "none":  # a gradient goes into a bucket, or to another process, at once
        for parameter in trained_weights(net).values():
            parameter.register_post_accumulate_grad_hook(forget_gradient)


def forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


@contextmanager
def as_on(step: Step) -> Iterator[None]:
    """Inside, a CPU computes as the step's device would.

    Autograd cannot run backward on tensors of a GPU that is not there, so the simulation is one of
    a CPU, and where a GPU's autocast and attention differ, it is told to do the same.
    """
    if step.device == "cpu":
        yield
        return
    before, attend.WRITTEN_OUT_UP_TO = attend.WRITTEN_OUT_UP_TO, 0
    try:
        with ExitStack() as modes:
            if step.float32_norms:
                modes.enter_context(Float32Norms())
            yield
    finally:
        attend.WRITTEN_OUT_UP_TO = before


class Float32Norms(TorchFunctionMode):
    """Autocast on CUDA casts what norms and softmaxes read to float32, that of a CPU does not."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        if func in (F.layer_norm, F.group_norm, F.softmax, torch.softmax):
            args, kwargs = tree_map(in_float32, (args, kwargs))
        return func(*args, **(kwargs or {}))


def with_float32_norms(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def computed(x: Tensor) -> Tensor:
        with Float32Norms():
            return forward(x)

    return computed


def in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


@dataclass
class Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations inside it have made and that are alive."""

    now: int = 0
    peak: int = 0
    known: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self.note(tensor.untyped_storage())
        return made

    def note(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place in self.known:
            return
        self.known.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.gone, place, size)

    def gone(self, place: int, size: int) -> None:
        self.known.discard(place)
        self.now -= size
