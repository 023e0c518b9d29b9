"""The paper's fine-tuning (arXiv 2010.11929): Table 4, a function for each kind of data.

Table 4 says: SGD with momentum 0.9, no weight decay, batches of 512, cosine decay to 0, gradients
clipped at norm 1, 384 pixels; steps and learning rates to choose among by kind of data. Appendix
B.1.1 says how to choose: by a share of the training images that is left out, then training on all.
On ImageNet ResNets and hybrids try 0.06 as well; BiT nets everywhere try bit-hyperrule too.
`vitkit.recipes.candidates` gives all of these.

Unspecified, with what is done here:

- Warm-up: 500 steps, vision_transformer's configs/common.py; of 500 steps 50, the README's table of
  short runs. It is set as a share of the steps.
- The learning rate where none is chosen: 0.03 (configs/common.py).
- Dropout: 0.1 for ViT-L/16, ViT-H/14, R50+ViT-B/16 and R50+ViT-L/32, else 0 (configs/models.py).
  With AugReg's weights it is 0 always (configs/augreg.py): `--dropout 0`.
- Loss: softmax cross-entropy; crop and flip as in pre-training (vit_jax/train.py,
  input_pipeline.py).
- ViT-H/14 at 384 pixels, which 14 does not divide: the authors' convolution leaves out the last 6
  pixels of a side; 378 pixels give the same grid, 27 x 27.
"""

from __future__ import annotations

from vitkit.data.facts import DataFacts
from vitkit.models.variants import VARIANTS
from vitkit.training.config import AugmentConfig, OptimizerConfig, ScheduleConfig, TrainConfig

DROPOUT = {"ViT-L/16": 0.1, "ViT-H/14": 0.1, "R50+ViT-B/16": 0.1, "R50+ViT-L/32": 0.1}
RATES = (0.001, 0.003, 0.01, 0.03)
IMAGENET_RATES = (0.003, 0.01, 0.03)
FURTHER_IMAGENET_RATES = (0.06,)  # for ResNets and hybrids

# BiT's HyperRule: images below, steps of the run and of its warm-up, shares of the run after which
# the learning rate falls, MixUp (big_transfer: bit_hyperrule.py).
HYPERRULE = (
    (20_000, 500, 100, (0.4, 0.6, 0.8), 0.0),
    (500_000, 10_000, 500, (0.3, 0.6, 0.9), 0.1),
    (float("inf"), 20_000, 500, (0.3, 0.6, 0.9), 0.1),
)
SMALL_SIDE = 96  # pixels; below it images are read at 128, else at 480


def table4_imagenet(facts: DataFacts, model: str, image_size: tuple[int, int]) -> TrainConfig:
    """ImageNet, 20,000 steps at 384 pixels: Table 4, row 1. Left out to choose by: 1 %.

    Command: `vitkit finetune DATA --from CHECKPOINT --recipe table4-imagenet`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-B/32    0.801    0.377
        ViT-B/16     3.41      1.6
        ViT-L/32     2.78     1.31
        ViT-L/16     11.7     5.52
        ViT-H/14     30.9     14.6

    Expected: after jft-vit-* 80.73 to 88.04 %, after i21k-vit-* 80.99 to 85.15 %, after
    imagenet-vit 71.16 to 77.91 % (Table 5). After ImageNet-21k by the authors' public code, without
    dropout: B/16 84.53 %, B/32 81.66 %, L/16 84.47 %, L/32 81.89 % (vision_transformer's
    README.md).

    Measured: not here.
    """
    return finetuning("table4-imagenet", facts, model, steps=20_000, warmup=500)


def table4_cifar(facts: DataFacts, model: str, image_size: tuple[int, int]) -> TrainConfig:
    """CIFAR-10 and CIFAR-100, 10,000 steps at 384 pixels: Table 4, rows 2 and 3. Left out: 2 %.

    Command: `vitkit finetune DATA --from CHECKPOINT --recipe table4-cifar`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-B/32    0.401    0.189
        ViT-B/16      1.7    0.802
        ViT-L/32     1.39    0.654
        ViT-L/16     5.87     2.76
        ViT-H/14     15.5     7.28

    Expected, CIFAR-10 and -100: after jft-vit-h14 99.50 and 94.55 %, after i21k-vit-b with B/16
    98.95 and 91.67 % (Table 5); by the authors' public code 99.02 and 92.06 % (README.md).

    Measured: not here.
    """
    return finetuning("table4-cifar", facts, model, steps=10_000, warmup=500)


def table4_flowers_pets(facts: DataFacts, model: str, image_size: tuple[int, int]) -> TrainConfig:
    """Oxford Pets and Flowers-102, 500 steps at 384 pixels: Table 4, rows 4 and 5. Left out: 10 %.

    Command: `vitkit finetune DATA --from CHECKPOINT --recipe table4-flowers-pets`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-B/32     0.02  0.00943
        ViT-B/16   0.0852   0.0401
        ViT-L/32   0.0695   0.0327
        ViT-L/16    0.293    0.138
        ViT-H/14    0.773    0.364

    Expected, Flowers and Pets: after jft-vit-h14 99.68 and 97.56 %, after i21k-vit-b with B/16
    99.38 and 94.43 % (Table 5).

    Measured: not here.
    """
    return finetuning("table4-flowers-pets", facts, model, steps=500, warmup=50)


