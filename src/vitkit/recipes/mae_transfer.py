"""MAE's fine-tuning and its linear probe (arXiv 2111.06377, appendix A.1), of any checkpoint.

Tables 9 and 10, and facebookresearch/mae's FINETUNE.md, main_finetune.py and main_linprobe.py where
these are more exact: there the learning rates are 0.0005 (B) and 0.001 (L, H) for 256 images in
fine-tuning, and batches 1,024; 0.1 for 256 in probing, and batches 16,384.

Otherwise here:

- A checkpoint brings what its head reads and how images are prepared (`mae` says what differs).
  Fixed positions stay fixed, where the authors train them on.
- RandAugment is big_vision's; timm's, which they take, leaves out each operation every second time,
  and draws its magnitude about 9 by a deviation of 0.5. MixUp and CutMix are drawn for each pair of
  images, there for the whole batch.
- The cosine of fine-tuning ends at 0, not at 0.000001.
- The probe's norm has statistics of each process's share of a batch, as theirs.
"""

from __future__ import annotations

from vitkit.data.facts import DataFacts
from vitkit.recipes.regularisation import has_dropout
from vitkit.training.config import AugmentConfig, OptimizerConfig, ScheduleConfig, TrainConfig

# Net: epochs, learning rate for 256 images, layer decay, stochastic depth; others as B.
TUNED = {
    "ViT-B/16": (100, 5e-4, 0.65, 0.1),
    "ViT-L/16": (50, 1e-3, 0.75, 0.2),
    "ViT-H/14": (50, 1e-3, 0.75, 0.3),
}
BATCH, WARMUP_EPOCHS = 1024, 5
PROBE_BATCH, PROBE_EPOCHS, PROBE_WARMUP_EPOCHS = 16_384, 90, 10
CROP_AREA = (0.08, 1.0)  # torchvision's RandomResizedCrop, which both take


def finetune(facts: DataFacts, model: str, image_size: tuple[int, int]) -> TrainConfig:
    """MAE's end-to-end fine-tuning, 100 epochs for B/16 and 50 for L/16 and H/14: table 9.

    Command: `vitkit finetune DATA --from CHECKPOINT --recipe mae-finetune`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-B/16     13.5     6.35
        ViT-L/16     23.7     11.1
        ViT-H/14     64.3     30.3

    Expected: ImageNet, after `mae` of 1600 epochs, B/16 83.6 % (mean of four runs), L/16 85.9 %,
    H/14 86.9 % (FINETUNE.md).

    Measured: not here.
    """
    epochs, rate, layer_decay, depth = TUNED.get(model, TUNED["ViT-B/16"])
    return TrainConfig(
        recipe="mae-finetune",
        model=model,
        image_size=image_size,
        stochastic_depth=depth if has_dropout(model) else 0.0,
        epochs=epochs,
        batch_size=BATCH,
        loss="sigmoid" if facts.multi_label else "softmax",
        label_smoothing=0.0 if facts.multi_label else 0.1,
        optimizer=OptimizerConfig(
            "adamw", rate * BATCH / 256, weight_decay=0.05, layer_decay=layer_decay, clip_norm=0.0
        ),
        schedule=ScheduleConfig("cosine", warmup_share=WARMUP_EPOCHS / epochs),
        augment=AugmentConfig(
            CROP_AREA, flip=facts.flip_keeps_class, randaugment_layers=2,
            randaugment_magnitude=9.0, mixup=0.8, cutmix=1.0, erase=0.25,
        ),
    )  # fmt: skip


def linear(facts: DataFacts, model: str, image_size: tuple[int, int]) -> TrainConfig:
    """MAE's linear probe: a head by LARS on standardised frozen features, 90 epochs: table 10.

    For L/16 and H/14 `--epochs 50 --schedule.warmup-share 0.2` is enough (FINETUNE.md). It
    is for long runs: a step of LARS moves a head by 0.001 x rate of its norm (ten times that with
    its momentum), and the head starts near zero, so rate x steps decides, not the batch. On few
    images take SGD: `--optimizer.name sgd --learning-rate 0.1 --batch-size 64 --epochs 10`
    (docs/few-labels.md).

    Command: `vitkit finetune DATA --from CHECKPOINT --recipe mae-linear`

    Cost in exaFLOPs and TPUv3-core-days, counted as if all were trained:

        ViT-B/16     12.2     5.72
        ViT-L/16     42.6       20
        ViT-H/14      116     54.5

    Expected: ImageNet, after `mae` of 1600 epochs, B/16 67.8 %, L/16 76.0 %, H/14 77.2 %; with the
    authors' TensorFlow code 68.0, 75.8 and 76.6 % (FINETUNE.md).

    Measured: not here.
    """
    return TrainConfig(
        recipe="mae-linear",
        model=model,
        image_size=image_size,
        freeze=("*", "!head.*"),
        head_norm=True,
        epochs=PROBE_EPOCHS,
        batch_size=PROBE_BATCH,
        loss="sigmoid" if facts.multi_label else "softmax",
        optimizer=OptimizerConfig(
            "lars", 0.1 * PROBE_BATCH / 256, weight_decay=0.0, momentum=0.9, clip_norm=0.0
        ),
        schedule=ScheduleConfig("cosine", warmup_share=PROBE_WARMUP_EPOCHS / PROBE_EPOCHS),
        augment=AugmentConfig(CROP_AREA, flip=facts.flip_keeps_class),
    )
