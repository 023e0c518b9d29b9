"""The page of an inspection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator

from vitkit.inspection.result import (
    DistancesFound,
    Filters,
    Inspection,
    NormsFound,
    PositionsFound,
)
from vitkit.reports.colours import MUTED, SERIES
from vitkit.reports.drawing import Drawing
from vitkit.reports.figures import blank, curve, legend, lines, montage, plain_log, tiles
from vitkit.reports.inspection_image import image_parts
from vitkit.reports.page import (
    Drawings,
    Facts,
    Heading,
    Links,
    Notes,
    Part,
    Section,
    Text,
    counted,
    filled,
    write_page,
)

MOST_TILES = 14  # of position similarity, down and across; of larger grids some are shown
MOST_FILTERS = 64
IMAGES_SHOWN = 24
LINKED_FROM = 3  # images; to fewer no links are needed


def write_inspection(
    page: Path, found: Inspection, about: dict[str, Any], figures: Path | None = None
) -> Path:
    """Write what an inspection found as one page.

    `about` are facts for a table: checkpoint, data, device, versions, seconds. Every figure is also
    written into the folder `figures`, as PNG and SVG, every picture as PNG.
    """
    sections = [
        Section("What holds", [Notes(found.notes)] if found.notes else []),
        Section("First layer", filter_parts(found.filters)),
        Section("Position embeddings", position_parts(found.positions, found.grid)),
        Section("Attention distance", distance_parts(found.distances)),
        Section("Class by layer", [Drawings([curve("lens", found.lens)])] if found.lens else []),
        Section("Norms of patch tokens", norm_parts(found.norms)),
        Section("Images", all_image_parts(found)),
        Section("About", [Facts(filled(about))] if filled(about) else []),
    ]
    return write_page(page, f"Inspection of {found.net}", summary(found), sections, figures)


def summary(found: Inspection) -> str:
    """What the net is, in a sentence."""
    parts = [f"{found.kind}, images of {found.image_size[0]}x{found.image_size[1]} pixels"]
    if found.grid is not None:
        parts.append(f"{found.grid[0]}x{found.grid[1]} patches")
    if found.prefix:
        parts.append(f"before them {', '.join(found.prefix)}")
    if found.depth is not None:
        parts.append(counted(found.depth, "layer"))
    if found.heads is not None:
        parts.append(counted(found.heads, "head"))
    return "; ".join(parts) + "."


def filter_parts(found: Filters | None) -> list[Part]:
    """Small pictures of what the first layer looks for (Figure 7, left)."""
    if found is None or not len(found.pictures):
        return []
    pictures = found.pictures[:MOST_FILTERS]
    columns = min(len(pictures), 7 if len(pictures) <= 28 else 10)
    rows = -(-len(pictures) // columns)
    side = pictures.shape[1:3]
    grid = np.full((rows * columns, *side, 3), np.nan, np.float32)
    grid[: len(pictures)] = pictures
    canvas = montage(grid.reshape(rows, columns, *side, 3), max(1, side[0] // 12))
    alpha = np.isfinite(canvas[..., :1]).astype(np.float32)  # nothing is drawn between the tiles
    figure, axes = blank(4.4, max(1.2, 4.2 * canvas.shape[0] / canvas.shape[1]))
    axes.imshow(np.concatenate([np.nan_to_num(canvas), alpha], axis=2), interpolation="nearest")
    axes.set_axis_off()
    caption = f"{found.kind[:1].upper()}{found.kind[1:]}, row by row."
    if len(found.pictures) > len(pictures):
        caption += f" The first {len(pictures)} of {len(found.pictures)} are shown."
    drawn = [Drawing("filters", figure, f"{len(pictures)} tiles: {found.kind}", caption)]
    if found.explained is not None:
        numbers = np.arange(1, len(found.explained) + 1)
        drawn.append(
            lines("filters-explained", "Variance explained", "principal component",
                  "share of the variance", {"share": (numbers, found.explained)}, share=True,
                  from_zero=True, whole_x=True)
        )  # fmt: skip
    return [Drawings(drawn)]


def position_parts(found: PositionsFound | None, grid: tuple[int, int] | None) -> list[Part]:
    """One tile a patch, each the cosine of its position with all others (Figure 7, centre)."""
    if found is None or grid is None:
        return []
    down, across = (chosen(side) for side in grid)
    maps = found.similarity.reshape(*grid, *grid)[np.ix_(down, across)]
    some = len(down) < grid[0] or len(across) < grid[1]
    caption = "Each tile: how similar the position of one patch is to all others'."
    if some:
        caption += (
            f" Of {grid[0]}x{grid[1]} patches {len(down)}x{len(across)} have a tile, evenly spaced."
        )
    drawn = tiles(
        "positions", "", maps, rows=down, columns=across,
        row_name="row of the patch", column_name="column of the patch",
        alt=f"Similarity of {found.kind} position embeddings, "
            f"{len(down)}x{len(across)} tiles",
        caption=caption, scale=(-1.0, 1.0), scale_name="cosine",
    )  # fmt: skip
    facts = {
        "kind": found.kind,
        "within a row": correlation(found.rows, found.untrained_rows),
        "within a column": correlation(found.columns, found.untrained_columns),
    }
    title = "Spearman's correlation of distance and similarity"
    said = [Text(f"{found.note[:1].upper()}{found.note[1:]}.")] if found.note else []
    return [*said, Drawings([drawn]), Facts(facts, title)]


def correlation(here: float, untrained: float) -> str:
    return f"{number(here)} (untrained: {number(untrained)})"


def number(value: float) -> str:
    return "none, since all are equally similar" if not np.isfinite(value) else f"{value:.3f}"


def chosen(side: int) -> list[int]:
    """Places along a side of the grid, at most MOST_TILES, evenly spaced, both ends among them."""
    count = min(side, MOST_TILES)
    return [round(place) for place in np.linspace(0, side - 1, count)]


def distance_parts(found: DistancesFound | None) -> list[Part]:
    """A point a head, over the layers (Figure 7, right; Figure 11)."""
    if found is None:
        return []
    figure, axes = blank(5.2, 3.4)
    heads = found.pixels.shape[1]
    layers = np.repeat(found.layers, heads)
    if found.untrained is not None:
        axes.scatter(layers, found.untrained.ravel(), s=14, facecolors="none", edgecolors=MUTED,
                     label="a head before training")  # fmt: skip
    axes.scatter(layers, found.pixels.ravel(), s=14, color=SERIES[0], label="a head", alpha=0.85)
    axes.axhline(found.uniform, color=MUTED, linestyle="--", linewidth=1.2,
                 label="attention alike everywhere")  # fmt: skip
    axes.set(xlabel="layer", ylabel="mean attention distance (pixels)", ylim=(0, None))
    axes.xaxis.set_major_locator(ticks(found.layers))
    legend(axes)
    first, last = found.pixels[0].mean(), found.pixels[-1].mean()
    alt = (f"Mean attention distance by layer and head: {first:.1f} pixels in layer "
           f"{found.layers[0]}, {last:.1f} in layer {found.layers[-1]}, mean over the heads; "
           f"{found.uniform:.1f} if attention were alike everywhere")  # fmt: skip
    caption = f"Mean over all query patches of {counted(found.images, 'image')}; a point is a head."
    return [Drawings([Drawing("attention-distance", figure, alt, caption)])]


def ticks(layers: Sequence[int]) -> FixedLocator:
    """At the layers that there are, or every second one and so on."""
    return FixedLocator(list(layers)[:: -(-len(layers) // 16)])


def norm_parts(found: NormsFound | None) -> list[Part]:
    """How many patch tokens have which norm, and from where on they are outliers."""
    if found is None:
        return []
    figure, axes = blank()
    axes.hist(found.norms.ravel(), bins=60, color=SERIES[0], log=True)
    axes.axvline(found.threshold, color=SERIES[1], linestyle="--")
    axes.set(xlabel="norm of a patch token, last layer", ylabel="tokens (log)")
    plain_log(axes.yaxis)
    said = f"{found.outliers:.2%} of {found.norms.size:,} patch tokens are outliers."
    alt = f"Histogram of norms; {said} The threshold is {found.threshold:.4g}."
    caption = f"On the right of the dashed line ({found.threshold:.4g}) a token is an outlier."
    return [Text(said), Drawings([Drawing("norms", figure, alt, caption)])]


def all_image_parts(found: Inspection) -> list[Part]:
    parts: list[Part] = []
    if len(found.images) > IMAGES_SHOWN:
        parts.append(Text(f"The first {IMAGES_SHOWN} of {len(found.images):,} images are shown."))
    shown = {f"image-{place}": image for place, image in enumerate(found.images, start=1)}
    shown = dict(list(shown.items())[:IMAGES_SHOWN])
    if len(shown) >= LINKED_FROM:
        names = {key: image.name.rpartition("/")[2] for key, image in shown.items()}
        links = {f"at-{key}": f"{place}. {name}"
                 for place, (key, name) in enumerate(names.items(), start=1)}  # fmt: skip
        parts.append(Links("Images", links))
    for place, (key, image) in enumerate(shown.items(), start=1):
        parts.append(Heading(f"{place}. {image.name}", f"at-{key}"))
        parts += image_parts(key, image, found)
    return parts
