"""corruptions: accuracy on pictures with noise, blur, weather and compression."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from vitkit.data.changed import Changed
from vitkit.data.source import Source
from vitkit.data.transforms import Preprocessing
from vitkit.errors import UsageError, named
from vitkit.evaluation.corruption_table import CONSTANTS, USUAL
from vitkit.evaluation.corruptions import LARGE, SEVERITIES, corrupted, scale_of, standard
from vitkit.evaluation.findings import Findings
from vitkit.evaluation.shifts import window
from vitkit.plain import Curve, Table
from vitkit.workflows.protocols.choices import one_label, whole_numbers
from vitkit.workflows.protocols.classes import class_numbers
from vitkit.workflows.protocols.job import Job

NOTES = (
    "Pictures are corrupted as ImageNet-C, Tiny-ImageNet-C or CIFAR-10-C are, by their size, "
    "without glass blur and frost and with draws of our own: compare nets with each other here, "
    "not with published numbers.",
    "top1 is of the same pictures uncorrupted; those of more than 128 pixels are first resized to "
    "256 and cropped to 224 in either case, and a net of another size reads these resized, without "
    "another crop.",
)


def run(job: Job) -> Findings:
    """{"top1": of the pictures as they are, "mean_corrupted": over kinds and severities,
    "relative": the second as a share of the first, KIND: over severities}."""
    kinds = kinds_in(job.options.corruptions)
    severities = whole_numbers(job.options.severities, "severities", SEVERITIES[0], SEVERITIES[-1])
    source = job.scored
    one_label(source, "corruptions")
    number = class_numbers(job.model.class_names, source.class_names, job.splits.name)
    clean = top1(job, Changed(source, uncorrupted, "standard size"), number)
    shares = np.array(
        [
            [top1(job, corrupted_source(source, kind, s, job.options.seed), number)
             for s in severities]
            for kind in kinds
        ]
    )  # (kinds, severities)  # fmt: skip
    mean = float(shares.mean())
    metrics = {"top1": clean, "mean_corrupted": mean, "relative": mean / clean if clean else 0.0}
    metrics |= {kind: float(row.mean()) for kind, row in zip(kinds, shares, strict=True)}
    return Findings(
        metrics,
        tables=(table(kinds, severities, shares, clean),),
        curves=(curve(kinds, severities, shares, clean),),
        notes=NOTES,
        images=len(source),
    )


def kinds_in(text: str) -> list[str]:
    """ "fog,snow" -> the kinds; the usual ones for ""."""
    if not text:
        return list(USUAL)
    kinds = [named("corruption", kind.strip(), CONSTANTS) for kind in text.split(",")]
    if len(set(kinds)) < len(kinds):
        raise UsageError(f"--corruptions {text} names a corruption twice; give each once")
    return kinds


def corrupted_source(source: Source, kind: str, severity: int, seed: int) -> Changed:
    change = partial(corrupt, kind=kind, severity=severity, seed=seed)
    return Changed(source, change, f"corruption {kind} {severity} {seed}")


def corrupt(image: Tensor, index: int, kind: str, severity: int, seed: int) -> Tensor:
    return corrupted(standard(image), kind, severity, seed, index)


def uncorrupted(image: Tensor, index: int) -> Tensor:
    return standard(image)


def ready(image: Tensor, index: int, preprocessing: Preprocessing) -> Tensor:
    """A large picture was cropped before it was corrupted, and is not again (test.py of
    hendrycks/robustness); what the net's preprocessing makes of a small one."""
    return image if scale_of(image) == LARGE else window(image, preprocessing, 0, (0, 0))


def top1(job: Job, source: Source, number: Tensor) -> float:
    preprocessing = job.model.preprocessing
    change = partial(ready, preprocessing=preprocessing)
    logits, labels = job.of_ready().logits(Changed(source, change, f"ready by {preprocessing!r}"))
    return float((logits.argmax(dim=1) == number[labels]).to(torch.float64).mean())


def table(kinds: list[str], severities: list[int], shares: np.ndarray, clean: float) -> Table:
    rows = [
        (kind, *(f"{share:.2%}" for share in row), f"{row.mean():.2%}")
        for kind, row in zip(kinds, shares, strict=True)
    ]
    means = (f"{share:.2%}" for share in shares.mean(axis=0))
    return Table(
        "Accuracy on corrupted pictures",
        ("corruption", *(f"severity {s}" for s in severities), "mean"),
        (*rows, ("mean", *means, f"{shares.mean():.2%}")),
        f"Of the same pictures uncorrupted {clean:.2%} are right.",
    )


def curve(kinds: list[str], severities: list[int], shares: np.ndarray, clean: float) -> Curve:
    return Curve(
        "Accuracy by severity; 0 is uncorrupted", "severity", "top-1",
        np.array([0, *severities]),
        {kind: np.array([clean, *row]) for kind, row in zip(kinds, shares, strict=True)},
        share=True,
    )  # fmt: skip
