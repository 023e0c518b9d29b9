"""What a net that learned without labels makes of images: pages' parts from a run's examples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitkit.reports.drawing import Drawing
from vitkit.reports.figures import HEAT, bar, blank, headed
from vitkit.reports.page import Beside, Drawings, Part, Picture, Pictures, Text

NARROW = 0.1  # a gap between mean cosines that tells little
GREY = 128  # of a patch that is hidden


def learned_parts(found: Mapping[str, np.ndarray], objective: str = "") -> list[Part]:
    """Of `vitkit.workflows.examples.examples` of a run; none where there are none."""
    if "predicted" in found:
        how = "corrupted" if objective == "masked-patches" else "hidden"
        return reconstructions(found["images"], found["hidden"], found["predicted"], how)
    if "similarities" in found:
        return pairs(found["images"], found["similarities"])
    return []


def reconstructions(
    images: np.ndarray, hidden: np.ndarray, predicted: np.ndarray, how: str
) -> list[Part]:
    """Each image as it is, with its hidden patches in grey, and with what is predicted of them;
    `how` says what was done to these."""
    masked = np.where(by_pixel(hidden, images.shape[2:])[:, None], GREY, images).astype(np.uint8)
    kinds = {"as it is": images, how: masked, "predicted": predicted}
    rows = [
        Pictures([
            Picture(f"example-{number}-{kind.replace(' ', '-')}", shown[number].transpose(1, 2, 0),
                    f"held-out image {number + 1}, {kind}", (kind,))
            for kind, shown in kinds.items()
        ])
        for number in range(len(images))
    ]  # fmt: skip
    said = (
        f"{len(images)} held-out images, cropped as in training: each as it is, with the "
        f"{hidden[0].sum()} of its {hidden[0].size} patches that were {how} in grey, "
        "and with what the net predicts of these."
    )
    return [Text(said), Beside(rows)]


def by_pixel(hidden: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Patches (B, N), row by row -> pixels (B, H, W)."""
    height, width = size
    side = round((height * width / hidden.shape[1]) ** 0.5)
    grid = hidden.reshape(len(hidden), height // side, width // side)
    return grid.repeat(side, axis=1).repeat(side, axis=2)


def pairs(images: np.ndarray, similarities: np.ndarray) -> list[Part]:
    """The two views of each image, and how alike all views are to the net."""
    half = len(images) // 2
    figure, axes = blank(4.4, 3.6)
    drawn = axes.imshow(similarities, cmap=HEAT, vmin=-1, vmax=1, interpolation="nearest")
    names = [f"{1 + view % half}{'ab'[view // half]}" for view in range(len(images))]
    axes.grid(False)
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    headed(axes, "Cosines of the projections")
    bar(figure, drawn, axes, "cosine")
    own = float(np.mean([similarities[n, n + half] for n in range(half)]))
    others = similarities[~np.eye(len(images), dtype=bool)].sum() - 2 * own * half
    other = float(others / (len(images) * (len(images) - 2)))
    said = (
        f"Two views, a and b, of {half} held-out images. The mean cosine of the two views of an "
        f"image is {own:.2f}, of views of different images {other:.2f}."
    )
    if own - other < NARROW:
        said += " The net hardly tells an image from others."
    shown = [
        Picture(f"view-{name}", images[view].transpose(1, 2, 0), f"view {name}", (name,))
        for view, name in sorted(enumerate(names), key=lambda pair: pair[1])
    ]
    figure_of = Drawing("similarities", figure, "Cosines of all pairs of views: " + said)
    return [Text(said), Drawings([figure_of]), Pictures(shown)]
