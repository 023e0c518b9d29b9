"""Evaluation of a checkpoint on DATA."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import Any

from vitkit.data.opening import open_data
from vitkit.errors import named
from vitkit.evaluation.findings import Findings
from vitkit.prediction.model import Model, load
from vitkit.training.precision import choose_device
from vitkit.workflows.protocols.job import Job
from vitkit.workflows.protocols.options import ProtocolOptions

PROTOCOLS = {  # by what they are called: the module that does them
    "top-k": "top_k",
    "few-shot": "few_shot",
    "vtab": "vtab",
}


def evaluate(
    checkpoint: str | Path | Model,
    data: Any,
    protocol: str = "top-k",
    *,
    train: Any = None,
    device: str = "auto",
    threads: int = 2,
    **options: Any,
) -> dict[str, Any]:
    """{"metrics": {...}, "images": ..., "seconds": ..., ...}; metrics are shares between 0 and 1.

    Of "top-k" also {"class_recall": {name: share or None}, "class_images": {name: number}}, of
    DATA's classes (vitkit.evaluation.topk.top_k).

    "top-k" scores every image of DATA (its test split, where it has one, else its validation
    split, else all) and matches classes by name. "few-shot" fits a linear classifier in closed form
    on 1, 5, 10 and 25 images of each class from `train`, DATA's own training split, or a half held
    apart, and scores the others; the classes may be any. "vtab" takes a folder of the data sets of
    VTAB-1k, and fits a linear probe, or fine-tunes, for each of its tasks. `options` are fields of
    vitkit.workflows.protocols.options.ProtocolOptions.
    """
    began = time.perf_counter()
    job, findings = found(
        checkpoint, data, protocol, train=train, device=device, threads=threads, **options
    )
    classes = {"class_recall": findings.class_recall, "class_images": findings.class_images}
    return {
        "metrics": findings.metrics,
        **(classes if findings.class_images else {}),
        "protocol": protocol,
        "data": job.name,
        "images": findings.images,
        "seconds": round(time.perf_counter() - began, 2),
    }


def found(
    checkpoint: str | Path | Model,
    data: Any,
    protocol: str,
    *,
    train: Any = None,
    device: str = "auto",
    threads: int = 2,
    **options: Any,
) -> tuple[Job, Findings]:
    """What was evaluated, and all that was found."""
    named("protocol", protocol, PROTOCOLS)
    for name in options:
        named("option of evaluate", name, list(ProtocolOptions.__dataclass_fields__))
    model = checkpoint if isinstance(checkpoint, Model) else load(checkpoint)
    model.to(choose_device(device))
    job = Job(
        model, data, None if train is None else open_data(train),
        ProtocolOptions(**options), threads=threads,
    )  # fmt: skip
    return job, import_module(f"vitkit.workflows.protocols.{PROTOCOLS[protocol]}").run(job)
