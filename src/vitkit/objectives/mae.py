"""Masked autoencoders (He et al. 2021, arXiv 2111.06377), as their models_mae.py computes them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkit.errors import UsageError
from vitkit.models.nets import Net, NetConfig
from vitkit.models.positions import sincos_2d
from vitkit.models.vit import Block, parameter
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

VARIANCE_EPS = 1e-6  # of a patch's pixels, theirs


def check_mae(config: NetConfig, masking: MaskingConfig) -> ViTConfig:
    """The config of a net that mae can train. UsageError for one whose blocks must know the whole
    grid, and for a decoder that cannot be."""
    vit = must_mask(config, masking.rate, "mae")
    whole = {
        "a convolutional stem": vit.stem is not None,
        "relative positions": vit.positions == "relative",
        f"positions at {vit.positions_at!r}": vit.positions_at != "stem",
        f"attention {vit.attention}": set(vit.attention) != {"global"},
    }
    for part, there in whole.items():
        if there:
            raise UsageError(
                f"mae shows the net only some of the patches, and {part} would need them all; take "
                "a plain ViT, or the objective masked-patches"
            )
    decoder_config(vit, masking)
    return vit


def decoder_config(config: ViTConfig, masking: MaskingConfig) -> ViTConfig:
    """What the decoder's blocks are made from; UsageError where none can be."""
    try:
        return ViTConfig(
            config.patch, masking.decoder_width, masking.decoder_depth, masking.decoder_heads,
            4 * masking.decoder_width, classes=0, image_size=config.image_size,
            pooling="token" if config.has_class_token else "mean", positions="sincos2d",
            gelu=config.gelu, norm_eps=config.norm_eps,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(f"mae's decoder: {error}") from error


class MaskedAutoencoder(PatchLearner):
    """The net reads only the patches that are left; a decoder tells the pixels of the others.

    The loss is the mean squared error over the hidden patches' pixels, in the normalised units
    that the net reads, or with `normalised` less their patch's mean and by its deviation (of an
    unbiased variance).
    """

    position_embedding: Tensor

    def __init__(
        self, net: Net, masking: MaskingConfig, seed: int,
        mean: tuple[float, ...], std: tuple[float, ...],
    ) -> None:  # fmt: skip
        super().__init__(net, masking, seed, mean, std)
        config = check_mae(net.config, masking)
        decoder = decoder_config(config, masking)
        self.hidden = hidden_count(masking.rate, config.grid[0] * config.grid[1])
        self.embedding = nn.Linear(config.width, decoder.width)
        self.mask_token = parameter(1, 1, decoder.width)
        positions = sincos_2d(config.grid, decoder.width, prefix=config.prefix)
        self.register_buffer("position_embedding", positions)  # fixed, and kept with the weights
        self.decoder_blocks = nn.ModuleList(Block(decoder, layer) for layer in range(decoder.depth))
        self.norm = nn.LayerNorm(decoder.width, eps=decoder.norm_eps)
        self.head = nn.Linear(decoder.width, 3 * config.cell**2)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        nn.init.normal_(self.mask_token, std=0.02)
        for dense in (self.embedding, self.head):
            nn.init.xavier_uniform_(dense.weight)
            nn.init.zeros_(dense.bias)
        for block in self.decoder_blocks:
            assert isinstance(block, Block)
            block.attention.initialise()
            block.mlp.initialise()

    @property
    def further_blocks(self) -> list[nn.Module]:
        return list(self.decoder_blocks)

    def loss(self, images: Tensor, labels: Tensor, places: np.ndarray) -> Tensor:
        return self.error(images, self.noise(places))

    def noise(self, places: np.ndarray) -> np.ndarray:
        """(B, N): where it is greatest patches are hidden."""
        rows, columns = self.vit.config.grid
        return mask_draws(self.seed, places, rows * columns)[0]

    def error(self, images: Tensor, noise: np.ndarray) -> Tensor:
        """The loss where this noise (B, N) hides patches."""
        predicted, hidden = self.predict(images, noise)
        targets, _, _ = self.targets(images, hidden)
        return F.mse_loss(predicted.to(targets.dtype), targets)

    def predict(self, images: Tensor, noise: np.ndarray) -> tuple[Tensor, Tensor]:
        """Pixels of the hidden patches (B, n, P * P * 3), and which these are (B, n)."""
        seen, hidden = (on_device_of(images, part) for part in split(noise, self.hidden))
        return self.decode(self.encode(images, seen), seen, hidden), hidden

    def encode(self, images: Tensor, seen: Tensor) -> Tensor:
        """(B, prefix + n, D) after the final norm: of the patches that `seen` (B, n) names."""
        net = self.vit
        return net.norm(net.through_blocks(net.lead(net.embed_patches(images), seen)))

    def decode(self, tokens: Tensor, seen: Tensor, hidden: Tensor) -> Tensor:
        """The encoder's tokens -> pixels of the hidden patches (B, n, P * P * 3).

        Attention knows no order, so the hidden patches need not return to their places: they
        follow those that are seen.
        """
        prefix = self.vit.config.prefix
        table = self.position_embedding[0]
        first = table[:prefix].expand(len(tokens), -1, -1)
        positions = torch.cat([first, table[prefix + torch.cat([seen, hidden], dim=1)]], dim=1)
        x = self.embedding(tokens)
        masks = self.mask_token.to(x.dtype).expand(*hidden.shape, -1)
        x = torch.cat([x, masks], dim=1) + positions
        for block in self.decoder_blocks:
            x = block(x)
        return self.head(self.norm(x[:, -hidden.shape[1] :]))

    def targets(self, images: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the hidden patches: what is to be predicted (B, n, P * P * 3), float32 at least, and
        the means and deviations (B, n, 1) that were taken out; 0 and 1 where none were."""
        x = images.to(torch.promote_types(images.dtype, torch.float32))
        x = taken(patchify(x, self.vit.config.cell), hidden)
        if not self.masking.normalised:
            return x, torch.zeros_like(x[..., :1]), torch.ones_like(x[..., :1])
        variance, mean = torch.var_mean(x, dim=-1, keepdim=True)
        deviation = (variance + VARIANCE_EPS).sqrt()
        return (x - mean) / deviation, mean, deviation

    @torch.no_grad()
    def examples(self, images: Tensor, places: np.ndarray) -> Examples:
        """Where means and deviations are not predicted the patches' own are taken."""
        predicted, hidden = self.predict(images, self.noise(places))
        _, mean, deviation = self.targets(images, hidden)
        colours = (predicted.float() * deviation + mean).unflatten(2, (-1, 3))
        pixels = unnormalised(colours, self.mean, self.std).flatten(2)
        return examples(images, self.vit.config, hidden, pixels, self.mean, self.std)
