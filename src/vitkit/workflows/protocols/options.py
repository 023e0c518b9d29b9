"""What the protocols can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from vitkit.errors import UsageError, named

L2 = 2.0**10  # of the few-shot least squares: big_vision's; the paper's is unpublished
MOST_SEEDS = 1000  # each is a fit of its own


@dataclass(frozen=True)
class ProtocolOptions:
    l2: float = L2
    """Few-shot: the penalty of the least squares; big_vision's by default."""
    sweep_l2: bool = False
    """Few-shot: choose the penalty among powers of two, on training images held apart."""
    shots: tuple[int, ...] = (1, 5, 10, 25)
    """Few-shot: training images of each class."""
    seeds: int = 3
    """Few-shot: how many draws of the shots to average over."""
    k: int = 10
    """k-NN: neighbours that vote."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """k-NN: how near two images' features are."""
    classes: (
        Literal["imagenet-r", "imagenet-a", "imagenet-v2", "imagenet-sketch", "objectnet"] | None
    ) = None
    """Top-k: DATA is this set made beside ImageNet; it is scored among the set's own classes."""
    real: str = ""
    """Real: the ReaL labels, real.json of google-research/reassessed-imagenet."""
    corruptions: str = ""
    """Corruptions: which ones, with commas between them; by default gaussian-noise, shot-noise,
    impulse-noise, defocus-blur, motion-blur, zoom-blur, snow, fog, brightness, contrast,
    elastic-transform, pixelate, jpeg-compression; also speckle-noise, gaussian-blur, saturate."""
    severities: str = "1,2,3,4,5"
    """Corruptions: how strong, 1 to 5."""
    shifts: str = ""
    """Translations: by how many pixels, with commas between; by default up to 1/8 of the side."""
    seed: int = 0
    """Corruptions: of their draws."""
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
        object.__setattr__(self, "shots", tuple(self.shots))
        for name, values in (("shots", self.shots), ("seeds", [self.seeds]), ("k", [self.k])):
            if not values or min(values) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.l2 < math.inf:
            raise UsageError(f"l2 is {self.l2}; it must be above 0, and finite")
        if self.metric not in ("cosine", "euclidean"):
            raise UsageError(f"metric is {self.metric!r}; it must be cosine or euclidean")
        for name in ("vtab_steps", "vtab_side", "vtab_test"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.seeds > MOST_SEEDS:
            raise UsageError(f"seeds is {self.seeds}; it must be at most {MOST_SEEDS}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}; it must be from 0 to 2**63 - 1")
        named("vtab_method", self.vtab_method, ("linear", "finetune"))
        if self.sweep_l2 and self.l2 != L2:
            raise UsageError(f"l2 is {self.l2:g} and sweep_l2 chooses another; leave out one")
        for name in ("vtab_steps", "vtab_side"):
            if getattr(self, name) and self.vtab_method != "finetune":
                raise UsageError(f"{name} is of fine-tuning; add --vtab-method finetune")


READ_BY = {  # by which protocol each option is read
    "l2": "few-shot", "sweep_l2": "few-shot", "shots": "few-shot", "seeds": "few-shot",
    "k": "knn", "metric": "knn",
    "classes": "top-k",
    "real": "real",
    "corruptions": "corruptions", "severities": "corruptions", "seed": "corruptions",
    "shifts": "translations",
    "tasks": "vtab", "vtab_method": "vtab", "vtab_steps": "vtab", "vtab_side": "vtab",
    "vtab_test": "vtab",
}  # fmt: skip
LEARN = ("few-shot", "knn", "linear")  # the protocols that --train is for


def options_of(protocol: str, options: ProtocolOptions) -> dict[str, Any]:
    """Those that the protocol reads, by name."""
    return {name: getattr(options, name) for name, by in READ_BY.items() if by == protocol}


def require_read(options: ProtocolOptions, protocol: str, train: bool = False) -> None:
    """UsageError for an option that is not as by default and that the protocol does not read, or
    for images to learn from where it learns nothing of them."""
    if train and protocol not in LEARN:
        raise UsageError(
            f"--train is where {', '.join(LEARN)} learn from, and {protocol} learns nothing; "
            "add --protocol few-shot, say"
        )
    usual = ProtocolOptions()
    for name, reader in READ_BY.items():
        if reader != protocol and getattr(options, name) != getattr(usual, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is for --protocol {reader}, and {protocol} does not "
                "read it; leave it out"
            )
