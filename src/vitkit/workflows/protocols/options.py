"""What the protocols can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitkit.errors import UsageError, named

L2 = 2.0**10  # of the few-shot least squares: big_vision's; the paper's is unpublished


@dataclass(frozen=True)
class ProtocolOptions:
    l2: float = L2
    """Few-shot: the penalty of the least squares; big_vision's by default."""
    tasks: str = ""
    """VTAB: the tasks, with commas between them; all of them by default."""
    vtab_method: Literal["linear", "finetune"] = "linear"
    """VTAB: a linear probe of the frozen features, or a net fine-tuned for each task (hours)."""
    vtab_steps: int = 0
    """VTAB, fine-tuning: steps of each task; 0 for the recipe's 2,500."""
    vtab_side: int = 0
    """VTAB, fine-tuning: side of the images in pixels; 0 for the recipe's 384."""
    vtab_test: int = 0
    """VTAB: how many test images of each task are scored; 0 for all."""

    def __post_init__(self) -> None:
        for name in ("vtab_steps", "vtab_side", "vtab_test"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        named("vtab_method", self.vtab_method, ("linear", "finetune"))
