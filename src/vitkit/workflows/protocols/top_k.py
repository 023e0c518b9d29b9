"""top-k: every image of DATA scored by the net's own head; classes are matched by name."""

from __future__ import annotations

from vitkit.data.pipeline import Batch
from vitkit.evaluation.findings import Findings
from vitkit.evaluation.topk import top_k
from vitkit.reports.classes import by_name
from vitkit.training.log import numbers
from vitkit.workflows.protocols.classes import class_numbers, renumber
from vitkit.workflows.protocols.job import Job
from vitkit.workflows.protocols.relatives import among_set, hint


def run(job: Job) -> Findings:
    if job.options.classes is not None:
        source, logits, labels, number, notes = among_set(job, job.options.classes)
    else:
        source, notes = job.scored, hint(job.scored.class_names)
        number = class_numbers(job.model.class_names, source.class_names, job.splits.name)
        logits, labels = job.logits(source)
    batch = Batch(logits, renumber(labels, number, logits.shape[1]))
    found = top_k(lambda rows: rows, [batch])
    # In the order of the data's classes, whose names are all different.
    of_data = {
        name: [values[n] for n in number.tolist()]
        for name, values in found.items()
        if isinstance(values, list)
    }
    classes = by_name(of_data, source.class_names)
    return Findings(
        numbers(found), classes["class_recall"], classes["class_images"], notes=notes,
        images=len(source),
    )  # fmt: skip
