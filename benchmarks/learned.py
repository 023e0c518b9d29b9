"""What small nets learn about positions and distances, a ViT beside a hybrid, trained beside fresh.

Pre-trains ViT-Pico/4 and R5+ViT-Pico/4 on CIFAR-10 twice, by its classes and by how each image was
turned (0, 90, 180 or 270 degrees), and BiT-R14x1 by the classes; then inspects the four and counts
how often ViT, hybrid and BiT keep their prediction when an image moves. Nets that are in
RUNS already are taken as they are. Writes learned.json, and a figure of each net's positions and
attention distances.

    python benchmarks/learned.py --cifar10 cifar10/ --runs runs/learned --out docs/learned
"""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from PIL import Image

import vitkit
from vitkit.data.opening import open_data
from vitkit.inspection.result import Inspection
from vitkit.reports.colours import MUTED, SERIES
from vitkit.workflows.inspect import spread

TURNED = "turned.parquet"
SEED = 0
NETS = {  # folder in RUNS: net, what it is trained by, passes
    "vit": ("ViT-Pico/4", "classes", 12),
    "hybrid": ("R5+ViT-Pico/4", "classes", 12),
    "vit-turned": ("ViT-Pico/4", "turns", 8),
    "hybrid-turned": ("R5+ViT-Pico/4", "turns", 6),
    "bit": ("BiT-R14x1", "classes", 4),
}
INSPECTED = ("vit", "hybrid", "vit-turned", "hybrid-turned")
MOVED = ("vit", "hybrid", "bit")


def write_turned(images: Path, out: Path) -> None:
    """The same images, each turned by a drawn number of quarters, which is its label."""
    table = pq.read_table(images)
    turns = np.random.default_rng(SEED).integers(0, 4, len(table))
    rows = []
    for row, quarters in zip(table["image"].to_pylist(), turns, strict=True):
        picture = np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB"))
        file = io.BytesIO()
        Image.fromarray(np.rot90(picture, quarters)).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    pq.write_table(pa.table({"image": rows, "label": pa.array(turns)}), out)


def train(cifar10: Path, runs: Path) -> None:
    runs.mkdir(parents=True, exist_ok=True)
    for name, (model, by, epochs) in NETS.items():
        if (runs / name / "best").is_dir():
            continue
        if by == "turns" and not (runs / TURNED).exists():
            write_turned(cifar10 / "train.parquet", runs / TURNED)
        data = cifar10 / "train.parquet" if by == "classes" else runs / TURNED
        vitkit.pretrain(
            data, model=model, epochs=epochs, out=runs / name, seed=SEED, **{"augment.flip": False}
        )


def draw(found: Inspection, title: str, path: Path) -> None:
    """Position similarity, one tile a patch, beside attention distance by layer and head."""
    figure = Figure(figsize=(9, 3.6), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    positions, distances = found.positions, found.distances
    assert positions is not None and distances is not None and found.grid is not None
    height, width = found.grid
    canvas = np.full((height * (height + 1), width * (width + 1)), np.nan)
    for patch, row in enumerate(positions.similarity):
        top, edge = patch // width * (height + 1), patch % width * (width + 1)
        canvas[top : top + height, edge : edge + width] = row.reshape(height, width)
    left.imshow(canvas, vmin=-1, vmax=1)
    left.set_axis_off()
    told = f"positions: {positions.rows:.2f} along rows, {positions.columns:.2f} along columns"
    left.set_title(told, fontsize=9)
    layers = np.repeat(distances.layers, distances.pixels.shape[1])
    if distances.untrained is not None:
        right.scatter(layers, distances.untrained.ravel(), facecolors="none", edgecolors=MUTED,
                      label="a head before training")  # fmt: skip
    right.scatter(layers, distances.pixels.ravel(), color=SERIES[0], label="a head")
    right.axhline(distances.uniform, color=MUTED, linestyle="--", label="uniform attention")
    right.set(xlabel="layer", ylabel="mean attention distance (pixels)", ylim=(0, None),
              xticks=distances.layers)  # fmt: skip
    right.legend(frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=100)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--cifar10", type=Path, required=True, help="train.parquet, test.parquet")
    words.add_argument("--runs", type=Path, required=True, help="where the nets are, or will be")
    words.add_argument("--out", type=Path, required=True, help="where figures and JSON go")
    words.add_argument("--moved", type=int, default=2000, help="test images to move")
    words.add_argument("--count", type=int, default=512, help="test images to inspect on")
    given = words.parse_args()
    train(given.cifar10, given.runs)
    given.out.mkdir(parents=True, exist_ok=True)
    test, results = given.cifar10 / "test.parquet", {}
    for name, (model, by, epochs) in NETS.items():
        if name in INSPECTED:
            found = vitkit.inspect(given.runs / name, data=test, count=given.count, untrained=True)
            draw(found, f"{model} trained on CIFAR-10 by its {by}", given.out / f"{name}.png")
            results[name] = figures_of(found)
        if name in MOVED:
            images = spread(open_data(test).train, given.moved)
            moved = vitkit.evaluate(given.runs / name, images, "translations")
            results.setdefault(name, {})["translations"] = moved["metrics"]
            results[name]["tables"] = moved["tables"]
        results[name] |= {"net": model, "trained by": by, "epochs": epochs}
        print(name, json.dumps(results[name], indent=1), flush=True)
    (given.out / "learned.json").write_text(json.dumps(results, indent=1) + "\n")


def figures_of(found: Inspection) -> dict:
    positions, distances = found.positions, found.distances
    assert positions is not None and distances is not None and distances.untrained is not None
    return {
        "rows": positions.rows, "columns": positions.columns,
        "untrained rows": positions.untrained_rows,
        "untrained columns": positions.untrained_columns,
        "uniform": distances.uniform, "images": distances.images,
        "distances": distances.pixels.round(2).tolist(),
        "untrained distances": distances.untrained.round(2).tolist(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
