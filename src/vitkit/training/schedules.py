"""Learning rates over a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal


def warmup_decay(
    kind: Literal["cosine", "linear", "stairs"],
    base: float,
    total_steps: int,
    warmup_steps: int,
    linear_end: float = 1e-5,
    stairs: Sequence[float] = (),
) -> Callable[[int], float]:
    """A function step -> learning rate: linear warm-up times a decay.

    The first step is step 0, so with a warm-up it has a learning rate of 0. The decay runs from
    the end of the warm-up to `total_steps`: to 0 by a half cosine, or to `linear_end` linearly
    (vision_transformer, vit_jax/utils.py, create_learning_rate_schedule). With "stairs" it is
    divided by 10 after each of the shares `stairs` of `total_steps`, the step at the share itself
    being still before it (big_transfer, bit_hyperrule.py, get_lr).
    """
    if kind not in ("cosine", "linear", "stairs"):
        raise ValueError(
            f"schedule kind {kind!r} is not known; choose 'cosine', 'linear' or 'stairs'"
        )
    ends = [round(share * total_steps) for share in stairs]

    def learning_rate(step: int) -> float:
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        progress = min(1.0, max(0.0, progress))
        if kind == "linear":
            rate = linear_end + (base - linear_end) * (1 - progress)
        elif kind == "stairs":
            rate = base / 10 ** sum(end < step for end in ends)
        else:
            rate = base * 0.5 * (1 + math.cos(math.pi * progress))
        return rate * min(1.0, step / warmup_steps) if warmup_steps else rate

    return learning_rate
