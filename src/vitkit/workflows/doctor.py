"""A look at a run directory that changes nothing: what is whole, what is damaged, what to do.

No file is trusted: only regular ones are opened, JSON is read up to a size, nothing is unpickled.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vitkit.checkpoints.archives import explained
from vitkit.checkpoints.bundle import WEIGHTS, read_bundle
from vitkit.checkpoints.containers import read_json
from vitkit.checkpoints.problems import CheckpointError
from vitkit.errors import VitkitError
from vitkit.training.saving import states_in
from vitkit.training.storage import PROGRESS, StateError, problem_with
from vitkit.values import fits
from vitkit.workflows.run_folder import LOCK, fcntl

CONFIG, METRICS = "config.json", "metrics.jsonl"
NEEDED = {  # of config.json, to resume
    "kind": Literal["pretrain", "finetune"], "config": dict, "from": dict | None,
    "data.fingerprint": str, "data.held_out_fingerprint": str,
    "resolved.steps": int, "resolved.precision": str, "resolved.torch_threads": int,
}  # fmt: skip
STARTERS = ("vitkit", "vitkit.exe", "__main__.py")  # what sys.argv[0] of a vitkit command ends in
LINE_AT_MOST = 1 << 20  # bytes of metrics.jsonl; its lines have some hundred
TEXT_AT_MOST = 400  # characters; a hostile file's have no end


@dataclass(frozen=True)
class Part:
    """A file, a state or a bundle of a run, or all that is of no more use."""

    bytes: int | None  # None where that is of no interest, or it is not there
    problem: str | None
    note: str  # how it is, or what becomes of it
    other_version: bool = False  # the problem is no damage: another version of vitkit reads it

    @property
    def whole(self) -> bool:
        return self.bytes is not None and self.problem is None


@dataclass(frozen=True)
class Findings:
    """All that was seen in a run directory."""

    run: str
    what: str  # kind, model and step in words
    step: int | None  # of the newest whole state
    steps: int | None
    finished: bool
    ended_early: bool  # by early stopping, at the step of the newest whole state
    in_use_by: str | None
    resume_from: str | None
    hindrance: str  # why nothing can be resumed
    command: str  # that resumes it
    parts: dict[str, Part]

    @property
    def problems(self) -> list[str]:
        return [f"{name}: {part.problem}" for name, part in self.parts.items() if part.problem]


def look_at(run: str | Path) -> Findings:
    """Examine a run directory, hashes and all. VitkitError where it is none."""
    run = Path(run)
    checkpoints, holder = run / "checkpoints", holder_of(run)
    a_run = checkpoints.is_dir() or ((run / CONFIG).is_file() and not (run / WEIGHTS).is_file())
    if not a_run and holder is None:
        raise VitkitError(
            f"{run}: {'not a run directory' if run.exists() else 'no such folder'}; expected one "
            f"with {CONFIG} and checkpoints/, as pretrain and finetune write it"
        )
    config, unusable = read_config(run / CONFIG)
    steps = config["resolved"]["steps"] if config else None
    states = {f"checkpoints/{path.name}": state_at(path) for path in states_in(checkpoints)}
    # A run that goes on has dropped old ones meanwhile.
    states = {name: state for name, state in states.items() if (run / name).is_dir()}
    step = next((int(name.split("-")[1]) for name, s in states.items() if s.whole), None)
    resumed, hindrance = what_to_resume(states, unusable)
    last = bundle_at(run / "last", "the run ends")
    newest = next((run / name for name, state in states.items() if state.whole), None)
    early = step != steps and newest is not None and stopped_early(newest, config)
    # Of a finished run people delete the states; last/ is written at the end alone.
    finished = bool(config) and last.whole and (not states or step == steps or early)
    best = bundle_at(run / "best", "" if finished else "an evaluation is the best so far")
    if resumed and not finished:
        states[resumed] = replace(states[resumed], note="whole (resumed from here)")
    parts = {
        CONFIG: Part(None, unusable, "" if unusable else "readable"),
        METRICS: metrics_at(run / METRICS), **states, "best/": best, "last/": last,
    }  # fmt: skip
    if left := [*run.glob(".best.*"), *run.glob(".last.*"), *checkpoints.glob(".step-*")]:
        fate = "being written now" if holder else "removed or put back at the next resume"
        parts["left half-written"] = heap(left, fate)
    if aside := [*run.glob("damaged-*"), *checkpoints.glob("damaged-*")]:
        parts["set aside as damaged"] = heap(aside, "named damaged-*; may be deleted")
    what, command = f"a run whose {CONFIG} tells nothing", ""
    if config:
        done = "no whole state" if step is None else f"step {step:,} of {steps:,}"
        what = f"{config['kind']} of {str(config['config'].get('model'))[:TEXT_AT_MOST]}, {done}"
        command = command_to_resume(config, str(run))
    return Findings(
        str(run), what, step, steps, finished, early, holder, resumed, hindrance, command, parts
    )


def holder_of(run: Path) -> str | None:
    """Who works in the run directory now; None where nobody does, or no locks are known."""
    path = run / LOCK
    if fcntl is None or not path.is_file():
        return None
    with path.open("rb") as file:
        try:
            # Shared: two that only look are not in each other's way, and reading suffices on NFS.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                text = file.read(TEXT_AT_MOST).decode("utf-8", errors="replace")
                return text.strip() or "another process"
    return None


def read_config(path: Path) -> tuple[dict[str, Any], str | None]:
    """(what config.json says, None), or ({}, why nothing can be resumed with it)."""
    if not path.is_file():
        return {}, "missing"
    try:
        content = read_json(path)
    except CheckpointError as error:
        return {}, sentence(error, path)
    inner = {f"{outer}.{name}": value for outer, values in content.items()
             if isinstance(values, dict) for name, value in values.items()}  # fmt: skip
    wrong = [
        name for name, kind in NEEDED.items() if not fits((content | inner).get(name, ...), kind)
    ]
    return ({}, f"{', '.join(wrong)} missing or malformed") if wrong else (content, None)


def stopped_early(state: Path, config: dict[str, Any]) -> bool:
    """Whether the run ends with this state, by early stopping."""
    limit, found = config.get("config", {}).get("early_stopping"), None
    with suppress(CheckpointError):
        found = read_json(state / PROGRESS).get("without_better")
    return fits(limit, int) and fits(found, int) and 0 < limit <= found


def metrics_at(path: Path) -> Part:
    lines, bad, half = 0, 0, False
    with open(path if path.is_file() else os.devnull, "rb") as file:
        while line := file.readline(LINE_AT_MOST):
            half = not line.endswith(b"\n")
            if not half:
                lines += 1
                try:
                    bad += not isinstance(json.loads(line), dict)
                except (ValueError, RecursionError):
                    bad += 1
    problem = f"lines that are not JSON, which the report leaves out: {bad:,}" if bad else None
    then = ", then a half-written one, which the next resume cuts off" if half else ""
    return Part(None, problem, f"lines in all: {lines:,}{then}")


def state_at(folder: Path) -> Part:
    other_version = False
    try:
        problem = problem_with(folder)
    except StateError as error:
        problem, other_version = str(error), True
    told = problem and sentence(problem, folder)
    return Part(size_of(folder), told, "" if told else "whole", other_version)


def bundle_at(folder: Path, when: str) -> Part:
    """A bundle, and `when` the run will write it; "" where it has ended."""
    if not os.path.lexists(folder):
        return Part(None, None, f"not there yet; written when {when}" if when else "missing")
    try:
        with explained(folder, "a bundle"):
            read_bundle(folder)
    except CheckpointError as error:
        then = f"set aside or kept at the next resume, and written again when {when}"
        note = then if when else "last/ can be used instead"
        return Part(size_of(folder), sentence(error, folder), note)
    return Part(size_of(folder), None, "whole")


def heap(folders: list[Path], then: str) -> Part:
    return Part(sum(map(size_of, folders)), None, f"folders: {len(folders):,}; {then}")


def size_of(folder: Path) -> int:
    """Bytes of the files at any depth; what vanishes meanwhile counts nothing."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def sentence(problem: object, path: Path) -> str:
    """What is wrong with `path`, which need not be named again, in a bearable length."""
    text = str(problem).removeprefix(f"{path}{os.sep}").removeprefix(f"{path}: ")
    return text if len(text) <= TEXT_AT_MOST else f"{text[:TEXT_AT_MOST]} ..."


