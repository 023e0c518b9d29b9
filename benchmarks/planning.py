"""How well `vitkit plan` tells the time and the memory of a run, against the run itself.

    python benchmarks/planning.py
    python benchmarks/planning.py --json planning.json

For each case the plan probes some steps on noise in a process of its own; then the command line
trains for real on scikit-learn's digits, enlarged, in another. Its time is that of the steps that
it logs, images loaded, without evaluation. Memory is the peak of that process above what it takes
to train ViT-Femto/2 on 8x8 digits (the libraries), so it holds decoded images and the loader's
batches, which the plan leaves out. tests/training/test_memory_plan.py measures the steps alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from racing import machine

NOTHING = ("ViT-Femto/2", 8, 16, "off")
CASES = (  # net, side, batch, compile
    ("ViT-Ti/16", 224, 16, "off"),
    ("ViT-Ti/4", 32, 128, "on"),
    ("ViT-S/16", 160, 16, "off"),
    ("BiT-R50x1", 128, 8, "off"),
    ("R26+ViT-S/32", 160, 16, "off"),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path, help="a file to write everything to")
    args = parser.parse_args()
    nothing = ran(NOTHING, args.steps)["memory"]
    rows = [compared(case, args.steps, nothing) for case in CASES]
    print(f"{'net':14} {'side':>5} {'batch':>6} {'planned ms':>11} {'step ms':>8} {'ratio':>6} "
          f"{'planned MiB':>12} {'peak MiB':>9} {'ratio':>6}")  # fmt: skip
    for row in rows:
        net, side, batch, _ = row["case"]
        print(f"{net:14} {side:5} {batch:6} {row['planned_seconds'] * 1e3:11.0f} "
              f"{row['seconds'] * 1e3:8.0f} {row['planned_seconds'] / row['seconds']:6.2f} "
              f"{row['planned_memory'] / 2**20:12.0f} {row['memory'] / 2**20:9.0f} "
              f"{row['planned_memory'] / row['memory']:6.2f}")  # fmt: skip
    if args.json:
        result = machine("cpu", "wall") | {"rows": rows}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compared(case: tuple, steps: int, nothing: int) -> dict:
    found = vitkit("plan", *words(case, steps))
    kind = next(r for r in found["memory"] if r["checkpointing"] == "none")
    real = ran(case, steps)
    return {
        "case": case, "planned_seconds": found["seconds_per_step"], "seconds": real["seconds"],
        "planned_memory": kind["total"], "memory": real["memory"] - nothing,
    }  # fmt: skip


def ran(case: tuple, steps: int) -> dict:
    """A real run: the median seconds of a step, and the process's peak in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        every = ["--evaluate-every", str(steps), "--checkpointing", "none"]
        vitkit("pretrain", *words(case, steps), "--out", str(out), *every)
        lines = (out / "metrics.jsonl").read_text().splitlines()
    logged = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    return {
        "seconds": case[2] / median(record["images_per_second"] for record in logged),
        "memory": max(record["memory_bytes"] for record in logged),
    }


def words(case: tuple, steps: int) -> list[str]:
    net, side, batch, compiled = case
    return ["digits", "--model", net, "--image-size", str(side), "--batch-size", str(batch),
            "--steps", str(steps), "--compile", compiled, "--device", "cpu"]  # fmt: skip


def vitkit(*given: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "vitkit", *given, "--json"], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
