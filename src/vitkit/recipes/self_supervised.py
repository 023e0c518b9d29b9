"""Pre-training without labels: the paper's masked patches, MAE and SimCLR.

`masked-patches` is appendix B.1.2 of the paper (arXiv 2010.11929): ViT-B/16 predicts the mean
colour, in 3 bits a channel, of 50 % of the patches, which are corrupted as BERT's words are. It
states 1,000,000 steps (14 epochs of JFT-300M) of 4,096 images by Adam, a learning rate of 0.0002, a
warm-up of 10,000 steps and cosine decay. Crop and flip: the authors, vision_transformer issue 103.
Weight decay, clipping and dropout are not stated, and there are none.

`mae` is "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377), by table 8 and the
authors' PRETRAIN.md and main_pretrain.py (facebookresearch/mae): a learning rate of 0.00015 for 256
images, that is 0.0024. Otherwise here:

- Pixels are from -1 to 1, crops are bilinear, and the GELU is its tanh approximation; there they
  have ImageNet's mean and deviation, crops are bicubic, and the GELU is exact.
- The head that fine-tuning puts on reads the mean of the patches (pooling patch-mean: the class
  token is there, but not read) after the final norm, which is MAE's own. The authors' fine-tuning
  takes that mean before a new norm, their linear probe the class token.
- The first weights are those of this paper's authors, for the decoder as well, and the class and
  mask tokens are not decayed.

`simclr` is "A Simple Framework for Contrastive Learning" (arXiv 2002.05709): its loss, temperature,
head and augmentations, colours distorted at strength 1. Its authors train ResNets by LARS; a ViT's
optimizer is that of MoCo v3 (arXiv 2104.02057, facebookresearch/moco-v3, CONFIG.md): AdamW at
0.00015 for 256 images, weight decay 0.1, 40 of 300 epochs of warm-up, 4,096 images in a batch.
vitkit counts views: they are 8,192 of `batch_size`, and 300 epochs of images are 600 of views.
Otherwise here: MoCo v3 freezes the patch projection, as its training is steadier so, has crops of
20 % at least and weaker colours; the authors' head has batch norms, of all processes' images.
"""

from __future__ import annotations

from vitkit.data.facts import DataFacts
from vitkit.objectives.settings import ContrastiveConfig, MaskingConfig
from vitkit.training.config import (
    AugmentConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)

BATCH = 4096  # images
RATE = 1.5e-4 * BATCH / 256  # of both MAE and MoCo v3
WARMUP_EPOCHS = 40  # of both
MAE_EPOCHS, SIMCLR_EPOCHS = 800, 300


def masked_patches(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """The paper's masked patch prediction on JFT-300M, 1,000,000 steps: appendix B.1.2.

    `--masking.target colours` and `--masking.target pixels` are its other targets, and
    `--masking.rate 0.15` is BERT's rate; the paper finds pixels and 15 % slightly worse.

    Command: `vitkit pretrain DATA --recipe masked-patches`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-B/16      433      204

    Expected: ImageNet 79.9 %, fine-tuned by table4-imagenet: 2 % above no pre-training, 4 % below
    pre-training with labels. The paper's authors saw little gain after 100,000 steps, and similar
    ones by pre-training on ImageNet.

    Measured: not here.
    """
    return TrainConfig(
        recipe="masked-patches",
        model=model or "ViT-B/16",
        image_size=(224, 224),
        objective="masked-patches",
        masking=MaskingConfig(rate=0.5, target="mean-colour"),
        steps=1_000_000,
        batch_size=BATCH,
        optimizer=OptimizerConfig("adamw", 2e-4, weight_decay=0.0, clip_norm=0.0),
        schedule=ScheduleConfig("cosine", warmup_steps=10_000),
        augment=AugmentConfig((0.05, 1.0), flip=facts.flip_keeps_class),
    )


def mae(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """MAE on ImageNet without its labels, 800 epochs with normalised pixels.

    `--epochs 1600 --schedule.warmup-share 0.025` is the authors' longer run.

    Command: `vitkit pretrain DATA --recipe mae`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-B/16       60     28.2
        ViT-L/16      128       60
        ViT-H/14      299      140

    Expected: after 800 epochs ImageNet 85.4 % for L/16 (the authors' table 1d; their PyTorch code
    85.5 %), fine-tuned; after 1600 B/16 83.6 %, L/16 85.9 %, H/14 86.9 % fine-tuned by
    mae-finetune, 67.8 %, 76.0 % and 77.2 % probed by mae-linear (FINETUNE.md).

    Measured: not here.
    """
    return TrainConfig(
        recipe="mae",
        model=model or "ViT-B/16",
        image_size=(224, 224),
        pooling="patch-mean",
        positions="sincos2d",
        objective="mae",
        masking=MaskingConfig(
            rate=0.75, normalised=True, decoder_width=512, decoder_depth=8, decoder_heads=16,
        ),
        epochs=MAE_EPOCHS,
        batch_size=BATCH,
        evaluation_resize="crop",
        optimizer=OptimizerConfig(
            "adamw", RATE, weight_decay=0.05, betas=(0.9, 0.95), clip_norm=0.0
        ),
        schedule=ScheduleConfig("cosine", warmup_share=WARMUP_EPOCHS / MAE_EPOCHS),
        augment=AugmentConfig((0.2, 1.0), flip=facts.flip_keeps_class),
    )  # fmt: skip


def simclr(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """SimCLR on ImageNet without its labels, 300 epochs of images, by MoCo v3's optimizer for ViTs.

    Command: `vitkit pretrain DATA --recipe simclr`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-B/16       81     38.1
        ViT-S/16     21.2     9.98

    Expected: no figure for a ViT by these settings is known here. MoCo v3, its closest relative,
    comes to 76.7 % for B/16 and 73.2 % for S/16 by a linear probe (CONFIG.md).

    Measured: not here.
    """
    return TrainConfig(
        recipe="simclr",
        model=model or "ViT-B/16",
        image_size=(224, 224),
        objective="simclr",
        contrastive=ContrastiveConfig(temperature=0.1, hidden_width=2048, width=128),
        epochs=2 * SIMCLR_EPOCHS,
        batch_size=2 * BATCH,
        evaluation_resize="crop",
        optimizer=OptimizerConfig("adamw", RATE, weight_decay=0.1, clip_norm=0.0),
        schedule=ScheduleConfig("cosine", warmup_share=WARMUP_EPOCHS / SIMCLR_EPOCHS),
        augment=AugmentConfig(
            (0.08, 1.0), flip=facts.flip_keeps_class, jitter=(0.8, 0.8, 0.8, 0.2),
            jitter_share=0.8, grayscale=0.2, blur=0.5,
        ),
        data=DataConfig(repeats=2),
    )  # fmt: skip
