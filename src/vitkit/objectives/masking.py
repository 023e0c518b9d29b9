"""Masked patch prediction, the paper's own self-supervision: section 4.6 and appendix B.1.2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.errors import UsageError
from vitkit.models.nets import Net, NetConfig
from vitkit.models.vit import parameter
from vitkit.models.vit_config import ViTConfig
from vitkit.objectives.patches import (
    Examples,
    PatchLearner,
    examples,
    hidden_count,
    mask_draws,
    must_mask,
    on_device_of,
    patchify,
    split,
    taken,
    unnormalised,
)
from vitkit.objectives.settings import MaskingConfig

# Of the corrupted patches; the rest stays as it is.
BY_MASK, BY_ANOTHER = 0.8, 0.1
BINS = 8  # of a channel, each 32 of the 256 values wide
CELLS = {"mean-colour": 1, "colours": 4}  # along a patch's side
# Undoing the normalisation errs by some 1e-5 of a value; means of 32x32 whole ones lie 1e-3 apart.
AT_AN_EDGE = 5e-4
# Images whose cross-entropies are found together: of 32 the float32 logits of 4x4 colours take
# 100 MB, and to fetch such pieces from the system takes a CPU as long as the work itself.
AT_ONCE = 8


def check_masking(config: NetConfig, masking: MaskingConfig) -> ViTConfig:
    """The config of a net that masked patches can train. UsageError for others: `must_mask`, and
    a patch that "colours" cannot cut in 4x4."""
    vit = must_mask(config, masking.rate, "masked-patches")
    if masking.target == "colours" and vit.cell % CELLS["colours"]:
        raise UsageError(
            f"the target 'colours' cuts each patch in 4x4, which one of {vit.cell} pixels cannot "
            "be; take patches of a multiple of 4, or the target 'mean-colour'"
        )
    return vit


@dataclass(frozen=True)
class Corruption:
    """What is done to the embedded patches of a batch."""

    corrupted: np.ndarray  # int64 (B, n): which patches, every one for another reason
    masked: np.ndarray  # bool (B, N): those that become the mask embedding
    source: np.ndarray  # int64 (B, N): of which patch the embedding is that stands there


def corruption(seed: int, places: np.ndarray, patches: int, rate: float) -> Corruption:
    """round(rate * N) patches of each image at `places` (B,) of the stream: each becomes the mask
    embedding (80 %) or another patch of its image (10 %), or stays (10 %)."""
    turn, fate, other = mask_draws(seed, places, patches)
    _, corrupted = split(turn, hidden_count(rate, patches))
    chosen = np.zeros(turn.shape, dtype=bool)
    np.put_along_axis(chosen, corrupted, True, axis=1)
    masked = chosen & (fate < BY_MASK)
    swapped = chosen & ~masked & (fate < BY_MASK + BY_ANOTHER)
    own = np.arange(patches)
    further = 1 + np.floor(other * (patches - 1)).astype(np.int64)  # 1 to N - 1 patches on
    return Corruption(corrupted, masked, np.where(swapped, (own + further) % patches, own))


def colour_classes(
    images: Tensor, side: int, cells: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Normalised images (B, 3, H, W), patches of `side` pixels -> (B, N, cells * cells) int64.

    The mean colour of each cell of each patch, in 3 bits a channel, 64 red + 8 green + blue.
    """
    height, width = images.shape[2] // side, images.shape[3] // side
    x = images.to(torch.promote_types(images.dtype, torch.float32))
    along = side // cells
    x = x.unflatten(3, (-1, along)).mean(dim=4).unflatten(2, (-1, along)).mean(dim=3)
    x = x.unflatten(3, (width, cells)).unflatten(2, (height, cells)).permute(0, 2, 4, 3, 5, 1)
    levels = (unnormalised(x, mean, std) + AT_AN_EDGE).div(256 // BINS).floor().clamp(0, BINS - 1)
    red, green, blue = levels.long().unbind(-1)
    return ((red * BINS + green) * BINS + blue).flatten(3).flatten(1, 2)


def middle_colours(classes: Tensor) -> Tensor:
    """Classes of `colour_classes` (...) -> the middles of their bins (..., 3), 0..255 float32."""
    levels = torch.stack([classes // BINS**2, classes // BINS % BINS, classes % BINS], dim=-1)
    return (levels + 0.5) * (256 / BINS) - 0.5


def total_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Sum of the cross-entropies of (B, n, cells * 512) and (B, n, cells), in float32 or above."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    flat = logits.unflatten(2, (-1, BINS**3)).flatten(0, 2)
    return F.cross_entropy(flat, classes.flatten(), reduction="sum")


class MaskedPatches(PatchLearner):
    """A net learns what corrupted patches show, from the tokens after its final norm.

    Patches are corrupted as they are embedded, before positions are added. The loss is the mean
    over the corrupted patches: cross-entropy of their mean colour, or of each of 4x4 colours, 512
    classes each, or the squared error of their pixels in the normalised units that the net reads.
    """

    def __init__(
        self, net: Net, masking: MaskingConfig, seed: int,
        mean: tuple[float, ...], std: tuple[float, ...],
    ) -> None:  # fmt: skip
        super().__init__(net, masking, seed, mean, std)
        config = check_masking(net.config, masking)
        self.mask_token = parameter(1, 1, config.width)
        self.cells = CELLS.get(masking.target, 0)
        outputs = self.cells**2 * BINS**3 if self.cells else 3 * config.cell**2
        self.head = nn.Linear(config.width, outputs)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.xavier_uniform_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def loss(self, images: Tensor, labels: Tensor, places: np.ndarray) -> Tensor:
        predicted, corrupted = self.predict(images, places)
        targets = taken(self.targets(images), corrupted)
        if not self.cells:
            dtype = torch.promote_types(predicted.dtype, torch.float32)
            return F.mse_loss(predicted.to(dtype), targets)
        groups = zip(predicted.split(AT_ONCE), targets.split(AT_ONCE), strict=True)
        return torch.stack([total_entropy(*group) for group in groups]).sum() / targets.numel()

    def predict(self, images: Tensor, places: np.ndarray) -> tuple[Tensor, Tensor]:
        """What the head gives of the corrupted patches (B, n, outputs), and which they are."""
        net = self.vit
        config = net.config
        what = corruption(self.seed, places, config.grid[0] * config.grid[1], self.masking.rate)
        corrupted, masked, source = (
            on_device_of(images, one) for one in (what.corrupted, what.masked, what.source)
        )
        x = taken(net.embed_patches(images), source)
        x = torch.where(masked[..., None], self.mask_token.to(x.dtype), x)
        x = net.through_blocks(net.lead(x))
        return self.head(net.norm(taken(x, config.prefix + corrupted))), corrupted

    def targets(self, images: Tensor) -> Tensor:
        """Of every patch: classes (B, N, cells * cells), or normalised pixels (B, N, P * P * 3)."""
        side = self.vit.config.cell
        if self.cells:
            return colour_classes(images, side, self.cells, self.mean, self.std)
        return patchify(images.to(torch.promote_types(images.dtype, torch.float32)), side)

    @torch.no_grad()
    def examples(self, images: Tensor, places: np.ndarray) -> Examples:
        """Colours are painted as the middles of their bins, one over each cell of a patch."""
        predicted, corrupted = self.predict(images, places)
        config = self.vit.config
        if self.cells:
            likeliest = predicted.unflatten(2, (self.cells, self.cells, -1)).argmax(dim=-1)
            along = config.cell // self.cells
            colours = middle_colours(likeliest)  # (B, n, cells, cells, 3)
            pixels = colours.repeat_interleave(along, 2).repeat_interleave(along, 3).flatten(2)
        else:
            colours = predicted.float().unflatten(2, (-1, 3))
            pixels = unnormalised(colours, self.mean, self.std).flatten(2)
        return examples(images, config, corrupted, pixels, self.mean, self.std)
