"""What was found in one image: the part of an inspection's page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vitkit.inspection.result import ImageFound, Inspection
from vitkit.reports.drawing import Drawing
from vitkit.reports.figures import coloured, curve, lines, outlined, overlay, tiles
from vitkit.reports.page import Beside, Drawings, Fold, Part, Picture, Pictures, Rows, Text, counted

PATCH = re.compile(r"patch (\d+),(\d+)")  # row, column: a query of ImageFound


def image_parts(key: str, image: ImageFound, found: Inspection) -> list[Part]:
    """`key` begins the names of its figures."""
    maps = attention_figures(key, image, found.grid, len(found.prefix))
    maps += prefix_figures(key, image, found)
    curves = faithfulness_figures(key, image)
    top = Rows(("class", "probability"), [(name, f"{p:.1%}") for name, p in image.top])
    return [
        Beside([Pictures(pictures(key, image, found)), *([top] if image.top else [])]),
        *([Drawings(maps)] if maps else []),
        *([Drawings(curves)] if curves else []),
        *prefix_table(image, found),
        *lens_parts(image, found.depth),
        *neighbour_parts(key, image),
        *([Text(image.flow_note)] if image.flow_note else []),
        *([Text("Whole maps of attention are in the .npz file.")] if image.maps is not None
          else []),
    ]  # fmt: skip


def pictures(key: str, image: ImageFound, found: Inspection) -> list[Picture]:
    """The image, and heat over it with the range of its values."""
    of = image.relevance_of
    shown: list[tuple[str, np.ndarray | None, str]] = [
        ("attention", mean_attention(image, found), f"attention of {query(image)}, layer "
         f"{image.layers[-1] if image.layers else ''}, {heads_of(image, found.heads)}"),
        ("rollout", on_grid(image.rollout, found), "attention rollout"),
        ("flow", on_grid(image.flow, found), "attention flow"),
        ("relevance", image.relevance, f"relevance of {of}" if of else "relevance"),
        ("grad-cam", image.grad_cam, f"Grad-CAM of {of}" if of else "Grad-CAM"),
    ]  # fmt: skip
    made = [as_read(key, image, found.grid)]
    for name, heat, said in shown:
        if heat is not None:
            span = value_range(heat) + ("; 1 is the most there can be" if name == "flow" else "")
            picture = overlay(image.picture, heat)
            alt = f"{said}, over {image.name}: {span}"
            made.append(Picture(f"{key}-{name}", picture, alt, (said, span)))
    if image.patch_norms is not None:
        said, span = "norms of the patch tokens", value_range(image.patch_norms)
        made.append(
            Picture(f"{key}-norms", coloured(image.patch_norms), f"{said} of {image.name}: {span}",
                    (said, span), photograph=False)
        )  # fmt: skip
    return made


def as_read(key: str, image: ImageFound, grid: tuple[int, int] | None) -> Picture:
    """The image, the patch outlined whose attention is shown."""
    picture, said = image.picture, "as the net reads it"
    place = PATCH.fullmatch(image.query)
    if place and grid is not None:
        row, column = map(int, place.groups())
        picture, said = outlined(picture, grid, row, column), f"{said}; {image.query} outlined"
    return Picture(f"{key}-input", picture, f"{image.name}, {said}", (said,))


def value_range(values: np.ndarray) -> str:
    """From the darkest to the brightest, in words."""
    known = values[np.isfinite(values)]
    return f"{known.min():.3g} to {known.max():.3g}" if known.size else "no values"


def heads_of(image: ImageFound, heads: int | None) -> str:
    """Which heads an overlay is of, in a sentence; `heads` is how many the net has."""
    if not image.heads or len(image.heads) == heads:
        return "mean over heads"
    if len(image.heads) == 1:
        return f"head {image.heads[0]}"
    return f"mean over heads {', '.join(map(str, image.heads))}"


def query(image: ImageFound) -> str:
    """Whose attention it is, in a sentence."""
    name = image.query or "query"
    return f"the {name}" if name.endswith(("token", "query")) else name


def mean_attention(image: ImageFound, found: Inspection) -> np.ndarray | None:
    """(H, W), the last layer's."""
    if image.attention is None:
        return None
    return on_grid(image.attention[-1].mean(axis=0), found)


def on_grid(tokens: np.ndarray | None, found: Inspection) -> np.ndarray | None:
    """(T,) -> its patches (H, W), without the tokens before them."""
    if tokens is None or found.grid is None:
        return None
    return tokens[len(found.prefix) :].reshape(found.grid)


