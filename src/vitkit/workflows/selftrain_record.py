"""selftrain.json: what a self-training was told and what came of each round, to go on by."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from vitkit.errors import UsageError
from vitkit.files import write_whole
from vitkit.terminal import finite
from vitkit.training.config import HARMLESS, TrainConfig, to_json
from vitkit.workflows.run_folder import SELFTRAIN_RECORD as RECORD
from vitkit.workflows.run_folder import (
    check_writable,
    flat_json,
    git_commit,
    lock,
    recorded_folder,
    unlock,
)
from vitkit.workflows.selftrain_data import Images
from vitkit.workflows.selftrain_words import SelfTrainWords

NUMBER, NONE = (int, float), type(None)
OF_PSEUDO = ("pseudo", "threshold", "per_class")  # words that decide the pseudo-labels
# What is read of a record and of its rows: dicts by their keys, values by their types.
SHAPE = {
    "data": {"name": str, "fingerprint": str, "held_out_fingerprint": str, "read_by": str},
    "unlabelled": {"name": str, "fingerprint": str, "images": int},
    "teacher": (dict, NONE), "pseudo": str, "threshold": NUMBER, "per_class": str, "nets": list,
    "config": dict, "rounds": list,
}  # fmt: skip
DONE = {"model": str, "metrics": {"top1": NUMBER, "loss": NUMBER, "images": int}}
TRAINED = {"weights": str, "seconds": NUMBER}
PSEUDO = {
    "sha256": str, "passed": int, "different": int, "learned": int,
    "passed_of_class": dict, "learned_of_class": dict, "same_as_before": (*NUMBER, NONE),
}  # fmt: skip


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
    folder = recorded_folder(out, resume, RECORD, "self-training")
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
        record |= asked if is_open(record) else {"nets": asked["nets"]}  # for more rounds
    except BaseException:
        unlock(folder)
        raise
    return folder, record


def read(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_shape(record, SHAPE, "it")
        for number, row in enumerate(record["rounds"]):
            check_row(record, number, row)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path}: is damaged ({error}); copy it from a backup, or start a new self-training "
            "without --resume"
        ) from error
    return record


def check_shape(value: Any, shape: Any, where: str) -> None:
    """ValueError where a value of JSON is not of these types, or lacks a key, or is not finite."""
    if isinstance(shape, dict):
        check_shape(value, dict, where)
        for name, inner in shape.items():
            if name not in value:
                raise ValueError(f"{where} has no {name}")
            check_shape(value[name], inner, f"{name} of {where}")
    elif not isinstance(value, shape) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{where} cannot be {json.dumps(value)[:40]}")


def check_row(record: dict[str, Any], number: int, row: Any) -> None:
    """ValueError where a round is not as it was written. All but the last one are done."""
    where = f"round {number}"
    given = number == 0 and record["teacher"] is not None
    check_shape(row, {"round": int}, where)
    done = number < len(record["rounds"]) - 1 or "metrics" in row
    check_shape(row, (DONE if done else {}) | (TRAINED if done and not given else {}), where)
    if (row["round"], row.get("folder", "")) != (number, None if given else f"round-{number}"):
        raise ValueError(f"{where} has another number or folder")
    if number:
        check_shape(row, {"pseudo": PSEUDO}, where)
        counts = [row["pseudo"][name] for name in ("passed_of_class", "learned_of_class")]
        first = record["rounds"][1]["pseudo"]["passed_of_class"]
        for count in counts:
            check_shape(count, dict.fromkeys(first, int), f"pseudo of {where}")


def is_open(record: dict[str, Any]) -> bool:
    """Whether no pseudo-labels are made yet: what they are made of and how may still change."""
    return not any("pseudo" in row for row in record["rounds"])


def check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """UsageError where a self-training that goes on would be another one. It may get longer, and
    what is said of pseudo-labels counts once there are any."""
    free = is_open(before)
    # Of these lists count the images that they leave.
    harmless = HARMLESS | {"data.quarantine"} if free else HARMLESS
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
            "the unlabelled images": free or images["fingerprint"],
            "the teacher": of["teacher"],
            **{f"--{name.replace('_', '-')}": free or of[name] for name in OF_PSEUDO},
            "the nets": of["nets"][:done],
            "the config": {name: value for name, value in flat_json(of["config"]).items()
                           if name not in harmless},
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
    text = json.dumps(finite(record), indent=2, ensure_ascii=False) + "\n"
    # Of names that are no UTF-8 \udce9 is right JSON.
    write_whole(folder / RECORD, text.encode(errors="backslashreplace"))
