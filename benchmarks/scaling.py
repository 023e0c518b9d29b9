"""How vitkit's training speed grows with processes, and falls with tokens, depth and batch.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --parts length,depth --net ViT-B/16 --image-sizes 128,224,384 \
        --device cuda --batch-size 64 --compile --json scaling.json
    python benchmarks/scaling.py --parts processes --device cuda --net ViT-B/16 --side 224

Processes: whole runs of the command line on the digits, enlarged to `--side` pixels, with ddp and
fsdp, by gloo on a CPU and NCCL on GPUs. Each process keeps a batch of `--batch-size`, so the whole
batch grows with them. "speed-up" is over one process; "efficiency" is that for each process. On a
CPU the processes share its cores, so a speed-up can be had only where one process leaves some idle.
A run's images/s is the median of what it logs, which includes loading the images.

The rest: the training loop's step on a batch of noise, all of a table in turns in one process.
"of matmul" is the share of the device's rate of bfloat16 matrix products, measured in the same
turns, that the net's matrix products reach.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from racing import Step, machine, matmul, matmul_rate, race, timed
from training_steps import vitkit_step
from vitkit.models.cost import flops
from vitkit.models.variants import config
from vitkit.models.vit import ViTConfig

PARTS = ("processes", "length", "depth", "batch")
CLASSES = 1000
PATIENCE = 1800  # seconds for one run


def main() -> None:
    args = parser().parse_args()
    parts = args.parts.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        sys.exit(f"--parts {','.join(unknown)}: known are {', '.join(PARTS)}")
    torch.set_num_threads(args.threads)
    clock = "cpu" if args.cpu_clock else "wall"
    result = machine(args.device, clock) | {
        "arguments": {name: str(value) for name, value in vars(args).items()}
    }
    print(f"{args.net}, {result['device_name']}, {args.threads} threads, "
          f"torch {torch.__version__}, {clock} clock")  # fmt: skip
    if "processes" in parts:
        result["processes"] = by_processes(args)
        show_processes(result["processes"])
    for part in ("length", "depth", "batch"):
        if part in parts:
            result[part] = by_cases(part, cases(part, args), args, clock)
            show_cases(part, result[part])
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--parts", default=",".join(PARTS))
    made.add_argument("--net", default="ViT-Pico/4", help="a ViT of `vitkit models`")
    made.add_argument("--side", type=int, default=32, help="of images, where it does not vary")
    made.add_argument("--batch-size", type=int, default=32, help="where it does not vary")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    made.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    made.add_argument("--compile", action="store_true", help="compile the blocks")
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument("--cpu-clock", action="store_true", help="not for processes")
    made.add_argument("--json", type=Path, help="a file to write everything to")
    made.add_argument("--processes", type=numbers, default=[1, 2, 4])
    made.add_argument("--steps", type=int, default=100, help="of each run of processes")
    made.add_argument("--image-sizes", type=numbers, default=[16, 32, 64, 96])
    made.add_argument("--depths", type=numbers, default=[2, 4, 8])
    made.add_argument("--batch-sizes", type=numbers, default=[8, 16, 32, 64])
    return made


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def by_processes(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One process, then each number of them with each sharding, with speed-ups over the one."""
    ways = [(1, None)]
    ways += [(n, sharding) for n in args.processes if n > 1 for sharding in ("ddp", "fsdp")]
    rows: list[dict[str, Any]] = []
    for processes, sharding in ways:
        row = {"processes": processes, "sharding": sharding or "none"} | run(
            args, processes, sharding
        )
        one = rows[0]["images_per_second"] if rows else row["images_per_second"]
        if one and row["images_per_second"]:
            row["speed_up"] = row["images_per_second"] / one
            row["efficiency"] = row["speed_up"] / processes
        rows.append(row)
    return rows


