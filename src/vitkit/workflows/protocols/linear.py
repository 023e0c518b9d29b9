"""linear: logistic regression on frozen features, its penalty chosen on training images held apart.

Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (arXiv
1610.01644); fitted by L-BFGS (vitkit.evaluation.logistic).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vitkit.data.checks import DataError
from vitkit.data.holding_out import held_out_indices
from vitkit.data.pipeline import Batch
from vitkit.data.source import strata
from vitkit.evaluation.findings import Findings
from vitkit.evaluation.logistic import L2, fit_logistic
from vitkit.evaluation.topk import top_k
from vitkit.plain import Table
from vitkit.training.log import headline
from vitkit.workflows.protocols.job import Job
from vitkit.workflows.protocols.pools import learning_and_scored
from vitkit.workflows.protocols.scores import scores

HELD_OUT, AT_MOST, SEED = 0.1, 10_000, 0  # of the training images, that the penalty is chosen by


def run(job: Job) -> Findings:
    pool, scored = learning_and_scored(job, "linear", several=True)
    of_class = strata(pool)
    apart = held_out_indices(of_class, HELD_OUT, AT_MOST, SEED)
    apart = torch.from_numpy(apart[of_class[apart] >= 0])  # one without a label tells nothing
    if not len(apart):
        raise DataError(
            f"linear: {len(pool)} training images are too few to choose a penalty by; give two or "
            "more of a class"
        )
    x, y = job.features(pool)
    x_test, y_test = job.features(scored)
    classes, loss = len(pool.class_names), "sigmoid" if pool.multi_label else "softmax"
    rest = torch.ones(len(x), dtype=torch.bool)
    rest[apart] = False
    fits = fit_logistic(x[rest], y[rest], classes, loss)
    told = [score(x[apart], y[apart], *fit) for fit in fits]
    best = max(range(len(fits)), key=lambda number: told[number])
    # Refitted on all, on the same way to the best penalty.
    weight, bias = fit_logistic(x, y, classes, loss, L2[: best + 1])[-1]
    found = scores(
        x_test @ weight.T + bias, y_test, torch.arange(classes), scored, pool.class_names
    )
    how = (
        f"Logistic regression on frozen features of {len(pool):,} training images, refitted on all "
        f"of them after its penalty was chosen by {len(apart):,} of them held apart; the scored "
        "images had no part in it."
    )
    table = table_of(told, best, "mean average precision" if pool.multi_label else "top-1")
    return replace(found, tables=(table, *found.tables), notes=(how, *found.notes))


def score(x: Tensor, labels: Tensor, weight: Tensor, bias: Tensor) -> tuple[float, float]:
    """The headline, and the negative loss, which decides between equals; larger is better."""
    found = top_k(lambda rows: rows @ weight.T + bias, [Batch(x, labels)])
    return headline(found)[1], -found["loss"]


def table_of(told: list[tuple[float, float]], best: int, what: str) -> Table:
    rows = tuple(
        (f"{l2:g}", f"{share:.2%}", f"{-loss:.4f}", "chosen" if n == best else "")
        for n, (l2, (share, loss)) in enumerate(zip(L2, told, strict=True))
    )
    note = "On training images held apart."
    if best in (0, len(L2) - 1):
        note += " The chosen penalty lies at an end of what was tried; another may do better."
    return Table("Penalties of the linear probe", ("l2", what, "loss", ""), rows, note)
