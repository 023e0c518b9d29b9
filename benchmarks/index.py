"""What a large index costs a process: memory, and time to open.

    python benchmarks/index.py [--images 10000000] [--shards 1000] [--json FILE]

Makes an index of so many images in tar shards (numbers only; the shards are empty files of the
right length), then opens it in a process of its own: as DATA, and as a task with a stratified part
held out. Memory is VmRSS, in which pages of mapped files count, above what the process had after
it opened an index of a hundred images in the same way; it is taken after opening, and after reading
100,000 random labels and names, and as many places of a shuffle. Writes
benchmarks/results/index.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from vitkit.data.indexes.content import Content, Rows, shards_info
from vitkit.data.indexes.index import write_columns
from vitkit.data.sampling import Order
from vitkit.data.tars.shards import Shard
from vitkit.workflows.task import Task, open_task

RESULTS = Path(__file__).with_name("results") / "index.json"
CLASSES, READS, EACH = 1000, 100_000, 110_000  # bytes of an image


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and time of a large index.")
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--measure", nargs=2, help="a small and a large index (used by itself)")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured(*args.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        small = made_up(Path(folder) / "small.index", 100, 1, 10)
        began = perf_counter()
        large = made_up(Path(folder) / "large.index", args.images, args.shards, CLASSES)
        seconds = perf_counter() - began
        size = sum(file.stat().st_size for file in large.iterdir())
        command = [sys.executable, __file__, "--measure", str(small), str(large)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found = {
        "images": args.images, "shards": args.shards, "index_mb": round(size / 1e6),
        "seconds_to_make_up": round(seconds, 1), **json.loads(done.stdout),
        "date": str(date.today()), "python": platform.python_version(), "cores": os.cpu_count(),
    }  # fmt: skip
    args.json.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def made_up(path: Path, images: int, shards: int, classes: int) -> Path:
    """An index of images that nobody took, in shards that hold nothing."""
    lengths = [images // shards + (number < images % shards) for number in range(shards)]
    listed = []
    for number, length in enumerate(lengths):
        place = path.parent / f"{path.stem}-{number:05}.tar"
        place.touch()
        os.truncate(place, length * EACH + 1024)  # takes no room on the disk
        status = place.stat()
        listed.append(Shard(str(place), status.st_size, status.st_mtime_ns))
    random = np.random.default_rng(0)
    within = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
    columns = {
        "offsets": (within * EACH + 512, "<i8"),
        "sizes": (random.integers(50_000, EACH - 512, images), "<u4"),
    }
    rows = Rows(
        "train", [f"class {number}" for number in range(classes)],
        random.integers(0, classes, images), (f"{number:09}/photo" for number in range(images)),
        "made up", shard_lengths=lengths,
    )  # fmt: skip
    info = shards_info(path, listed)
    return write_columns(path, "made up", [rows], Content("tar", info, columns))


def measured(small: str, large: str) -> dict[str, Any]:
    used(open_task(small), 100)
    before = resident()
    began = perf_counter()
    from vitkit.data.opening import open_data

    splits = open_data(large)
    seconds, after_opening = perf_counter() - began, resident() - before
    began = perf_counter()
    task = open_task(splits)
    as_task, after_task = perf_counter() - began, resident() - before
    began = perf_counter()
    used(task, READS)
    reading, after_reading = perf_counter() - began, resident() - before
    return {
        "seconds_to_open": round(seconds, 3),
        "seconds_to_hold_out": round(as_task, 3),
        "microseconds_a_read": round(reading / READS * 1e6, 1),
        "mb_after_opening": round(after_opening, 1),
        "mb_after_holding_out": round(after_task, 1),
        "mb_after_reading": round(after_reading, 1),
        "mb_at_most": round(resident("VmHWM") - before, 1),
    }


def used(task: Task, reads: int) -> None:
    """Read labels, names and places in shards at random, as training does."""
    order = Order(task.train, 100, 0)
    for batch in range(reads // 100):
        for index in order(np.arange(batch * 100, batch * 100 + 100)).tolist():
            task.train.target(index)
            task.train.key(index)
            task.train.name(index)
    for index in range(min(reads, len(task.val))):
        task.val.target(index)


def resident(what: str = "VmRSS") -> float:
    """MB of this process."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(what))
    return int(line.split()[1]) / 1000


if __name__ == "__main__":
    main()
