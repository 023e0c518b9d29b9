"""top-k: every image of DATA scored by the net's own head; classes are matched by name."""

from __future__ import annotations

from vitkit.evaluation.findings import Findings
from vitkit.workflows.protocols.classes import class_numbers
from vitkit.workflows.protocols.job import Job
from vitkit.workflows.protocols.scores import scores


def run(job: Job) -> Findings:
    source, known = job.scored, job.model.class_names
    number = class_numbers(known, source.class_names, job.splits.name)
    return scores(*job.logits(source), number, source, known)
