"""What inspections cost beside plain passes of the same net, and beside timm's way of extraction.

    python benchmarks/inspection.py --threads 2
    python benchmarks/inspection.py --parts image --rounds 15 --json inspection.json
    python benchmarks/inspection.py --net ViT-Pico/4 --image-size 32 --peer "" --threads 1

"image": one image, all ways in turns, medians; "x plain" is over a plain pass of the same library.
"distances": mean attention distance over `--images` images beside plain passes over them, batch by
batch in turns. "memory": the largest resident size of fresh processes that measure a fourth of the
images, and all of them; their weights and library are in it. "flow": of one image's maps, random
and as long as the net's, once.

timm's maps come by `timm.utils.AttentionExtract` with its fused attention turned off.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from racing import Step, machine, race
from vitkit.inspection.attention import attention, recorded
from vitkit.inspection.distance import mean_distances, measured
from vitkit.inspection.flow import flow
from vitkit.inspection.relevance import relevance
from vitkit.inspection.rollout import rollout, rollout_of
from vitkit.models.nets import Net
from vitkit.models.variants import build

PARTS = ("image", "distances", "memory", "flow")
CLASSES = 1000


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        mean_distances(net_of(args), batches(args, args.memory_of))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)  # Linux counts in KiB
        return
    parts = args.parts.split(",")
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        sys.exit(f"--parts {','.join(unknown)}: known are {', '.join(PARTS)}")
    result = machine("cpu", "wall") | {"net": args.net, "image_size": args.image_size}
    print(f"{args.net}, {args.image_size} pixels, {result['device_name']}, {args.threads} threads, "
          f"torch {torch.__version__}")  # fmt: skip
    measures: dict[str, Callable[[argparse.Namespace], Any]] = {
        "image": of_one_image, "distances": of_many, "memory": memory, "flow": of_flow,
    }  # fmt: skip
    for part in parts:
        result[part] = measures[part](args)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


def of_one_image(args: argparse.Namespace) -> list[dict[str, Any]]:
    net, image = net_of(args), next(batches(args, 1))
    runs: dict[str, Step] = {
        "vitkit plain": lambda: plain(net, image),
        "vitkit class token's rows": lambda: attention(net, image, queries=0),
        "vitkit all maps": lambda: attention(net, image),
        "vitkit rollout": lambda: rollout_of(net, image),
        "vitkit maps, distances, rollout": lambda: inspection(net, image),
        "vitkit relevance of a class": lambda: relevance(net, image),
    }
    if args.peer:
        runs |= timm_runs(args.peer, args.image_size, image)
    race(runs, 1, "cpu", "wall")
    seconds = race(runs, args.rounds, "cpu", "wall")
    rows = []
    print("one image                           ms  x plain")
    for name, times in seconds.items():
        own = median(seconds[f"{name.split()[0]} plain"])
        rows.append({"way": name, "seconds": median(times), "of_plain": median(times) / own})
        print(f"{name:32}  {median(times) * 1e3:6.1f}  {median(times) / own:7.2f}", flush=True)
    return rows


@torch.inference_mode()
def plain(net: Net, images: Tensor) -> None:
    net(images)


def inspection(net: Net, image: Tensor) -> None:
    """All maps of all layers, their distances, and rollout, by one pass."""
    with torch.inference_mode(), recorded(net) as maps, measured(net) as sums:
        net(image)
    sums.found()
    rollout(torch.stack(list(maps.values()), dim=1)[0])


def timm_runs(name: str, image_size: int, image: Tensor) -> dict[str, Step]:
    import timm
    from timm.layers import set_fused_attn
    from timm.utils import AttentionExtract

    fused = timm.create_model(name, img_size=image_size).eval()
    set_fused_attn(False)
    extract = AttentionExtract(timm.create_model(name, img_size=image_size), method="fx")

    def maps() -> None:
        with torch.inference_mode():
            torch.stack(list(extract(image).values()), dim=1)

    return {"timm plain": lambda: plain(fused, image), "timm all maps": maps}


def of_many(args: argparse.Namespace) -> dict[str, float]:
    net, seconds = net_of(args), [0.0, 0.0]
    plain(net, next(batches(args, 1)))
    for images in batches(args, args.images):
        for way, run in enumerate((plain, mean_distance_of)):
            start = perf_counter()
            run(net, images)
            seconds[way] += perf_counter() - start
    ratio = seconds[1] / seconds[0]
    print(f"distances of {args.images} images: {seconds[1]:.1f} s, plain passes "
          f"{seconds[0]:.1f} s, ratio {ratio:.2f}")  # fmt: skip
    return {"images": args.images, "plain": seconds[0], "seconds": seconds[1], "of_plain": ratio}


def mean_distance_of(net: Net, images: Tensor) -> None:
    mean_distances(net, [images])


def memory(args: argparse.Namespace) -> dict[str, int]:
    found = {}
    for images in (args.images // 4, args.images):
        command = [sys.executable, __file__, "--memory-of", str(images), "--net", args.net,
                   "--image-size", str(args.image_size), "--threads", str(args.threads),
                   "--batch-size", str(args.batch_size)]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[str(images)] = int(done.stdout)
        print(f"memory for distances of {images} images: {int(done.stdout) / 2**20:.0f} MiB")
    return found


def of_flow(args: argparse.Namespace) -> dict[str, float]:
    config = net_of(args).config
    logits = torch.randn(config.depth, config.heads, config.tokens, config.tokens) * 2
    start = perf_counter()
    flow(logits.softmax(-1))
    seconds = perf_counter() - start
    print(f"flow through {config.depth} layers of {config.tokens} tokens: {seconds:.1f} s")
    return {"layers": config.depth, "tokens": config.tokens, "seconds": seconds}


def net_of(args: argparse.Namespace) -> Any:
    return build(args.net, CLASSES, args.image_size).eval()


def batches(args: argparse.Namespace, images: int) -> Iterator[Tensor]:
    """Noise, so many images of it, as the net reads them."""
    for first in range(0, images, args.batch_size):
        count = min(args.batch_size, images - first)
        yield torch.randn(count, 3, args.image_size, args.image_size)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="What inspections cost beside plain passes.")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--net", default="ViT-B/16")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--peer", default="vit_base_patch16_224", help="of timm; '' for none")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=128, help="of distances and memory")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="a file for all that was measured")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
