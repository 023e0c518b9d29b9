"""Run directories: where a run lives, what it records, and how it is found again."""

from __future__ import annotations

import errno
import glob
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from vitkit.checkpoints.bundle import FORMAT_VERSION, refuse_to_replace
from vitkit.checkpoints.containers import read_json
from vitkit.checkpoints.problems import CheckpointError
from vitkit.data.source import Subset
from vitkit.errors import UsageError, VitkitError
from vitkit.files import sync, write_whole
from vitkit.training.config import HARMLESS, TrainConfig, flat, to_json
from vitkit.training.saving import KEPT, clear_leftovers, newest_state, set_aside, states_in
from vitkit.training.step import Setup
from vitkit.workflows.task import Task

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"  # in a run directory; whoever writes there holds it
LOCK_SECONDS = 10.0
SWEEP_RECORD = "sweep.json"  # of a sweep, whose folder holds runs and is none
SELFTRAIN_RECORD = "selftrain.json"  # of a self-training, likewise
HELD: dict[Path, IO[str]] = {}  # run directories that this process holds


@dataclass(frozen=True)
class Opened:
    """A run directory that this process holds, and what it can go on from."""

    folder: Path
    saved: Path | None = None
    recorded: dict[str, Any] = field(default_factory=dict)  # of its automatic choices


def open_run(
    kind: str,
    task: Task,
    config: TrainConfig,
    come_from: dict[str, Any],
    out: str | Path,
    resume: str | None,
    state_bytes: int,
) -> Opened:
    """Find or make the run directory, and see to it that the run can be written there.

    `come_from` is `teaching.origins`, `state_bytes` the size of one state. Without `resume` a
    folder that is in use is left alone, and a numbered one is taken. The directory stays locked
    while this process lives. Where it cannot be used, by UsageError, StateError or VitkitError,
    nothing has been written.
    """
    folder = run_folder(Path(out), resume)
    fresh = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        check_writable(folder)
        if os.path.lexists(folder / "checkpoints"):
            check_writable(folder / "checkpoints")
        lock(folder, wait=resume is not None)
    except BaseException:
        remove(fresh)
        raise
    try:
        check_files(folder)
        saved, damaged = newest_state(folder / "checkpoints")
        if saved is None and (damaged or resume not in (None, "auto")):
            why = "; ".join(one.problem for one in damaged) or "no saved state"
            raise UsageError(f"{folder}: cannot be resumed: {why}; vitkit doctor tells more")
        if saved is None and any((folder / name).exists() for name in ("best", "last")):
            raise UsageError(
                f"{folder}: has no saved state to go on from, but best/ or last/, which a fresh "
                "start would replace; give another --out, or leave out --resume"
            )
        recorded = check_resumed(folder, kind, config, task, come_from) if saved else {}
        check_room(folder, state_bytes, [one.folder for one in damaged])
        for sentence in set_aside(damaged):
            print(f"passed over: {sentence}", file=sys.stderr)
        clear_leftovers(folder / "checkpoints")
        for name in ("best", "last"):
            mend_bundle(folder / name)
        for left in (*folder.glob(".*.tmp"), *folder.glob(".trial-*")):
            left.unlink(missing_ok=True)
    except BaseException:
        if fresh:
            (folder / LOCK).unlink(missing_ok=True)
        unlock(folder)
        remove(fresh)
        raise
    return Opened(folder, saved, recorded)


def remove(fresh: list[Path]) -> None:
    """Take back folders that were made for a run that cannot be, and are empty."""
    for path in fresh:
        with suppress(OSError):
            path.rmdir()


def check_files(folder: Path) -> None:
    """UsageError where a run's files are pipes, folders or the like, or of a newer version, and in
    the folder of a sweep."""
    if (folder / SWEEP_RECORD).exists():
        raise UsageError(f"{folder}: is a sweep; give its --sweep words again, or another --out")
    if (folder / SELFTRAIN_RECORD).exists():
        raise UsageError(f"{folder}: is a self-training; give its words again, or another --out")
    for name in ("config.json", "metrics.jsonl"):
        path = folder / name
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: is no regular file; move it away")
    for name in ("best", "last"):
        with suppress(CheckpointError):
            made = read_json(folder / name / "config.json").get("format_version")
            if isinstance(made, int) and made > FORMAT_VERSION:
                raise UsageError(
                    f"{folder / name}: is a bundle of format {made}; this version of vitkit writes "
                    f"{FORMAT_VERSION}; resume the run with the version that wrote it"
                )


def mend_bundle(path: Path) -> None:
    """See to what a process that was killed, or the disk, left of a bundle of this run."""
    for old in path.parent.glob(f".{path.name}.*.old"):  # killed between two renames
        if not path.exists():
            old.rename(path)
    for left in (
        *path.parent.glob(f".{path.name}.*.tmp"),
        *path.parent.glob(f".{path.name}.*.old"),
    ):
        shutil.rmtree(left, ignore_errors=True)
    try:
        refuse_to_replace(path)
    except CheckpointError:  # no bundle any more; the run will write another
        aside, number = path.with_name(f"damaged-{path.name}"), 1
        while aside.exists():
            number += 1
            aside = path.with_name(f"damaged-{path.name}-{number}")
        path.rename(aside)
        print(f"passed over: {path}: damaged; it is now {aside.name}", file=sys.stderr)


