"""What the protocols can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

L2 = 2.0**10  # of the few-shot least squares: big_vision's; the paper's is unpublished


@dataclass(frozen=True)
class ProtocolOptions:
    l2: float = L2
    """Few-shot: the penalty of the least squares; big_vision's by default."""
    classes: (
        Literal["imagenet-r", "imagenet-a", "imagenet-v2", "imagenet-sketch", "objectnet"] | None
    ) = None
    """Top-k: DATA is this set made beside ImageNet; it is scored among the set's own classes."""
    real: str = ""
    """Real: the ReaL labels, real.json of google-research/reassessed-imagenet."""
    corruptions: str = ""
    """Corruptions: which ones, with commas between them; 13 of ImageNet-C's 15 by default."""
    severities: str = "1,2,3,4,5"
    """Corruptions: how strong, 1 to 5."""
    shifts: str = ""
    """Translations: by how many pixels, with commas between; by default up to 1/8 of the side."""
    seed: int = 0
    """Corruptions: of their draws."""
