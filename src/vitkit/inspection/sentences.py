"""What an inspection found, in words: what of the paper's observations holds for this net."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from vitkit.inspection.faithfulness import areas
from vitkit.inspection.result import DistancesFound, ImageFound, Inspection, PositionsFound

FALLS = -0.5  # Spearman's correlation from which nearer patches count as more alike
LOCAL = 0.5  # of the distance that uniform attention has; below it a head counts as local
WEAKLY = -0.2  # and from which there is something of it
CHANCE = 0.05  # the p from which on a correlation of depth and distance is not clear


def sentences(found: Inspection) -> tuple[str, ...]:
    """One for each of the paper's observations that can be looked for (section 4.5, Figure 7)."""
    told = []
    if found.positions is not None:
        told.append(of_positions(found.positions))
    if found.distances is not None:
        told += of_distances(found.distances)
    if found.norms is not None:
        share = f"{found.norms.outliers:.2%} of the" if found.norms.outliers else "no"
        over = f"{found.norms.threshold:.3g}"
        told.append(f"{share} patch tokens have a norm far above the rest (over {over})")
    told += of_faithfulness(found.images)
    return tuple(f"{text[0].upper()}{text[1:]}." for text in told)


def of_positions(found: PositionsFound) -> str:
    if found.note:
        return (
            f"{found.note} (Spearman's correlation of distance and similarity: "
            f"{told(found.rows)} along rows, {told(found.columns)} along columns)"
        )
    parts = {"rows": found.rows, "columns": found.columns}
    if any(np.isnan(list(parts.values()))):
        return (
            "the correlation of distance and similarity of position embeddings is "
            f"{told(found.rows)} along rows and {told(found.columns)} along columns; it needs "
            "three patches in a line that are not all alike"
        )
    how = {
        name: "clearly" if value <= FALLS else "weakly" if value <= WEAKLY else "not"
        for name, value in parts.items()
    }
    return (
        f"near patches have similar position embeddings: {how['rows']} along rows, "
        f"{how['columns']} along columns (Spearman's correlation of distance and similarity "
        f"{found.rows:.2f} and {found.columns:.2f}; before training {found.untrained_rows:.2f} and "
        f"{found.untrained_columns:.2f})"
    )


def told(correlation: float) -> str:
    return "undefined" if np.isnan(correlation) else f"{correlation:.2f}"


def of_distances(found: DistancesFound) -> list[str]:
    layers, heads = found.pixels.shape
    if not found.uniform:
        return ["the net has a single patch, so attention has no distance"]
    local = found.pixels < LOCAL * found.uniform
    told = [
        f"{local.sum()} of {local.size} heads attend locally, at under half of the "
        f"{found.uniform:.1f} pixels that uniform attention has; {local[: layers // 2].sum()} of "
        "them are in the lower half of the net"
    ]
    if layers > 2:
        depth = np.repeat(np.arange(layers), heads)
        test = spearmanr(depth, found.pixels.ravel())
        rho, chance = float(test.statistic), float(test.pvalue)  # pyright: ignore
        how = "attention distance " + ("falls" if rho < 0 else "grows") + " with depth"
        if not chance <= CHANCE:
            how = "whether attention distance grows or falls with depth is not clear"
        told.append(
            f"{how} (Spearman's correlation {rho:.2f} over {layers * heads} heads, "
            f"p = {chance:.2g}, {found.images:,} images)"
        )
    return told


def of_faithfulness(images: tuple[ImageFound, ...]) -> list[str]:
    """How often deleting what the map shows hurts more than deleting at random."""
    if not images:
        return []
    told, what = [], "the relevance map" if images[0].relevance is not None else "Grad-CAM"
    for way, sign in (("deletion", 1), ("insertion", -1)):
        curves = [c for image in images for c in image.faithfulness if way in c.title.lower()]
        if not curves:
            continue
        under = [areas(curve) for curve in curves]
        better = sum(sign * (area["random"] - area["map"]) > 0 for area in under)
        told.append(f"by {way} {what} beats random maps on {better} of {len(curves)} "
                    f"image{'s' if len(curves) > 1 else ''}")  # fmt: skip
    return told
