"""What objectives are told. No torch here: the command line reads it to answer --help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Objective = Literal["supervised", "masked-patches", "mae", "simclr"]
SELF_SUPERVISED = ("masked-patches", "mae", "simclr")  # those that read no label


@dataclass(frozen=True)
class MaskingConfig:
    """Of the objectives masked-patches and mae: what is hidden, and what is predicted of it."""

    rate: float = 0.5
    """Share of the patches that is corrupted (masked-patches) or not shown to the encoder (mae,
    whose authors take 0.75)."""
    target: Literal["mean-colour", "colours", "pixels"] = "mean-colour"
    """masked-patches predicts a patch's mean colour in 3 bits a channel, its 4x4 downsized version
    in such colours, or all its pixels; mae always its pixels."""
    normalised: bool = True
    """mae's pixels with the mean and variance of their patch taken out."""
    decoder_width: int = 512
    """Width of mae's decoder, a multiple of 4 from 8 on."""
    decoder_depth: int = 8
    """Its blocks."""
    decoder_heads: int = 16
    """Its attention heads."""


@dataclass(frozen=True)
class ContrastiveConfig:
    """Of the objective simclr."""

    temperature: float = 0.1
    """By which similarities are divided; the lower, the more the nearest negatives count."""
    hidden_width: int = 2048
    """Width of the projection head's hidden layer."""
    width: int = 128
    """Width of what it gives."""


@dataclass(frozen=True)
class DistillationConfig:
    """A teacher whose answers a net learns beside the labels (DeiT, arXiv 2012.12877)."""

    teacher: str | None = None
    """A checkpoint of the same classes; none distils nothing."""
    targets: Literal["hard", "soft"] = "hard"
    """Its likeliest class, or its probabilities."""
    temperature: float = 1.0
    """Of soft targets alone: both nets' logits are divided by it."""
    share: float = 0.5
    """Share of the loss that is against the teacher; the rest is against the labels."""
    token: bool = False
    """Give the net a distillation token whose own head learns from the teacher; with --pooling
    token."""
