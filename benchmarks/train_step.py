"""Images per second of a training step: vitkit's net against timm's of the same shape.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --model-shape ViT-Ti/4 --batch-size 128 --rounds 20

Each net, timm's with its fused attention and without, trains in float32, under bfloat16 autocast
and under bfloat16 autocast with torch.compile; "first s" is the first step, compilation included.
A step is forward, cross-entropy, backward, clipping by the global norm and fused AdamW, on one
batch of noise, so that reading data costs nothing. All take turns in one process and the times are
medians, so that whatever else the machine does falls on all of them. "of matmul" is the share of
this machine's own rate of bfloat16 matrix products, measured in the same turns, that the net's
matrix products reach.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from timm.layers import set_fused_attn
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.models.cost import flops
from vitkit.models.variants import config
from vitkit.models.vit import VisionTransformer, ViTConfig

CLASSES = 10
MATMUL_SIDE = 2048
PRECISIONS = ("float32", "bfloat16", "bfloat16 compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description="A training step of vitkit's net and of timm's.")
    parser.add_argument("--model-shape", default="ViT-Nano/4")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    net_config = config(args.model_shape, CLASSES, args.image_size)
    images = torch.randn(args.batch_size, 3, *net_config.image_size, device=args.device)
    labels = torch.randint(CLASSES, (args.batch_size,), device=args.device)
    runs = {
        (maker, precision): training_step(
            make(net_config).to(args.device), precision, images, labels
        )
        for precision in PRECISIONS
        for maker, make in MAKERS.items()
    }
    runs["matmul"] = matmul(args.device)
    first = {name: timed(run) for name, run in runs.items()}  # compiles
    seconds = race(runs, args.rounds)

    matmul_rate = 2 * MATMUL_SIDE**3 / seconds.pop("matmul")  # FLOP/s
    print(f"{args.model_shape}, {args.image_size}x{args.image_size}, batch {args.batch_size}; "
          f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads; "
          f"bfloat16 matmul {matmul_rate / 1e9:.0f} GFLOP/s")  # fmt: skip
    print("net                       precision          first s   step ms   images/s  of matmul")
    for (maker, precision), median_s in seconds.items():
        images_per_s = args.batch_size / median_s
        share = 3 * flops(net_config) * images_per_s / matmul_rate  # a step is three forward passes
        print(f"{maker:24}  {precision:17}  {first[maker, precision]:7.1f}  {median_s * 1e3:8.1f}  "
              f"{images_per_s:9.0f}  {share:9.0%}")  # fmt: skip


def timm_net(config: ViTConfig, fused: bool) -> nn.Module:
    set_fused_attn(fused)  # read when a block is made
    return TimmVisionTransformer(
        img_size=config.image_size, patch_size=config.patch, num_classes=config.classes,
        embed_dim=config.width, depth=config.depth, num_heads=config.heads,
        mlp_ratio=config.mlp_width / config.width, act_layer="gelu_tanh",
    )  # fmt: skip


MAKERS = {
    "vitkit": VisionTransformer,
    "timm, fused attention": lambda config: timm_net(config, fused=True),
    "timm, plain attention": lambda config: timm_net(config, fused=False),
}


def training_step(
    net: nn.Module, precision: str, images: Tensor, labels: Tensor
) -> Callable[[], None]:
    """A function of nothing that takes one training step."""
    parameters = list(net.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    forward = torch.compile(net) if precision == "bfloat16 compiled" else net
    device = images.device.type

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision != "float32"):
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def matmul(device: str) -> Callable[[], None]:
    """A function of nothing that multiplies two square matrices."""
    a, b = torch.randn(2, MATMUL_SIDE, MATMUL_SIDE, dtype=torch.bfloat16, device=device)
    return lambda: a @ b


def race(runs: dict, rounds: int) -> dict:
    """The median seconds of each run, taken in turns."""
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run))
    return {name: median(times) for name, times in seconds.items()}


def timed(run: Callable[[], None]) -> float:
    start = perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return perf_counter() - start


if __name__ == "__main__":
    main()
