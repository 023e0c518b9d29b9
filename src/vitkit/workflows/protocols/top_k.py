"""top-k: every image of DATA scored by the net's own head; classes are matched by name."""

from __future__ import annotations

from dataclasses import replace

from vitkit.evaluation.findings import Findings
from vitkit.workflows.protocols.classes import class_numbers
from vitkit.workflows.protocols.job import Job
from vitkit.workflows.protocols.relatives import among_set, hint
from vitkit.workflows.protocols.scores import scores


def run(job: Job) -> Findings:
    if job.options.classes is not None:
        source, logits, labels, number, known, notes = among_set(job, job.options.classes)
    else:
        source, known, notes = job.scored, job.model.class_names, hint(job.scored.class_names)
        number = class_numbers(known, source.class_names, job.splits.name)
        logits, labels = job.logits(source)
    found = scores(logits, labels, number, source, known)
    return replace(found, notes=(*notes, *found.notes))