def run(args: argparse.Namespace, processes: int, sharding: str | None) -> dict[str, Any]:
    """A run of the command line -> its images/s, or what it ended with."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [
            sys.executable, "-m", "vitkit", "pretrain", "digits", "--out", str(out), "--json",
            "--device", args.device, "--model", args.net, "--image-size", str(args.side),
            "--batch-size", str(args.batch_size * processes), "--steps", str(args.steps),
            "--evaluate-every", str(args.steps), "--precision", args.precision,
            "--compile", "on" if args.compile else "off",
        ]  # fmt: skip
        if sharding is not None:
            command += ["--gpus", str(processes), "--sharding", sharding]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            why = lines[-1] if lines else f"exit code {done.returncode}"
            return {"images_per_second": None, "failed": why, "stderr": done.stderr[-10_000:]}
        return {"images_per_second": logged_speed(out / "metrics.jsonl")}


def logged_speed(metrics: Path) -> float:
    """Images/s; the first time that it is logged is left out, where there are more: a warm-up."""
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    speeds = [r["images_per_second"] for r in records if r["kind"] == "train"]
    return median(speeds[1:] or speeds)


def cases(part: str, args: argparse.Namespace) -> dict[int, tuple[ViTConfig, int]]:
    """(net, batch) by the number that varies."""
    net = config(args.net, CLASSES, args.side)
    if part == "length":
        return {s: (config(args.net, CLASSES, s), args.batch_size) for s in args.image_sizes}
    if part == "depth":
        return {d: (replace(net, depth=d), args.batch_size) for d in args.depths}
    return {b: (net, b) for b in args.batch_sizes}


def by_cases(
    part: str, these: dict[int, tuple[ViTConfig, int]], args: argparse.Namespace, clock: str
) -> list[dict[str, Any]]:
    if args.compile:  # a function is compiled for a few shapes only, then run as it is
        torch.compiler.reset()
        torch._dynamo.config.recompile_limit = 8 + len(these)
    runs = {str(value): begun(*case, args) for value, case in these.items()}
    runs["matmul"] = begun_once(lambda: matmul(args.device))
    seconds = race(runs, args.rounds, args.device, clock)
    rate = matmul_rate(seconds.pop("matmul"), args.device)
    rows = []
    for value, (net, batch) in these.items():
        step = median(seconds[str(value)])
        work = 3 * flops(net) * batch  # a step is three forward passes
        rows.append({
            part: value, "tokens": net.tokens, "depth": net.depth, "batch_size": batch,
            "step_seconds": step, "all_step_seconds": seconds[str(value)],
            "images_per_second": batch / step, "flops_of_step": work,
            "share_of_matmul_rate": work / step / rate,
        })  # fmt: skip
    return rows


def begun(net: ViTConfig, batch: int, args: argparse.Namespace) -> Step:
    """vitkit's step on a batch of noise, compiled and warm."""
    pixels = torch.randint(256, (batch, 3, *net.image_size), dtype=torch.uint8).to(args.device)
    labels = torch.randint(CLASSES, (batch,)).to(args.device)
    return begun_once(lambda: vitkit_step(net, args.precision, args.compile, pixels, labels))


def begun_once(make: Callable[[], Step]) -> Step:
    step = make()
    timed(step, steps=2)
    return step


def show_processes(rows: list[dict[str, Any]]) -> None:
    print("\nprocesses  sharding   images/s   speed-up  efficiency")
    for row in rows:
        start = f"{row['processes']:9}  {row['sharding']:8}  "
        if row["images_per_second"] is None:
            print(f"{start}{row['failed']}")
            continue
        ratios = [f"{row[key]:.2f}" if key in row else "-" for key in ("speed_up", "efficiency")]
        print(f"{start}{row['images_per_second']:9,.0f}  {ratios[0]:>9}  {ratios[1]:>10}")


def show_cases(part: str, rows: list[dict[str, Any]]) -> None:
    name = {"length": "image side", "depth": "depth", "batch": "batch"}[part]
    print(f"\n{name:>10}   tokens    step ms   images/s  of matmul")
    for row in rows:
        print(f"{row[part]:10}  {row['tokens']:7}  {row['step_seconds'] * 1e3:9.1f}  "
              f"{row['images_per_second']:9,.0f}  {row['share_of_matmul_rate']:9.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
