"""The paper's pre-training (arXiv 2010.11929): Table 3, a function for each row.

Table 3 says: Adam with betas 0.9 and 0.999, batches of 4,096, a linear warm-up of 10,000 steps,
224 pixels; epochs, learning rate, its decay, weight decay and dropout by row. Weight decay is
multiplied by the learning rate (AdamW). On ImageNet alone gradients are clipped at norm 1.

Unspecified in Table 3, and what is done here:

- Loss and head bias. Sigmoid cross-entropy and -10 on ImageNet-21k: the authors,
  vision_transformer issues 2 and 34; the same on JFT-300M, whose images have several labels too
  (issue 34). On ImageNet sigmoid and -6.9, as the authors do in big_vision's configs/vit_i1k.py.
- End of the linear decay: 1e-5 (issue 2).
- Head: a hidden tanh layer as wide as the net (section 3.1; issue 124); BiT has none, as in
  big_transfer.
- Crop and flip: 5 to 100 % of the area, mirrored every second time (issues 46 and 53).
- What is decayed: matrices and kernels, not biases, norms, class token, positions, as big_vision.
- GELU: its tanh approximation, that of the authors' vit_jax/models_vit.py.
- Label smoothing, which the authors tuned for ImageNet (section 4.3): no value is published, and
  none is set.

Table 3 has no row at all for BiT-R152x2 at 14 epochs and BiT-R200x3, which Table 6 has, nor for
ViT-H/14 on ImageNet-21k, which Table 5 has. `--recipe jft-bit-r152 --model BiT-R152x2 --epochs 14`
costs what Table 6 says; whether the authors changed anything else is unspecified.
"""

from __future__ import annotations

from typing import Literal

from vitkit.data.facts import DataFacts
from vitkit.recipes.recipe import is_vit
from vitkit.training.config import AugmentConfig, OptimizerConfig, ScheduleConfig, TrainConfig

I21K_BIAS = -10.0
IMAGENET_BIAS = -6.9


