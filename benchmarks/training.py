"""Training steps of one architecture by vitkit, timm, transformers, torchvision and Flax.

    python benchmarks/training.py
    python benchmarks/training.py --device cuda --batch-size 128 --rounds 20 --json b16.json
    python benchmarks/training.py --net ViT-Nano/4 --image-size 32 --classes 10 --batch-size 64 \
        --rows eager --threads 1 --cpu-clock --memory

A step is forward, softmax cross-entropy, backward, clipping by the global norm 1 and AdamW, on one
batch of noise that is on the device already: reading data costs nothing. Every library steps as
its own training does. vitkit's row is its training loop's step on uint8 images, normalising
included; timm's and torchvision's are those of their scripts, whose AdamW is not fused (timm's
compiled rows have a fused one); transformers' is its Trainer's; Flax' is jitted with optax.

All rows take turns in one process and the times are medians, so that whatever else the machine
does falls on all of them. "of matmul" is the share of this device's own rate of bfloat16 matrix
products, measured in the same turns, that the net's matrix products reach. "vitkit /" is how many
times as fast as the row vitkit's fastest row is, of all and of those in the row's precision.

Memory is a step's peak above what was there before the net was made, weights and optimizer
included: on CUDA what torch allocates, on a CPU with --memory the growth of a process of its own
(which then includes what compiling left behind). The CPU clock counts this process's time on all
threads together, for machines that others use too; with --threads 1 it is that of a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch

from racing import Step, machine, matmul, matmul_rate, race, timed
from training_steps import ROWS, Case, Row
from vitkit.models.cost import flops
from vitkit.models.variants import config
from vitkit.models.vit import ViTConfig

HEADER = (
    "row",
    "first s",
    "step ms",
    "images/s",
    "of matmul",
    "peak MiB",
    "vitkit /",
    "same prec.",
)
MEMORY_STEPS = 3


def main() -> None:
    args, given = parser().parse_args(), sys.argv[1:]
    if args.cpu_clock and args.device == "cuda":
        sys.exit("--cpu-clock does not see what a GPU does; leave it out with --device cuda")
    torch.set_num_threads(args.threads)
    case = case_of(args)
    if args.one_row_memory is not None:
        print(memory_growth(next(r for r in ROWS if r.name == args.one_row_memory), case))
        return

    rows, left_out = chosen(args.rows)
    clock = "cpu" if args.cpu_clock else "wall"
    runs, found = {}, {}
    for row in rows:
        runs[row.name], found[row.name] = begun(row, case, clock)
    multiply = matmul(args.device)
    timed(multiply)
    seconds = race({**runs, "matmul": multiply}, args.rounds, args.device, clock)
    rate = matmul_rate(seconds.pop("matmul"), args.device)
    for name, run in runs.items():
        found[name] |= figures(seconds[name], case, rate) | {"last_loss": float(run())}
        if args.memory and args.device == "cpu":
            found[name]["peak_bytes"] = in_a_process(given, name)
    add_ratios(found)
    result = machine(args.device, clock) | {
        "net": args.net, "image_size": args.image_size, "classes": args.classes,
        "batch_size": args.batch_size, "rounds": args.rounds, "matmul_flops_per_second": rate,
        "left_out": left_out, "rows": list(found.values()),
    }  # fmt: skip
    show(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--net", default="ViT-B/16", help="a ViT of `vitkit models`")
    made.add_argument("--image-size", type=int, default=224)
    made.add_argument("--classes", type=int, default=1000)
    made.add_argument("--batch-size", type=int, default=8)
    made.add_argument("--rounds", type=int, default=10)
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--threads", type=int, default=torch.get_num_threads())
    names = ", ".join(row.name.replace(", ", " / ") for row in ROWS)
    made.add_argument("--rows", default="", help=f"parts of names, with commas between: {names}")
    made.add_argument("--json", type=Path, help="a file to write everything to")
    made.add_argument("--cpu-clock", action="store_true", help="CPU time instead of the wall's")
    made.add_argument("--memory", action="store_true", help="measure memory on a CPU too")
    made.add_argument("--one-row-memory", help=argparse.SUPPRESS)  # what --memory starts
    return made


def case_of(args: argparse.Namespace) -> Case:
    net = config(args.net, args.classes, args.image_size)
    if not isinstance(net, ViTConfig) or net.stem is not None:
        sys.exit(f"--net {args.net}: the other libraries' nets here are plain ViTs")
    torch.manual_seed(0)
    pixels = torch.randint(256, (args.batch_size, 3, *net.image_size), dtype=torch.uint8)
    labels = torch.randint(args.classes, (args.batch_size,))
    return Case(net, pixels.to(args.device), labels.to(args.device))


def chosen(wanted: str) -> tuple[list[Row], dict[str, str]]:
    """The rows asked for, and those of them that cannot be, with why."""
    parts = [part.strip() for part in wanted.split(",") if part.strip()] or [""]
    rows = [row for row in ROWS if any(part in row.name for part in parts)]
    if not rows:
        sys.exit(f"--rows {wanted}: no row has such a name; see --help")
    left_out = {r.name: " and ".join(r.missing()) + " not installed" for r in rows if r.missing()}
    for name, why in left_out.items():
        print(f"{name}: {why}: row left out", file=sys.stderr)
    return [row for row in rows if row.name not in left_out], left_out


def begun(row: Row, case: Case, clock: str) -> tuple[Step, dict[str, Any]]:
    """A row's step, after the first ones, and what these tell."""
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    step = row.step(case)
    first, peak = timed(step, clock), None
    cuda = case.pixels.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    timed(step)  # some compile a second time
    if cuda and "jax" not in row.needs:  # torch does not see JAX's memory
        peak = torch.cuda.max_memory_allocated() - before
    return step, {
        "row": row.name, "precision": row.precision, "first_step_seconds": first,
        "peak_bytes": peak,
    }  # fmt: skip