def attention_figures(
    key: str, image: ImageFound, grid: tuple[int, int] | None, prefix: int
) -> list[Drawing]:
    """Every layer and head: a row a layer, a column a head."""
    if image.attention is None or grid is None:
        return []
    layers, heads = image.attention.shape[:2]
    maps = image.attention[:, :, prefix:].reshape(layers, heads, *grid)
    return [
        tiles(
            f"{key}-attention", f"Attention of {query(image)}", maps,
            rows=image.layers or range(layers), columns=image.heads or range(heads),
            row_name="layer", column_name="head",
            alt=f"Attention of {query(image)} to the patches of {image.name}: "
                f"{counted(layers, 'layer')}, {counted(heads, 'head')}",
            caption="A tile is a head's attention to the patches, from its least (dark) to its "
                    "most." + (" Attention to other tokens is shown apart." if prefix else ""),
        )
    ]  # fmt: skip


def prefix_shares(image: ImageFound, prefix: Sequence[str]) -> np.ndarray | None:
    """(L, prefix + 1): attention to each token before the patches, then to all patches together,
    mean over heads."""
    if image.attention is None or not prefix:
        return None
    mean = image.attention.mean(axis=1)
    count = len(prefix)
    return np.concatenate([mean[:, :count], mean[:, count:].sum(axis=1, keepdims=True)], axis=1)


def prefix_figures(key: str, image: ImageFound, found: Inspection) -> list[Drawing]:
    shares = prefix_shares(image, found.prefix)
    if shares is None or len(shares) < 2:
        return []
    layers = image.layers or range(len(shares))
    names = [*told_apart(found.prefix), "patches"]
    series = {name: (layers, shares[:, place]) for place, name in enumerate(names)}
    return [
        lines(f"{key}-others", f"Where {query(image)} looks", "layer",
              f"share of attention, {heads_of(image, found.heads)}", series, share=True,
              from_zero=True, whole_x=True)
    ]  # fmt: skip


def told_apart(prefix: Sequence[str]) -> list[str]:
    """The tokens' names, with a number where several have the same."""
    return [
        f"{name} {place}" if list(prefix).count(name) > 1 else name
        for place, name in enumerate(prefix)
    ]


def faithfulness_figures(key: str, image: ImageFound) -> list[Drawing]:
    """Deletion and insertion; what falls or rises is the probability of a class with a name."""
    of = f"probability of {image.relevance_of}" if image.relevance_of else ""
    return [
        curve(f"{key}-curve-{n}", replace(one, y_name=of or one.y_name))
        for n, one in enumerate(image.faithfulness, start=1)
    ]


def prefix_table(image: ImageFound, found: Inspection) -> list[Part]:
    """The same numbers, to read."""
    shares = prefix_shares(image, found.prefix)
    if shares is None:
        return []
    layers = image.layers or range(len(shares))
    rows = [
        (str(layer), *(f"{share:.1%}" for share in row))
        for layer, row in zip(layers, shares, strict=True)
    ]
    said = (
        f"Attention of {query(image)} to tokens that are no patches, by layer, "
        f"{heads_of(image, found.heads)}"
    )
    return [Fold(said, [Rows(("layer", *told_apart(found.prefix), "all patches"), rows)])]


def lens_parts(image: ImageFound, depth: int | None) -> list[Part]:
    """The class that each layer's tokens would be given."""
    if not image.lens:
        return []
    most = max(len(row) for row in image.lens)
    # With one row more than there are layers the first is what the layers get.
    first = 0 if depth is not None and len(image.lens) == depth + 1 else 1
    rows = []
    for number, layer in enumerate(image.lens, start=first):
        cells = [f"{name} {share:.1%}" for name, share in layer]
        rows.append((str(number), *cells, *[""] * (most - len(cells))))
    header = ("after so many layers", "likeliest", *(f"{n}." for n in range(2, most + 1)))
    return [Fold("Logit lens: the class by layer", [Rows(header, rows)], opened=len(rows) <= 13)]


def neighbour_parts(key: str, image: ImageFound) -> list[Part]:
    if not image.neighbours:
        return []
    shown = [
        Picture(
            f"{key}-neighbour-{n}", found.picture, f"a neighbour of {image.name}: {found.name}",
            (f"{found.label or 'no label'}, cosine {found.similarity:.3f}", found.name),
        )
        for n, found in enumerate(image.neighbours, start=1)
    ]  # fmt: skip
    return [Text("Nearest images in feature space:"), Pictures(shown)]
