"""`vitkit evaluate`: what is asked for, printed and written."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitkit.errors import UsageError
from vitkit.terminal import print_columns, printable
from vitkit.words import Evaluate, parse, require
from vitkit.workflows.protocols.options import options_of, require_read

if TYPE_CHECKING:
    from vitkit.evaluation.findings import Findings
    from vitkit.prediction.model import Model
    from vitkit.workflows.protocols.job import Job


def evaluation_words(argv: list[str]) -> Evaluate:
    """UsageError for what can be seen to be wrong before data and checkpoint are opened."""
    words = parse(Evaluate(), "evaluate", argv)
    require(words.checkpoint, "evaluate", "CHECKPOINT, a bundle, a run or a file of weights")
    require(words.data, "evaluate", "DATA, images as docs/data.md lists them, or 'digits'")
    require_read(words.options, words.protocol, bool(words.train))
    if words.figures is not None and words.out is None:
        raise UsageError("--figures are those of the page; add -o PAGE.html")
    return words


def show_evaluation(words: Evaluate, model: Model, writes: bool) -> dict[str, Any]:
    """Evaluate and print; of several processes the one that `writes` writes the report."""
    from vitkit.workflows.evaluate import found, result_of
    from vitkit.workflows.pages import figures_at, page_at

    page = page_at(words.out) if words.out is not None and writes else None
    figures = figures_at(words.figures) if writes else None
    began = time.perf_counter()
    job, findings = found(
        model, words.data, words.protocol, train=words.train or None, device=words.device,
        cache=words.cache, **asdict(words.options),
    )  # fmt: skip
    result = result_of(job, findings, words.protocol, time.perf_counter() - began)
    print_findings(findings)
    which = {"all": "; it has no split of its own", "tasks": ""}.get(
        result["split"], f", its {result['split']} split"
    )
    print(printable(f"{result['images']:,} images of {result['data']}{which}, in "
                    f"{result['seconds']:.0f} s"))  # fmt: skip
    if page is not None:
        write_report(page, words, job, findings, result, figures)
        print(printable(f"wrote {page}"))
        result["report"] = str(page)
    print(printable(f"Next: {following(words)}"))
    return result


def print_findings(findings: Findings) -> None:
    from vitkit.reports.classes import print_recalls

    metrics = {name: value for name, value in findings.metrics.items() if name != "images"}
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        print(f"{name:{width}}  " + (f"{value:.4f}" if is_loss(name) else f"{value:.2%}"))
    if findings.class_images:
        print_recalls(
            findings.class_recall, findings.class_images, "mean_average_precision" in metrics
        )
    for table in findings.tables:
        print("\n" + printable(table.title))
        print_columns(table.header, table.rows)
        if table.note:
            print(printable(table.note))
    if findings.tables:
        print()
    for note in findings.notes:
        print(printable(note))


def following(words: Evaluate) -> str:
    """The next useful command."""
    if words.out is None:
        again = f"{words.checkpoint} {' '.join(words.data)} --protocol {words.protocol}"
        return f"vitkit evaluate {again} -o report.html"
    return f"vitkit inspect {words.checkpoint} IMAGES..."


def is_loss(name: str) -> bool:
    return name.endswith("loss")


def write_report(
    page: Path,
    words: Evaluate,
    job: Job,
    findings: Findings,
    result: dict[str, Any],
    figures: Path | None,
) -> None:
    """The page, and beside it the findings as JSON and arrays."""
    from vitkit.plain import save
    from vitkit.reports.evaluation import write_evaluation

    facts = {
        "checkpoint": words.checkpoint,
        "split": str(result["split"]),
        "protocol": words.protocol,
        "data": str(result["data"]),
    }
    if words.protocol != "vtab":
        facts["fingerprint"] = job.scored.fingerprint()
    save(replace(findings, facts=facts), page.with_suffix(""))
    about = {
        "checkpoint": words.checkpoint, "data": result["data"], "protocol": words.protocol,
        "images": result["images"], "seconds": result["seconds"],
        "device": str(next(job.model.net.parameters()).device), "processes": job.world.size,
        "options": options_of(words.protocol, words.options),
    }  # fmt: skip
    write_evaluation(page, findings, about, figures)