def jft_vit_b(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """ViT-B/32 and ViT-B/16 on JFT-300M: Table 3, row 1.

    Command: `vitkit pretrain DATA --recipe jft-vit-b`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-B/32     56.3     26.5
        ViT-B/16      224      105

    Expected: ImageNet 80.73 % for B/32, 84.15 % for B/16, fine-tuned by table4-imagenet (Tables 5,
    6). Table 6 prints 55 and 224 exaFLOPs.

    Measured: not here.
    """
    return on_jft("jft-vit-b", facts, model or "ViT-B/32", 7, 8e-4)


def jft_vit_l32(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """ViT-L/32 on JFT-300M: Table 3, row 2.

    Command: `vitkit pretrain DATA --recipe jft-vit-l32`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-L/32      196     92.2

    Expected: ImageNet 84.37 %, fine-tuned by table4-imagenet (Table 5). Table 6 prints 196
    exaFLOPs.

    Measured: not here.
    """
    return on_jft("jft-vit-l32", facts, model or "ViT-L/32", 7, 6e-4)


def jft_vit_l16(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """ViT-L/16 on JFT-300M, 14 epochs: Table 3, row 3.

    The row gives 7 and 14 epochs; `--epochs 7` is the other one.

    Command: `vitkit pretrain DATA --recipe jft-vit-l16`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-L/16     1570      737

    Expected: ImageNet 87.12 %, fine-tuned by table4-imagenet; 86.30 % after 7 epochs (Table 6);
    87.76 % by table2-imagenet (Table 2). Table 6 prints 1567 exaFLOPs, Table 2 680 core-days.

    Measured: not here.
    """
    return on_jft("jft-vit-l16", facts, model or "ViT-L/16", 14, 4e-4)


def jft_vit_h14(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """ViT-H/14 on JFT-300M: Table 3, row 4; the paper's best net.

    Command: `vitkit pretrain DATA --recipe jft-vit-h14`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-H/14     4260     2000

    Expected: ImageNet 88.04 %, fine-tuned by table4-imagenet (Table 5); 88.55 % by
    table2-imagenet (Table 2). Table 6 prints 4262 exaFLOPs, Table 2 2,500 core-days.

    Measured: not here.
    """
    return on_jft("jft-vit-h14", facts, model or "ViT-H/14", 14, 3e-4)


def jft_bit_r50(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """BiT-R50x1 and BiT-R50x2 on JFT-300M, by Adam: Table 3, row 5.

    Command: `vitkit pretrain DATA --recipe jft-bit-r50`

    Cost in exaFLOPs and TPUv3-core-days:

        BiT-R50x1     50.7     24.7
        BiT-R50x2      199     96.9

    Expected: ImageNet 77.54 % for R50x1, 82.12 % for R50x2, fine-tuned by table4-imagenet (Table 6,
    which prints 50 and 199 exaFLOPs).

    Measured: not here.
    """
    return on_jft("jft-bit-r50", facts, model or "BiT-R50x1", 7, 1e-3)


def jft_bit_r101(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """BiT-R101x1 on JFT-300M, by Adam: Table 3, row 6.

    Command: `vitkit pretrain DATA --recipe jft-bit-r101`

    Cost in exaFLOPs and TPUv3-core-days:

        BiT-R101x1     95.6     46.9

    Expected: ImageNet 80.67 %, fine-tuned by table4-imagenet (Table 6, which prints 96 exaFLOPs).

    Measured: not here.
    """
    return on_jft("jft-bit-r101", facts, model or "BiT-R101x1", 7, 8e-4)


def jft_bit_r152(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """BiT-R152x1 and BiT-R152x2 on JFT-300M, by Adam: Table 3, row 7.

    R152x2 at 14 epochs has no row; `--epochs 14` costs what Table 6 prints for it, 1126 exaFLOPs.

    Command: `vitkit pretrain DATA --recipe jft-bit-r152`

    Cost in exaFLOPs and TPUv3-core-days:

        BiT-R152x1      141     69.1
        BiT-R152x2      559      275

    Expected: ImageNet 81.88 % for R152x1, 84.97 % for R152x2 and 85.56 % after 14 epochs,
    fine-tuned by table4-imagenet (Table 6, which prints 141 and 563 exaFLOPs).

    Measured: not here.
    """
    return on_jft("jft-bit-r152", facts, model or "BiT-R152x1", 7, 6e-4)


def jft_hybrid_b(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """R50+ViT-B/32 and R50+ViT-B/16 on JFT-300M: Table 3, row 8.

    Command: `vitkit pretrain DATA --recipe jft-hybrid-b`

    Cost in exaFLOPs and TPUv3-core-days:

        R50+ViT-B/32      106     50.7
        R50+ViT-B/16      273      129

    Expected: ImageNet 84.90 % for B/32, 85.58 % for B/16, fine-tuned by table4-imagenet (Table 6,
    which prints 106 and 274 exaFLOPs).

    Measured: not here.
    """
    return on_jft("jft-hybrid-b", facts, model or "R50+ViT-B/32", 7, 8e-4)


def jft_hybrid_l32(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """R50+ViT-L/32 on JFT-300M: Table 3, row 9.

    Command: `vitkit pretrain DATA --recipe jft-hybrid-l32`

    Cost in exaFLOPs and TPUv3-core-days:

        R50+ViT-L/32      245      116

    Expected: ImageNet 85.68 %, fine-tuned by table4-imagenet (Table 6, which prints 246 exaFLOPs).

    Measured: not here.
    """
    return on_jft("jft-hybrid-l32", facts, model or "R50+ViT-L/32", 7, 2e-4)


def jft_hybrid_l16(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """R50+ViT-L/16 on JFT-300M, 14 epochs: Table 3, row 10.

    The row gives 7 and 14 epochs; `--epochs 7` is the other one.

    Command: `vitkit pretrain DATA --recipe jft-hybrid-l16`

    Cost in exaFLOPs and TPUv3-core-days:

        R50+ViT-L/16     1670      785

    Expected: ImageNet 87.12 %, 86.60 % after 7 epochs, fine-tuned by table4-imagenet (Table 6,
    which prints 1668 exaFLOPs, and for 7 epochs 859, 3 % more than half as much).

    Measured: not here.
    """
    return on_jft("jft-hybrid-l16", facts, model or "R50+ViT-L/16", 14, 4e-4)


def i21k_vit_b(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """ViT-B/16 and ViT-B/32 on ImageNet-21k: Table 3, row 11.

    Command: `vitkit pretrain DATA --recipe i21k-vit-b`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-B/16      133     62.5
        ViT-B/32     33.5     15.7

    Expected: ImageNet 83.97 % for B/16, 81.28 % for B/32, fine-tuned by table4-imagenet (Table 5);
    on held-out images of ImageNet-21k itself 47.88 % and 44.04 % (vision_transformer issue 62).

    Measured: not here.
    """
    return pretraining(
        "i21k-vit-b", facts, model or "ViT-B/16", epochs=90, learning_rate=1e-3,
        weight_decay=0.03, dropout=0.1, head_bias=I21K_BIAS,
    )  # fmt: skip


def i21k_vit_l(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """ViT-L/16 and ViT-L/32 on ImageNet-21k, 90 epochs: Table 3, row 12.

    The row gives 30 and 90 epochs; `--epochs 30` is the other one. The published weights are of 90
    (vision_transformer issue 34).

    Command: `vitkit pretrain DATA --recipe i21k-vit-l`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-L/16      466      219
        ViT-L/32      116     54.8

    Expected: ImageNet 85.15 % for L/16, 80.99 % for L/32, fine-tuned by table4-imagenet (Table 5);
    85.30 % for L/16 by table2-imagenet (Table 2, which prints 230 core-days); on held-out images of
    ImageNet-21k itself 49.90 % and 45.42 % (vision_transformer issue 62).

    Measured: not here.
    """
    return pretraining(
        "i21k-vit-l", facts, model or "ViT-L/16", epochs=90, learning_rate=1e-3,
        weight_decay=0.03, dropout=0.1, head_bias=I21K_BIAS,
    )  # fmt: skip


def imagenet_vit(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """ViT on ImageNet alone: Table 3, row 13.

    Command: `vitkit pretrain DATA --recipe imagenet-vit`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-B/16     40.5     19.1
        ViT-B/32     10.2     4.78
        ViT-L/16      142     66.8
        ViT-L/32     35.5     16.7

    Expected: at 224 pixels, before fine-tuning, 74.79 % for B/16, 69.19 % for B/32, 72.59 % for
    L/16, 66.90 % for L/32 (vision_transformer issue 62); fine-tuned by table4-imagenet 77.91 %,
    73.38 %, 76.53 % and 71.16 % (Table 5).

    Measured: not here.
    """
    return pretraining(
        "imagenet-vit", facts, model or "ViT-B/16", epochs=300, learning_rate=3e-3,
        weight_decay=0.3, dropout=0.1, head_bias=IMAGENET_BIAS, decay="cosine", clip_norm=1.0,
    )  # fmt: skip


def on_jft(
    recipe: str, facts: DataFacts, model: str, epochs: float, learning_rate: float
) -> TrainConfig:
    """What the rows on JFT-300M share."""
    return pretraining(
        recipe, facts, model, epochs=epochs, learning_rate=learning_rate, weight_decay=0.1,
        dropout=0.0, head_bias=I21K_BIAS,
    )  # fmt: skip


def pretraining(
    recipe: str,
    facts: DataFacts,
    model: str,
    *,
    epochs: float,
    learning_rate: float,
    weight_decay: float,
    dropout: float,
    head_bias: float,
    decay: Literal["linear", "cosine"] = "linear",
    clip_norm: float = 0.0,
) -> TrainConfig:
    """What all rows share. A net that is no ViT has neither hidden head nor dropout."""
    return TrainConfig(
        recipe=recipe,
        model=model,
        image_size=(224, 224),
        hidden_head=is_vit(model),
        dropout=dropout if is_vit(model) else 0.0,
        head_bias=head_bias,
        epochs=epochs,
        batch_size=4096,
        loss="sigmoid",
        optimizer=OptimizerConfig(
            "adamw", learning_rate, weight_decay, betas=(0.9, 0.999), clip_norm=clip_norm
        ),
        schedule=ScheduleConfig(decay, warmup_steps=10_000, linear_end=1e-5),
        augment=AugmentConfig((0.05, 1.0), flip=facts.flip_keeps_class),
    )
