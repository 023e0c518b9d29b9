"""A look at a run directory that changes nothing: what is whole, what is damaged, what to do.

No file is trusted: JSON is read up to a size, a name in a manifest is followed only within its own
folder, and nothing is unpickled.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vitkit.checkpoints.archives import explained
from vitkit.checkpoints.bundle import WEIGHTS, read_bundle, refuse_to_replace
from vitkit.checkpoints.containers import read_json
from vitkit.checkpoints.problems import CheckpointError
from vitkit.errors import VitkitError
from vitkit.training.saving import states_in
from vitkit.training.storage import FORMAT_VERSION, MANIFEST, StateError, problem_with
from vitkit.values import fits
from vitkit.workflows.run_folder import LOCK, fcntl

CONFIG, METRICS = "config.json", "metrics.jsonl"
NEEDED = {  # of config.json, to resume
    "kind": Literal["pretrain", "finetune"], "config": dict, "from": dict | None,
    "data.fingerprint": str, "data.held_out_fingerprint": str,
    "resolved.steps": int, "resolved.precision": str, "resolved.torch_threads": int,
}  # fmt: skip
ABSENT = object()
FOREIGN = "does not belong to this state"  # how `problem_with` ends where a file is one too many
STARTERS = ("vitkit", "vitkit.exe", "__main__.py")  # what sys.argv[0] of a vitkit command ends in
LINE_AT_MOST = 1 << 20  # bytes of metrics.jsonl; its lines have some hundred
SENTENCE_AT_MOST, HOLDER_AT_MOST = 400, 100  # characters; a hostile file's have no end


@dataclass(frozen=True)
class Part:
    """A state or a bundle of a run."""

    name: str  # where it is in the run directory
    bytes: int | None  # None where it is not there
    problem: str | None = None

    @property
    def whole(self) -> bool:
        return self.bytes is not None and self.problem is None


@dataclass(frozen=True)
class State(Part):
    step: int = 0
    other_version: bool = False  # no damage, but another version of vitkit reads it


@dataclass(frozen=True)
class Metrics:
    """What metrics.jsonl holds; `half` is whether its last line breaks off, as after a kill."""

    lines: int = 0
    bad: int = 0  # of them no JSON
    half: bool = False


@dataclass(frozen=True)
class Heap:
    count: int
    bytes: int


@dataclass(frozen=True)
class Findings:
    """All that was seen in a run directory."""

    run: Path
    in_use_by: str | None
    config: dict[str, Any]  # of config.json; empty where that has a problem
    config_problem: str | None
    metrics: Metrics
    states: list[State]  # the newest first
    best: Part
    last: Part
    leftovers: Heap  # of killed processes
    set_aside: Heap  # damaged states, by a resume of before

    @property
    def step(self) -> int | None:
        return next((state.step for state in self.states if state.whole), None)

    @property
    def steps(self) -> int | None:
        return self.config["resolved"]["steps"] if self.config else None

    @property
    def finished(self) -> bool:
        # Of a finished run people delete the states; last/ is written at the end alone.
        ended = not self.states or self.step == self.steps
        return bool(self.config) and self.last.whole and ended

    @property
    def resume_from(self) -> State | None:
        """What `--resume` would take: it passes over damage, but over no other version."""
        usable = next((state for state in self.states if state.whole or state.other_version), None)
        return usable if usable and usable.whole and self.config else None

    @property
    def problems(self) -> list[str]:
        found = [f"{p.name}: {p.problem}" for p in (*self.states, self.best, self.last)
                 if p.problem]  # fmt: skip
        if self.config_problem:
            found.insert(0, f"{CONFIG}: {self.config_problem}")
        if self.metrics.bad:
            found.append(f"{METRICS}: lines that are not JSON: {self.metrics.bad:,}")
        return found


@dataclass(frozen=True)
class Advice:
    """How the run is, in a sentence, and what to do; `hopeless` where it cannot be resumed."""

    verdict: str
    next: str = ""
    hopeless: bool = False


# Looking


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
    config, problem = read_config(run / CONFIG)
    states = [state_at(folder) for folder in states_in(checkpoints)]
    left = [p for n in ("best", "last") for e in ("tmp", "old") for p in run.glob(f".{n}.*.{e}")]
    return Findings(
        run, holder, config, problem, read_metrics(run / METRICS),
        # A run that goes on has dropped old ones meanwhile.
        [state for state in states if (run / state.name).is_dir()],
        bundle_at(run / "best"), bundle_at(run / "last"),
        heap([*left, *checkpoints.glob(".step-*")]), heap(checkpoints.glob("damaged-step-*")),
    )  # fmt: skip


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
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            text = file.read(HOLDER_AT_MOST).decode("utf-8", errors="replace").strip()
            return text or "another process"
    return None


def read_config(path: Path) -> tuple[dict[str, Any], str | None]:
    """(what config.json says, None), or ({}, why nothing can be resumed with it)."""
    if not path.is_file():
        return {}, "missing"
    try:
        content = read_json(path)
    except CheckpointError as error:
        return {}, sentence(error, path)
    wrong = [name for name, kind in NEEDED.items() if not fits(value_at(content, name), kind)]
    return ({}, f"{', '.join(wrong)} missing or malformed") if wrong else (content, None)


def value_at(content: Any, name: str) -> Any:
    """The value at a dotted name, or ABSENT."""
    for key in name.split("."):
        content = content.get(key, ABSENT) if isinstance(content, dict) else ABSENT
    return content


def read_metrics(path: Path) -> Metrics:
    lines, bad, half = 0, 0, False
    if path.is_file():
        with path.open("rb") as file:
            while line := file.readline(LINE_AT_MOST):
                half = not line.endswith(b"\n")
                lines += not half
                bad += not half and not is_object(line)
    return Metrics(lines, bad, half)


def is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def state_at(folder: Path) -> State:
    step, problem, other_version = int(folder.name[5:]), None, False
    try:
        problem = oddity(folder) or problem_with(folder)
    except StateError as error:
        problem, other_version = str(error), True
    except Exception as error:  # a manifest that anybody can seal may hold anything
        problem = f"{MANIFEST}: damaged ({type(error).__name__}: {error})"
    if problem:
        problem = sentence(problem, folder)
        problem += "; move it out, and all may be well" if problem.endswith(FOREIGN) else ""
    return State(f"checkpoints/{folder.name}", size_of(folder), problem, step, other_version)


def oddity(folder: Path) -> str | None:
    """Why `problem_with`, which reads all that a manifest names, must not be asked about a state.

    A pipe would keep it waiting, and a device gives bytes without end.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"{manifest}: missing"
    content = read_json(manifest)
    if content.get("format_version") != FORMAT_VERSION:
        return None
    odd = [path for path in sorted(folder.iterdir()) if not path.is_file()]
    if odd:
        return f"{odd[0]}: not a regular file"
    outside = [name for name in content.get("files", ()) if Path(name).name != name]
    return f"{manifest}: names {outside[0]!r}, which is not in its folder" if outside else None


