"""AugReg: "How to train your ViT?" (arXiv 2106.10270), 300 epochs with augmentation.

Section 3 says: Adam, batches of 4,096, learning rate 0.001 with a linear warm-up of 10,000 steps
and cosine decay, gradients clipped at norm 1, 224 pixels, no hidden head on ImageNet-21k; and a
grid of 28 settings: seven levels of RandAugment and MixUp, dropout and stochastic depth together 0
or 0.1, weight decay 0.1 or 0.03 (times the learning rate). `vitkit.recipes.augreg.grid` walks it;
a point of it by hand: `--augment.level medium1 --dropout 0.1 --stochastic-depth 0.1
--optimizer.weight-decay 0.03`.

By default each net has the setting of its published weights, which their file names tell: the names
in vision_transformer's README.md and vit_jax_augreg.ipynb (ImageNet-21k) and in timm's
vision_transformer.py (ImageNet). What the files call light0 and light1 is taken for the paper's
light1 and light2, since both have seven levels in the same order; nobody states it.

Unspecified, with what is done here:

- Loss and head bias: sigmoid, -10 on ImageNet-21k and -6.9 on ImageNet, as big_vision's
  configs/vit_i21k.py and vit_i1k.py, which follow this paper. Hidden head on ImageNet: vit_i1k.py.
- Evaluation: the shorter side to 256, then the middle 224, as there.
- Settings of ViT-Ti/16, S/32 and L/16 on ImageNet, whose files are not known here: the level of
  vit_i1k.py, weight decay 0.1, neither dropout nor stochastic depth (by that file's words they
  would help ViT-L/16). With `--any-net` another net gets the setting of ViT-B/16.
- The authors train on 99 % of ImageNet and choose by the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Literal, get_args

from vitkit.data.facts import DataFacts
from vitkit.recipes.recipe import is_vit
from vitkit.training.config import AugmentConfig, OptimizerConfig, ScheduleConfig, TrainConfig

Level = Literal["none", "light1", "light2", "medium1", "medium2", "strong1", "strong2"]
LEVELS: tuple[Level, ...] = get_args(Level)
WEIGHT_DECAYS = (0.1, 0.03)
DROPS = (0.0, 0.1)  # dropout and stochastic depth together
USUAL = "ViT-B/16"

# Net: level, weight decay, dropout and stochastic depth.
I21K: dict[str, tuple[Level, float, float]] = {
    "ViT-B/16": ("medium1", 0.1, 0.0),
    "ViT-B/32": ("light2", 0.1, 0.0),
    "ViT-B/8": ("medium2", 0.1, 0.0),
    "ViT-L/16": ("strong1", 0.1, 0.0),
    "ViT-S/16": ("light2", 0.03, 0.0),
    "ViT-S/32": ("none", 0.1, 0.0),
    "ViT-Ti/16": ("none", 0.03, 0.0),
    "R+ViT-Ti/16": ("none", 0.03, 0.0),
    "R26+ViT-S/32": ("light2", 0.1, 0.0),
    "R50+ViT-L/32": ("medium1", 0.1, 0.1),
}
IMAGENET: dict[str, tuple[Level, float, float]] = {
    "ViT-B/16": ("strong2", 0.1, 0.1),
    "ViT-B/32": ("medium2", 0.1, 0.1),
    "ViT-S/16": ("medium2", 0.1, 0.0),
    "ViT-S/32": ("medium1", 0.1, 0.0),
    "ViT-Ti/16": ("light1", 0.1, 0.0),
    "ViT-L/16": ("medium2", 0.1, 0.0),
}


def augreg_i21k(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """AugReg on ImageNet-21k, 300 epochs, each net with the setting of its published weights.

    Command: `vitkit pretrain DATA --recipe augreg-i21k`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-B/16          443      208
        ViT-B/32          112     52.5
        ViT-B/8          1970      927
        ViT-L/16         1550      730
        ViT-S/16          116     54.6
        ViT-S/32           29     13.6
        ViT-Ti/16        31.7     14.9
        R+ViT-Ti/16        11     5.19
        R26+ViT-S/32     85.9     41.2
        R50+ViT-L/32      486      230

    Expected: ImageNet at 384 pixels, fine-tuned for 20,000 steps: L/16 85.59 %, B/16 85.49 %, B/32
    83.59 %, S/16 83.73 %, S/32 79.58 %, Ti/16 78.22 %, R50+L/32 85.99 %, R26+S/32 83.85 %, R+Ti/16
    75.40 % (vision_transformer's README.md); none is stated for B/8.

    Measured: not here.
    """
    return pretraining("augreg-i21k", facts, model, I21K, hidden_head=False, head_bias=-10.0)


def augreg_imagenet(facts: DataFacts, model: str | None = None) -> TrainConfig:
    """AugReg on ImageNet alone, 300 epochs, each net with the setting of its published weights.

    Command: `vitkit pretrain DATA --recipe augreg-imagenet`

    Cost in exaFLOPs and TPUv3-core-days:

        ViT-B/16      40.5     19.1
        ViT-B/32      10.2     4.78
        ViT-S/16      10.6     4.99
        ViT-S/32      2.64     1.24
        ViT-Ti/16     2.89     1.36
        ViT-L/16       142     66.8

    Expected: ImageNet at 224 pixels, before fine-tuning: L/16 75.72 %, B/16 79.84 %, B/32 74.42 %,
    S/16 79.00 %, S/32 72.07 %, Ti/16 72.59 % (the best of the authors' grid for each net, which
    need not be the setting here).

    Measured: not here.
    """
    return pretraining("augreg-imagenet", facts, model, IMAGENET, hidden_head=True, head_bias=-6.9)


def pretraining(
    recipe: str,
    facts: DataFacts,
    model: str | None,
    settings: dict[str, tuple[Level, float, float]],
    *,
    hidden_head: bool,
    head_bias: float,
) -> TrainConfig:
    """What both share; `settings` are the level, weight decay and drops of each net."""
    model = model or USUAL
    level, weight_decay, drops = settings.get(model, settings[USUAL])
    drops = drops if is_vit(model) else 0.0
    return TrainConfig(
        recipe=recipe,
        model=model,
        image_size=(224, 224),
        hidden_head=hidden_head and is_vit(model),
        dropout=drops,
        stochastic_depth=drops,
        head_bias=head_bias,
        epochs=300,
        batch_size=4096,
        loss="sigmoid",
        evaluation_resize="crop",
        optimizer=OptimizerConfig(
            "adamw", learning_rate=1e-3, weight_decay=weight_decay, clip_norm=1.0
        ),
        schedule=ScheduleConfig("cosine", warmup_steps=10_000),
        augment=AugmentConfig((0.05, 1.0), flip=facts.flip_keeps_class, level=level),
    )


def grid(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """The 28 settings of section 3.3 around a config, each with a label.

    `grid(augreg_imagenet(facts, "ViT-S/16"))` gives ("none, weight decay 0.1, drops 0", config) and
    so on: seven levels, two weight decays, dropout and stochastic depth 0 or 0.1.
    """
    for level, decay, drops in product(LEVELS, WEIGHT_DECAYS, DROPS):
        yield (
            f"{level}, weight decay {decay:g}, drops {drops:g}",
            replace(
                config,
                dropout=drops,
                stochastic_depth=drops,
                optimizer=replace(config.optimizer, weight_decay=decay),
                augment=replace(config.augment, level=level),
            ),
        )
