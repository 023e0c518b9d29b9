"""`quickstart`: small data on a CPU or one GPU. Not of the paper; measured here."""

from __future__ import annotations

from dataclasses import replace

from vitkit.data.facts import DataFacts
from vitkit.models.variants import VARIANTS, Variant
from vitkit.recipes.regularisation import regularised, rung_for
from vitkit.training.config import AugmentConfig, OptimizerConfig, ScheduleConfig, TrainConfig

CROP_AREA = (0.8, 1.0)  # short runs of small nets learn less from the 5 % of the paper
BATCH = 64  # of images that are not few
LEAST_PRETRAINING = 5000  # steps
LEAST_STEPS = 500  # of fine-tuning
RATE_OF_WIDTH = 0.06  # AdamW's learning rate in fine-tuning times the width
LOWEST_RATE = 1 / 4  # of the head's, at the embeddings


def pretrain(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """Training from nothing, of a net and for a time that a laptop has.

    Command: `vitkit pretrain DATA --recipe quickstart [--minutes 10]`

    In minutes on a CPU what counts is the number of images seen, so the net is small for the image
    size. 30 epochs, or 5,000 steps where those are more, with the rung of regularisation for as
    many passes. Costs and accuracies on CIFAR-10: docs/results.md; what was tried:
    docs/performance.md.
    """
    fitting, side = net_for(facts.side)
    batch = batch_for(facts)
    epochs = max(30.0, round(LEAST_PRETRAINING * batch / facts.images))
    config = TrainConfig(
        recipe="quickstart",
        model=model or fitting,
        image_size=(side, side),
        pooling="mean",
        epochs=epochs,
        batch_size=batch,
        loss="sigmoid" if facts.multi_label else "softmax",
        optimizer=OptimizerConfig("adamw", learning_rate=1e-3, betas=(0.9, 0.95)),
        schedule=ScheduleConfig("cosine", warmup_share=0.05),
        augment=AugmentConfig(CROP_AREA, flip=facts.flip_keeps_class),
    )
    batches = max(facts.images / BATCH, 10)  # of a pass; in whole images the rung would waver
    return regularised(config, rung_for(max(30, LEAST_PRETRAINING / batches)))


def finetune(facts: DataFacts, model: str, image_size: tuple[int, int]) -> TrainConfig:
    """Transfer of a trained net at a batch that a laptop holds; all follows from data and net.

    Command: `vitkit finetune DATA --from CHECKPOINT [--image-size 384]`

    Steps: 500 up to 1,000 images, then as the square root of their number, so that 50,000 get 3,536
    and ImageNet 17,897 (the paper's Table 4 goes from 500 to 20,000). Regularisation: the rung of
    the ladder for as many passes. Transformers that have a name by AdamW at 0.06 / width
    (arXiv 2203.03466: Adam's rate falls as the width grows; 7.8e-5 for ViT-B) times the roots of
    (batch / 64) and of (steps / 500), falling from the head to a quarter of it in the embeddings by
    as much at each block (arXiv 2106.08254). Other nets by SGD at 0.03, as Table 4.

    Measured: beside fixed recipes and timm's defaults in docs/results.md, with a small net; the
    rates of larger ones follow from the width, and were not measured.
    """
    batch = batch_for(facts)
    steps = round(LEAST_STEPS * max(1.0, facts.images / 1000) ** 0.5)
    config = TrainConfig(
        recipe="quickstart",
        model=model,
        image_size=image_size,
        steps=steps,
        batch_size=batch,
        loss="sigmoid" if facts.multi_label else "softmax",
        optimizer=OptimizerConfig("sgd", learning_rate=0.03, weight_decay=0.0),
        schedule=ScheduleConfig("cosine", warmup_share=0.1),
        augment=AugmentConfig(CROP_AREA, flip=facts.flip_keeps_class),
    )
    net = VARIANTS.get(model)
    if net is not None and net.kind in ("ViT", "T2T-ViT"):
        config = replace(config, optimizer=by_adam(net, batch, steps))
    return regularised(config, rung_for(steps * batch / facts.images))


def by_adam(net: Variant, batch: int, steps: int) -> OptimizerConfig:
    """AdamW for fine-tuning a Transformer of these sizes."""
    layers = net.sizes["depth"] + sum(net.sizes.get("stem", ())) + 1
    rate = RATE_OF_WIDTH / net.sizes["width"] * (batch / BATCH * steps / LEAST_STEPS) ** 0.5
    return OptimizerConfig(
        "adamw",
        learning_rate=float(f"{rate:.2g}"),
        layer_decay=round(LOWEST_RATE ** (1 / layers), 3),
    )


def batch_for(facts: DataFacts) -> int:
    """Of a laptop, at least ten to a pass; even, since MixUp mixes pairs."""
    return max(2, min(BATCH, facts.images // 10) // 2 * 2)


def net_for(side: int) -> tuple[str, int]:
    """A net that a CPU trains in minutes, and its image side, for images of this side (pixels)."""
    if side <= 12:
        return "ViT-Femto/2", max(4, side // 2 * 2)
    if side <= 40:
        return "ViT-Pico/4", side // 4 * 4
    if side <= 80:
        return "ViT-Pico/8", side // 8 * 8
    return "ViT-Nano/16", min(224, side // 16 * 16)
