"""What a net that learns without labels makes of some held-out images, for its report."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from vitkit.data.transforms import normalised
from vitkit.files import write_whole
from vitkit.objectives.patches import Examples
from vitkit.training.config import DataConfig
from vitkit.training.step import Setup, ready
from vitkit.training.world import World
from vitkit.workflows.feeding import training_stream
from vitkit.workflows.task import Task

FILE = "examples.npz"  # in a run directory
IMAGES = 8


def examples(learner: nn.Module, setup: Setup, task: Task) -> dict[str, np.ndarray]:
    """Of held-out images, augmented as in training: "images" uint8 (B, 3, H, W), and either
    "predicted" uint8 (B, 3, H, W) with "hidden" bool (B, N), or "similarities" float32 (B, B).

    All processes of a run call this together, and find the same.
    """
    repeats = setup.config.data.repeats
    config = replace(
        setup.config, batch_size=IMAGES * repeats, accumulation=1, data=DataConfig(repeats=repeats)
    )
    engine = replace(setup.engine, keep="none", world=World())
    stream = training_stream(replace(task, train=task.val), config, engine)
    batches = ready(stream.batches(), setup)
    try:
        batch = next(batches)
    finally:
        batches.close()
    device = setup.engine.device
    pixels = normalised(batch.images.to(device), setup.constants)
    learner.eval()
    with torch.no_grad(), setup.engine.autocast(), torch.compiler.set_stance("force_eager"):
        found = learner(pixels, None, batch.positions)
    images = {"images": batch.images.cpu().numpy()}
    if not isinstance(found, Examples):
        return images | {"similarities": found.float().cpu().numpy()}
    predicted = (255 * found.predicted).round().clamp(0, 255).to(torch.uint8)
    return images | {"predicted": of(predicted), "hidden": of(found.hidden)}


def of(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def write_examples(run: Path, found: dict[str, np.ndarray]) -> None:
    """examples.npz in a run directory."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **found)
    write_whole(run / FILE, content.getvalue())


def read_examples(run: Path) -> dict[str, np.ndarray]:
    """What `write_examples` wrote; nothing where a run has none."""
    path = run / FILE
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
