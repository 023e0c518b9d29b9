"""How things are drawn: lines, points, bars, grids of tiles, heat over a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)
from PIL import Image, ImageDraw

from vitkit.plain import Curve
from vitkit.reports.colours import INK, LINE, MUTED, SERIES
from vitkit.reports.drawing import Drawing
from vitkit.terminal import printable

WIDTH, HEIGHT = 4.4, 2.9  # inches: on a phone as on paper the text can be read
LONGEST = 18  # characters of a name in a figure
INSIDE = 4  # lines; of more the names stand beside the plot, which they would hide
A_COLUMN, NAMED = 20, 60  # names beside a plot: in a column, in all
HEAT = "viridis"  # even steps to the eye, also in grey and for the colour-blind
OVERLAY = 224  # pixels of a side
DASHES = ("-", "--", ":", "-.")


def word(name: str, most: int = LONGEST) -> str:
    """A name as a figure shows it: not long, no command; a "$" begins no formula."""
    name = printable(name)
    name = name if len(name) <= most else name[: most - 3] + "..."
    return name.replace("$", r"\$")


def blank(width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    return figure, plain(figure.subplots())


def plain(axes: Axes) -> Axes:
    """Only the lines that are needed, in the page's colours."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=8)
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def headed(axes: Axes, text: str) -> None:
    """With a title."""
    axes.set_title(word(text, 60), size=10, color=INK)