def what_to_resume(states: dict[str, Part], unusable: str | None) -> tuple[str | None, str]:
    """(the state that `--resume` takes, ""), or (None, why it takes none).

    It passes over damage, but over no other version. `unusable` is what config.json has.
    """
    backup = "from a backup, or start a new run without --resume"
    for name, state in states.items():
        if state.other_version:
            return None, f"{name}: {state.problem}"
        if state.whole and unusable:
            return None, f"{CONFIG}: {unusable}; copy it {backup}"
        if state.whole:
            return name, ""
    if not states:
        return None, "nothing is saved; the same command with --resume auto starts afresh"
    return None, f"no saved state is whole; copy checkpoints/ {backup}"


def command_to_resume(config: dict[str, Any], run: str) -> str:
    """The command that started the run, with `--resume`; in words where it was another program.

    `--resume auto` would take the highest number of its --out, which may be another run.
    """
    words: list[str] = config["command"] if fits(config.get("command"), list[str]) else []
    if words[1:2] != [config["kind"]] or Path(words[0]).name not in STARTERS:
        started = f" as {shlex.join(words)} did" if words else ""
        return f"call vitkit.{config['kind']} again{started}, with resume={run!r}"
    words = [word for word in words[1:] if not word.startswith("--resume=")]
    if "--resume" in words:
        place = words.index("--resume")
        del words[place : place + 2]
    several = config["resolved"].get("processes") not in (None, 1)
    by_torchrun = several and not any(word.startswith("--gpus") for word in words)
    starter = "torchrun OPTIONS -m vitkit" if by_torchrun else "vitkit"
    return f"{starter} {shlex.join([*words, '--resume', run])}"


