"""A training step of SimCLR on two views of each image beside one on the images and their labels.

    python benchmarks/contrastive.py --json benchmarks/results/contrastive.json
    python benchmarks/contrastive.py --net ViT-Ti/16 --batch-size 16 --rounds 9

Steps are those of benchmarks/masking.py: of B images on labels, of 2 B views by SimCLR, the same
net. "views" is a step on labels of as many images as SimCLR has views, so that what the projection
head and the comparison cost stands by itself. "augmented" has SimCLR's colours and blur on top,
which a run does to each batch before its step. All take turns in one process; times are medians,
and ratios are to the supervised step.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from masking import SUPERVISED, step_of
from racing import Step, machine, race, timed
from vitkit.data.augmentation.augment import Augmenter
from vitkit.training.config import DataConfig
from vitkit.training.parallel import Engine
from vitkit.training.precision import choose_precision

CONTRASTIVE = replace(SUPERVISED, objective="simclr", data=DataConfig(repeats=2))
# arXiv 2002.05709, appendix A, at strength 1
AUGMENTER = Augmenter(0, 0, jitter=(0.8, 0.8, 0.8, 0.2), jitter_share=0.8, grayscale=0.2, blur=0.5)


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    engine = Engine(device, choose_precision(args.precision, device), args.threads, args.compile)
    runs = steps(args.net, args.batch_size, args.image_size, engine)
    for run in runs.values():  # what is made once: the optimizer's moments, caches
        timed(run)
    seconds = race(runs, args.rounds, device.type, "wall")
    step = {name: median(column) for name, column in seconds.items()}
    print(f"{engine.summary()}, {args.threads} threads, {args.net}, {args.batch_size} images of "
          f"{args.image_size} pixels, {args.rounds} rounds")  # fmt: skip
    for name in step:
        print(f"{name:12} {step[name] * 1e3:8.1f} ms  {step[name] / step['supervised']:6.3f}")
    if args.json:
        result = machine(args.device, "wall") | {
            "precision": engine.precision.name, "compiled": engine.compile, "net": args.net,
            "batch_size": args.batch_size, "image_size": args.image_size, "step_seconds": step,
            "ratio": {name: value / step["supervised"] for name, value in step.items()},
            "all_step_seconds": seconds,
        }  # fmt: skip
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def steps(net: str, batch_size: int, side: int, engine: Engine) -> dict[str, Step]:
    views = 2 * batch_size
    simclr = step_of(net, views, side, CONTRASTIVE, engine)
    pixels = torch.randint(256, (views, 3, side, side), dtype=torch.uint8).to(engine.device)
    labels, places = torch.zeros(views), torch.arange(views).numpy()

    def augmented() -> Tensor:
        AUGMENTER(pixels, labels, places)
        return simclr()

    return {
        "supervised": step_of(net, batch_size, side, SUPERVISED, engine),
        "simclr": simclr,
        "views": step_of(net, views, side, SUPERVISED, engine),
        "augmented": augmented,
    }


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("--net", default="ViT-B/16")
    words.add_argument("--batch-size", type=int, default=8, help="images; SimCLR has twice as many")
    words.add_argument("--image-size", type=int, default=224)
    words.add_argument("--rounds", type=int, default=7)
    words.add_argument("--device", default="cpu")
    words.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    words.add_argument("--compile", action="store_true")
    words.add_argument("--threads", type=int, default=torch.get_num_threads())
    words.add_argument("--json", type=Path, help="a file to write everything to")
    return words


if __name__ == "__main__":
    main()