def figures(seconds: list[float], case: Case, rate: float) -> dict[str, Any]:
    step = median(seconds)
    images_per_second = len(case.labels) / step
    share = 3 * flops(case.net) * images_per_second / rate  # a step is three forward passes
    return {
        "step_seconds": step, "all_step_seconds": seconds,
        "images_per_second": images_per_second, "share_of_matmul_rate": share,
    }  # fmt: skip


def add_ratios(found: dict[str, dict[str, Any]]) -> None:
    """vitkit's fastest row over each: of all, and of those in the same precision."""
    for row in found.values():
        for key, same in (("vitkit_ratio", False), ("vitkit_ratio_same_precision", True)):
            ours = [
                other["images_per_second"] for other in found.values()
                if other["row"].startswith("vitkit")
                and (not same or other["precision"] == row["precision"])
            ]  # fmt: skip
            row[key] = max(ours) / row["images_per_second"] if ours else None


def memory_growth(row: Row, case: Case) -> int:
    """Bytes by which this process grows at most in steps after the first."""
    small = config("ViT-Femto/2", 10, 2)
    row.step(Case(small, case.pixels[:1, :, :2, :2], case.labels[:1] % 10))()  # imports, threads
    torch.compiler.reset()
    gc.collect()
    before = resident("VmRSS")
    step = row.step(case)
    timed(step)
    # Forget the peak so far: what compiling took for a while is not what training takes.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    for _ in range(MEMORY_STEPS):
        timed(step)
    return resident("VmHWM") - before


def resident(kind: str) -> int:
    """Bytes, now (VmRSS) or at most (VmHWM); getrusage would count the parent's memory too."""
    status = Path("/proc/self/status")
    if not status.exists():
        sys.exit("--memory on a CPU needs Linux's /proc")
    lines = status.read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(kind))


def in_a_process(given: list[str], name: str) -> int:
    command = [sys.executable, __file__, *given, "--one-row-memory", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.splitlines()[-1])


def show(result: dict[str, Any]) -> None:
    print(f"{result['net']} at {result['image_size']} pixels, batch {result['batch_size']}, "
          f"{result['rounds']} rounds; torch {result['versions']['torch']}, "
          f"{result['device_name']}, {result['threads']} threads, {result['clock']} clock; "
          f"bfloat16 matmul {result['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s")  # fmt: skip
    print(f"{HEADER[0]:36}" + "".join(f"{title:>11}" for title in HEADER[1:]))
    for row in result["rows"]:
        peak = row["peak_bytes"]
        cells = [
            f"{row['first_step_seconds']:.1f}", f"{row['step_seconds'] * 1e3:.1f}",
            f"{row['images_per_second']:,.1f}", f"{row['share_of_matmul_rate']:.1%}",
            "-" if peak is None else f"{peak / 2**20:,.0f}",
            times(row["vitkit_ratio"]), times(row["vitkit_ratio_same_precision"]),
        ]  # fmt: skip
        print(f"{row['row']:36}" + "".join(f"{cell:>11}" for cell in cells))


def times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


if __name__ == "__main__":
    main()
