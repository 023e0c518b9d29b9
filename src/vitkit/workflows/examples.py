"""What a net that learns without labels makes of some held-out images, for its report."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitkit.files import write_whole
from vitkit.objectives.patches import Examples
from vitkit.training.step import Setup
from vitkit.training.world import World
from vitkit.workflows.probing import as_trained
from vitkit.workflows.task import Task

FILE = "examples.npz"  # in a run directory
IMAGES = 8


def examples(learner: nn.Module, setup: Setup, task: Task) -> dict[str, np.ndarray]:
    """Of held-out images, augmented as in training: "images" uint8 (B, 3, H, W), and either
    "predicted" uint8 (B, 3, H, W) with "hidden" bool (B, N), or "similarities" float32 (B, B).

    All processes of a run call this together, and find the same.
    """
    batches = as_trained(task, setup, IMAGES * setup.config.data.repeats, World())
    try:
        batch = next(batches)
    finally:
        batches.close()
    learner.eval()
    with torch.no_grad(), setup.engine.autocast(), torch.compiler.set_stance("force_eager"):
        found = learner(batch.images, None, batch.positions)
    kept = setup.preprocessing
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (kept.mean, kept.std))
    images = {"images": as_bytes(batch.images.cpu() * std + mean)}
    if not isinstance(found, Examples):
        return images | {"similarities": found.float().cpu().numpy()}
    predicted, hidden = as_bytes(found.predicted.cpu()), found.hidden.cpu().numpy()
    return images | {"predicted": predicted, "hidden": hidden}


def as_bytes(images: Tensor) -> np.ndarray:
    """0..1 -> uint8."""
    return (255 * images).round().clamp(0, 255).to(torch.uint8).numpy()


def write_examples(run: Path, found: dict[str, np.ndarray]) -> None:
    """examples.npz in a run directory."""
    content = io.BytesIO()
    # numpy's types take an array for the option allow_pickle, which is no name here.
    np.savez_compressed(content, **found)  # type: ignore[arg-type]
    write_whole(run / FILE, content.getvalue())


def read_examples(run: Path) -> dict[str, np.ndarray]:
    """What `write_examples` wrote; nothing where a run has none, or damaged ones."""
    try:
        with np.load(run / FILE, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
