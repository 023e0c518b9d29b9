"""`quickstart` without labels: masked patches, MAE and SimCLR on a CPU or one GPU.

Net, image size and length are those of quickstart, the decoder and the projection head smaller than
their authors'. Not of any paper. `--objective X` beside `quickstart` is `quickstart-X`.
"""

from __future__ import annotations

from dataclasses import replace

from vitkit.data.facts import DataFacts
from vitkit.models.variants import VARIANTS
from vitkit.objectives.settings import ContrastiveConfig, MaskingConfig
from vitkit.recipes.quickstart import LEAST_PRETRAINING, batch_for, net_for
from vitkit.training.config import (
    AugmentConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)

CROP_AREA = (0.2, 1.0)  # MAE's


def masked_patches(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """Masked patch prediction for small images and machines.

    Command: `vitkit pretrain DATA --recipe quickstart-masked-patches [--minutes 10]`

    Measured: docs/few-labels.md.
    """
    config = shared("quickstart-masked-patches", facts, model)
    return replace(config, objective="masked-patches", masking=MaskingConfig(rate=0.5))


def mae(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """A masked autoencoder for small images and machines, its decoder half as wide as the net.

    Command: `vitkit pretrain DATA --recipe quickstart-mae [--minutes 10]`

    Measured: docs/few-labels.md.
    """
    config = shared("quickstart-mae", facts, model)
    masking = MaskingConfig(
        rate=0.75, decoder_width=decoder_width(config.model), decoder_depth=2, decoder_heads=4
    )
    return replace(config, objective="mae", masking=masking)


def simclr(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """SimCLR for small images and machines: batches of 64 images in two views each.

    Colours are distorted at half the strength of its ImageNet recipe, and nothing is blurred, as
    its authors do on CIFAR-10 (arXiv 2002.05709, appendix B.9). Otherwise here: a temperature of
    0.2, of 0.1, 0.5 and 1 they find 0.5 the best there; a projection head of 512 and 64, theirs has
    2048 and 128; crops of 20 % at least, theirs of 8 %; AdamW for LARS, and far smaller batches.

    Command: `vitkit pretrain DATA --recipe quickstart-simclr [--minutes 10]`

    Measured: docs/few-labels.md.
    """
    config = shared("quickstart-simclr", facts, model)
    return replace(
        config,
        objective="simclr",
        contrastive=ContrastiveConfig(temperature=0.2, hidden_width=512, width=64),
        batch_size=2 * config.batch_size,
        epochs=2 * (config.epochs or 0),
        augment=replace(
            config.augment, jitter=(0.4, 0.4, 0.4, 0.1), jitter_share=0.8, grayscale=0.2
        ),
        data=DataConfig(repeats=2),
    )


def shared(recipe: str, facts: DataFacts, model: str | None) -> TrainConfig:
    """What the three share."""
    fitting, side = net_for(facts.side)
    batch = batch_for(facts)
    return TrainConfig(
        recipe=recipe,
        model=model or fitting,
        image_size=(side, side),
        pooling="mean",
        epochs=max(30.0, round(LEAST_PRETRAINING * batch / facts.images)),
        batch_size=batch,
        optimizer=OptimizerConfig("adamw", 1e-3, weight_decay=0.05, betas=(0.9, 0.95)),
        schedule=ScheduleConfig("cosine", warmup_share=0.05),
        augment=AugmentConfig(CROP_AREA, flip=facts.flip_keeps_class),
    )


def decoder_width(model: str) -> int:
    """Half of the net's, in whole heads of at least 16; of a net without a width 64."""
    row = VARIANTS.get(model)
    width = row.sizes.get("width", 128) if row else 128
    return max(64, width // 2 // 16 * 16)
