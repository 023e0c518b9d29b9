"""selftrain.json: what a self-training was told and what came of each round, to go on by."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vitkit.errors import UsageError
from vitkit.files import write_whole
from vitkit.training.config import HARMLESS, TrainConfig, to_json
from vitkit.workflows.run_folder import SELFTRAIN_RECORD as RECORD
from vitkit.workflows.run_folder import (
    check_writable,
    flat_json,
    git_commit,
    lock,
    numbered,
    run_folder,
    unlock,
)
from vitkit.workflows.selftrain_data import Images
from vitkit.workflows.selftrain_words import SelfTrainWords


def asked_for(
    images: Images,
    words: SelfTrainWords,
    teacher: dict[str, Any] | None,
    config: TrainConfig,
    nets: list[str | None],
) -> dict[str, Any]:
    """All that decides the result; the start of the record."""
    content = {
        "kind": "selftrain",
        "data": images.task.record(),
        "unlabelled": images.record(),
        "teacher": teacher,
        "pseudo": words.pseudo,
        "threshold": words.threshold,
        "per_class": str(words.per_class),
        "nets": nets,  # of the teacher and the students; null is the recipe's
        "config": to_json(config),
    }
    return json.loads(json.dumps(content))  # as it will be read


def open_record(
    out: Path, resume: str | None, asked: dict[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """Find or make the folder, which stays locked -> the folder, the record as it is now.

    UsageError where the self-training there was started with other words.
    """
    folder = folder_at(out, resume)
    check_writable(folder)
    lock(folder, wait=resume is not None)
    try:
        if not (folder / RECORD).exists():
            record = {
                **asked, "rounds": [], "best": None, "git_commit": git_commit(),
                "command": sys.argv,
            }  # fmt: skip
            write(folder, record)
            return folder, record
        record = read(folder)
        check_same(folder, record, asked)
        record["nets"] = asked["nets"]  # more rounds may be wanted now
    except BaseException:
        unlock(folder)
        raise
    return folder, record


def folder_at(out: Path, resume: str | None) -> Path:
    """Where a self-training lives: as runs/NAME of a run, but it is known by its record."""
    if resume == "auto":
        begun = next((path for path in numbered(out) if (path / RECORD).exists()), None)
        return begun or run_folder(out, None)
    if resume is None:
        return run_folder(out, None)
    if not (Path(resume) / RECORD).exists():
        raise UsageError(
            f"{resume}: cannot be resumed: no {RECORD}; name a self-training's folder, or auto"
        )
    return Path(resume)


def read(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for name in ("data", "unlabelled", "teacher", "pseudo", "threshold", "per_class", "config"):
            record[name]
        for number, row in enumerate(record["rounds"]):
            if row["round"] != number or ("metrics" in row and "model" not in row):
                raise ValueError(f"round {number} is not whole")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: is damaged ({error}); copy it from a backup, or start a new self-training "
            "without --resume"
        ) from error
    return record


def check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """UsageError where a self-training that goes on would be another one. It may get longer."""
    done = len(before["rounds"])
    if done > len(now["nets"]):
        raise UsageError(
            f"{folder}: is in round {done - 1} already; give --rounds {done - 1} or more"
        )

    def facts(of: dict[str, Any]) -> dict[str, Any]:
        data, images = of["data"], of["unlabelled"]
        return {
            "the labelled images": (data["fingerprint"], data["read_by"]),
            "the held-out images": data["held_out_fingerprint"],
            "the unlabelled images": images["fingerprint"],
            "the teacher": of["teacher"],
            **{f"--{name.replace('_', '-')}": of[name]
               for name in ("pseudo", "threshold", "per_class")},
            "the nets": of["nets"][:done],
            "the config": {name: value for name, value in flat_json(of["config"]).items()
                           if name not in HARMLESS},
        }  # fmt: skip

    different = []
    for (name, old), new in zip(facts(before).items(), facts(now).values(), strict=True):
        if name == "the config":
            different += [f"{field} ({old.get(field)} -> {value})"
                          for field, value in new.items() if old.get(field) != value]  # fmt: skip
        elif old != new:
            different.append(f"{name} ({old} -> {new})" if name.startswith("--") else name)
    if different:
        raise UsageError(
            f"{folder}: was started with other words, which differ in {'; '.join(different)}; give "
            "the same words again, or start a new self-training without --resume"
        )


def write(folder: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    # Of names that are no UTF-8 \udce9 is right JSON.
    write_whole(folder / RECORD, text.encode(errors="backslashreplace"))
