"""How far the images are, on standard error, where it takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from vitkit.training.log import clock

EVERY = 5.0  # seconds
T = TypeVar("T", bound=Any)


def told(
    batches: Iterable[T],
    images: int,
    what: str,
    quiet: bool = False,
    size: Callable[[T], int] = lambda batch: len(batch.images),
) -> Iterator[T]:
    """The same batches of so many `images`; every five seconds a line, on a terminal the same one
    again. `size` is how many images a batch has."""
    began = spoken = time.perf_counter()
    terminal, seen, open_line = sys.stderr.isatty(), 0, False
    for batch in batches:
        yield batch
        seen += size(batch)
        now = time.perf_counter()
        if quiet or now - spoken < EVERY:
            continue
        spoken, open_line = now, terminal
        speed = seen / (now - began)
        left = clock((images - seen) / speed)
        line = f"{what}: {seen:,} of {images:,} images, {speed:,.3g} images/s, ETA {left}"
        with suppress(OSError):  # nobody may be reading
            print(f"\r\033[K{line}" if terminal else line, end="" if terminal else "\n",
                  file=sys.stderr, flush=True)  # fmt: skip
    if open_line:
        with suppress(OSError):
            print("\r\033[K", end="", file=sys.stderr, flush=True)
