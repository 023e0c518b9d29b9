"""One HTML file that needs nothing else: its parts as plain data, and the template that shows them.

Names of files and classes come from anywhere: they are text to the template, which escapes them,
and `printable` shows what is no letter. Only the figures are markup, and matplotlib escapes theirs.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jinja2 import Environment
from PIL import Image

from vitkit.files import write_whole
from vitkit.plain import Table
from vitkit.reports.colours import css_colours
from vitkit.reports.drawing import Drawing
from vitkit.reports.template import CSS, PAGE
from vitkit.terminal import printable

LARGEST = 10_000_000  # bytes of a page
SIDE = 224  # pixels of the longer side of a picture
ALL = 10**9
STEPS = (  # (side of pictures, figures, what is said): the first that is small enough
    (SIDE, ALL, ""),
    (SIDE // 2, ALL, "Pictures are made smaller"),
    (0, ALL, "Pictures are left out"),
    *((0, n, f"Pictures and all figures but {n} are left out") for n in (64, 16, 4, 0)),
)
CONTENTS_FROM = 4  # sections; of fewer no table of contents is needed
NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+(e[-+]?\d+)?( ?%)?( ± [\d.]+ ?%?)?|none|")


@dataclass(frozen=True)
class Heading:
    """Below a section's own."""

    text: str
    anchor: str = ""  # an id that links lead to
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Links:
    """To headings of the same page."""

    label: str  # what they lead to, for those who do not see them
    texts: Mapping[str, str]  # by anchor
    kind: ClassVar[str] = "links"


@dataclass(frozen=True)
class Text:
    text: str
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Notes:
    """Sentences that must not be overlooked."""

    sentences: Sequence[str]
    kind: ClassVar[str] = "notes"


@dataclass(frozen=True)
class Facts:
    """Names and what they are."""

    rows: Mapping[str, Any]
    title: str = ""  # a caption
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Rows:
    """A table; columns of numbers are aligned on the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""
    kind: ClassVar[str] = "rows"

    def numbers(self) -> list[bool]:
        """Which columns hold numbers."""
        columns = range(len(self.header))
        return [all(NUMBER.fullmatch(str(row[c])) for row in self.rows) for c in columns]


@dataclass(frozen=True)
class Drawings:
    """Figures side by side where there is room."""

    figures: Sequence[Drawing]
    kind: ClassVar[str] = "drawings"


@dataclass(frozen=True)
class Picture:
    """A photograph, or a heat map over one."""

    name: str  # of its file
    image: np.ndarray | None  # (h, w, 3) uint8; None where it cannot be read
    alt: str
    lines: Sequence[str] = ()  # below it
    photograph: bool = True  # else a map of few exact values, which JPEG would blur

    def uri(self, side: int) -> str:
        """A data: URI of at most so many pixels a side; "" for none."""
        if self.image is None or not side:
            return ""
        content = io.BytesIO()
        picture = resized(self.image, side)
        kind = "JPEG" if self.photograph else "PNG"
        picture.save(content, kind, **({"quality": 82} if self.photograph else {}))
        return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


@dataclass(frozen=True)
class Pictures:
    pictures: Sequence[Picture]
    kind: ClassVar[str] = "pictures"


@dataclass(frozen=True)
class Fold:
    """Parts behind a line to click on."""

    summary: str
    parts: Sequence[Part]
    opened: bool = False
    kind: ClassVar[str] = "fold"


@dataclass(frozen=True)
class Beside:
    """Parts side by side where there is room."""

    parts: Sequence[Part]
    kind: ClassVar[str] = "beside"


Part = Heading | Links | Text | Notes | Facts | Rows | Drawings | Pictures | Fold | Beside


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Part]


def table(found: Table) -> Rows:
    return Rows(found.header, found.rows, found.title, found.note)


def counted(number: int, one: str, several: str = "") -> str:
    """ "1 image", "1,234 images"; `several` where it is not `one` with an s."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def filled(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts without those that are empty, of inner ones too: what nobody gave is not told."""
    inner = {name: filled(v) if isinstance(v, Mapping) else v for name, v in facts.items()}
    return {name: v for name, v in inner.items() if v not in (None, "", (), [], {})}


def resized(image: np.ndarray, side: int) -> Image.Image:
    """The longer side as long as that where it was longer, or much shorter: whole pixels then."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    scale = side / max(picture.size)
    if scale >= 2:
        factor = int(scale)
        return picture.resize(
            (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
        )
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def write_page(
    path: Path,
    title: str,
    summary: str,
    sections: Sequence[Section],
    figures: Path | None = None,
) -> Path:
    """Write the page, no larger than LARGEST, and every figure as PNG and SVG into `figures`.

    Pictures are made smaller, then left out, then figures from the last one back, until the page
    is small enough; a sentence on it says so. Sections without parts are passed over.
    """
    sections = [section for section in sections if section.parts]
    if figures is not None:
        write_figures(figures, sections)
    svg = cache(Drawing.svg)  # drawn once, however often the page is put together
    page = b""
    for side, shown, said in STEPS:
        note = f"{said}: the page would exceed 10 MB." if said else ""
        page = utf8(render(title, summary, sections, svg, side, shown, note))
        if len(page) <= LARGEST:
            break
    write_whole(path, page)
    return path


def utf8(page: str) -> bytes:
    return page.encode("utf-8", "backslashreplace")


def render(
    title: str,
    summary: str,
    sections: Sequence[Section],
    svg: Callable[[Drawing], str],
    side: int,
    figures: int,
    note: str,
) -> str:
    """The page with pictures of so many pixels a side, and the first so many figures."""
    numbers = count()

    def some(drawing: Drawing) -> str:
        return svg(drawing) if next(numbers) < figures else ""

    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=for_people
    )
    return environment.from_string(PAGE).render(
        title=title, summary=summary, note=note, svg=some, side=side, css=css_colours() + CSS,
        sections=list(enumerate(sections)), contents=len(sections) >= CONTENTS_FROM,
    )  # fmt: skip


def for_people(value: Any) -> Any:
    """Values as the page shows them; markup stays what it is."""
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return printable("; ".join(f"{name} {for_people(v)}" for name, v in value.items()))
    if isinstance(value, list | tuple):
        return printable(", ".join(str(for_people(inner)) for inner in value))
    return printable(value) if type(value) is str and not value.isprintable() else value


def write_figures(folder: Path, sections: Sequence[Section]) -> None:
    """Every figure as NAME.png and NAME.svg, every picture as NAME.png."""
    for part in (inner for section in sections for one in section.parts for inner in within(one)):
        if isinstance(part, Drawings):
            for drawing in part.figures:
                drawing.save(folder)
        elif isinstance(part, Pictures):
            for picture in part.pictures:
                if picture.image is not None:
                    content = io.BytesIO()
                    resized(picture.image, SIDE).save(content, "PNG")
                    write_whole(folder / f"{picture.name}.png", content.getvalue())


def within(part: Part) -> list[Part]:
    """A part, or those that are in it."""
    if isinstance(part, Fold | Beside):
        return [deepest for inner in part.parts for deepest in within(inner)]
    return [part]
