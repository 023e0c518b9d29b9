"""`vitkit inspect`: what a net has learned, on a page and in a few lines."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vitkit.terminal import print_columns, printable
from vitkit.words import Inspect, parse, require

if TYPE_CHECKING:
    from vitkit.inspection.result import DistancesFound, Inspection


def inspect(argv: list[str]) -> Any:
    words = parse(Inspect(), "inspect", argv)
    require(words.checkpoint, "inspect", "CHECKPOINT, a bundle, a run or a file of weights")
    from vitkit.prediction.model import load
    from vitkit.workflows.inspect import inspect, write
    from vitkit.workflows.pages import figures_at, page_at

    page, figures = page_at(words.out), figures_at(words.figures)
    model = load(words.checkpoint)
    found = inspect(
        model, list(words.images) or None, data=words.data or None, device=words.device,
        **asdict(words.options),
    )  # fmt: skip
    about = {"checkpoint": words.checkpoint, "data": " ".join(words.data)}
    write(found, page, about, figures)
    show(found)
    print(printable(f"wrote {page}" + (f", figures in {figures}" if figures else "")))
    print(printable(f"Next: {following(words)}"))
    return words, summary(found) | {"report": str(page)}


def show(found: Inspection) -> None:
    if found.distances is not None:
        print_distances(found.distances)
    if found.images:
        print_columns(
            ("image", "predicted", "probability"),
            [(image.name, *((image.top[0][0], f"{image.top[0][1]:.1%}") if image.top else ("", "")))
             for image in found.images],
            right=(2,),
        )  # fmt: skip
    for note in found.notes:
        print(printable(f"- {note}"))


def print_distances(found: DistancesFound) -> None:
    print(f"mean attention distance in pixels over {found.images:,} images; uniform attention has "
          f"{found.uniform:.1f}")  # fmt: skip
    print_columns(
        ("layer", "nearest head", "mean", "farthest head"),
        [(str(layer), *(f"{value:.1f}" for value in (row.min(), row.mean(), row.max())))
         for layer, row in zip(found.layers, found.pixels, strict=True)],
        right=(0, 1, 2, 3),
    )  # fmt: skip


def summary(found: Inspection) -> dict[str, Any]:
    """What fits into a line of JSON; the arrays are in report.npz."""
    positions, distances = found.positions, found.distances
    return {
        "net": found.net,
        "notes": list(found.notes),
        "positions": positions and {
            "kind": positions.kind, "rows": positions.rows, "columns": positions.columns,
            "untrained_rows": positions.untrained_rows,
            "untrained_columns": positions.untrained_columns,
        },
        "distances": distances and {
            "layers": list(distances.layers), "pixels": distances.pixels.tolist(),
            "uniform": distances.uniform, "images": distances.images,
        },
        "images": [{"image": image.name, "top": image.top} for image in found.images],
    }  # fmt: skip


def following(words: Inspect) -> str:
    if not words.images:
        return f"vitkit inspect {words.checkpoint} IMAGES..."
    if not words.data:
        return f"vitkit inspect {words.checkpoint} {' '.join(words.images[:1])} --data DATA"
    return f"vitkit evaluate {words.checkpoint} {' '.join(words.data)}"
