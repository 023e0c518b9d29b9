"""A figure with its name and its words, as the page's SVG and as files."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from vitkit.files import write_whole
from vitkit.reports.colours import as_variables
from vitkit.terminal import printable

STYLE_ATTRIBUTE = re.compile(r'style="[^"]*"')


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure of a page."""

    name: str  # of its file, and unique on its page
    figure: Figure
    alt: str  # what it shows, for those who do not see it
    caption: str = ""
    wide: bool = False  # takes a whole row, and scrolls on a phone

    def svg(self) -> str:
        """An <svg> element to put into a page: transparent, in the page's colours and font."""
        text = saved(self.figure, "svg", self.name, transparent=True).decode()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r'<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)
        text = STYLE_ATTRIBUTE.sub(lambda found: as_variables(found[0]), text)
        text = own_ids(text, self.name)
        head, _, rest = text.partition(">")
        head = re.sub(r' (width|height|version)="[^"]*"', "", head)
        width = float(head.partition('viewBox="')[2].split()[2]) * 96 / 72
        least = f"; min-width: {min(width, 560):.0f}px" if self.wide else ""
        label = escape(printable(self.alt), quote=True)
        return (
            f'{head} role="img" aria-label="{label}" style="max-width: {1.25 * width:.0f}px{least}"'
            f">{rest}"
        )

    def save(self, folder: Path) -> None:
        """NAME.png and NAME.svg, on white."""
        write_whole(folder / f"{self.name}.png", saved(self.figure, "png", self.name))
        write_whole(folder / f"{self.name}.svg", saved(self.figure, "svg", self.name))


def saved(figure: Figure, kind: str, name: str, transparent: bool = False) -> bytes:
    """The figure as a file; the same figure is the same bytes.

    Text stays text, which is small, can be searched and takes the page's font.
    """
    content = io.BytesIO()
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name}
    with rc_context(style), warnings.catch_warnings():
        # A name of a class may be in a script that matplotlib's own font has not; the page's has.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(
            content, format=kind, dpi=150, transparent=transparent, bbox_inches="tight",
            pad_inches=0.04, metadata={"Date": None} if kind == "svg" else None,
        )  # fmt: skip
    return content.getvalue()


def own_ids(svg: str, name: str) -> str:
    """Only the ids that something refers to, each with the figure's name: a page has several."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))

    def renamed(found: re.Match[str]) -> str:
        return f' id="{name}-{found[1]}"' if found[1] in used else ""

    svg = re.sub(r' id="([^"]*)"', renamed, svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
