"""What an inspection found, in words: what of the paper's observations holds for this net."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from vitkit.inspection.result import DistancesFound, ImageFound, Inspection, PositionsFound

FALLS = -0.5  # Spearman's correlation from which nearer patches count as more alike
LOCAL = 0.5  # of the distance that uniform attention has; below it a head counts as local
GROWS = 0.3  # Spearman's correlation of depth and distance


def sentences(found: Inspection) -> tuple[str, ...]:
    """One for each of the paper's observations that can be looked for (section 4.5, Figure 7)."""
    told = []
    if found.positions is not None:
        told.append(of_positions(found.positions))
    if found.distances is not None:
        told += of_distances(found.distances)
    if found.norms is not None:
        told.append(
            f"{found.norms.outliers:.2%} of the patch tokens have a norm above "
            f"{found.norms.threshold:.3g}, far from the rest"
            + ("" if found.norms.outliers else ": there are no outliers")
        )
    flat = [image.name for image in found.images if image.flow is not None and same(image.flow)]
    if flat:
        told.append(
            f"attention flow is the same for every token of {len(flat)} of the "
            f"{len(found.images)} images: it is held up where it leaves the class token, and says "
            "nothing about the patches"
        )
    told += of_faithfulness(found.images)
    return tuple(told)


def of_positions(found: PositionsFound) -> str:
    if found.kind == "sincos2d":
        return (
            "the positions are fixed sines and cosines, so that near patches are alike was given, "
            f"not learned (Spearman {found.rows:.2f} along rows, {found.columns:.2f} along columns)"
        )
    parts = {"rows": found.rows, "columns": found.columns}
    held = [name for name, value in parts.items() if value <= FALLS]
    said = {
        2: "the nearer two patches are, the more alike are their position embeddings, along rows "
        "and columns",
        1: f"near patches have similar position embeddings along {' and '.join(held)} alone",
        0: "near patches do not have similar position embeddings",
    }[len(held)]
    return (
        f"{said}: Spearman's correlation of distance and similarity is {found.rows:.2f} along "
        f"rows and {found.columns:.2f} along columns, {found.untrained_rows:.2f} and "
        f"{found.untrained_columns:.2f} before training"
    )


def of_distances(found: DistancesFound) -> list[str]:
    layers, heads = found.pixels.shape
    local = found.pixels < LOCAL * found.uniform
    told = [
        f"{local.sum()} of {local.size} heads attend locally, at under half of the "
        f"{found.uniform:.1f} pixels that uniform attention has; {local[: layers // 2].sum()} of "
        "them are in the lower half of the net"
    ]
    if layers > 2:
        depth = np.repeat(np.arange(layers), heads)
        rho = float(spearmanr(depth, found.pixels.ravel()).statistic)  # pyright: ignore
        how = "grows with depth" if rho >= GROWS else "does not grow with depth"
        told.append(f"attention distance {how} (Spearman's correlation {rho:.2f})")
    return told


def of_faithfulness(images: tuple[ImageFound, ...]) -> list[str]:
    """How often deleting what the map calls relevant hurts more than deleting at random."""
    told = []
    for way, sign in (("deletion", 1), ("insertion", -1)):
        curves = [c for image in images for c in image.faithfulness if way in c.title.lower()]
        if not curves:
            continue
        better = sum(
            sign * (np.mean(curve.lines["random"]) - np.mean(curve.lines["map"])) > 0
            for curve in curves
        )
        told.append(f"by {way} the relevance map beats random maps on {better} of {len(curves)} "
                    f"image{'s' if len(curves) > 1 else ''}")  # fmt: skip
    return told


def same(flow: np.ndarray) -> bool:
    return bool(np.ptp(flow) <= 1e-6 * max(1e-12, float(np.abs(flow).max())))
