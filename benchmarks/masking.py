"""A training step on labels beside one that learns from hidden patches, of the same net.

    python benchmarks/masking.py --json benchmarks/results/masking.json
    python benchmarks/masking.py --nets ViT-L/16 --batch-sizes 16 --rows mae --rounds 9

A step is the training loop's own on a batch of noise that is on the device already: normalising,
masking, forward, backward, clipping, AdamW, in the precision that a run takes here. Each objective
takes turns with the supervised step in one process, two at a time for the sake of memory; times are
medians, and "ratio" is the objective's over the supervised one's of the same turns. The CPU clock
is for machines that others use too: with --threads 1 it is that of a quiet one.
"""

from __future__ import annotations

import argparse
import gc
import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from racing import Step, machine, race, timed
from vitkit.data.pipeline import Batch
from vitkit.data.transforms import Preprocessing
from vitkit.models.nets import make
from vitkit.models.variants import config as config_of
from vitkit.objectives.settings import MaskingConfig
from vitkit.training.config import OptimizerConfig, TrainConfig
from vitkit.training.parallel import Engine
from vitkit.training.precision import choose_precision
from vitkit.training.step import Setup, fresh_state, train_step

SUPERVISED = TrainConfig()
ROWS = {  # MAE's decoder is its authors', 8 blocks of width 512
    "mae": replace(SUPERVISED, objective="mae", masking=MaskingConfig(rate=0.75)),
} | {
    f"masked-patches {target}": replace(
        SUPERVISED, objective="masked-patches", masking=MaskingConfig(target=target)
    )
    for target in ("mean-colour", "colours", "pixels")
}
CLASSES = 1000
RATE = 1e-4


def main() -> None:
    args = parser().parse_args()
    clock = "cpu" if args.cpu_clock else "wall"
    torch.set_num_threads(args.threads)
    engine = Engine(
        torch.device(args.device), choose_precision(args.precision, torch.device(args.device)),
        args.threads, compile=args.compile,
    )  # fmt: skip
    print(f"{engine.summary()}, {args.threads} threads, {args.image_size} pixels, "
          f"{args.rounds} rounds")  # fmt: skip
    print("net           batch  objective                   step ms  supervised ms  ratio")
    rows = []
    for net, batch_size in zip(args.nets, args.batch_sizes, strict=True):
        for name in args.rows:
            found = compared(net, batch_size, args.image_size, name, engine, args.rounds, clock)
            rows.append(found)
            print(f"{net:12} {batch_size:6}  {name:26} {found['step_seconds'] * 1e3:8.0f}  "
                  f"{found['supervised_seconds'] * 1e3:13.0f}  {found['ratio']:5.3f}",
                  flush=True)  # fmt: skip
    if args.json:
        result = machine(args.device, clock) | {
            "precision": engine.precision.name, "compiled": engine.compile,
            "image_size": args.image_size, "rows": rows,
        }  # fmt: skip
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compared(
    net: str, batch_size: int, side: int, name: str, engine: Engine, rounds: int, clock: str
) -> dict[str, Any]:
    runs = {
        row: step_of(net, batch_size, side, config, engine)
        for row, config in (("supervised", SUPERVISED), (name, ROWS[name]))
    }
    for run in runs.values():  # what is made once: the optimizer's moments, caches
        timed(run)
    seconds = race(runs, rounds, engine.device.type, clock)
    runs.clear()
    gc.collect()
    supervised, own = (median(column) for column in seconds.values())
    return {
        "net": net, "batch_size": batch_size, "objective": name, "step_seconds": own,
        "supervised_seconds": supervised, "ratio": own / supervised, "all_step_seconds": seconds,
    }  # fmt: skip


def step_of(net: str, batch_size: int, side: int, config: TrainConfig, engine: Engine) -> Step:
    """A function of nothing that takes one step and gives its loss."""
    size, classes = (side, side), 0 if config.self_supervised else CLASSES
    config = replace(config, image_size=size, batch_size=batch_size,
                     optimizer=OptimizerConfig(learning_rate=RATE, weight_decay=0.05))  # fmt: skip
    torch.manual_seed(0)
    setup = Setup(config, 1, engine, Preprocessing.direct(size), CLASSES)
    built = make(replace(config_of(net), classes=classes, image_size=size))
    state = fresh_state(built, config, engine)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch_size, 3, side, side), generator=generator).byte()
    batch = Batch(pixels.to(engine.device), torch.arange(batch_size).to(engine.device) % CLASSES,
                  torch.arange(batch_size).numpy())  # fmt: skip

    def step() -> Tensor:
        loss, _ = train_step(setup, state, batch, RATE)
        state.step += 1
        return loss

    return step


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--nets", nargs="+", default=["ViT-B/16", "ViT-L/16"])
    words.add_argument("--batch-sizes", nargs="+", type=int, default=[32, 16], help="of each net")
    words.add_argument("--image-size", type=int, default=224)
    words.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    words.add_argument("--rounds", type=int, default=7)
    words.add_argument("--device", default="cpu")
    words.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    words.add_argument("--compile", action="store_true")
    words.add_argument("--threads", type=int, default=torch.get_num_threads())
    words.add_argument("--cpu-clock", action="store_true")
    words.add_argument("--json", type=Path, help="a file to write everything to")
    return words


if __name__ == "__main__":
    main()
