"""big_vision's plain ViT: "Better plain ViT baselines for ImageNet-1k" (arXiv 2205.01580).

All constants are those of google-research/big_vision, configs/vit_s16_i1k.py. Its weight decay of
0.0001 is not multiplied by the learning rate, vitkit's is: 0.1 here. The authors train on 99 % of
ImageNet, keep Adam's first moment in bfloat16 and take other draws; vitkit keeps it in float32.
"""

from __future__ import annotations

from vitkit.data.facts import DataFacts
from vitkit.recipes.recipe import is_vit
from vitkit.training.config import AugmentConfig, OptimizerConfig, ScheduleConfig, TrainConfig


def big_vision_s16(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """ViT-S/16 on ImageNet alone in 90 epochs: the usual baseline of today.

    Fixed sine-cosine positions, mean of the patches instead of a class token, RandAugment (2, 10)
    and MixUp 0.2 (light2), batches of 1,024. `--epochs 300` is the authors' longer run.

    Command: `vitkit pretrain DATA --recipe big-vision-s16`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-S/16     3.16     1.49

    Expected: ImageNet 76.5 % at 224 pixels (configs/vit_s16_i1k.py).

    Measured: not here.
    """
    model = model or "ViT-S/16"
    return TrainConfig(
        recipe="big-vision-s16",
        model=model,
        image_size=(224, 224),
        pooling="mean",
        positions="sincos2d" if is_vit(model) else "1d",
        hidden_head=is_vit(model),
        epochs=90,
        batch_size=1024,
        loss="sigmoid" if facts.multi_label else "softmax",
        evaluation_resize="crop",
        optimizer=OptimizerConfig("adamw", learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0),
        schedule=ScheduleConfig("cosine", warmup_steps=10_000),
        augment=AugmentConfig((0.05, 1.0), flip=facts.flip_keeps_class, level="light2"),
    )
