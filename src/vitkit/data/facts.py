"""What a recipe needs to know about the data. No torch here: see training/config.py."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataFacts:
    images: int = 50_000  # to train on
    classes: int = 1000
    side: int = 224  # median shorter side, pixels
    multi_label: bool = False  # whether an image may have several labels
    flip_keeps_class: bool = True  # whether a mirrored image is of the same class
