"""Runs and evaluations, read to be shown side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from statistics import median
from types import NoneType
from typing import Any

from vitkit.data.checks import first_line
from vitkit.errors import UsageError, VitkitError
from vitkit.reports.comparison import Compared, apart, speeds, write_comparison
from vitkit.reports.training import differences_of, evaluations, read_metrics
from vitkit.training.log import headline, numbers
from vitkit.workflows.pages import check_page, plain_path

# What a damaged file brings about while it is read.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
DRAWN = ("step", "loss", "learning_rate", "images_per_second", "memory_bytes")  # of any record


def compare(paths: Sequence[str | Path], out: str | Path | None = None) -> dict[str, Any]:
    """{"metrics": {path: {...}}, "speed": {path: {...}}, "differences": {field: [...]}, "notes":
    [...], "page": ...}; shares lie between 0 and 1.

    A path is a run directory, or the NAME.json of an evaluation. Of a run the best evaluation on
    the held-out images counts. "notes" say where data differ, so that scores are not of the same
    task. With `out` a page is written. UsageError for fewer than two paths, one given twice, and
    what is neither a run nor an evaluation; VitkitError where one is damaged.
    """
    if len(paths) < 2:
        raise UsageError("compare needs two runs or more; give their directories")
    names = [str(path) for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is given twice; a run is compared with another one")
    page = None if out is None else plain_path(out, "-o")
    if page is not None:
        check_page(page)
    found = [read(Path(path), name) for path, name in zip(paths, names, strict=True)]
    return {
        "metrics": {one.name: one.metrics for one in found},
        "speed": {one.name: speeds(one) for one in found if one.config},
        "differences": differences_of({one.name: one.config for one in found if one.config}),
        "notes": apart(found),
        "page": None if page is None else str(write_comparison(page, found)),
    }


def read(path: Path, name: str) -> Compared:
    """A run or an evaluation; UsageError where it is neither."""
    if path.suffix == ".json" and path.is_file():
        return read_evaluation(path, name)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    if (path / "report.json").is_file():  # as `vitkit evaluate -o` writes it
        return read_evaluation(path / "report.json", name)
    if not (path / "config.json").is_file() or not (path / "metrics.jsonl").is_file():
        raise UsageError(
            f"{path}: is neither a run directory (config.json, metrics.jsonl) nor the .json of an "
            "evaluation; give one of these"
        )
    return read_run(path, name)


def read_run(path: Path, name: str) -> Compared:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        records = read_metrics(path)
        check_types(config, records)
        scored = evaluations(records)
        best = max(scored, key=score, default=None)
        train = [r for r in records if r["kind"] == "train"]
        paces = [r["images_per_second"] for r in train if r.get("images_per_second")]
        data = config["data"]
        return Compared(
            name,
            metrics={} if best is None else {
                key: number(value)
                for key, value in numbers(best).items() if key not in ("kind", "step")
            },
            config=config["config"],
            records=records,
            facts={"kind": config["kind"], "device": config["resolved"].get("device"),
                   "precision": config["resolved"].get("precision")},
            data=data["name"],
            trained_on=data["fingerprint"],
            scored_on=data["held_out_fingerprint"],
            steps=config["resolved"]["steps"],
            best_step=None if best is None else best["step"],
            images_per_second=median(paces) if paces else None,
            memory=max((r["memory_bytes"] for r in train if r.get("memory_bytes")), default=None),
        )  # fmt: skip
    except DAMAGE as error:
        raise VitkitError(
            f"{path}: is damaged ({type(error).__name__}: {first_line(error)}); `vitkit doctor "
            f"{path}` looks at it"
        ) from error


def check_types(config: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """ValueError and others of DAMAGE where a value is not of the type that a run writes."""
    data, resolved = config["data"], config["resolved"]
    texts = {
        "kind": config["kind"], "name": data["name"], "fingerprint": data["fingerprint"],
        "held_out_fingerprint": data["held_out_fingerprint"],
        **{name: resolved[name] for name in ("device", "precision") if name in resolved},
    }  # fmt: skip
    for name, value in texts.items():
        if not isinstance(value, str):
            raise TypeError(f"{name} is no text")
    number(resolved["steps"])
    differences_of({"": config["config"]})  # which follows it into its depth
    for record in records:
        read = {name: record[name] for name in DRAWN if name in record}
        read |= numbers(record) if record["kind"] == "evaluation" else {}
        for name, value in read.items():
            if name != "kind":
                number(value)


def number(value: Any) -> float:
    """What JSON has as a number, or as null in place of NaN. TypeError, OverflowError."""
    if value is None:
        return float("nan")
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r:.60} is no number")
    float(value)  # OverflowError where an integer is longer than any number here
    return value


def score(record: dict[str, Any]) -> float:
    """By which the best evaluation of a run is found; one without a number is the worst."""
    value = number(headline(record)[1])
    return float("-inf") if isnan(value) else value


def read_evaluation(path: Path, name: str) -> Compared:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        metrics = {str(key): number(value) for key, value in tree["metrics"].items()}
        images = tree.get("images")
        if isinstance(images, int | float):
            metrics["images"] = number(images)
    except (RecursionError, OverflowError) as error:
        raise VitkitError(f"{path}: is damaged ({type(error).__name__}); evaluate again") from error
    except DAMAGE as error:
        raise UsageError(
            f"{path}: is no result of vitkit evaluate ({type(error).__name__}: "
            f"{first_line(error)}); give the .json that `vitkit evaluate -o` wrote"
        ) from error
    if not isinstance(images, int | float | NoneType):
        raise VitkitError(f"{path}: is damaged (images is no number); evaluate again")
    facts = tree.get("facts")
    facts = {str(k): str(v) for k, v in facts.items()} if isinstance(facts, dict) else {}
    return Compared(
        name, metrics, facts=facts,
        data=facts.get("data", ""), scored_on=facts.get("fingerprint", ""),
    )  # fmt: skip
