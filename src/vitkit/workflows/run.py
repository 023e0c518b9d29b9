"""What pre-training and fine-tuning share: a net, data and a config become a run directory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitkit.checkpoints.bundle import Bundle, write_bundle
from vitkit.data.pipeline import TrainingStream, evaluation_batches
from vitkit.data.transforms import Preprocessing, TrainTransform
from vitkit.errors import UsageError
from vitkit.evaluation.topk import top_k
from vitkit.models import cost
from vitkit.models.nets import Net, NetConfig, make_meta
from vitkit.prediction.model import Model, load
from vitkit.reports.training import write_report
from vitkit.training.config import TrainConfig
from vitkit.training.log import RunLog
from vitkit.training.loop import Setup, fresh_state, steps_in, train
from vitkit.training.precision import (
    Precision,
    choose_device,
    choose_precision,
    choose_threads,
    computing_threads,
)
from vitkit.training.state import TrainState, load_state
from vitkit.workflows.run_folder import check_resumed, run_folder, write_run_config
from vitkit.workflows.task import Task

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    metrics: dict[str, float]  # of the best net on the held-out images: top1, top5, loss, images
    steps: int
    seconds: float

    @property
    def model(self) -> Model:
        """The net that did best on the held-out images."""
        return load(self.folder)


def train_run(
    kind: str,
    task: Task,
    config: TrainConfig,
    make_net: Callable[[], Net],
    *,
    out: str | Path | None = None,
    resume: str | None = None,
    device: str = "auto",
    preprocessing: Preprocessing | None = None,
    parent: dict[str, Any] | None = None,
    quiet: bool = False,
) -> Run:
    """Train a net on a task into a run directory (docs/design.md, "A run directory").

    `preprocessing` is by default the authors' direct resize; `parent` says what checkpoint the net
    comes from.
    """
    began = time.perf_counter()
    preprocessing = preprocessing or Preprocessing.direct(config.image_size)
    folder, saved = run_folder(out or f"runs/{kind}", resume)
    recorded = check_resumed(folder, kind, config, task, parent) if saved else {}
    torch.manual_seed(config.seed)
    net = make_net()
    setup = choose_setup(config, net.config, preprocessing, device, recorded)
    net.to(setup.device)
    transform = TrainTransform(config.image_size, config.augment.crop_area, config.augment.flip)
    stream = TrainingStream(task.train, transform, config.batch_size, config.seed, config.threads)
    state = fresh_state(net, config)
    with computing_threads(setup.threads):
        steps = recorded.get("steps") or fixed_steps(config, task)
        if steps is None and config.minutes is not None:
            left = config.minutes * 60 - (time.perf_counter() - began)
            steps = steps_in(left, setup, state, stream, len(task.val))
        assert steps is not None  # fixed_steps gives None only where minutes decide
        setup = replace(setup, steps=steps)
        if saved:
            load_state(saved, state)
        else:
            write_run_config(folder, kind, setup, task, parent)
        lineage = {
            "kind": kind, "model": config.model, "recipe": config.recipe, "steps": steps,
            "data": task.name, "data_fingerprint": task.fingerprint, "from": parent,
        }  # fmt: skip
        opening = f"{plan(kind, net.config, config, task, setup)}\nrun {folder}"
        train_into(folder, opening, setup, state, stream, task, lineage, quiet)
    write_report(folder)
    return Run(folder, state.best, steps, time.perf_counter() - began)


def train_into(
    folder: Path,
    opening: str,
    setup: Setup,
    state: TrainState,
    stream: TrainingStream,
    task: Task,
    lineage: dict[str, Any],
    quiet: bool,
) -> None:
    """Train, with metrics, states and the bundles best/ and last/ written into the folder."""

    def write(name: str) -> None:
        net = state.evaluated()
        assert isinstance(net, Net)
        bundle = Bundle(net, task.train.class_names, setup.preprocessing, lineage)
        write_bundle(folder / name, bundle)

    def evaluate(net: nn.Module) -> dict[str, float]:
        batches = evaluation_batches(
            task.val, setup.preprocessing, EVALUATION_BATCH, setup.config.threads, stream.bad
        )
        return top_k(predictor(net, setup), batches)

    with RunLog(folder / "metrics.jsonl", setup.steps, state.step, quiet) as log:
        log.say(opening + (f", resumed at step {state.step:,}" if state.step else ""))
        train(setup, state, stream, evaluate, partial(write, "best"), log, folder / "checkpoints")
        for name, reason in stream.bad.reasons.items():
            log.say(f"passed over a bad image: {name}: {reason}")
    write("last")


def choose_setup(
    config: TrainConfig,
    net: NetConfig,
    preprocessing: Preprocessing,
    device: str,
    recorded: dict[str, Any],
) -> Setup:
    """Device, precision and threads by a look at the machine, or as a resumed run recorded them."""
    check_parts(net, config)
    place = choose_device(device)
    precision = choose_precision(config.precision, place)
    step_flops = 3 * cost.flops(net) * config.batch_size  # backward costs two forward passes
    threads = choose_threads(step_flops, place)
    if recorded:
        precision = Precision(recorded["precision"], "as the run was started")
        threads = recorded["torch_threads"]
    return Setup(config, 1, place, precision, threads, preprocessing)


def check_parts(net: NetConfig, config: TrainConfig) -> None:
    """UsageError where a net with batch norms would see a part of a batch that is one image."""
    parts = torch.empty(config.batch_size).chunk(config.accumulation)  # as the loop takes them
    normed = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in make_meta(net).modules())
    if normed and len(parts[-1]) == 1:
        raise UsageError(
            f"{config.model} has batch norms, which cannot train on a single image: a batch of "
            f"{config.batch_size} in {config.accumulation} part(s) leaves one; give a larger "
            "--batch-size, or one that --accumulation divides"
        )


def predictor(net: nn.Module, setup: Setup) -> Callable[[Tensor], Tensor]:
    """Images -> logits as the run computes them."""

    @torch.inference_mode()
    def predict(images: Tensor) -> Tensor:
        net.eval()
        with setup.precision.autocast(setup.device):
            return net(images.to(setup.device))

    return predict


def fixed_steps(config: TrainConfig, task: Task) -> int | None:
    """The length of the run in steps, from steps or epochs; None where minutes decide."""
    if config.steps is not None:
        return config.steps
    if config.minutes is not None:
        return None
    if config.epochs is None:
        raise UsageError("no length is given; give one of --steps, --minutes and --epochs")
    return max(1, round(config.epochs * len(task.train) / config.batch_size))


def plan(kind: str, net: NetConfig, config: TrainConfig, task: Task, setup: Setup) -> str:
    """The lines that say what is going to happen."""
    height, width = config.image_size
    by_time = setup.steps == 1 and config.minutes is not None  # a dry run does not probe
    duration = f"{config.minutes:g} minutes" if by_time else f"{setup.steps:,} steps"
    return "\n".join(
        [
            f"{kind} of {config.model} at {height}x{width}: "
            f"{cost.parameters(net) / 1e6:.2f} M parameters, "
            f"{cost.flops(net) / 1e9:.2f} GFLOPs an image",
            f"data {task.name}: {len(task.train):,} images of "
            f"{len(task.train.class_names)} classes, {len(task.val):,} held out",
            f"{duration} of {config.batch_size} images on {setup.device} in "
            f"{setup.precision.name} ({setup.precision.why})",
        ]
    )
