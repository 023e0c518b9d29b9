"""Learning rates over a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal


def warmup_decay(
    kind: Literal["cosine", "linear"],
    base: float,
    total_steps: int,
    warmup_steps: int,
    linear_end: float = 1e-5,
) -> Callable[[int], float]:
    """A function step -> learning rate: linear warm-up times a decay.

    The first step is step 0, so with a warm-up it has a learning rate of 0. The decay runs from
    the end of the warm-up to `total_steps`: to 0 by a half cosine, or to `linear_end` linearly.
    Source: vision_transformer, vit_jax/utils.py, create_learning_rate_schedule.
    """
    if kind not in ("cosine", "linear"):
        raise ValueError(f"schedule kind {kind!r} is not known; choose 'cosine' or 'linear'")

    def learning_rate(step: int) -> float:
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        progress = min(1.0, max(0.0, progress))
        if kind == "linear":
            rate = linear_end + (base - linear_end) * (1 - progress)
        else:
            rate = base * 0.5 * (1 + math.cos(math.pi * progress))
        return rate * min(1.0, step / warmup_steps) if warmup_steps else rate

    return learning_rate
