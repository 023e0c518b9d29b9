"""What well-known accelerators hold and compute, for plans of runs on machines not at hand."""

from __future__ import annotations

from typing import NamedTuple

from vitkit.errors import named

SHARE_OF_PEAK = 0.4  # that a training step reaches: assumed, not measured


class Accelerator(NamedTuple):
    memory: int  # bytes
    bf16: float | None  # dense FLOP/s of bfloat16, None where it has none
    fp32: float  # of float32, with TF32 where it has that


GB = 10**9

# The vendors' published figures: dense rates, without sparsity. TPUv3 is one core of the two that a
# chip has, since the paper counts TPUv3-core-days.
# fmt: off
ACCELERATORS = {
    "V100":     Accelerator( 32 * GB, None,    15.7e12),
    "A100-40":  Accelerator( 40 * GB, 312e12, 156e12),
    "A100-80":  Accelerator( 80 * GB, 312e12, 156e12),
    "H100":     Accelerator( 80 * GB, 989e12, 494e12),
    "H200":     Accelerator(141 * GB, 989e12, 494e12),
    "L4":       Accelerator( 24 * GB, 121e12,  60e12),
    "L40S":     Accelerator( 48 * GB, 362e12, 183e12),
    "RTX-4090": Accelerator( 24 * GB, 165e12,  82.6e12),
    "TPUv3":    Accelerator( 16 * GB,  61.5e12, 61.5e12),
}
# fmt: on


def accelerator(name: str) -> Accelerator:
    """UsageError, with the nearest names, for one that is not in the table."""
    return ACCELERATORS[named("accelerator", name, ACCELERATORS)]