def bundle_at(folder: Path) -> Part:
    if not os.path.lexists(folder):
        return Part(folder.name, None)
    problem = None
    try:
        with explained(folder, "a bundle"):
            read_bundle(folder)
    except CheckpointError as error:
        problem = sentence(error, folder)
    return Part(folder.name, size_of(folder), problem)


def heap(paths: Iterable[Path]) -> Heap:
    sizes = [size_of(path) for path in paths]
    return Heap(len(sizes), sum(sizes))


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
    return text if len(text) <= SENTENCE_AT_MOST else f"{text[:SENTENCE_AT_MOST]} ..."


# Telling


def advise(found: Findings) -> Advice:
    """What to do about a run, the first of these that holds."""
    run, state = found.run, found.resume_from
    if found.in_use_by:
        but = "; what it is just writing may look damaged" if found.problems else ""
        return Advice(f"In use by {found.in_use_by}: nothing needs to be done while it runs{but}.")
    if found.finished:
        best, but = run, ""
        if found.best.problem:  # then the run's own name does not lead to last/
            best, but = run / "last", ", but best/ is damaged; last/ can be used instead"
        verdict = f"Finished: all {found.steps:,} steps are done{but}."
        return Advice(verdict, f"vitkit evaluate {shlex.quote(str(best))} DATA")
    if state is not None:
        goes_on = f"it goes on from step {state.step:,} of {found.steps:,}"
        if state.step == found.steps:
            goes_on = "all steps are done, and last/ is written anew"
        blocked = [f"{b.name}/" for b in (found.best, found.last) if is_in_the_way(found, b)]
        once = f", once {' and '.join(blocked)} is moved away" if blocked else ""
        return Advice(f"Can be resumed: {goes_on}{once}.", command_to_resume(found))
    return Advice(f"{run}: cannot be resumed: {what_hinders(found)}", hopeless=True)


