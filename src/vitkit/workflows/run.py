"""What pre-training and fine-tuning share: a net, data and a config become a run directory."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitkit.checkpoints.bundle import Bundle, write_bundle
from vitkit.data.facts import DataFacts
from vitkit.data.pipeline import TrainingStream, evaluation_batches
from vitkit.data.sources import (
    Source,
    Splits,
    Subset,
    held_out,
    image_side,
    open_data,
    require_classes,
)
from vitkit.data.transforms import Preprocessing, TrainTransform
from vitkit.errors import UsageError, VitkitError
from vitkit.evaluation.topk import top_k
from vitkit.files import write_whole
from vitkit.models import cost
from vitkit.models.vit import VisionTransformer, ViTConfig
from vitkit.prediction.model import Model, load
from vitkit.reports.training import write_report
from vitkit.training.config import HARMLESS, TrainConfig, flat, to_json
from vitkit.training.log import RunLog
from vitkit.training.loop import Setup, fresh_state, steps_in, train
from vitkit.training.precision import Precision, choose_device, choose_precision
from vitkit.training.state import TrainState, load_state, newest_state

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    metrics: dict[str, float]  # of the best net on the held-out images: top1, top5, loss
    steps: int
    seconds: float
    parts: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        """The net that did best on the held-out images."""
        return load(self.folder)


@dataclass(frozen=True)
class Task:
    """Data opened, checked and split."""

    train: Source
    val: Source
    name: str
    val_given: bool  # by the data, rather than held out here

    def facts(self) -> DataFacts:
        return DataFacts(
            len(self.train), len(self.train.class_names), image_side(self.train),
            self.train.flip_keeps_class,
        )  # fmt: skip

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "fingerprint": self.train.fingerprint(),
            "train_images": len(self.train),
            "held_out_images": len(self.val),
            "held_out": "given by the data" if self.val_given else "split.json",
            "class_names": self.train.class_names,
        }


def open_task(data: Any) -> Task:
    """DATA -> images to train on and to validate on; a stratified tenth is held out if need be."""
    if isinstance(data, Task):
        return data
    splits: Splits = open_data(data)
    require_classes(splits.train, splits.name)
    given = splits.val is not None
    if not given:
        splits = held_out(splits.train, splits.name)
    assert splits.val is not None
    if splits.val.class_names != splits.train.class_names:
        raise VitkitError(
            f"{splits.name}: the classes to validate on differ from those to train on; expected "
            f"the same names in both"
        )
    return Task(splits.train, splits.val, splits.name, given)


def train_run(
    kind: str,
    task: Task,
    config: TrainConfig,
    make_net: Callable[[], VisionTransformer],
    *,
    out: str | Path | None = None,
    resume: str | None = None,
    device: str = "auto",
    provenance: dict[str, Any] | None = None,
    quiet: bool = False,
) -> Run:
    """Train a net on a task into a run directory (docs/design.md, "A run directory")."""
    began = time.perf_counter()
    folder, saved = run_folder(out or f"runs/{kind}", resume)
    place = choose_device(device)
    recorded = check_resumed(folder, config, task) if saved else {}
    chosen = choose_precision(config.precision, place)
    if recorded:
        chosen = Precision(recorded["precision"], "as the run was started")
    torch.manual_seed(config.seed)
    net = make_net().to(place)
    preprocessing = Preprocessing.direct(config.image_size)
    transform = TrainTransform(config.image_size, config.augment.crop_area, config.augment.flip)
    stream = TrainingStream(task.train, transform, config.batch_size, config.seed, config.threads)
    state = fresh_state(net, config)
    steps = recorded.get("steps") or fixed_steps(config, task)
    if steps is None and config.minutes is not None:
        probe = Setup(config, 1, place, chosen, preprocessing)
        left = config.minutes * 60 - (time.perf_counter() - began)
        steps = steps_in(left, probe, state, stream, len(task.val))
    assert steps is not None  # fixed_steps gives None only where minutes decide
    setup = Setup(config, steps, place, chosen, preprocessing)
    if saved:
        load_state(saved, state)
    else:
        write_run_config(folder, kind, setup, task, device=str(place))
    lineage = {
        "kind": kind, "model": config.model, "recipe": config.recipe, "steps": steps,
        "data": task.name, "data_fingerprint": task.train.fingerprint(), **(provenance or {}),
    }  # fmt: skip

    def bundle(of: nn.Module) -> Bundle:
        assert isinstance(of, VisionTransformer)
        return Bundle(of, task.train.class_names, preprocessing, lineage)

    def keep_best(state: TrainState) -> None:
        write_bundle(folder / "best", bundle(state.evaluated()))

    def evaluate(net: nn.Module) -> dict[str, float]:
        batches = evaluation_batches(task.val, preprocessing, EVALUATION_BATCH, config.threads)
        return top_k(predictor(net, setup), batches)

    with RunLog(folder / "metrics.jsonl", steps, state.step, quiet) as log:
        log.say(plan(kind, net.config, config, task, steps, place, chosen))
        log.say(f"run {folder}" + (f", resumed at step {state.step:,}" if state.step else ""))
        train(setup, state, stream, evaluate, keep_best, log, folder / "checkpoints")
        for name, reason in stream.bad.reasons.items():
            log.say(f"replaced a bad image: {name}: {reason}")
    write_bundle(folder / "last", bundle(state.evaluated()))
    write_report(folder)
    return Run(folder, {**state.metrics, "top1": state.best}, steps, time.perf_counter() - began)


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
    if config.steps is None and config.minutes is not None:
        return None
    return config.steps or max(1, round(config.epochs * len(task.train) / config.batch_size))


def run_folder(wanted: str | Path, resume: str | None) -> tuple[Path, Path | None]:
    """Where a run lives, and the state to go on from, if any.

    Without `resume` a folder that is in use is left alone, and a numbered one is taken.
    """
    wanted = Path(wanted)
    if resume is None:
        folder = wanted
        number = 1
        while folder.exists() and any(folder.iterdir()):
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder, None
    if resume != "auto":
        folder = Path(resume)
        saved, damaged = newest_state(folder / "checkpoints")
        if saved is None:
            found = "; ".join(damaged) or "no saved state"
            raise UsageError(f"{folder}: cannot be resumed: {found}; name a run that has one")
    else:
        numbered = [path for path in wanted.parent.glob(f"{wanted.name}-*")
                    if path.name.removeprefix(f"{wanted.name}-").isdigit()]  # fmt: skip
        numbered.sort(key=lambda path: int(path.name.rsplit("-", 1)[1]))
        folder = next(
            (p for p in reversed([wanted, *numbered]) if (p / "config.json").exists()), wanted
        )
        saved, damaged = newest_state(folder / "checkpoints")
        folder.mkdir(parents=True, exist_ok=True)
    for sentence in damaged:
        print(f"passed over: {sentence}", file=sys.stderr)
    return folder, saved


def check_resumed(folder: Path, config: TrainConfig, task: Task) -> dict[str, Any]:
    """What the run recorded of its automatic choices; UsageError where the config has changed."""
    recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    before = flat_json(recorded["config"])
    now = flat_json(to_json(config))
    # A config given in JSON has lists where this one has tuples.
    different = [
        f"{name} ({before.get(name)} -> {now.get(name)})"
        for name in flat(config)
        if name not in HARMLESS and json.dumps(before.get(name)) != json.dumps(now.get(name))
    ]
    if recorded["data"]["fingerprint"] != task.train.fingerprint():
        different.append("the data")
    if different:
        raise UsageError(
            f"{folder}: was started with another config: {'; '.join(different)}; give the same "
            "words again, or start a new run without --resume"
        )
    return recorded["resolved"]


def flat_json(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values = {}
    for name, value in config.items():
        inner = (
            flat_json(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
        values.update(inner)
    return values


def write_run_config(folder: Path, kind: str, setup: Setup, task: Task, device: str) -> None:
    """config.json, and split.json where images were held out here."""
    if isinstance(task.val, Subset) and not task.val_given:
        split = {"held_out": task.val.indices.tolist()}
        write_whole(folder / "split.json", json.dumps(split) + "\n")
    packages = ("vitkit", "torch", "torchvision", "torchcodec", "grain", "numpy")
    content = {
        "kind": kind,
        "config": to_json(setup.config),
        "resolved": {
            "steps": setup.steps, "precision": setup.precision.name,
            "precision_why": setup.precision.why, "device": device,
            "torch_threads": torch.get_num_threads(),
        },
        "data": task.record(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "git_commit": git_commit(),
        "command": sys.argv,
    }  # fmt: skip
    write_whole(folder / "config.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def git_commit() -> str | None:
    """The commit of vitkit's own source, where it runs from a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def plan(
    kind: str,
    net: ViTConfig,
    config: TrainConfig,
    task: Task,
    steps: int | None,
    device: torch.device,
    precision: Precision,
) -> str:
    """The lines that say what is going to happen."""
    height, width = config.image_size
    duration = (
        f"{config.minutes:g} minutes, the steps by a probe,"
        if steps is None
        else f"{steps:,} steps"
    )
    return "\n".join(
        [
            f"{kind} of {config.model} at {height}x{width}: "
            f"{cost.parameters(net) / 1e6:.2f} M parameters, "
            f"{cost.flops(net) / 1e9:.2f} GFLOPs an image",
            f"data {task.name}: {len(task.train):,} images of "
            f"{len(task.train.class_names)} classes, {len(task.val):,} held out",
            f"{duration} of {config.batch_size} images on {device} in {precision.name} "
            f"({precision.why})",
        ]
    )
