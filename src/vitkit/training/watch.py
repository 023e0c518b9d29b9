"""Ends a run that hangs: one that waits forever is worse than one that is started again.

A process that does not go on cannot be told to; its launcher (`--gpus`, torchrun) ends it, as soon
as another process has exited.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

EVERY = 1.0  # seconds between two looks
STARTING = 60.0  # seconds without a launcher that what does not catch SIGTERM is left
SILENCE = 12.0  # seconds without a sign of life of a process, after which all of its run end
LAST_WORD = 2.0  # seconds that the others have to tell where they are


def give_up(text: str) -> NoReturn:
    """End this process, with the stacks of its threads on standard error.

    Where it is one of several the others are given a moment to tell theirs: they are ended as soon
    as one has exited.
    """
    rank = os.environ.get("RANK")
    who = "" if rank is None else f"process {rank}: "
    try:
        words = f"vitkit: {who}{text}; the stacks of its threads:\n{stacks()}"
        # Written at once: the processes of a run give up together, into one terminal or file.
        os.write(2, words.encode(errors="replace"))
        time.sleep(0 if rank is None else LAST_WORD)
    finally:  # also where nothing can be said, on a disk that is full
        os._exit(1)


def stacks() -> str:
    """Where each thread of this process is, the innermost call last; without the lines' texts.

    Those would be read from files, on a disk that may be what hangs.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    told = []
    for ident, frame in sys._current_frames().items():
        calls = reversed(list(traceback.walk_stack(frame)))
        lines = [f'  File "{f.f_code.co_filename}", line {line}, in {f.f_code.co_qualname}'
                 for f, line in calls]  # fmt: skip
        told.append("\n".join([f"Thread {names.get(ident, ident)}:", *lines, ""]))
    return "\n".join(told)


class Clock:
    """Seconds since something last moved; the time in which this process was stopped counts not."""

    def __init__(self) -> None:
        self.moved = self.looked = time.monotonic()

    def restart(self) -> None:
        self.moved = time.monotonic()

    def read(self) -> float:
        """To be called every EVERY seconds or so; a long gap tells of Ctrl-Z, or of a SIGSTOP."""
        now = time.monotonic()
        gap, self.looked = now - self.looked, now
        if gap > 5 * EVERY:
            self.moved += gap
        return now - self.moved


class Patience:
    """Inside the block, `beat` must be called every `seconds`, else the process ends; 0: never."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.clock, self.ended = seconds, Clock(), threading.Event()

    def beat(self) -> None:
        self.clock.restart()

    def __enter__(self) -> Patience:
        if self.seconds:
            threading.Thread(target=self.look, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()

    def look(self) -> None:
        while not self.ended.wait(EVERY):
            if self.clock.read() > self.seconds:
                give_up(
                    f"no step and no evaluated batch in {self.seconds:g} seconds; start again with "
                    "--resume auto, and with a larger --patience if a step may take longer"
                )


class Heartbeats:
    """The processes of a run look after each other inside the block, each after the next one.

    `store` is the one they met at. When a process shows no sign of life, or the store does not
    answer, all end; when the launcher is gone, they stop as by SIGTERM.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        # torchrun starts again with the same store.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.given_up = f"vitkit/{attempt}/given up"
        self.signs = [f"vitkit/{attempt}/{one}" for one in range(size)]
        self.store, self.rank, self.next = store, rank, (rank + 1) % size
        self.answered, self.ended = Clock(), threading.Event()
        self.alone_since = 0.0  # without the launcher, by time.monotonic
        parent = multiprocessing.parent_process()  # whose pid is known also when it has gone
        by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        self.launcher = parent.pid if parent else os.getppid() if by_torchrun else None

    def __enter__(self) -> Heartbeats:
        for work in (self.beat, self.look):
            threading.Thread(target=work, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()

    def beat(self) -> None:
        store, heard, seen, beats = self.store.clone(), Clock(), b"", 0
        while not self.ended.wait(EVERY):
            self.mind_launcher()
            try:
                beats += 1
                store.set(self.signs[self.rank], str(beats))
                if store.check([self.given_up]):
                    give_up(store.get(self.given_up).decode())
                key = self.signs[self.next]
                found = store.get(key) if store.check([key]) else b""
                silence = heard.read()
                if found != seen:
                    seen = found
                    heard.restart()
                elif silence > SILENCE:
                    text = f"process {self.next} has shown no sign of life for {SILENCE:g} seconds"
                    store.set(self.given_up, text)
                    give_up(text)
            except RuntimeError:  # the store has gone: at the end of a run, or with its process
                return
            self.answered.restart()

    def look(self) -> None:
        """The other thread may itself be waiting, for the answer of a process that is stopped."""
        while not self.ended.wait(EVERY):
            if self.answered.read() > SILENCE + 2 * EVERY:
                give_up(f"the processes of the run have not answered for {SILENCE:g} seconds")

    def mind_launcher(self) -> None:
        if self.launcher is None or os.getppid() == self.launcher:
            return
        self.alone_since = self.alone_since or time.monotonic()
        # What still starts does not catch the signal, and has said nothing yet.
        catches = signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        if catches or time.monotonic() - self.alone_since > STARTING:
            self.launcher = None
            os.kill(os.getpid(), signal.SIGTERM)
