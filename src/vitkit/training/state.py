"""Resumable states of a run: complete or absent, verified before a tensor is used."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vitkit.errors import VitkitError
from vitkit.files import whole_folder

KEPT = 2  # states kept in a run directory
TENSORS, PROGRESS, MANIFEST = "state.safetensors", "state.json", "manifest.json"


class StateError(VitkitError):
    """A saved state is damaged or belongs to another run."""


@dataclass
class TrainState:
    """All that changes while a run trains. The random draws are functions of (seed, step)."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None  # the Polyak average
    step: int = 0  # steps done
    evaluated_at: int = 0  # the step of the newest evaluation
    best: dict[str, float] = field(default_factory=dict)  # the evaluation with the best top-1

    def evaluated(self) -> nn.Module:
        """The net that is evaluated and saved as a bundle."""
        return self.net if self.average is None else self.average.module


def save_state(runs_checkpoints: Path, state: TrainState) -> Path:
    """Write step-NNNNNNNN, with a manifest of sizes and hashes, and drop the oldest states."""
    folder = runs_checkpoints / f"step-{state.step:08d}"
    if folder.exists() and problem_with(folder) is None:
        return folder  # a step is saved once
    with whole_folder(folder) as fresh:
        save_file(tensors_of(state), fresh / TENSORS)
        progress = {
            "step": state.step, "evaluated_at": state.evaluated_at, "best": state.best,
        }  # fmt: skip
        (fresh / PROGRESS).write_text(json.dumps(progress))
        manifest = {name: facts(fresh / name) for name in (TENSORS, PROGRESS)}
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2))
    for old in sorted(runs_checkpoints.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def newest_state(runs_checkpoints: Path) -> tuple[Path | None, list[str]]:
    """The newest state whose hashes are right, and a sentence for each damaged newer one.

    Damaged states are renamed, so that they are not counted among those kept, and what a killed
    process left half-written is removed.
    """
    for left in runs_checkpoints.glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)
    damaged = []
    for folder in sorted(runs_checkpoints.glob("step-*"), reverse=True):
        problem = problem_with(folder)
        if problem is None:
            return folder, damaged
        aside = folder.with_name(f"damaged-{folder.name}")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        damaged.append(f"{problem}; it is now {aside.name}")
    return None, damaged


def load_state(folder: Path, state: TrainState) -> None:
    """Put a saved state into a fresh one of the same config. Raises StateError."""
    problem = problem_with(folder)
    if problem:
        raise StateError(problem)
    saved = load_file(folder / TENSORS)
    current = dict(named_parts(state))
    for name, part in current.items():
        prefix = name + "/"
        tensors = {k.removeprefix(prefix): t for k, t in saved.items() if k.startswith(prefix)}
        try:
            if isinstance(part, torch.optim.Optimizer):
                load_optimizer(part, tensors)
            else:
                part.load_state_dict(tensors)
        except (RuntimeError, KeyError, ValueError) as error:
            raise StateError(f"{folder}: its {name} is of another net: {error}") from error
    progress = json.loads((folder / PROGRESS).read_text())
    state.step, state.best = progress["step"], progress["best"]
    state.evaluated_at = progress["evaluated_at"]


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    tensors = {}
    for name, part in named_parts(state):
        if isinstance(part, torch.optim.Optimizer):
            for index, slots in part.state_dict()["state"].items():
                tensors.update({f"{name}/{index}/{key}": t for key, t in slots.items()
                                if isinstance(t, Tensor)})  # fmt: skip
        else:
            tensors.update({f"{name}/{key}": t for key, t in part.state_dict().items()})
    return {key: t.detach().cpu().contiguous() for key, t in tensors.items()}


def named_parts(state: TrainState) -> Iterator[tuple[str, Any]]:
    yield "net", state.net
    yield "optimizer", state.optimizer
    if state.average is not None:
        yield "average", state.average


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split("/")
        slots.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})


def problem_with(folder: Path) -> str | None:
    """What is wrong with a saved state, in a sentence; None where its manifest holds."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, expected in manifest.items():
            if facts(folder / name) != expected:
                return f"{folder / name}: damaged, its size or SHA-256 is not the manifest's"
    except (OSError, ValueError, AttributeError) as error:
        return f"{folder}: incomplete or damaged: {error}"
    return None


def facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256}