def run_folder(wanted: Path, resume: str | None) -> Path:
    """Where a run lives; UsageError where there must be one already and is none."""
    if not wanted.name:
        raise UsageError(f"--out {wanted}: is the current folder; give the run a name")
    if wanted.exists() and not wanted.is_dir():
        raise UsageError(f"--out {wanted}: is a file; choose another --out")
    if resume == "auto":
        return next((p for p in numbered(wanted) if (p / "config.json").exists()), wanted)
    if resume is not None:
        if not (Path(resume) / "checkpoints").is_dir():
            why = "no saved state" if Path(resume).exists() else "no such folder"
            raise UsageError(
                f"{resume}: cannot be resumed: {why}; name a run that has one, or give auto"
            )
        return Path(resume)
    folder, number = wanted, 1
    while folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def recorded_folder(out: Path, resume: str | None, record: str, what: str) -> Path:
    """Where several runs with a record of their own live: as runs/NAME of a run, but known by the
    record. UsageError where there must be one already and is none."""
    if resume == "auto":
        begun = next((path for path in numbered(out) if (path / record).exists()), None)
        return begun or run_folder(out, None)
    if resume is None:
        return run_folder(out, None)
    if not (Path(resume) / record).exists():
        raise UsageError(
            f"{resume}: cannot be resumed: no {record}; name a {what}'s folder, or auto"
        )
    return Path(resume)


def numbered(wanted: Path) -> list[Path]:
    """runs/small-3, runs/small-2, ..., runs/small: the directories of a name, the newest first."""
    others = [path for path in wanted.parent.glob(f"{glob.escape(wanted.name)}-*")
              if path.name.removeprefix(f"{wanted.name}-").isdecimal()]  # fmt: skip
    others.sort(key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    return [*others, wanted]


def check_writable(folder: Path, option: str = "--out") -> None:
    """Make the folder if need be; VitkitError where it cannot be written."""
    trial = folder / f".trial-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"vitkit")
        sync(trial)
        trial.unlink()
    except OSError as error:
        with suppress(OSError):
            trial.unlink(missing_ok=True)
        raise VitkitError(
            f"{folder}: cannot be written ({error.strerror}); see to its permissions, or "
            f"choose another {option}"
        ) from error


def check_room(folder: Path, state_bytes: int, damaged: list[Path]) -> None:
    """VitkitError where the disk has no room for the states of a run."""
    states = [f for f in states_in(folder / "checkpoints") if f not in damaged]
    there = sum(path.stat().st_size for state in states for path in state.iterdir())
    needed = (KEPT + 1) * state_bytes + 2**20 - there  # those kept, one being written, the log
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise VitkitError(
            f"{folder}: {free / 1e9:.3g} GB are free, but the run's states take "
            f"{needed / 1e9:.3g} GB more; make room, or choose another --out"
        )


def lock(folder: Path, wait: bool) -> None:
    """Hold the run directory until `unlock` or the end of this process; UsageError if it is held.

    What is left of a run that was killed may need some seconds to end: with `wait` they are given.
    """
    if fcntl is None:  # Windows
        return
    file = (folder / LOCK).open("a+", encoding="utf-8")
    until = time.monotonic() + (LOCK_SECONDS if wait else 0)
    while not locked(file):
        if time.monotonic() > until:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UsageError(
                f"{folder}: is in use by {holder}; wait for it, stop it, or give another --out"
            )
        time.sleep(0.2)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    HELD[folder.resolve()] = file


def locked(file: IO[str]) -> bool:
    """Whether this process holds the file now; also where the file system knows no locks."""
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def unlock(folder: Path) -> None:
    """Let go of a run directory."""
    file = HELD.pop(folder.resolve(), None)
    if file is not None:
        file.close()


def check_resumed(
    folder: Path, kind: str, config: TrainConfig, task: Task, come_from: dict[str, Any]
) -> dict[str, Any]:
    """What the run recorded of its automatic choices; UsageError where the config has changed."""
    try:
        recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        # What a run of an earlier version was not told, was as it is by default now.
        before = flat_json(to_json(TrainConfig())) | flat_json(recorded["config"])
        facts = {
            "the kind of run": (recorded["kind"], kind),
            "the checkpoint": (recorded["from"], json.loads(json.dumps(come_from["from"]))),
            "the teacher's weights": (weights_of_teacher(recorded), weights_of_teacher(come_from)),
            "the data": (recorded["data"]["fingerprint"], task.fingerprint),
            "the order of the data (shards at hand or afar)": (
                recorded["data"].get("read_by", "images"), task.read_by),
            "the held-out data": (recorded["data"]["held_out_fingerprint"],
                                  task.held_out_fingerprint),
        }  # fmt: skip
        resolved = recorded["resolved"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{folder / 'config.json'}: is missing or damaged ({error}); copy it from a backup, or "
            "start a new run without --resume"
        ) from error
    now = flat_json(to_json(config))
    # A config given in JSON has lists where this one has tuples.
    different = [
        f"{name} ({before.get(name)} -> {now.get(name)})"
        for name in flat(config)
        if name not in (*HARMLESS, "distillation.teacher")  # known by its weights, wherever it is
        and json.dumps(before.get(name)) != json.dumps(now.get(name))
    ]
    different += [name for name, (old, new) in facts.items() if old != new]
    if different:
        raise UsageError(
            f"{folder}: was started with another config: {'; '.join(different)}; give the same "
            "words again, or start a new run without --resume"
        )
    return resolved


def weights_of_teacher(come_from: dict[str, Any]) -> str | None:
    """Their SHA-256; None where there is no teacher."""
    return come_from.get("teacher", {}).get("weights_sha256")


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
    folder: Path, kind: str, setup: Setup, task: Task, come_from: dict[str, Any]
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
        **come_from,
        "data": task.record(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "git_commit": git_commit(),
        "command": sys.argv,
    }  # fmt: skip
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # Of names that are no UTF-8 \udce9 is right JSON.
    write_whole(folder / "config.json", text.encode(errors="backslashreplace"))


def git_commit() -> str | None:
    """The commit of vitkit's own source, where it runs from a checkout."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
