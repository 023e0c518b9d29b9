"""Images as patches, and which of them are hidden: what masked-patches and mae have in common."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitkit.data.augmentation.placing import placed
from vitkit.data.draws import Purpose, uniforms_at
from vitkit.errors import UsageError
from vitkit.models.nets import Net, NetConfig, kind_of
from vitkit.models.vit import VisionTransformer
from vitkit.models.vit_config import ViTConfig
from vitkit.objectives.learner import Learner
from vitkit.objectives.settings import MaskingConfig

DRAWS = 3  # of each patch: its turn to be hidden, what becomes of it, which other one it becomes


@dataclass(frozen=True)
class Examples:
    """What a learner predicts of some images, to be looked at."""

    hidden: Tensor  # bool (B, N): whether the patch was hidden or corrupted
    predicted: Tensor  # float32 (B, 3, H, W), 0..1: the images, with predictions at those patches


class PatchLearner(Learner):
    """A ViT some of whose patches are hidden while it learns."""

    def __init__(
        self, net: Net, masking: MaskingConfig, seed: int,
        mean: tuple[float, ...], std: tuple[float, ...],
    ) -> None:  # fmt: skip
        """`mean` and `std` (3,), of 0..1, are those by which the images are normalised."""
        super().__init__(net)
        self.masking, self.seed, self.mean, self.std = masking, seed, tuple(mean), tuple(std)

    @property
    def vit(self) -> VisionTransformer:
        assert isinstance(self.net, VisionTransformer)  # the checks see to it
        return self.net


def must_mask(config: NetConfig, rate: float, objective: str) -> ViTConfig:
    """The config of a net whose patches can be masked at this rate.

    UsageError for a net that is no plain ViT, one that has weights between its patches and its
    head, which masking would leave as they are, and a rate that hides no patch or all of them.
    """
    if not isinstance(config, ViTConfig):
        raise UsageError(
            f"{objective} is for ViTs, and this net is of the kind {kind_of(config)}; take a ViT, "
            "or its hybrid"
        )
    parts = {
        "a distillation token": config.distillation_token,
        "attention pooling": config.pooling == "map",
        "a hidden head": config.hidden_head,
    }
    for part, there in parts.items():
        if there:
            raise UsageError(f"{objective} would not train {part}; take a net without one")
    patches = config.grid[0] * config.grid[1]
    count = hidden_count(rate, patches)
    if not 0 < count < patches:
        raise UsageError(
            f"masking.rate {rate:g} hides {count} of the {patches} patches of an image, and at "
            "least one must be hidden and one seen; give a rate nearer to 0.5, or smaller patches"
        )
    return config


def hidden_count(rate: float, patches: int) -> int:
    """The nearest whole number of patches, an even one where two are as near."""
    return round(rate * patches) if 0 <= rate <= 1 else 0


def mask_draws(seed: int, places: np.ndarray, patches: int) -> np.ndarray:
    """(DRAWS, B, N) float64 in [0, 1): those of each image's own place in the stream."""
    drawn = uniforms_at(seed, Purpose.MASK, places, DRAWS * patches)
    return drawn.reshape(-1, DRAWS, patches).swapaxes(0, 1)


def split(noise: np.ndarray, hidden: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise (B, N) -> the patches with the least of it (B, N - hidden), and the others
    (B, hidden), int64, by rising noise."""
    order = np.argsort(noise, axis=1, kind="stable")
    seen = noise.shape[1] - hidden
    return order[:, :seen], order[:, seen:]


def on_device_of(images: Tensor, index: np.ndarray) -> Tensor:
    return placed(index, images.device)


def taken(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, N, D) that index (B, n) names -> (B, n, D)."""
    return x.take_along_dim(index[..., None], dim=1)


def patchify(images: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) -> patches (B, N, P * P * 3), row by row; their pixels likewise, each with its
    channels side by side."""
    x = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, 3, h, P, w, P)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """The inverse of `patchify`, for a grid (h, w) of patches."""
    x = patches.unflatten(2, (side, side, 3)).unflatten(1, grid)  # (B, h, w, P, P, 3)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def unnormalised(values: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Normalised (..., 3) -> 0..255, though not cut off there."""
    # Channel by channel, by numbers: bringing a tensor of them to a GPU would wait for it.
    channels = zip(values.unbind(-1), mean, std, strict=True)
    return torch.stack([(x * scale + shift) * 255 for x, shift, scale in channels], dim=-1)


def examples(
    images: Tensor, config: ViTConfig, index: Tensor, predicted: Tensor,
    mean: tuple[float, ...], std: tuple[float, ...],
) -> Examples:  # fmt: skip
    """Normalised images (B, 3, H, W) in which predictions (B, n, P * P * 3), 0..255, stand at the
    patches that index (B, n) names."""
    pixels = patchify(images.float(), config.cell).unflatten(2, (-1, 3))
    patches = unnormalised(pixels, mean, std).flatten(2)
    patches.scatter_(1, index[..., None].expand_as(predicted), predicted.float())
    hidden = torch.zeros(patches.shape[:2], dtype=torch.bool, device=images.device)
    shown = unpatchify(patches, config.grid, config.cell)
    return Examples(hidden.scatter_(1, index, True), shown.div_(255).clamp_(0, 1))
