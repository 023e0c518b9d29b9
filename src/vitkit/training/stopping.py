"""Ctrl-C and SIGTERM end a run at the next step, its state saved."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

from vitkit.errors import VitkitError


class Interrupted(VitkitError):
    """A run was asked to stop and did, at a step from which it can go on."""

    everywhere = True

    def __init__(self, number: int, folder: Path) -> None:
        self.exit_code = 128 + number  # 130 for Ctrl-C, 143 for SIGTERM
        name = signal.Signals(number).name
        super().__init__(
            f"stopped by {name}, the state saved in {folder}; the same command with --resume auto "
            "goes on from there"
        )


class StopNow(Exception):
    """Breaks off an evaluation, which is made up when the run goes on."""


class StopSignals:
    """Catches the signals inside its block; `received` is the first one's number, or None.

    A second Ctrl-C ends the process at once. Of SIGTERM a scheduler may send several, and a SIGINT
    after it comes from the system, when the launcher has died.
    """

    CAUGHT = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: int | None = None
        self.before: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self.catch) for number in self.CAUGHT}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def catch(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