def advise(found: Findings) -> tuple[str, str | None]:
    """(how the run is, what to do): "" where that is nothing, None where it cannot be resumed."""
    run, best = Path(found.run), found.parts["best/"]
    if found.in_use_by:
        but = "; what it is just writing may look damaged" if found.problems else ""
        return f"In use by {found.in_use_by}: nothing needs to be done while it runs{but}.", ""
    if found.finished:
        # The run's own name leads to best/, be it damaged or not.
        place, but = (run / "last", ", but best/ is damaged") if best.problem else (run, "")
        done = f"all {found.steps:,} steps are done"
        if found.ended_early:
            done = f"early stopping ended it at step {found.step:,}"
        verdict = f"Finished: {done}{but}."
        return verdict, f"vitkit evaluate {shlex.quote(str(place))} DATA"
    if found.resume_from:
        how = f"it goes on from step {found.step:,} of {found.steps:,}"
        if found.step == found.steps or found.ended_early:
            done = "early stopping has ended it" if found.ended_early else "all steps are done"
            how = f"{done}, and last/ is written anew"
        return f"Can be resumed: {how}.", found.command
    whole = next((name for name in ("best/", "last/") if found.parts[name].whole), None)
    place = shlex.quote(str(run / (whole or "")))
    but = f"; {whole} is whole and can be used: vitkit evaluate {place} DATA" if whole else ""
    return f"{run}: cannot be resumed: {found.hindrance}{but}", None
