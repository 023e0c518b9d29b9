"""What a run says while it trains: metrics.jsonl for programs, progress for people."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from vitkit.terminal import finite

NEGATIVE_LOSS = "negative loss"  # the headline of a net that learns without labels
FEW_SHOT = "few-shot top-1"  # told beside it, where the data have some
PLAIN_EVERY = 10.0  # seconds between lines where there is no terminal


class Unbreakable(Console):
    """Falls silent when its reader has gone (`vitkit ... 2>&1 | head`)."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class RunLog:
    """Writes a line of metrics.jsonl for each record, and shows progress on standard error.

    Without a path, as in all processes of a run but the main one, nothing is written.
    """

    def __init__(self, path: Path | None, steps: int, first: int = 0, quiet: bool = False) -> None:
        self.path = path
        self.unwritten = b""  # by a disk that was full say; tried again with the next line
        self.steps, self.quiet = steps, quiet
        self.console = Unbreakable(stderr=True, quiet=quiet)
        self.started, self.first = time.perf_counter(), first
        self.spoken = self.started
        self.bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"), BarColumn(30),
            TextColumn("{task.description}"), console=self.console, transient=True,
            disable=quiet or not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=steps, completed=first)

    def __enter__(self) -> RunLog:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        self.write()

    def say(self, text: str) -> None:
        """A line for people; a run does not end because nobody can read it."""
        with suppress(OSError):
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def record(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """A line for programs: step, kind ("train", "evaluation", ...) and the values."""
        if self.path is None:
            return
        waiting = bool(self.unwritten)
        line = json.dumps(finite({"step": step, "kind": kind, **values})) + "\n"
        self.unwritten += line.encode()
        problem = self.write()
        if problem is not None and not waiting:
            self.say(f"{self.path}: cannot be written now: {problem.strerror}; kept for later")

    def write(self) -> OSError | None:
        """Write what is unwritten, as far as the disk takes it."""
        if self.path is None or not self.unwritten:
            return None
        try:
            with self.path.open("ab", buffering=0) as file:
                while self.unwritten:
                    self.unwritten = self.unwritten[file.write(self.unwritten) :]
        except OSError as error:
            return error
        return None

    def size(self) -> int:
        """Bytes of the lines so far, those that could not be written yet among them."""
        return len(self.unwritten) + self.written()

    def written(self) -> int:
        return self.path.stat().st_size if self.path is not None and self.path.exists() else 0

    def cut_back(self, size: int, step: int) -> None:
        """Drop what was recorded after the state of a step, in which the lines had `size` bytes."""
        written = self.written()
        self.unwritten = self.unwritten[: max(0, size - written)]
        if self.path is None or not written:
            return
        kept = self.path.read_bytes()[:size]
        if not self.unwritten:  # a machine that lost its power may have kept half a line
            kept = kept[: kept.rfind(b"\n") + 1]
            # Where a state counted lines that a full disk did not take before a kill, later ones
            # may lie in their place.
            while kept and step_of(last := kept[kept.rfind(b"\n", 0, -1) + 1 :]) > step:
                kept = kept[: -len(last)]
        if len(kept) < written:
            os.truncate(self.path, len(kept))

    def progress(self, step: int, loss: float, images_per_second: float, data_share: float) -> None:
        elapsed = time.perf_counter() - self.started
        left = elapsed / max(1, step - self.first) * (self.steps - step)
        text = (
            f"loss {loss:.3f}  {images_per_second:,.0f} images/s  ETA {clock(left)}  "
            f"{memory_used() / 2**30:.1f} GiB  {bound_by(data_share)}"
        )
        with suppress(OSError):
            self.bar.update(self.task, completed=step, description=text)
        now = time.perf_counter()
        due = now - self.spoken >= PLAIN_EVERY or step == self.steps
        if not self.console.is_terminal and due:
            self.spoken = now
            self.say(f"step {step}/{self.steps}  {text}")


def numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """What was found but for lists of every class, which would make metrics.jsonl long."""
    return {name: value for name, value in metrics.items() if not isinstance(value, list)}


def headline(metrics: dict[str, Any]) -> tuple[str, float]:
    """The name and the value by which nets of a run are compared; the larger is the better."""
    if "mean_average_precision" in metrics:  # of images with several labels
        return "mean average precision", metrics["mean_average_precision"]
    if "top1" in metrics:
        return "top-1", metrics["top1"]
    return NEGATIVE_LOSS, -metrics["loss"]


def told(metrics: dict[str, Any], digits: int = 1) -> str:
    """The headline in words: "top-1 41.2%", or "loss 0.5321, few-shot top-1 24.3%"."""
    what, value = headline(metrics)
    if what != NEGATIVE_LOSS:
        return f"{what} {value:.{digits}%}"
    beside = f", {FEW_SHOT} {metrics['few_shot']:.{digits}%}" if "few_shot" in metrics else ""
    return f"loss {-value:.4f}{beside}"


def bound_by(data_share: float) -> str:
    """What a run spends its time on, of the two the larger: waiting for images, or computing."""
    kind, share = ("data", data_share) if data_share > 0.5 else ("compute", 1 - data_share)
    return f"{kind}-bound {share:.0%}"


def step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def memory_used() -> int:
    """Bytes: the GPU's high-water mark where one is in use, else the process's."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
