"""What saving costs a run: ViT-B/16 on this machine, a state written while training goes on.

`python benchmarks/saving.py [--rounds 20] [--steps 8]` times rounds of steps in turn: without a
save, with one in the background (vitkit.training.saving.Saver: copy, write, fsync, SHA-256,
rotation), and with `torch.save` of the same tensors before the first step, as timm does. A round
lasts until its save is written. Its delay is what it took beyond as many steps of the rounds before
and after it, which save nothing, so that a machine which grows slower for a while does not count.
Writes benchmarks/results/saving.json: seconds of delay a save, and their share of a minute.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

import torch

from vitkit.data.pipeline import Batch
from vitkit.data.transforms import Preprocessing
from vitkit.models.variants import build
from vitkit.training.config import TrainConfig
from vitkit.training.parallel import Engine
from vitkit.training.precision import Precision
from vitkit.training.saving import Saver, tensors_of
from vitkit.training.state import TrainState
from vitkit.training.step import Setup, fresh_state, train_step

RESULTS = Path(__file__).with_name("results") / "saving.json"
MINUTE = 60.0


class TimedSaver(Saver):
    """A Saver that tells how long its thread computed, on a core."""

    core_seconds = 0.0

    def write(self, *given: Any) -> None:
        super().write(*given)
        self.core_seconds = time.thread_time()


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--rounds", type=int, default=20, help="of each kind")
    words.add_argument("--steps", type=int, default=8, help="in a round, or more until it is saved")
    words.add_argument("--model", default="ViT-B/16")
    words.add_argument("--batch-size", type=int, default=8)
    given = words.parse_args()
    config = TrainConfig(model=given.model, batch_size=given.batch_size)
    threads = torch.get_num_threads()
    engine = Engine(torch.device("cpu"), Precision("bf16", "for the benchmark"), threads)
    setup = Setup(config, 1, engine, Preprocessing.direct(config.image_size))
    state = fresh_state(build(given.model, 1000, config.image_size[0]), config, engine)
    images = torch.randint(256, (given.batch_size, 3, *config.image_size), dtype=torch.uint8)
    batch = Batch(images, torch.zeros(given.batch_size, dtype=torch.int64))

    def step() -> None:
        train_step(setup, state, batch, 1e-4)
        state.step += 1

    for _ in range(5):
        step()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), state, step, given.steps, given.rounds)
    found |= {
        "model": given.model, "batch_size": given.batch_size, "threads": threads,
        "rounds": given.rounds, "date": str(date.today()),
        "torch": torch.__version__, "python": platform.python_version(),
        "bytes": sum(t.nbytes for t in tensors_of(state).values()),
    }  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def measured(
    folder: Path, state: TrainState, step: Callable[[], None], steps: int, rounds: int
) -> dict[str, object]:
    saver = TimedSaver(folder / "checkpoints")
    saver.begin(state)  # the first copy makes the room that later ones use
    saver.finish()
    copies: list[float] = []

    def background() -> None:
        began = time.perf_counter()
        saver.begin(state)
        copies.append(time.perf_counter() - began)

    def written() -> bool:
        return saver.thread is None or not saver.thread.is_alive()

    def torch_save() -> None:
        torch.save(tensors_of(state), folder / "state.pt")

    def round_of(save: Callable[[], None]) -> tuple[float, int]:
        """(seconds, steps) from the beginning of a save to the end of a step when it is written."""
        began, done = time.perf_counter(), 0
        save()
        while done < steps or not written():
            step()
            done += 1
        seconds = time.perf_counter() - began
        assert saver.finish() is None
        return seconds, done

    plain = [round_of(lambda: None)]
    saved, blocked, cores = [], [], []
    for _ in range(rounds):
        saved.append(round_of(background))
        cores.append(saver.core_seconds)
        plain.append(round_of(lambda: None))
        blocked.append(round_of(torch_save))
        plain.append(round_of(lambda: None))
    each = [seconds / done for seconds, done in plain]
    around = [mean(pair) for pair in pairwise(each)]  # before and after a save
    in_background = [s - n * one for (s, n), one in zip(saved, around[::2], strict=True)]
    by_torch_save = [s - n * one for (s, n), one in zip(blocked, around[1::2], strict=True)]
    return {
        "step_seconds": median(each), "copy_seconds": median(copies),
        "core_seconds": median(cores), "steps_until_written": [n for _, n in saved],
        "background": told(in_background), "torch_save": told(by_torch_save),
    }  # fmt: skip


def told(delays: list[float]) -> dict[str, object]:
    low, _, high = quantiles(delays, n=4)
    return {
        "seconds": delays, "median": median(delays), "mean": mean(delays), "quartiles": [low, high],
        "share_of_a_minute": median(delays) / MINUTE,
    }  # fmt: skip


if __name__ == "__main__":
    main()
