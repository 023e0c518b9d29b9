"""Run directories: where a run lives, what it records, and how it is found again."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vitkit.data.sources import Subset
from vitkit.errors import UsageError
from vitkit.files import write_whole
from vitkit.training.config import HARMLESS, TrainConfig, flat, to_json
from vitkit.training.loop import Setup
from vitkit.training.state import newest_state
from vitkit.workflows.task import Task


def run_folder(wanted: str | Path, resume: str | None) -> tuple[Path, Path | None]:
    """Where a run lives, and the state to go on from, if any.

    Without `resume` a folder that is in use is left alone, and a numbered one is taken.
    """
    wanted = Path(wanted)
    if resume is None:
        folder = wanted
        number = 1
        while folder.exists() and any(folder.iterdir()):
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        return folder, None
    if resume != "auto":
        folder = Path(resume)
        saved, damaged = newest_state(folder / "checkpoints")
        if saved is None:
            found = "; ".join(damaged) or "no saved state"
            raise UsageError(f"{folder}: cannot be resumed: {found}; name a run that has one")
    else:
        numbered = [path for path in wanted.parent.glob(f"{wanted.name}-*")
                    if path.name.removeprefix(f"{wanted.name}-").isdigit()]  # fmt: skip
        numbered.sort(key=lambda path: int(path.name.rsplit("-", 1)[1]))
        folder = next(
            (p for p in reversed([wanted, *numbered]) if (p / "config.json").exists()), wanted
        )
        saved, damaged = newest_state(folder / "checkpoints")
        folder.mkdir(parents=True, exist_ok=True)
    for sentence in damaged:
        print(f"passed over: {sentence}", file=sys.stderr)
    return folder, saved


def check_resumed(
    folder: Path, kind: str, config: TrainConfig, task: Task, parent: dict[str, Any] | None
) -> dict[str, Any]:
    """What the run recorded of its automatic choices; UsageError where the config has changed."""
    recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    before = flat_json(recorded["config"])
    now = flat_json(to_json(config))
    # A config given in JSON has lists where this one has tuples.
    different = [
        f"{name} ({before.get(name)} -> {now.get(name)})"
        for name in flat(config)
        if name not in HARMLESS and json.dumps(before.get(name)) != json.dumps(now.get(name))
    ]
    facts = {
        "the kind of run": (recorded["kind"], kind),
        "the checkpoint": (recorded["from"], json.loads(json.dumps(parent))),
        "the data": (recorded["data"]["fingerprint"], task.fingerprint),
        "the held-out data": (recorded["data"]["held_out_fingerprint"], task.held_out_fingerprint),
    }
    different += [name for name, (old, new) in facts.items() if old != new]
    if different:
        raise UsageError(
            f"{folder}: was started with another config: {'; '.join(different)}; give the same "
            "words again, or start a new run without --resume"
        )
    return recorded["resolved"]


def flat_json(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    values = {}
    for name, value in config.items():
        inner = (
            flat_json(value, f"{prefix}{name}.")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
        values.update(inner)
    return values


def write_run_config(
    folder: Path, kind: str, setup: Setup, task: Task, parent: dict[str, Any] | None
) -> None:
    """config.json, and split.json where images were held out here."""
    if isinstance(task.val, Subset) and not task.val_given:
        split = {"held_out": task.val.indices.tolist()}
        write_whole(folder / "split.json", json.dumps(split) + "\n")
    packages = ("vitkit", "torch", "torchvision", "torchcodec", "grain", "numpy")
    content = {
        "kind": kind,
        "config": to_json(setup.config),
        "resolved": {"steps": setup.steps, **setup.engine.record()},
        "from": parent,
        "data": task.record(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "git_commit": git_commit(),
        "command": sys.argv,
    }  # fmt: skip
    write_whole(folder / "config.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def git_commit() -> str | None:
    """The commit of vitkit's own source, where it runs from a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