def legend(axes: Axes) -> None:
    """Names of the lines, where there are several; of many beside the plot, where there is room."""
    handles, names = axes.get_legend_handles_labels()
    if 1 < len(names) <= INSIDE:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    elif len(names) > INSIDE:
        figure = axes.get_figure(root=True)
        assert figure is not None
        columns = -(-min(len(names), NAMED) // A_COLUMN)
        figure.legend(handles[:NAMED], names[:NAMED], loc="outside right upper", ncols=columns,
                      frameon=False, fontsize=8, labelcolor=INK, handlelength=3.2)  # fmt: skip


def room_for_names(number: int) -> tuple[float, float]:
    """Width and height of a plot and the names of so many lines, inches."""
    if number <= INSIDE:
        return WIDTH, HEIGHT
    number = min(number, NAMED)
    columns = -(-number // A_COLUMN)
    return WIDTH + 1.9 * columns, max(HEIGHT, 0.18 * -(-number // columns) + 0.4)


def lines(
    name: str,
    title: str,
    x_name: str,
    y_name: str,
    series: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]],
    *,
    share: bool = False,
    log_x: bool = False,
    from_zero: bool = False,
    whole_x: bool = False,
    titled: bool = True,
    caption: str = "",
) -> Drawing:
    """Lines by name, each (x, y); what is no number is left out."""
    figure, axes = blank(*room_for_names(len(series)))
    for place, (label, (x, y)) in enumerate(series.items()):
        mark = "o" if np.isfinite(np.asarray(y, float)).sum() <= 30 else None
        axes.plot(x, np.asarray(y, float), label=word(label, 28), marker=mark, markersize=3,
                  color=SERIES[place % len(SERIES)], linewidth=1.4,
                  linestyle=DASHES[place // len(SERIES) % len(DASHES)])  # fmt: skip
    headed(axes, title if titled else "")
    axes.set(xlabel=word(x_name, 60), ylabel=word(y_name, 60))
    if log_x:
        axes.set_xscale("log")
        plain_log(axes.xaxis)
        at_points(axes, series)
    elif whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if from_zero:
        axes.set_ylim(0, None)
    if share:
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    legend(axes)
    alt = f"{title}: {in_words(y_name, series, share)}"
    return Drawing(name, figure, alt, caption, wide=len(series) > INSIDE)


def plain_log(axis: Axis) -> None:
    """Numbers on a logarithmic axis as people write them, not as powers of ten."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def at_points(axes: Axes, series: Mapping[str, tuple]) -> None:
    """Numbers on a logarithmic axis at the points themselves, where these are few."""
    places = sorted({float(x) for xs, _ in series.values() for x in xs})
    if len(places) <= 8:
        axes.set_xticks(places, [f"{place:g}" for place in places])
        axes.set_xticks([], minor=True)


def in_words(y_name: str, series: Mapping[str, tuple], share: bool) -> str:
    """Where each line begins and ends, for those who do not see it."""
    said = []
    for label, (_, values) in series.items():
        known = np.asarray(values, float)
        known = known[np.isfinite(known)]
        if len(known):
            first, last = (f"{v:.1%}" if share else f"{v:.4g}" for v in (known[0], known[-1]))
            said.append(f"{label} goes from {first} to {last}")
    return f"{y_name}; " + ("; ".join(said) or "nothing is known")


def curve(name: str, found: Curve, titled: bool = True) -> Drawing:
    """Without a title where a heading says the same; its words begin with it all the same."""
    series = {label: (found.x, y) for label, y in found.lines.items()}
    whole = bool(len(found.x)) and bool(np.all(np.asarray(found.x) % 1 == 0))
    return lines(name, found.title, found.x_name, found.y_name, series, share=found.share,
                 log_x=found.log_x, whole_x=whole, titled=titled)  # fmt: skip


def montage(tiles: np.ndarray, gap: int) -> np.ndarray:
    """(rows, columns, h, w) or (rows, columns, h, w, 3) -> one array, NaN between the tiles."""
    rows, columns, height, width = tiles.shape[:4]
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, *tiles.shape[4:])
    canvas = np.full(size, np.nan, np.float32)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap), column * (width + gap)
            canvas[top : top + height, left : left + width] = tiles[row, column]
    return canvas


def tiles(
    name: str,
    title: str,
    maps: np.ndarray,
    *,
    rows: Sequence[object],
    columns: Sequence[object],
    row_name: str,
    column_name: str,
    alt: str,
    caption: str = "",
    scale: tuple[float, float] | None = None,
    scale_name: str = "",
) -> Drawing:
    """Maps (rows, columns, h, w) as a grid of tiles, labelled at the left and below.

    With `scale` all share it, and a bar tells it; without it each goes from its least to its most.
    """
    height, width = maps.shape[2:4]
    shown = maps if scale is not None else stretched(maps)
    gap = max(1, round(0.06 * max(height, width)))
    canvas = montage(shown, gap)
    inches = min(7.0, max(WIDTH, 0.4 * len(columns) + 1))
    tall = max(1.2, (inches - 1) * canvas.shape[0] / canvas.shape[1] + 0.9)
    tall = min(12.0, 1.3 * len(rows) + 0.9, tall)  # a tile is no higher than that
    figure, axes = blank(inches, tall)
    low, high = scale or (0.0, 1.0)
    drawn = axes.imshow(canvas, cmap=HEAT, vmin=low, vmax=high, interpolation="nearest")
    label_tiles(axes, rows, columns, height + gap, width + gap)
    headed(axes, title)
    axes.set(xlabel=column_name, ylabel=row_name)
    if scale is not None:
        bar(figure, drawn, axes, scale_name)
    return Drawing(name, figure, alt, caption, wide=inches > 5)


def stretched(maps: np.ndarray) -> np.ndarray:
    """Each map from 0, its least, to 1, its most."""
    low = np.nanmin(maps, axis=(2, 3), keepdims=True)
    high = np.nanmax(maps, axis=(2, 3), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)


def label_tiles(
    axes: Axes, rows: Sequence[object], columns: Sequence[object], high: int, wide: int
) -> None:
    """Numbers at the middle of the tiles, not so many that they touch."""
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for axis, names, step in ((axes.yaxis, rows, high), (axes.xaxis, columns, wide)):
        every = math.ceil(len(names) / 24)
        places = range(0, len(names), every)
        axis.set_ticks([place * step + step / 2 - 1 for place in places],
                       [str(names[place]) for place in places])  # fmt: skip


def bar(figure: Figure, drawn, axes: Axes, label: str) -> None:
    """The scale of colours."""
    found = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02)
    found.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    found.ax.tick_params(colors=MUTED, labelcolor=INK, labelsize=8)
    found.set_label(label, color=INK, size=9)


def coloured(maps: np.ndarray) -> np.ndarray:
    """(h, w), from its least to its most, as colours (h, w, 3) uint8."""
    known = stretched(maps[None, None].astype(np.float32))[0, 0]
    return (255 * colormaps[HEAT](np.nan_to_num(known))[..., :3]).round().astype(np.uint8)


def enlarged(picture: np.ndarray) -> Image.Image:
    """The longer side of OVERLAY pixels."""
    scale = OVERLAY / max(picture.shape[:2])
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    return Image.fromarray(np.ascontiguousarray(picture)).resize(size)


def outlined(picture: np.ndarray, grid: tuple[int, int], row: int, column: int) -> np.ndarray:
    """(h, w, 3) uint8 -> (h', w', 3), the longer side of OVERLAY pixels, with a line around a patch
    of a grid (down, across): white within black, which are seen on any picture."""
    image = enlarged(picture)
    high, wide = image.height / grid[0], image.width / grid[1]
    box = [column * wide, row * high, (column + 1) * wide - 1, (row + 1) * high - 1]
    left, top, right, bottom = map(round, box)
    pen = ImageDraw.Draw(image)
    pen.rectangle((left - 2, top - 2, right + 2, bottom + 2), outline="black", width=2)
    pen.rectangle((left, top, right, bottom), outline="white", width=2)
    return np.asarray(image)


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Heat (any size) smoothly over the picture (h, w, 3) uint8, which shows through where it is
    low -> (h', w', 3) uint8, the longer side of OVERLAY pixels."""
    image = enlarged(picture)
    below = np.asarray(image, np.float32)
    known = np.nan_to_num(stretched(heat[None, None].astype(np.float32))[0, 0])
    large = np.asarray(Image.fromarray(known).resize(image.size, Image.Resampling.BILINEAR))
    colours = 255 * colormaps["magma"](large)[..., :3]
    grey = below.mean(axis=2, keepdims=True)  # the photograph's own colours would be misread
    share = 0.25 + 0.5 * large[..., None]
    return ((1 - share) * grey + share * colours).clip(0, 255).round().astype(np.uint8)
