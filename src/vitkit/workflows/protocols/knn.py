"""knn: the majority vote of the nearest training images in the space of the net's features."""

from __future__ import annotations

import numpy as np

from vitkit.data.checks import DataError
from vitkit.evaluation.findings import Findings
from vitkit.evaluation.knn import knn
from vitkit.evaluation.topk import recalls
from vitkit.workflows.protocols.job import Job
from vitkit.workflows.protocols.pools import learning_and_scored


def run(job: Job) -> Findings:
    pool, scored = learning_and_scored(job, "knn")
    k, metric = job.options.k, job.options.metric
    if k > len(pool):
        raise DataError(f"knn: {k} neighbours are asked for of {len(pool)} training images; "
                        "give a smaller --k")  # fmt: skip
    x, y = job.features(pool)
    x_test, y_test = job.features(scored)
    predicted = knn(x, y.numpy(), x_test, k, metric)
    truth, names = y_test.numpy(), pool.class_names
    right = predicted == truth
    found = recalls(
        [
            *np.bincount(truth[right], minlength=len(names)),
            *np.bincount(truth, minlength=len(names)),
        ]
    )
    return Findings(
        {"top1": float(np.mean(right)),
         "mean_class_recall": found["mean_class_recall"]},
        dict(zip(names, found["class_recall"], strict=True)),
        dict(zip(names, found["class_images"], strict=True)),
        notes=(f"The vote of the {k} nearest of {len(pool):,} training images by {metric} "
               "distance, each vote alike.",),
        images=len(scored),
    )  # fmt: skip
