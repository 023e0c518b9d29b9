"""Where attention written out stops being faster than PyTorch's fused kernel.

    python benchmarks/attention.py
    python benchmarks/attention.py --tokens 65 197 --rounds 20 --device cuda

For each length of sequence and each precision it prints the milliseconds of both ways, forward
alone (as in prediction) and forward with backward (as in training), and how many times faster
written-out attention is. The number of images falls as the sequence grows, so that every row works
on about as many tokens. Times are medians; the ways take turns, so that whatever else the machine
does falls on both. `vitkit.models.attend.WRITTEN_OUT_UP_TO` was chosen by this table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch
from torch.nn import functional as F

from vitkit.models.attend import attend_written_out

WAYS = {"written out": attend_written_out, "fused": F.scaled_dot_product_attention}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description="Attention written out against the fused kernel.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[65, 197, 577, 1025, 2049, 4097])
    parser.add_argument("--total-tokens", type=int, default=4096, help="of all images together")
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--head-width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads; ms")
    print("precision  tokens  images  pass       written out      fused  fused / written out")
    for name, dtype in DTYPES.items():
        for tokens in args.tokens:
            images = max(1, args.total_tokens // tokens)
            shape = (images, tokens, args.heads, args.head_width)
            for backward in (False, True):
                ways = {way: one_pass(f, shape, dtype, args.device, backward)
                        for way, f in WAYS.items()}  # fmt: skip
                written_out, fused = race(ways, args.rounds, args.device).values()
                print(
                    f"{name:9}  {tokens:6}  {images:6}  {'both' if backward else 'forward':7}"
                    f"  {written_out * 1e3:13.2f}  {fused * 1e3:9.2f}  {fused / written_out:19.2f}",
                    flush=True,
                )


def one_pass(
    attend: Callable, shape: tuple[int, ...], dtype: torch.dtype, device: str, backward: bool
) -> Callable[[], None]:
    """A function of nothing that attends once, with q, k and v laid out as the net has them."""
    images, tokens, heads, width = shape
    qkv = torch.randn(images, tokens, 3, heads, width, dtype=dtype, device=device)
    qkv.requires_grad_(backward)
    gradient = torch.randn(images, heads, tokens, width, dtype=dtype, device=device)

    def run() -> None:
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        with torch.set_grad_enabled(backward):
            output = attend(q, k, v)
        if backward:
            output.backward(gradient)
            qkv.grad = None

    return run


def race(ways: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, float]:
    """The median seconds of each way, run in turns after one turn that does not count."""
    seconds = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, run in ways.items():
            start = perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            if turn:
                seconds[way].append(perf_counter() - start)
    return {way: median(times) for way, times in seconds.items()}


if __name__ == "__main__":
    main()
