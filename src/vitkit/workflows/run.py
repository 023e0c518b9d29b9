"""What pre-training and fine-tuning share: a net, data and a config become a run directory."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitkit.checkpoints.bundle import Bundle, write_bundle
from vitkit.data.pipeline import Batch, TrainingStream, evaluation_batches
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError, VitkitError
from vitkit.evaluation.collapse import collapsed
from vitkit.evaluation.collapse import in_words as in_words_of_collapse
from vitkit.evaluation.topk import top_k
from vitkit.models import cost
from vitkit.models.nets import Net, NetConfig, make_meta
from vitkit.objectives.distillation import Teacher
from vitkit.objectives.learner import Trained
from vitkit.prediction.model import Model, load
from vitkit.recipes import as_written
from vitkit.reports.classes import by_name, lowest_first
from vitkit.reports.plans import in_words
from vitkit.reports.training import evaluations, read_metrics, write_report
from vitkit.training.config import TrainConfig
from vitkit.training.cost import flops_of
from vitkit.training.fitting import choose_fitting
from vitkit.training.learners import of_net
from vitkit.training.log import RunLog, numbers
from vitkit.training.loop import Training
from vitkit.training.optimizers import layer_scales
from vitkit.training.parallel import Engine, choose_compile, shardings
from vitkit.training.precision import (
    Precision,
    choose_device,
    choose_precision,
    choose_threads,
    computing_threads,
)
from vitkit.training.saving import load_state, state_bytes
from vitkit.training.state import TrainState
from vitkit.training.step import Setup, fresh_state
from vitkit.training.timing import steps_in
from vitkit.training.trained import batch_norms, counts, merged, skeleton
from vitkit.training.world import (
    World,
    from_environment,
    from_main,
    joined,
    most,
    of_all,
    together,
    total,
)
from vitkit.workflows.examples import examples, read_examples, write_examples
from vitkit.workflows.feeding import choose_keep, loader_threads, note_modes, training_stream
from vitkit.workflows.probing import probe
from vitkit.workflows.run_folder import Opened, mend_bundle, open_run, unlock, write_run_config
from vitkit.workflows.task import Task, note_skew
from vitkit.workflows.teaching import check_distillation, origins, teacher_of

EVALUATION_BATCH = 256
COMPILE_FROM_MINUTES = 5  # of a run whose length is a time, on a CPU


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    metrics: dict[str, float]  # of the best net on the held-out images: top1, top5, loss, images
    steps: int  # that were done; fewer than wanted after early stopping
    seconds: float
    class_recall: dict[str, float | None] = field(default_factory=dict)  # of the same net
    class_images: dict[str, int] = field(default_factory=dict)  # that were held out

    @property
    def model(self) -> Model:
        """The net that did best on the held-out images."""
        return load(self.folder)


def train_run(
    kind: str,
    task: Task,
    config: TrainConfig,
    net_config: NetConfig,
    make_net: Callable[[], Net],
    *,
    out: str | Path | None = None,
    resume: str | None = None,
    device: str = "auto",
    preprocessing: Preprocessing | None = None,
    parent: dict[str, Any] | None = None,
    begin: Callable[[Net, Setup], str] | None = None,
    quiet: bool = False,
    opening: str | None = None,
) -> Run:
    """Train a net on a task into a run directory (docs/design.md, "A run directory").

    `make_net` makes the net of `net_config` with its first weights. `preprocessing` is by default
    the authors' direct resize; `parent` says what checkpoint the net comes from; `begin` changes
    the weights of a fresh run before its first step, in the main process, which the others take
    them from, and says what it did; `opening` is said first, in place of the plan. Where torchrun
    or `--gpus` started several processes, all call this together and the main one writes.
    """
    began = time.perf_counter()
    world = from_environment()
    check_shares(config, len(task.train), world)
    check_distillation(config)
    place = choose_device(device, world.local_rank if world.size > 1 else None)
    meta = skeleton(net_config, config)
    with joined(place):
        kept = preprocessing or Preprocessing.direct(config.image_size)
        names = task.train.class_names
        teacher = together(lambda: teacher_of(config.distillation, names, kept))
        choose = partial(
            choose_engine, net=meta, images=len(task.train), device=place, world=world,
            teacher=teacher,
        )  # fmt: skip
        engine = together(lambda: choose(config))
        come_from = origins(parent, config.distillation, teacher)
        classes = len(names)
        check_labels(Setup(config, 1, engine, kept, classes), task)
        keep = from_main(lambda: choose_keep(config, task.train, place, world))
        engine = replace(engine, keep=keep)
        size = state_bytes(*counts(net_config, config), config)
        opened: Opened = from_main(
            lambda: open_run(kind, task, config, come_from, out or f"runs/{kind}", resume, size)
        )
        try:
            folder, recorded = opened.folder, opened.recorded
            if recorded:
                # What was computed again stays so, unless other words are given now.
                again = together(lambda: choose(with_recorded(config, recorded)))
                engine = as_recorded(again, recorded)
            steps = recorded.get("steps", 1)
            setup = Setup(config, steps, engine, kept, classes, task.class_images, task.scored)
            torch.manual_seed(config.seed)
            # Sharded weights are drawn by the main process, which then hands out the parts.
            elsewhere = engine.sharding in ("fsdp", "hybrid") and not world.main
            net, begun = make_meta(net_config) if elsewhere else make_net(), ""
            with computing_threads(engine.threads):
                if begin is not None and not opened.saved:
                    begun = from_main(partial(begin, net, setup))
            state = fresh_state(net, config, engine, mean=kept.mean, std=kept.std, teacher=teacher)
            with computing_threads(engine.threads):
                stream = together(lambda: training_stream(task, config, engine))
                if opened.saved:
                    load_state(opened.saved, state)
                    if from_main(lambda: not (folder / "best").exists()):
                        state.best, state.evaluated_at = {}, 0  # it was damaged: made up for
                else:
                    from_main(lambda: note_modes(task))
                    from_main(lambda: note_skew(task, config))
                    steps = length(setup, state, stream, task, began)
                    setup = replace(setup, steps=steps)
                    from_main(lambda: write_run_config(folder, kind, setup, task, come_from))
                said = opening or f"{plan(kind, net_config, config, task, setup)}\nrun {folder}"
                said += f", resumed at step {state.step:,}" if state.step else ""
                said += f"\n{begun}" if begun else ""
                train_into(
                    folder, kind, setup, state, net_config, stream, task, come_from, said, quiet
                )
            from_main(lambda: report(folder, kind, config, state.best, task))
        finally:
            unlock(opened.folder)
    return Run(
        folder, numbers(state.best), state.step, time.perf_counter() - began,
        **by_name(state.best, task.train.class_names),
    )  # fmt: skip


def report(folder: Path, kind: str, config: TrainConfig, best: dict[str, Any], task: Task) -> None:
    """report.html; a run has not failed because it cannot be drawn."""
    try:
        names, several = task.train.class_names, task.train.multi_label
        recipe = as_written(kind, config, task.facts())
        shown = read_examples(folder)
        classes = lowest_first(**by_name(best, names))
        write_report(folder, classes, several, recipe, examples=shown)
    except (VitkitError, OSError, ValueError, KeyError, TypeError) as error:
        print(f"{folder / 'report.html'}: cannot be written: {error}", file=sys.stderr)


def length(
    setup: Setup, state: TrainState, stream: TrainingStream, task: Task, began: float
) -> int:
    """The run's steps; where a time is given, by timing some that change nothing."""
    config = setup.config
    steps = fixed_steps(config, len(task.train))
    if steps is not None:
        return steps
    assert config.minutes is not None  # fixed_steps gives None only where minutes decide
    left = config.minutes * 60 - (time.perf_counter() - began)
    return steps_in(left, setup, state.net, state.forward, stream, len(task.val))


