"""Evaluation of a checkpoint on DATA."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from vitkit.data.opening import open_data
from vitkit.errors import named
from vitkit.evaluation.findings import Findings
from vitkit.prediction.model import Model, load
from vitkit.training.precision import choose_device, computing_threads
from vitkit.training.world import from_environment, joined, together
from vitkit.workflows.protocols.job import Job
from vitkit.workflows.protocols.options import ProtocolOptions

PROTOCOLS = {  # by what they are called: the module that does them
    "top-k": "top_k",
    "few-shot": "few_shot",
    "knn": "knn",
    "linear": "linear",
    "real": "real",
    "corruptions": "corruptions",
    "translations": "translations",
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
    cache: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """{"metrics": {...}, "images": ..., "seconds": ..., ...}; metrics are shares between 0 and 1.

    Where there are any, also {"class_recall": {name: share or None}, "class_images": {name:
    number}} of DATA's classes (vitkit.evaluation.topk.top_k), "tables" and "notes".

    "top-k" scores every image of DATA (its test split, where it has one, else its validation
    split, else all) and matches classes by name. "few-shot", "knn" and "linear" learn from `train`,
    DATA's own training split, or a half held apart, and score the others; the classes may be any:
    "few-shot" fits a linear classifier in closed form on 1, 5, 10 and 25 images of each class,
    "knn" takes the vote of the nearest images, "linear" fits logistic regression. "real" scores
    ImageNet's validation images by their ReaL labels, "corruptions" pictures with noise, blur,
    weather and compression, "translations" pictures moved by a few pixels. "vtab" takes a folder of
    the data sets of VTAB-1k, and fits a linear probe, or fine-tunes, for each task. `options` are
    fields of vitkit.workflows.protocols.options.ProtocolOptions. Features and logits are kept in
    vitkit's cache folder (docs/data.md) unless `cache` is False.
    """
    began = time.perf_counter()
    job, findings = found(
        checkpoint, data, protocol, train=train, device=device, threads=threads, cache=cache,
        **options,
    )  # fmt: skip
    return result_of(job, findings, protocol, time.perf_counter() - began)


def result_of(job: Job, findings: Findings, protocol: str, seconds: float) -> dict[str, Any]:
    """The part of what was found that people and programs read."""
    parts = {
        "class_recall": findings.class_recall, "class_images": findings.class_images,
        "tables": [asdict(table) for table in findings.tables], "notes": list(findings.notes),
    }  # fmt: skip
    return {
        "metrics": findings.metrics,
        **{name: part for name, part in parts.items() if part},
        "protocol": protocol,
        "data": job.name,
        "split": job.split,
        "images": findings.images,
        "seconds": round(seconds, 2),
    }


def found(
    checkpoint: str | Path | Model,
    data: Any,
    protocol: str,
    *,
    train: Any = None,
    device: str = "auto",
    threads: int = 2,
    cache: bool = True,
    **options: Any,
) -> tuple[Job, Findings]:
    """What was evaluated, and all that was found; the same in each of several processes."""
    named("protocol", protocol, PROTOCOLS)
    for name in options:
        named("option of evaluate", name, list(ProtocolOptions.__dataclass_fields__))
    wanted, world = ProtocolOptions(**options), from_environment()
    model = checkpoint if isinstance(checkpoint, Model) else load(checkpoint)
    place = choose_device(device, world.local_rank if world.size > 1 else None)
    with joined(place), computing_threads(share_of_threads(world.local_size)):
        # vtab's is a folder of many data sets, which are opened one after another.
        data = data if protocol == "vtab" else together(lambda: open_data(data))
        learn_from = together(lambda: None if train is None else open_data(train))
        job = Job(model.to(place), data, learn_from, wanted, world, threads, cache)
        run = import_module(f"vitkit.workflows.protocols.{PROTOCOLS[protocol]}").run
        return job, together(lambda: run(job))


def share_of_threads(processes: int) -> int:
    """Threads that compute in each process of this machine, where nobody has said how many."""
    number = torch.get_num_threads()
    return number if "OMP_NUM_THREADS" in os.environ else max(1, number // processes)
