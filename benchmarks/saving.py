"""What saving costs a run: ViT-B/16 on this machine, a state a minute, in the background or not.

`python benchmarks/saving.py [--rounds 3] [--seconds 60]` interleaves rounds of the same number of
steps: without a save, with one in the background (vitkit.training.saving.Saver: copy, write, fsync,
SHA-256, rotation), and with `torch.save` of the same tensors between two steps, as timm does. It
writes benchmarks/results/saving.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

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


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--seconds", type=float, default=60.0, help="from one save to the next")
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

    def steps(number: int) -> float:
        began = time.perf_counter()
        for _ in range(number):
            train_step(setup, state, batch, 1e-4)
            state.step += 1
        return time.perf_counter() - began

    steps(3)
    each = steps(5) / 5
    number = max(2, round(given.seconds / each))
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), state, steps, number, given.rounds)
    found |= {
        "model": given.model, "batch_size": given.batch_size, "threads": threads,
        "steps_a_round": number, "rounds": given.rounds, "date": str(date.today()),
        "torch": torch.__version__, "python": platform.python_version(),
        "bytes": sum(t.nbytes for t in tensors_of(state).values()),
    }  # fmt: skip
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def measured(
    folder: Path, state: TrainState, steps: Callable[[int], float], number: int, rounds: int
) -> dict[str, object]:
    saver = Saver(folder / "checkpoints")
    saver.begin(state)  # the first copy makes the room that later ones use
    saver.finish()
    plain, background, blocking, copies, written = [], [], [], [], []
    for _ in range(rounds):
        plain.append(steps(number))
        began = time.perf_counter()
        saver.begin(state)
        copies.append(time.perf_counter() - began)
        background.append(copies[-1] + steps(number))
        assert saver.thread is not None
        written.append(not saver.thread.is_alive())
        assert saver.finish() is None
        began = time.perf_counter()
        torch.save(tensors_of(state), folder / "state.pt")
        blocking.append(time.perf_counter() - began + steps(number))
    return {
        "plain_seconds": plain, "background_seconds": background, "torch_save_seconds": blocking,
        "copy_seconds": copies, "written_within_the_round": all(written),
        "delay_background": median(b / p for b, p in zip(background, plain, strict=True)) - 1,
        "delay_torch_save": median(b / p for b, p in zip(blocking, plain, strict=True)) - 1,
        "delay_copy_alone": median(copies) / median(plain),
    }  # fmt: skip


if __name__ == "__main__":
    main()