def train_into(
    folder: Path,
    kind: str,
    setup: Setup,
    state: TrainState,
    net_config: NetConfig,
    stream: TrainingStream,
    task: Task,
    come_from: dict[str, Any],
    opening: str,
    quiet: bool,
) -> None:
    """Train, with metrics, states and the bundles best/ and last/ written into the folder."""
    config, world = setup.config, setup.engine.world
    lineage = {
        "kind": kind, "model": config.model, "recipe": config.recipe, "steps": setup.steps,
        "data": task.name, "data_fingerprint": task.fingerprint, **come_from,
        "multi_label": task.train.multi_label,
    }  # fmt: skip

    def write(name: str) -> None:
        weights = state.evaluated()

        def bundle() -> None:
            net = make_meta(net_config)
            own = of_net(state.net, weights)
            net.load_state_dict(merged(own, config.lora), assign=True)
            mend_bundle(folder / name)
            names = task.train.class_names if net_config.classes else []
            content = Bundle(net, names, setup.preprocessing, lineage)
            write_bundle(folder / name, content)

        from_main(bundle)

    def evaluate(net: nn.Module, pulse: Callable[[], None]) -> dict[str, Any]:
        share = math.ceil(setup.config.batch_size / world.size / state.parts)
        # No more at once than training takes: that is what memory was planned for.
        at_once = min(EVALUATION_BATCH, share)
        if config.self_supervised:
            step = partial(in_step, world=world, pulse=pulse)
            with torch.compiler.set_stance("force_eager"):
                found = probe(net, setup, task, predictor(net, setup), step, at_once, stream.bad)
            if state.step and world.main:
                spreads = found["feature_spread"], first_spread(folder)
                if collapsed(*spreads):
                    log.say(in_words_of_collapse(*spreads))
            return found
        batches = evaluation_batches(
            task.val, setup.preprocessing, at_once,
            loader_threads(setup.config, world), stream.bad, world.rank, world.size,
        )  # fmt: skip
        # Uncompiled: other shapes than training's would each be compiled anew.
        with torch.compiler.set_stance("force_eager"):
            predict, batches = predictor(net, setup), in_step(batches, world, pulse)
            return top_k(predict, batches, total=total, of_all=of_all)

    metrics = folder / "metrics.jsonl" if world.main else None
    with RunLog(metrics, setup.steps, state.step, quiet or not world.main) as log:
        log.say(opening)
        checkpoints, keep_best = folder / "checkpoints", partial(write, "best")
        Training(setup, state, stream, evaluate, keep_best, log, checkpoints).to_the_end()
        for reasons in of_all(stream.bad.reasons):
            for name, reason in reasons.items():
                log.say(f"passed over a bad image: {name}: {reason}")
    write("last")
    if config.self_supervised:
        with state.averaged() as net:
            found = examples(net, setup, task)
        from_main(lambda: write_examples(folder, found))