def table4_vtab(facts: DataFacts, model: str, image_size: tuple[int, int]) -> TrainConfig:
    """VTAB, 2,500 steps at 384 pixels for all 19 tasks of 1,000 images: Table 4, row 6.

    One learning rate, 0.01, and nothing to choose.

    Command: `vitkit finetune DATA --from CHECKPOINT --recipe table4-vtab`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-B/32      0.1   0.0471
        ViT-B/16    0.426      0.2
        ViT-L/32    0.348    0.164
        ViT-L/16     1.47     0.69
        ViT-H/14     3.87     1.82

    Expected, mean of the 19 tasks: after jft-vit-h14 77.63 %, after jft-vit-l16 76.28 %, after
    i21k-vit-l 72.72 % (Table 2).

    Measured: not here.
    """
    return finetuning("table4-vtab", facts, model, steps=2_500, warmup=500, learning_rate=0.01)


def table2_imagenet(facts: DataFacts, model: str, image_size: tuple[int, int]) -> TrainConfig:
    """ImageNet as in Table 2: ViT-L/16 at 512 pixels, ViT-H/14 at 518, Polyak average 0.9999.

    All else is table4-imagenet (section 4.1, "Training & Fine-tuning").

    Command: `vitkit finetune DATA --from CHECKPOINT --recipe table2-imagenet`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-L/16     22.2     10.5
        ViT-H/14     62.5     29.4

    Expected: 88.55 % after jft-vit-h14, 87.76 % after jft-vit-l16, 85.30 % after i21k-vit-l
    (Table 2).

    Measured: not here.
    """
    side = 518 if model == "ViT-H/14" else 512
    return finetuning(
        "table2-imagenet", facts, model, steps=20_000, warmup=500, side=side, polyak=0.9999
    )


def bit_hyperrule(facts: DataFacts, model: str, image_size: tuple[int, int]) -> TrainConfig:
    """BiT's HyperRule (arXiv 1912.11370, section 3.3): all follows from the number of images.

    Below 20,000 images 500 steps; below 500,000 10,000 steps and MixUp 0.1; else 20,000 steps and
    MixUp 0.1. Learning rate 0.003, divided by 10 three times. Images smaller than 96 x 96 are
    resized to 160 and cropped to 128, others to 512 and 480. The constants and the comparisons are
    those of big_transfer's bit_hyperrule.py; not of ViT's paper, which tries it for BiT as well
    (appendix B.1.1).

    Command: `vitkit finetune DATA --from CHECKPOINT --recipe bit-hyperrule`

    Cost in exaFLOPs and TPUv3-core-days:

        BiT-R50x1      1.13    0.543
        BiT-R50x2      4.47     2.14
        BiT-R50x3        10     4.79
        BiT-R101x1     2.16     1.04
        BiT-R101x3     19.2     9.22
        BiT-R152x1     3.18     1.53
        BiT-R152x2     12.7     6.08
        BiT-R152x4     50.5     24.3
        BiT-R200x3     37.2     17.8

    Expected, after pre-training on ImageNet-21k (BiT-M): ImageNet 80.68 % for R50x1, 85.15 % for
    R152x2; CIFAR-10 and -100 97.4 and 86.6 % for R50x1 (big_transfer's README.md).

    Measured: not here.
    """
    steps, warmup, stairs, mixup = next(row[1:] for row in HYPERRULE if facts.images < row[0])
    before, side = (160, 128) if facts.side < SMALL_SIDE else (512, 480)
    area = (side / before) ** 2  # the crop of a whole resized image, as a share of it
    return TrainConfig(
        recipe="bit-hyperrule",
        model=model,
        image_size=(side, side),
        steps=steps,
        batch_size=512,
        loss="sigmoid" if facts.multi_label else "softmax",
        optimizer=OptimizerConfig("sgd", learning_rate=0.003, weight_decay=0.0, clip_norm=0.0),
        schedule=ScheduleConfig("stairs", warmup_share=warmup / steps, stairs=stairs),
        augment=AugmentConfig((area, area), "kept", facts.flip_keeps_class, mixup=mixup),
    )


def finetuning(
    recipe: str,
    facts: DataFacts,
    model: str,
    *,
    steps: int,
    warmup: int,
    learning_rate: float = 0.03,
    side: int = 384,
    polyak: float = 0.0,
) -> TrainConfig:
    """What all rows share; `side` is the image's in pixels, as near below as the patch divides."""
    cell = cell_of(model)
    side = side // cell * cell
    return TrainConfig(
        recipe=recipe,
        model=model,
        image_size=(side, side),
        dropout=DROPOUT.get(model, 0.0),
        steps=steps,
        batch_size=512,
        loss="sigmoid" if facts.multi_label else "softmax",
        polyak=polyak,
        optimizer=OptimizerConfig("sgd", learning_rate, weight_decay=0.0, clip_norm=1.0),
        schedule=ScheduleConfig("cosine", warmup_share=warmup / steps),
        augment=AugmentConfig((0.05, 1.0), flip=facts.flip_keeps_class),
    )


def cell_of(model: str) -> int:
    """Pixels that the side of an image is to be a multiple of; 1 where nothing is known."""
    row = VARIANTS.get(model)
    return row.sizes["patch"] if row and row.kind == "ViT" and "stem" not in row.sizes else 1
