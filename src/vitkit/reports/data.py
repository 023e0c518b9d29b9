"""Sheets of images to look at: pairs of near-duplicates, and a few images of every class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vitkit.files import whole_file
from vitkit.terminal import printable

TILE = 96  # pixels of a side at most
GAP = 8
LINE = 13  # pixels, of text
PAIRS_A_ROW = 6
SHORTEST = 24  # characters of a name that are shown


def draw_pairs(path: Path, pairs: Sequence[tuple[np.ndarray, np.ndarray, list[str]]]) -> None:
    """Write a PNG of pairs: two images uint8 (H, W, 3), and as many lines below each pair."""
    wide, high = 2 * TILE + 2 * GAP, TILE + len(pairs[0][2]) * LINE + 2 * GAP
    columns = min(PAIRS_A_ROW, len(pairs))
    sheet = blank(columns * wide, -(-len(pairs) // columns) * high)
    pen = ImageDraw.Draw(sheet)
    for number, (first, second, lines) in enumerate(pairs):
        x, y = GAP + number % columns * wide, GAP + number // columns * high
        sheet.paste(tile(first), (x, y))
        sheet.paste(tile(second), (x + TILE + 2, y))
        for row, line in enumerate(lines):
            pen.text((x, y + TILE + row * LINE), shortened(line, 32), fill="black")
    save(sheet, path)


def draw_classes(path: Path, classes: Sequence[tuple[str, Sequence[np.ndarray]]]) -> None:
    """Write a PNG with a row for each class: its name, then images uint8 (H, W, 3)."""
    most = max((len(images) for _, images in classes), default=0)
    text, step = 7 * SHORTEST, TILE + GAP // 2
    sheet = blank(text + GAP + max(1, most) * step, max(1, len(classes)) * step + GAP)
    pen = ImageDraw.Draw(sheet)
    for row, (name, images) in enumerate(classes):
        y = GAP + row * step
        pen.text((GAP, y + TILE // 2 - LINE // 2), shortened(name, SHORTEST), fill="black")
        for column, image in enumerate(images):
            sheet.paste(tile(image), (text + column * step, y))
    save(sheet, path)


def blank(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def tile(image: np.ndarray) -> Image.Image:
    """The image on a square, its longer side as long as that; small ones in whole pixels."""
    scale = TILE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    how = Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.BILINEAR
    square = Image.new("RGB", (TILE, TILE), "#eeeeee")
    square.paste(
        Image.fromarray(image).resize((width, height), how),
        ((TILE - width) // 2, (TILE - height) // 2),
    )
    return square


def shortened(text: str, most: int) -> str:
    text = printable(text).encode("latin-1", "replace").decode("latin-1")  # what the font has
    return text if len(text) <= most else "..." + text[3 - most :]


def save(sheet: Image.Image, path: Path) -> None:
    with whole_file(path) as fresh:
        sheet.save(fresh, format="PNG")