def first_spread(folder: Path) -> float:
    """That of the features before the first step, by a run's metrics; NaN where it is not known."""
    found = evaluations(read_metrics(folder))
    return (found[0].get("feature_spread") or math.nan) if found else math.nan


def choose_engine(
    config: TrainConfig,
    net: Trained,
    images: int,
    device: torch.device,
    world: World,
    teacher: Teacher | None = None,
) -> Engine:
    """How to compute a run, by a look at the machine; UsageError for what it has not.

    `net` is a `trained.skeleton`.
    """
    check_parts(net, config, world)
    layer_scales(net, config.optimizer.layer_decay)  # refused where it cannot be
    engine = choose_computing(config, net, images, device, world)
    checkpointing, sharding, over = choose_fitting(
        net.config, config, device, engine.precision.name, engine.compile, world,
        teacher=None if teacher is None else teacher.net.config,
    )  # fmt: skip
    return replace(engine, checkpointing=checkpointing, sharding=sharding, shard_over=over)


def choose_computing(
    config: TrainConfig, net: Trained, images: int, device: torch.device, world: World
) -> Engine:
    """Precision, threads and compilation; what memory decides is left open."""
    image = 3 * flops_of(net.config, config)  # backward costs two forward passes
    threads = choose_threads(image * config.batch_size / world.size, device, world.local_size)
    steps = fixed_steps(config, images)
    if steps is not None:
        work = image * config.batch_size * steps
    else:
        work = math.inf if (config.minutes or 0) >= COMPILE_FROM_MINUTES else 0.0
    compiled = choose_compile(config.engine, net, device, work)
    precision = choose_precision(config.precision, device)
    return Engine(device, precision, threads, compiled, world=world)


def with_recorded(config: TrainConfig, recorded: dict[str, Any]) -> TrainConfig:
    """The config with the checkpointing of the run that is resumed, where none is asked for."""
    if config.engine.checkpointing != "auto":
        return config
    kind = recorded.get("checkpointing", "none")
    return replace(config, engine=replace(config.engine, checkpointing=kind))


def as_recorded(engine: Engine, recorded: dict[str, Any]) -> Engine:
    """The precision and compilation of a resumed run; threads too in as many processes."""
    same = engine.world.size == recorded.get("processes", 1)
    return replace(
        engine,
        precision=Precision(recorded["precision"], "as the run was started"),
        threads=recorded["torch_threads"] if same else engine.threads,
        keep=recorded.get("keep", "none"),
        compile=recorded.get("compile", False),
    )


