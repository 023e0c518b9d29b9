"""What the protocols can be told."""

from __future__ import annotations

from dataclasses import dataclass

L2 = 2.0**10  # of the few-shot least squares: big_vision's; the paper's is unpublished


@dataclass(frozen=True)
class ProtocolOptions:
    l2: float = L2
    """Few-shot: the penalty of the least squares; big_vision's by default."""
    tasks: str = ""
    """VTAB: the tasks, with commas between them; all of them by default."""
    vtab_test: int = 0
    """VTAB: how many test images of each task are scored; 0 for all."""
