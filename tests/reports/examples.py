"""What evaluations and inspections may find, made up: every part of a page has something to show,
and names are hostile."""

from __future__ import annotations

import numpy as np

from vitkit.evaluation.findings import Calibration, Confusion, Findings, Mistake, Reliability
from vitkit.inspection.result import (
    DistancesFound,
    Filters,
    ImageFound,
    Inspection,
    Neighbour,
    NormsFound,
    PositionsFound,
)
from vitkit.plain import Curve, Table

HOSTILE = '<script>alert("1")</script> & $x^{'
ABOUT = {"checkpoint": "runs/base", "data": "photos/", "protocol": "top-k", "seconds": 12.5}


def photograph(seed: int, side: int = 32) -> np.ndarray:
    """(side, side, 3) uint8: a smooth picture."""
    y, x = np.mgrid[:side, :side] / side
    waves = [np.sin(3 * x + seed + c) * np.cos(4 * y - c) for c in range(3)]
    return (127 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def class_names(number: int) -> tuple[str, ...]:
    return (HOSTILE, *(f"class {n}" for n in range(1, number)))


def confusion(number: int) -> Confusion:
    draws = np.random.default_rng(0)
    counts = draws.integers(0, 9, (number, number)) + np.diag(draws.integers(20, 90, number))
    return Confusion(class_names(number), counts.astype(np.int64))


def reliability(ece: float) -> Reliability:
    middles = (np.arange(15) + 0.5) / 15
    images = np.arange(15) ** 2
    accuracy = np.where(images > 0, np.clip(middles - ece, 0, 1), np.nan)
    return Reliability(np.where(images > 0, middles, np.nan), accuracy, images, ece)


def findings(classes: int = 12) -> Findings:
    names = class_names(classes)
    shots = np.array([1.0, 5, 10, 25])
    mistakes = [
        Mistake(f"photos/{HOSTILE}/{n}.jpg", names[0], names[1], 0.9 - n / 50, 0.01,
                None if n == 3 else photograph(n))
        for n in range(8)
    ]  # fmt: skip
    return Findings(
        metrics={"top1": 0.7345, "top5": 0.95, "loss": 1.2345, "temperature": 1.43},
        class_recall=dict.fromkeys(names, 0.5) | {names[-1]: None},
        class_images=dict.fromkeys(names, 100) | {names[-1]: 0},
        tables=(
            Table("Accuracy by shots", ("shots", "mean", "deviation"),
                  (("1", "40.00 %", "1.00 %"), ("5", "61.00 %", "0.50 %")), "Over three seeds."),
            Table(HOSTILE, tuple(f"column {n}" for n in range(14)),
                  tuple(tuple(f"a long cell {n}" for n in range(14)) for _ in range(3))),
        ),
        curves=(
            Curve("Accuracy by shots", "shots", "accuracy", shots,
                  {"mean": np.array([0.4, 0.6, 0.7, np.nan]), HOSTILE: np.array([0.3] * 4)},
                  share=True, log_x=True),
        ),
        notes=(f"2 classes of DATA are not the net's: {HOSTILE}.",),
        confusion=confusion(classes),
        calibration=Calibration(reliability(0.12), 1.43, reliability(0.11), reliability(0.02)),
        worst=tuple(mistakes[:5]),
        confident=tuple(mistakes[5:]),
        images=1234,
    )  # fmt: skip


def image_found(number: int, grid: tuple[int, int], layers: int, heads: int) -> ImageFound:
    draws = np.random.default_rng(number)
    patches = grid[0] * grid[1]
    attention = draws.gamma(0.5, size=(layers, heads, 2 + patches)).astype(np.float32)
    attention /= attention.sum(axis=-1, keepdims=True)
    steps = np.linspace(0, 1, 11)
    tops = ((HOSTILE, 0.6), ("class 2", 0.3), ("class 3", 0.1))
    return ImageFound(
        name=f"photos/{HOSTILE}/{number}.jpg",
        picture=photograph(number, 64),
        top=tops,
        layers=tuple(range(layers)),
        heads=tuple(range(heads)),
        query="class token",
        attention=attention,
        rollout=attention[-1].mean(0),
        flow=attention[0].mean(0),
        relevance=draws.random(grid).astype(np.float32),
        relevance_of=HOSTILE,
        grad_cam=draws.random((3, 3)).astype(np.float32),
        lens=(tops,) * (layers + 1),
        patch_norms=draws.random(grid).astype(np.float32) * 30,
        faithfulness=(
            Curve("Deletion", "share of the patches", "probability", steps,
                  {"relevance": 0.9 - 0.8 * steps, "random": 0.9 - 0.5 * steps}, share=True),
            Curve("Insertion", "share of the patches", "probability", steps,
                  {"relevance": 0.1 + 0.8 * steps, "random": 0.1 + 0.5 * steps}, share=True),
        ),
        neighbours=tuple(
            Neighbour(f"other/{n}.jpg", HOSTILE if n else None, 0.9 - n / 10, photograph(9 + n))
            for n in range(4)
        ),
    )  # fmt: skip


def inspection(
    grid: tuple[int, int] = (16, 16), layers: int = 12, heads: int = 6, images: int = 2
) -> Inspection:
    draws = np.random.default_rng(0)
    patches = grid[0] * grid[1]
    places = np.stack(np.unravel_index(np.arange(patches), grid), axis=1)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    return Inspection(
        net="ViT-Example/4",
        kind="ViT",
        image_size=(64, 64),
        grid=grid,
        depth=layers,
        heads=heads,
        prefix=("class token", "register"),
        notes=("Attention is not an explanation.", f"The class is {HOSTILE}."),
        filters=Filters(
            draws.random((28, 8, 8, 3)).astype(np.float32), 0.5 ** np.arange(1, 29),
            "principal components of the patch embedding",
        ),
        positions=PositionsFound(
            "1d", np.exp(-apart / 4).astype(np.float32), -0.91, -0.88, float("nan"), -0.02
        ),
        distances=DistancesFound(
            tuple(range(layers)), draws.uniform(5, 40, (layers, heads)), 33.0, 128
        ),
        norms=NormsFound(draws.gamma(9, size=(4, patches)).astype(np.float32), 25.0, 0.0123),
        lens=Curve("Accuracy by layer", "layer", "top-1", np.arange(layers + 1.0),
                   {"top-1": np.linspace(0.1, 0.7, layers + 1)}, share=True),
        images=tuple(image_found(n, grid, layers, heads) for n in range(images)),
    )  # fmt: skip
