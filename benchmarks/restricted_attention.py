"""What attention inside groups of patches costs beside global attention, and how it grows.

    python benchmarks/restricted_attention.py
    python benchmarks/restricted_attention.py --tokens 256 1024 --dtype bfloat16 --rounds 9

For each length of sequence (a square grid of patches, without a class token) it prints the
milliseconds of each pattern, forward alone (as in prediction) and forward with backward (as in
training), and how many times faster than global attention the pattern is. Times are medians of one
image; the patterns take turns, so that whatever else the machine does falls on all of them.

"growth" is the exponent between one length and the next: time ~ T^growth. By the number of pairs
it would be 2 for global attention and for a stride, 1.5 for rows and columns, 1 for windows; for
neighborhoods 1 with FlexAttention on a CUDA device and 1.5 elsewhere.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from statistics import median
from time import perf_counter

import torch

from vitkit.models.restricted import attend_within, parse_pattern

PATTERNS = ["global", "row", "column", "window:8", "stride:4", "neighborhood:7"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description="Restricted attention beside global attention.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--patterns", nargs="+", default=PATTERNS)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--head-width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, {args.dtype}; ms")
    print("tokens  pass     pattern               ms  times faster  growth")
    before: dict[tuple[str, bool], tuple[int, float]] = {}
    for tokens in args.tokens:
        for backward in (False, True):
            ways = {text: one_pass(text, tokens, backward, args) for text in args.patterns}
            times = race(ways, args.rounds, args.device)
            for text, seconds in times.items():
                faster = times["global"] / seconds if "global" in times else math.nan
                growth = exponent(before.get((text, backward)), (tokens, seconds))
                print(
                    f"{tokens:6}  {'both' if backward else 'forward':7}  {text:15}"
                    f"  {seconds * 1e3:7.2f}  {faster:12.1f}  {growth:6.2f}",
                    flush=True,
                )
                before[text, backward] = tokens, seconds


def one_pass(
    text: str, tokens: int, backward: bool, args: argparse.Namespace
) -> Callable[[], None]:
    """A function of nothing that attends once, with q, k and v laid out as the net has them."""
    side = math.isqrt(tokens)
    if side**2 != tokens:
        raise SystemExit(f"{tokens} tokens make no square grid; {side**2} would")
    pattern = parse_pattern(text)
    pattern.check((side, side))
    shape, options = (1, tokens, 3, args.heads, args.head_width), {"device": args.device}
    qkv = torch.randn(shape, dtype=DTYPES[args.dtype], requires_grad=backward, **options)
    gradient = torch.randn_like(qkv[:, :, 0]).transpose(1, 2)

    def run() -> None:
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        with torch.set_grad_enabled(backward):
            output = attend_within(q, k, v, pattern, (side, side), 0)
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


def exponent(before: tuple[int, float] | None, now: tuple[int, float]) -> float:
    if before is None:
        return math.nan
    return math.log(now[1] / before[1]) / math.log(now[0] / before[0])


if __name__ == "__main__":
    main()
