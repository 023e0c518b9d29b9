"""What is done to training images once they have their size, for a whole batch at once.

Every draw follows from (seed, purpose, position in the stream) and is made on the host; only small
tables of numbers go to the device, and nothing waits for it. So the same images come out however
the stream is cut into batches, on any number of processes and on any device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from vitkit.data.augmentation import blur, erasing, jitter
from vitkit.data.augmentation import mixup as mixing
from vitkit.data.augmentation import randaugment as rand
from vitkit.data.augmentation.placing import some
from vitkit.data.draws import Purpose, uniforms_at
from vitkit.errors import UsageError, named

# (layers, magnitude, mixup) of "How to train your ViT?" (arXiv 2106.10270), section 3.3. A
# magnitude of 0 is not nothing: the tables that invert, posterize, equalize are as at any other.
LEVELS: dict[str, tuple[int, float, float]] = {
    "none": (0, 0.0, 0.0),
    "light1": (2, 0.0, 0.0),
    "light2": (2, 10.0, 0.2),
    "medium1": (2, 15.0, 0.2),
    "medium2": (2, 15.0, 0.5),
    "strong1": (2, 20.0, 0.5),
    "strong2": (2, 20.0, 0.8),
}
STRONGEST = 30.0  # magnitude
MOST_LAYERS = 16


def resolved(
    level: str,
    layers: int | None = None,
    magnitude: float | None = None,
    mixup: float | None = None,
) -> tuple[int, float, float]:
    """RandAugment's layers and magnitude, and MixUp's alpha: what is given, else the level's.

    Layers without a magnitude, at the level "none", get 10. Raises UsageError for another level.
    """
    of_level = LEVELS[named("level of augmentation", level, LEVELS)]
    if layers and magnitude is None and not of_level[0]:
        magnitude = float(rand.FULL)
    given = (layers, magnitude, mixup)
    found = [own if own is not None else its for own, its in zip(given, of_level, strict=True)]
    return int(found[0]), float(found[1]), float(found[2])


@dataclass(frozen=True)
class Augmenter:
    """Colour jitter, grey, blur, RandAugment, random erasing, then MixUp or CutMix; 0 leaves each
    out.

    Raises UsageError for a value that cannot be.
    """

    seed: int
    classes: int
    layers: int = 0  # of RandAugment
    magnitude: float = 0.0
    mixup: float = 0.0  # alpha of Beta(alpha, alpha)
    cutmix: float = 0.0
    erase: float = 0.0  # share of the images
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_share: float = 1.0  # share of the images, as the next two
    grayscale: float = 0.0
    blur: float = 0.0

    def __post_init__(self) -> None:
        must_lie("RandAugment's layers", self.layers, 0, MOST_LAYERS)
        must_lie("RandAugment's magnitude", self.magnitude, 0, STRONGEST)
        must_lie("mixup", self.mixup, 0, 100)
        must_lie("cutmix", self.cutmix, 0, 100)
        for name in ("erase", "jitter_share", "grayscale", "blur"):
            must_lie(name, getattr(self, name), 0, 1)
        for name, amount in zip(
            ("brightness", "contrast", "saturation"), self.jitter, strict=False
        ):
            must_lie(f"jitter's {name}", amount, 0, 10)
        must_lie("jitter's hue", self.jitter[3], 0, 0.5)

    @property
    def mixes(self) -> bool:
        """Whether labels become shares (B, K), and batches must hold whole pairs."""
        return bool(self.mixup or self.cutmix)

    def __call__(
        self, images: Tensor, labels: Tensor, positions: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Images uint8 (B, 3, H, W) and labels (B,) int64 or (B, K), on the same device or not ->
        images uint8 and labels; where images are mixed, labels are float32 shares (B, K).

        `positions` (B,) int64 are those of the images in the stream of all processes; where images
        are mixed, positions 2k and 2k + 1 must be in the same batch (else ValueError). What is
        given is left as it is.
        """
        images = self.colours(images, positions)
        if self.blur:
            draws = self.draws(Purpose.BLUR, positions, blur.DRAWS)
            chosen = draws[:, 0] < self.blur
            images = some(images, chosen, lambda those: blur.blurred(those, draws[chosen, 1]))
        if self.layers:
            draws = self.draws(Purpose.RANDAUGMENT, positions, self.layers * rand.DRAWS)
            images = rand.randaugment(images, draws, self.layers, self.magnitude)
        if self.erase:
            draws = self.draws(Purpose.ERASE, positions, erasing.DRAWS)
            images = erasing.erased(images, draws, self.erase)
        if self.mixes:
            draws = self.draws(Purpose.MIX, positions, mixing.DRAWS)
            alphas = self.mixup, self.cutmix
            return mixing.mixed(images, labels, positions, draws, self.classes, *alphas)
        return images, labels

    def colours(self, images: Tensor, positions: np.ndarray) -> Tensor:
        """The images with other colours, or none."""
        if any(self.jitter):
            chosen = self.draws(Purpose.JITTERED, positions, 1)[:, 0] < self.jitter_share
            draws = self.draws(Purpose.JITTER, positions, jitter.DRAWS)[chosen]
            images = some(images, chosen, lambda those: jitter.jittered(those, draws, self.jitter))
        if self.grayscale:
            chosen = self.draws(Purpose.GRAYSCALE, positions, 1)[:, 0] < self.grayscale
            images = some(images, chosen, jitter.without_colour)
        return images

    def draws(self, purpose: Purpose, positions: np.ndarray, each: int) -> np.ndarray:
        return uniforms_at(self.seed, purpose, positions, each)


def must_lie(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # not-a-number neither
        least_and_most = f"{least:g} to {most:g}"
        raise UsageError(f"{name} is {value:g}; it can be {least_and_most}, and 0 leaves it out")
