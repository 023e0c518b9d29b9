"""All that logits and labels say about a classifier, as findings."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from vitkit.data.pipeline import Batch
from vitkit.data.source import Source
from vitkit.evaluation.calibration import FEWEST, RANGE, calibration
from vitkit.evaluation.confusions import confusion, most_frequent
from vitkit.evaluation.findings import Calibration, Findings
from vitkit.evaluation.topk import top_k
from vitkit.reports.classes import by_name
from vitkit.training.log import numbers
from vitkit.workflows.protocols.classes import renumber
from vitkit.workflows.protocols.mistakes import mistakes


def scores(
    logits: Tensor, labels: Tensor, number: Tensor, source: Source, class_names: Sequence[str]
) -> Findings:
    """Logits (N, K) of the classes named, labels (N,) or (N, K of the data) of the source's own
    numbering, `number` (K of the data,) the place of each of its classes among those named.

    Of several labels each there are no confusions, no calibration and no mistakes.
    """
    labels = renumber(labels, number, len(class_names))
    found = top_k(lambda rows: rows, [Batch(logits, labels)])
    # In the order of the data's classes, whose names are all different.
    of_data = {
        name: [values[n] for n in number.tolist()]
        for name, values in found.items()
        if isinstance(values, list)
    }
    classes = by_name(of_data, source.class_names)
    metrics, images = numbers(found), len(source)
    if labels.ndim == 2:
        note = (
            "Images may have several labels here, so there is no confusion of classes, and "
            "calibration, which is of one class among all, is left out."
        )
        return Findings(
            metrics, classes["class_recall"], classes["class_images"], notes=(note,), images=images
        )
    true, predicted = labels.numpy(), logits.argmax(1).numpy()
    calibrated = calibration(logits, labels)
    worst, confident = mistakes(logits, labels, source, class_names)
    table = most_frequent(true, predicted, class_names)
    return Findings(
        metrics, classes["class_recall"], classes["class_images"],
        tables=() if table is None else (table,), notes=tuple(notes_on(calibrated, images)),
        confusion=confusion(true, predicted, number.numpy(), source.class_names),
        calibration=calibrated, worst=worst, confident=confident, images=images,
    )  # fmt: skip


def notes_on(found: Calibration, images: int) -> list[str]:
    ece = f"The expected calibration error is {found.before.ece:.2%}"
    if found.temperature is None or found.apart_before is None or found.apart_after is None:
        return [f"{ece}; {images} images are too few to fit a temperature ({FEWEST} are needed)."]
    low, high = RANGE
    at_end = not low * 1.01 < found.temperature < high / 1.01
    return [
        f"{ece} over all images. One temperature of {found.temperature:.3g}, fitted on half of "
        f"them, takes it from {found.apart_before.ece:.2%} to {found.apart_after.ece:.2%} on the "
        "other half."
        + (
            " It is fitted to the likelihood, which need not lower that error."
            if found.apart_after.ece > found.apart_before.ece
            else ""
        )
        + (f" It lies at an end of what was looked through, {low:g} to {high:g}." if at_end else "")
    ]
