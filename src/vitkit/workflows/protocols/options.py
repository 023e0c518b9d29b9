"""What the protocols can be told."""

from __future__ import annotations

from dataclasses import dataclass

L2 = 2.0**10  # of the few-shot least squares: big_vision's; the paper's is unpublished


@dataclass(frozen=True)
class ProtocolOptions:
    l2: float = L2
    """Few-shot: the penalty of the least squares; big_vision's by default."""
