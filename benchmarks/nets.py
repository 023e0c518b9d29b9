"""Images per second of vitkit's nets and of timm's of the same architecture.

    python benchmarks/nets.py
    python benchmarks/nets.py --nets BiT-R50x1 --batch-size 8 --rounds 9 --dtype bfloat16

Inference and a training step's forward and backward, on one batch of noise at 224 pixels, in turns
in one process; medians. "ratio" is timm's time over vitkit's: above 1, vitkit is the faster. ViTs
compute with the erf GELU on both sides, which is the cheaper one and timm's. On one CPU thread the
clock is the process's own time, which other programs' work does not enter; else it is the wall's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter, process_time

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.models.variants import build, field_names

PEERS = {
    "ViT-B/16": "vit_base_patch16_224",
    "R50+ViT-B/16": "vit_base_r50_s16_224",
    "R26+ViT-S/32": "vit_small_r26_s32_224",
    "BiT-R50x1": "resnetv2_50x1_bit",
}
CLASSES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description="vitkit's nets beside timm's.")
    parser.add_argument("--nets", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = process_time if (args.device, args.threads) == ("cpu", 1) else perf_counter

    images = torch.randn(args.batch_size, 3, 224, 224, device=args.device)
    print(f"torch {torch.__version__}, timm {timm.__version__}, {args.device}, {args.threads} "
          f"threads, {args.dtype}, batch {args.batch_size}, {args.rounds} rounds")  # fmt: skip
    print("net            work           vitkit ms    timm ms  ratio")
    for name in args.nets:
        options = {"gelu": "erf"} if "gelu" in field_names(name) else {}
        ours = build(name, CLASSES, 224, **options).to(args.device)
        theirs = timm.create_model(PEERS[name], num_classes=CLASSES).to(args.device)
        for work, run in (("inference", inference), ("forward+back", training)):
            runs = [run(net, images, args.dtype) for net in (ours, theirs)]
            for one in runs:
                one()
            times = [[timed(one, clock) for one in runs] for _ in range(args.rounds)]
            ms, peer_ms = (1e3 * median(column) for column in zip(*times, strict=True))
            print(f"{name:13}  {work:13}  {ms:9.1f}  {peer_ms:9.1f}  {peer_ms / ms:5.2f}")


def inference(net: nn.Module, images: Tensor, dtype: str) -> Callable[[], None]:
    def run() -> None:
        net.eval()
        with torch.inference_mode(), autocast(images, dtype):
            net(images)

    return run


def training(net: nn.Module, images: Tensor, dtype: str) -> Callable[[], None]:
    labels = torch.arange(len(images), device=images.device)

    def run() -> None:
        net.train()
        with autocast(images, dtype):
            loss = F.cross_entropy(net(images), labels)
        loss.backward()
        net.zero_grad()

    return run


def autocast(images: Tensor, dtype: str) -> torch.autocast:
    return torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def timed(run: Callable[[], None], clock: Callable[[], float]) -> float:
    start = clock()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


if __name__ == "__main__":
    main()
