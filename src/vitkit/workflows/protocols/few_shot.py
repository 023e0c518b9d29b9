"""few-shot: a linear classifier solved in closed form on 1 to 25 images of each class."""

from __future__ import annotations

from vitkit.data.checks import DataError, some
from vitkit.data.opening import held_out, require_classes
from vitkit.data.source import Source, Splits
from vitkit.evaluation.fewshot import few_shot
from vitkit.evaluation.findings import Findings
from vitkit.workflows.protocols.job import Job


def run(job: Job) -> Findings:
    pool, scored = sources(job.splits, None if job.train is None else job.train.train)
    if pool.multi_label or scored.multi_label:
        raise DataError(
            "few-shot takes images of one class each, and these may have several labels; use "
            "--protocol top-k"
        )
    require_classes(pool, "few-shot")
    (x, y), (x_test, y_test) = job.features(pool), job.features(scored)
    metrics = few_shot(x.numpy(), y.numpy(), x_test.numpy(), y_test.numpy(), l2=job.options.l2)
    return Findings(metrics, images=len(scored))


def sources(splits: Splits, train: Source | None) -> tuple[Source, Source]:
    """Images to learn from and images to score, of the same classes."""
    if train is not None:
        scored = splits.test or splits.val or splits.train
        if train.class_names != scored.class_names:
            raise DataError(
                f"found the classes {some(train.class_names)} to take shots from, but "
                f"{some(scored.class_names)} in {splits.name}; expected the same names in both"
            )
        return train, scored
    if splits.test is not None:
        return splits.train, splits.test
    if splits.val is None:
        splits = held_out(splits.train, splits.name, share=0.5, at_most=len(splits.train))
    assert splits.val is not None  # held_out makes one
    return splits.train, splits.val
