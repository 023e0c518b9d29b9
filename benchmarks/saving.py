"""What saving costs a run: ViT-B/16 on this machine, a state written while training goes on.

`python benchmarks/saving.py [--rounds 12] [--steps 8]` times rounds of steps in turn: with a save
in the background (vitkit.training.saving.Saver: copy, write, fsync, SHA-256, an older one dropped);
with one that also hashes the state before again, as where the last save was a while ago; with
`torch.save` of the same tensors before the first step, as timm does; and between them without a
save. A round lasts until its save is written, and its delay is what it took beyond as many steps of
the rounds before and after it, so that a machine which grows slower for a while does not count.
Writes benchmarks/results/saving.json: seconds of delay a save, and their share of a minute.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any, NamedTuple

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


class Round(NamedTuple):
    """Seconds and steps from the beginning of a save to the end of the last step."""

    seconds: float
    steps: int
    saved: float  # seconds until training went on
    written: int  # steps until all was written
    core_seconds: float


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--rounds", type=int, default=12, help="of each kind")
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
    for _ in range(2):  # the first copy makes the room that later ones use
        saver.begin(state)
        saver.finish()
        step()

    def torch_save() -> None:
        torch.save(tensors_of(state), folder / "state.pt")

    def background() -> None:
        saver.trusting_until = math.inf
        saver.begin(state)

    def hashed_twice() -> None:
        saver.trusting_until = 0.0
        saver.begin(state)

    def round_of(save: Callable[[], None]) -> Round:
        began, done, written = time.perf_counter(), 0, None
        save()
        saved = time.perf_counter() - began
        while done < steps or written is None:
            step()
            done += 1
            if written is None and (saver.thread is None or not saver.thread.is_alive()):
                written = done
        seconds = time.perf_counter() - began
        assert saver.finish() is None
        (folder / "state.pt").unlink(missing_ok=True)
        os.sync()  # what is not yet on the disk must not cost the next round
        return Round(seconds, done, saved, written, saver.core_seconds)

    saves = {"background": background, "hashed_twice": hashed_twice, "torch_save": torch_save}
    found: dict[str, list[tuple[Round, float]]] = {kind: [] for kind in saves}
    before = round_of(lambda: None)
    for number in range(rounds):
        for kind in sorted(saves, reverse=number % 2 == 1):
            this, after = round_of(saves[kind]), round_of(lambda: None)
            each = mean(one.seconds / one.steps for one in (before, after))
            found[kind].append((this, each))
            before = after
    return {kind: told(pairs) for kind, pairs in found.items()} | {
        "core_seconds": {  # of the writing thread
            kind: median(one.core_seconds for one, _ in found[kind])
            for kind in ("background", "hashed_twice")
        }
    }


def told(pairs: list[tuple[Round, float]]) -> dict[str, object]:
    delays = [one.seconds - one.steps * each for one, each in pairs]
    low, _, high = quantiles(delays, n=4)
    return {
        "delay_seconds": median(delays), "share_of_a_minute": median(delays) / MINUTE,
        "quartiles": [low, high], "mean": mean(delays),
        "standing_still_seconds": median(one.saved for one, _ in pairs),
        "delays": delays, "steps_until_written": [one.written for one, _ in pairs],
        "round_seconds": [one.seconds for one, _ in pairs],
        "round_steps": [one.steps for one, _ in pairs],
        "step_seconds_around": [each for _, each in pairs],
    }  # fmt: skip


if __name__ == "__main__":
    main()