def check_labels(setup: Setup, task: Task) -> None:
    """UsageError or DataError where the loss cannot be taken of these labels."""
    if setup.config.self_supervised:
        if setup.augmenter.mixes:
            raise UsageError(
                "MixUp and CutMix mix labels, and the objective "
                f"{setup.config.objective} reads none; leave them out"
            )
        return
    if task.unlabelled is not None:
        raise task.unlabelled
    if task.train.multi_label and setup.config.loss == "softmax":
        raise UsageError(
            f"{task.name}: its images may have several labels each, which a softmax cannot learn; "
            "give --loss sigmoid"
        )
    share = setup.config.batch_size // setup.engine.world.size
    if setup.augmenter.mixes and share % 2:
        raise UsageError(
            f"MixUp and CutMix mix pairs, but each process has {share} images of a batch; give an "
            "even number by --batch-size"
        )


def check_shares(config: TrainConfig, images: int, world: World) -> None:
    """UsageError where the processes of a run cannot share its images, a batch or the net."""
    shardings(config.engine, world)
    if world.size > images:
        raise UsageError(
            f"{world.size} processes for {images} images: each needs one; start at most {images}"
        )
    if config.batch_size % world.size:
        below = config.batch_size // world.size * world.size
        near = " or ".join(str(n) for n in (below, below + world.size) if n)
        raise UsageError(
            f"a batch of {config.batch_size} cannot be shared by {world.size} processes; give "
            f"--batch-size {near}"
        )
    share = config.batch_size // world.size
    if config.accumulation > share:
        raise UsageError(
            f"accumulation is {config.accumulation}, more than the {share} images of a batch that "
            f"each of {world.size} processes has"
        )


def in_step(batches: Iterator[Batch], world: World, pulse: Callable[[], None]) -> Iterator[Batch]:
    """The same batches, and empty ones after them until all processes have finished theirs.

    `pulse` is called before each, by all processes together.
    """
    none: Batch | None = None
    while True:
        pulse()
        batch = next(batches, none)
        if not (batch is not None if world.size == 1 else most(batch is not None)):
            return
        yield batch or Batch(torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def check_parts(net: Trained, config: TrainConfig, world: World) -> None:
    """UsageError where a net with batch norms would see a part of a batch that is one image."""
    share = config.batch_size // world.size
    parts = torch.empty(share).chunk(config.accumulation)  # as the loop takes them
    if batch_norms(net) and len(parts[-1]) == 1:
        raise UsageError(
            f"{config.model} has batch norms, which cannot train on a single image: a batch of "
            f"{config.batch_size} in {config.accumulation * world.size} part(s) leaves one; give a "
            "larger --batch-size, or one that --accumulation divides"
        )


def predictor(net: nn.Module, setup: Setup) -> Callable[[Tensor], Tensor]:
    """Images -> logits as the run computes them."""
    engine = setup.engine

    # Sharded weights are gathered in place, which tensors of inference mode do not allow.
    @torch.no_grad()
    def predict(images: Tensor) -> Tensor:
        net.eval()
        empty = len(images) == 0  # of a process that has no more: it computes along
        if empty:
            images = torch.zeros(1, 3, *setup.config.image_size)
        with engine.autocast():
            logits = net(images.to(engine.device))
        return logits[:0] if empty else logits

    return predict


def fixed_steps(config: TrainConfig, images: int) -> int | None:
    """The length of the run in steps, from steps or epochs; None where minutes decide."""
    if config.steps is not None:
        return config.steps
    if config.minutes is not None:
        return None
    if config.epochs is None:
        raise UsageError("no length is given; give one of --steps, --minutes and --epochs")
    return max(1, round(config.epochs * images / config.batch_size))


def plan(kind: str, net: NetConfig, config: TrainConfig, task: Task, setup: Setup) -> str:
    """The lines that say what is going to happen."""
    height, width = config.image_size
    by_time = setup.steps == 1 and config.minutes is not None  # a dry run does not probe
    duration = f"{config.minutes:g} minutes" if by_time else f"{setup.steps:,} steps"
    repeats = config.data.repeats
    images = f"{config.batch_size // repeats} images"
    images += f" in {repeats} views each" if repeats > 1 else ""
    labels = f"of {len(task.train.class_names)} classes" if task.labelled else "without labels"
    asked = config.distillation
    taught = f"{asked.share:.0%} of the loss is against {asked.targets} targets of {asked.teacher}"
    return "\n".join(
        [
            f"{kind} of {config.model} at {height}x{width}: "
            f"{in_words(cost.parameters(net), counts(net, config)[1])}, "
            f"{flops_of(net, config) / 1e9:.2f} GFLOPs an image",
            f"data {task.name}: {len(task.train):,} images {labels}, {len(task.val):,} held out",
            f"{duration} of {images} on {setup.engine.summary()}",
            *([taught] if asked.teacher is not None else []),
        ]
    )
