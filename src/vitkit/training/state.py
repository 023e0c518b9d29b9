"""Resumable states of a run: complete or absent, verified before a tensor is used."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vitkit.errors import VitkitError
from vitkit.files import whole_folder
from vitkit.training.parallel import gathered, part_like, reshard
from vitkit.training.world import from_main

KEPT = 2  # states kept in a run directory
TENSORS, PROGRESS, MANIFEST = "state.safetensors", "state.json", "manifest.json"


class StateError(VitkitError):
    """A saved state is damaged or belongs to another run."""


@dataclass
class TrainState:
    """All that changes while a run trains. The random draws are functions of (seed, step).

    Weights, optimizer and average may be sharded over the run's processes; what is saved is whole.
    """

    net: nn.Module
    forward: nn.Module  # what computes logits: the net, or a wrapper that exchanges gradients
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor] | None  # the Polyak average of the net's parameters
    parts: int = 1  # in which a batch is worked through
    step: int = 0  # steps done
    evaluated_at: int = 0  # the step of the newest evaluation
    best: dict[str, float] = field(default_factory=dict)  # the evaluation with the best top-1

    def __post_init__(self) -> None:
        device = next(self.net.parameters()).device
        self.diverged = torch.zeros((), device=device)  # 1 from the first gradient not finite on
        self.bad_loss = torch.zeros((), device=device)

    def note(self, loss: Tensor, norm: Tensor) -> None:
        """Remember, on the device, whether a gradient was not finite."""
        found = (~torch.isfinite(norm)).float()
        self.bad_loss = torch.where((found > self.diverged), loss, self.bad_loss)
        self.diverged = torch.maximum(self.diverged, found)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """After a step: average = decay average + (1 - decay) weights; the weights at the first."""
        if self.average is None:
            return
        weights = [parameter.detach() for parameter in self.net.parameters()]
        share = 1.0 if self.step == 0 else 1 - decay
        for kept, weight in zip(self.average.values(), weights, strict=True):
            kept.lerp_(weight, share)

    @contextmanager
    @torch.no_grad()
    def averaged(self) -> Iterator[nn.Module]:
        """The net that is evaluated: with the average, where there is one, in place of weights."""
        self.exchange()
        try:
            yield self.net
        finally:
            reshard(self.net)
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        for name, parameter in self.net.named_parameters():
            if self.average is not None:
                kept = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name].copy_(kept)

    def evaluated(self) -> dict[str, Tensor]:
        """The state_dict of the net that is evaluated and saved as a bundle, whole, on the CPU.

        All processes must ask for it; only the main one gets it, the others an empty one.
        """
        return gathered({**self.net.state_dict(), **(self.average or {})})


def save_state(runs_checkpoints: Path, state: TrainState) -> Path:
    """Write step-NNNNNNNN, with a manifest of sizes and hashes, and drop the oldest states.

    All processes call it together; the main one writes.
    """
    folder = runs_checkpoints / f"step-{state.step:08d}"
    tensors = tensors_of(state)

    def write() -> None:
        if folder.exists() and problem_with(folder) is None:
            return  # a step is saved once
        with whole_folder(folder) as fresh:
            save_file(tensors, fresh / TENSORS)
            progress = {
                "step": state.step, "evaluated_at": state.evaluated_at, "best": state.best,
                "parts": state.parts,
            }  # fmt: skip
            (fresh / PROGRESS).write_text(json.dumps(progress))
            manifest = {name: facts(fresh / name) for name in (TENSORS, PROGRESS)}
            (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2))
        for old in sorted(runs_checkpoints.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    from_main(write)
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
    """Put a saved state into a fresh one of the same config. Raises StateError.

    All processes call it together, each with a view of the folder; the main one verifies it.
    """
    problem = from_main(lambda: problem_with(folder))
    if problem:
        raise StateError(problem)
    with safe_open(folder / TENSORS, framework="pt") as saved:
        names = set(saved.keys())
        parts = {"net": state.net.state_dict(), "average": state.average or {}}
        for part, tensors in parts.items():
            found = {n.removeprefix(f"{part}/") for n in names if n.startswith(f"{part}/")}
            if found != set(tensors):
                odd = sorted(found ^ set(tensors))[0]
                raise StateError(f"{folder}: its {part} is of another net: {odd}")
            for name, tensor in tensors.items():
                value = saved.get_tensor(f"{part}/{name}")
                if value.shape != tensor.shape:
                    raise StateError(f"{folder}: its {part} is of another net: {name}")
                with torch.no_grad():
                    tensor.copy_(part_like(tensor, value))
        load_optimizer(state.optimizer, saved)
    progress = json.loads((folder / PROGRESS).read_text())
    state.step, state.best = progress["step"], progress["best"]
    state.evaluated_at = progress["evaluated_at"]
    state.parts = max(progress.get("parts", 1), state.parts)


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    tensors = {f"net/{name}": t for name, t in state.net.state_dict().items()}
    tensors |= {f"average/{name}": t for name, t in (state.average or {}).items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer/{index}/{key}": t for key, t in slots.items()
                        if isinstance(t, Tensor)})  # fmt: skip
    return gathered(tensors)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Any) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for name in saved.keys():  # noqa: SIM118 (a safe_open is no mapping)
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            value, parameter = saved.get_tensor(name), parameters[int(index)]
            if value.shape == parameter.shape:
                value = part_like(parameter, value)
            slots.setdefault(int(index), {})[key] = value
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
