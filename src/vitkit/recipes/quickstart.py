"""`quickstart`: small data on a CPU or one GPU. Not of the paper; measured here."""

from __future__ import annotations

from vitkit.data.facts import DataFacts
from vitkit.training.config import AugmentConfig, OptimizerConfig, ScheduleConfig, TrainConfig

CROP_AREA = (0.8, 1.0)  # short runs of small nets learn less from the 5 % of the paper


def pretrain(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """Training from nothing, of a net and for a time that a laptop has.

    Command: `vitkit pretrain DATA --recipe quickstart [--minutes 10]`

    In minutes on a CPU what counts is the number of images seen, so the net is small for the image
    size. Costs and accuracies on CIFAR-10: docs/results.md; what was tried: docs/performance.md.
    """
    fitting, side = net_for(facts.side)
    return TrainConfig(
        recipe="quickstart",
        model=model or fitting,
        image_size=(side, side),
        pooling="mean",
        epochs=30,
        batch_size=min(64, max(1, facts.images // 10)),
        loss="sigmoid" if facts.multi_label else "softmax",
        label_smoothing=0.0 if facts.multi_label else 0.1,
        optimizer=OptimizerConfig(
            "adamw", learning_rate=1e-3, weight_decay=0.05, betas=(0.9, 0.95)
        ),
        schedule=ScheduleConfig("cosine", warmup_share=0.05),
        augment=AugmentConfig(CROP_AREA, flip=facts.flip_keeps_class),
    )


def finetune(facts: DataFacts, model: str, image_size: tuple[int, int]) -> TrainConfig:
    """Transfer of a trained net at a batch that a laptop holds.

    Command: `vitkit finetune DATA --from CHECKPOINT [--image-size 384]`

    As the paper's Table 4 (SGD with momentum, no weight decay, cosine, clipping at 1, 500 steps for
    small sets), but for the batch.
    """
    return TrainConfig(
        recipe="quickstart",
        model=model,
        image_size=image_size,
        steps=500,
        batch_size=min(64, max(1, facts.images // 10)),
        loss="sigmoid" if facts.multi_label else "softmax",
        optimizer=OptimizerConfig("sgd", learning_rate=0.03, weight_decay=0.0),
        schedule=ScheduleConfig("cosine", warmup_share=0.1),
        augment=AugmentConfig(CROP_AREA, flip=facts.flip_keeps_class),
    )


def net_for(side: int) -> tuple[str, int]:
    """A net that a CPU trains in minutes, and its image side, for images of this side (pixels)."""
    if side <= 12:
        return "ViT-Femto/2", max(4, side // 2 * 2)
    if side <= 40:
        return "ViT-Pico/4", side // 4 * 4
    if side <= 80:
        return "ViT-Pico/8", side // 8 * 8
    return "ViT-Nano/16", min(224, side // 16 * 16)