def what_hinders(found: Findings) -> str:
    """Why a run cannot be resumed, and what can be done about it."""
    usable = next((state for state in found.states if state.whole or state.other_version), None)
    if usable is not None and usable.other_version:
        why = f"{usable.name}: {usable.problem}; install the newer vitkit"
    elif usable is not None:
        why = (
            f"{CONFIG}: {found.config_problem}; copy it from a backup, or start a new run without "
            "--resume"
        )
    else:
        none = "no saved state is whole" if found.states else "no saved state"
        why = f"{none}; copy checkpoints/ from a backup, or start a new run without --resume"
    whole = next((bundle.name for bundle in (found.best, found.last) if bundle.whole), None)
    if whole is None:
        return why
    place = shlex.quote(str(found.run / whole))
    return f"{why}; {whole}/ is whole and can be used: vitkit evaluate {place} DATA"


def command_to_resume(found: Findings) -> str:
    """The command that started the run, with `--resume`; in words where it was another program.

    `--resume auto` would take the highest number of its --out, which may be another run.
    """
    config, run = found.config, str(found.run)
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


def title(found: Findings) -> str:
    if not found.config:
        return f"{found.run}: a run whose {CONFIG} tells nothing"
    model = str(found.config["config"].get("model"))[:SENTENCE_AT_MOST]
    done = "no whole state" if found.step is None else f"step {found.step:,} of {found.steps:,}"
    return f"{found.run}: {found.config['kind']} of {model}, {done}"


def rows(found: Findings) -> list[tuple[str, int | None, str]]:
    """(what, bytes, how it is) of each part of a run."""
    resumed, metrics = found.resume_from, found.metrics
    lines = f"{metrics.lines:,} line{'s' * (metrics.lines != 1)}"
    if metrics.bad:
        lines += f", {metrics.bad:,} of them not JSON, with which no report can be drawn"
    if metrics.half:
        lines += "; then a half-written one, which the next resume cuts off"
    table: list[tuple[str, int | None, str]] = [
        (CONFIG, None, found.config_problem or "readable"), (METRICS, None, lines)
    ]  # fmt: skip
    for state in found.states:
        mark = " (resumed from here)" if state is resumed and not found.finished else ""
        table.append((state.name, state.bytes, state.problem or f"whole{mark}"))
    table += [(f"{b.name}/", b.bytes, how_it_is(found, b)) for b in (found.best, found.last)]
    left = "removed at the next resume"
    if found.in_use_by:
        left = "being written now, or of a killed process and removed at the next save"
    heaps = [
        ("left half-written", found.leftovers, left),
        ("set aside as damaged", found.set_aside, "in checkpoints/damaged-step-*; may be deleted"),
    ]
    return table + [(f"{h.count:,} {kind}", h.bytes, what) for kind, h, what in heaps if h.count]


def how_it_is(found: Findings, bundle: Part) -> str:
    """A bundle in words: what is wrong with it, and what becomes of it."""
    if bundle.whole:
        return "whole"
    when = "the run ends" if bundle is found.last else "an evaluation is the best so far"
    if bundle.problem is None:
        return "missing" if found.finished else f"not there yet; written when {when}"
    if found.finished:
        return f"{bundle.problem}; last/ is whole"
    if is_in_the_way(found, bundle):
        return f"{bundle.problem}; move it away, since a run replaces only what is a bundle"
    return f"{bundle.problem}; written again when {when}"


def is_in_the_way(found: Findings, bundle: Part) -> bool:
    """Whether a run that goes on would fail when it writes this bundle."""
    try:
        refuse_to_replace(found.run / bundle.name)
    except (CheckpointError, OSError):
        return True
    return False


def record(found: Findings, advice: Advice) -> dict[str, Any]:
    """The findings for programs."""
    state, parts = found.resume_from, (found.best, found.last)
    return {
        "run": str(found.run), "step": found.step, "steps": found.steps,
        "finished": found.finished, "in_use_by": found.in_use_by,
        "resume_from": state and state.name,
        "states": [
            {"folder": s.name, "step": s.step, "bytes": s.bytes, "problem": s.problem,
             "other_version": s.other_version}
            for s in found.states
        ],
        "bundles": {b.name: {"found": b.bytes is not None, "bytes": b.bytes, "problem": b.problem}
                    for b in parts},
        "metrics": asdict(found.metrics), "leftovers": asdict(found.leftovers),
        "set_aside": asdict(found.set_aside), "problems": found.problems,
        "advice": advice.next or advice.verdict,
    }  # fmt: skip
