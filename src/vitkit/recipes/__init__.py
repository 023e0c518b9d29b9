"""Recipes by name: typed functions from facts about the data to a TrainConfig. No torch here.

docs/recipes.md, which `vitkit recipes -o` writes, has what each is for, costs and reaches.
"""

from __future__ import annotations

from dataclasses import replace

from vitkit.data.facts import DataFacts
from vitkit.errors import UsageError, named
from vitkit.models.variants import VARIANTS, variant
from vitkit.recipes import (
    augreg,
    big_vision,
    deit,
    mae_transfer,
    paper,
    quickstart,
    quickstart_unlabelled,
    self_supervised,
    transfer,
)
from vitkit.recipes.recipe import CIFAR_100, IMAGENET, IMAGENET_21K, JFT, PETS, VTAB, Recipe
from vitkit.training.config import TrainConfig

USUAL_NET = "ViT-B/16"  # of a plan by a recipe for any net
# Big Transfer's; the one for small images is of no paper.
BIT = tuple(name for name, row in VARIANTS.items() if row.kind == "BiT" and row.side == 224)
MAE = tuple(mae_transfer.TUNED)

# fmt: off
PRETRAIN = {
    "quickstart": Recipe(quickstart.pretrain),
    # The paper's Table 3, row by row.
    "jft-vit-b": Recipe(paper.jft_vit_b, ("ViT-B/32", "ViT-B/16"), JFT),
    "jft-vit-l32": Recipe(paper.jft_vit_l32, ("ViT-L/32",), JFT),
    "jft-vit-l16": Recipe(paper.jft_vit_l16, ("ViT-L/16",), JFT),
    "jft-vit-h14": Recipe(paper.jft_vit_h14, ("ViT-H/14",), JFT),
    "jft-bit-r50": Recipe(paper.jft_bit_r50, ("BiT-R50x1", "BiT-R50x2"), JFT),
    "jft-bit-r101": Recipe(paper.jft_bit_r101, ("BiT-R101x1",), JFT),
    "jft-bit-r152": Recipe(paper.jft_bit_r152, ("BiT-R152x1", "BiT-R152x2"), JFT),
    "jft-hybrid-b": Recipe(paper.jft_hybrid_b, ("R50+ViT-B/32", "R50+ViT-B/16"), JFT),
    "jft-hybrid-l32": Recipe(paper.jft_hybrid_l32, ("R50+ViT-L/32",), JFT),
    "jft-hybrid-l16": Recipe(paper.jft_hybrid_l16, ("R50+ViT-L/16",), JFT),
    "i21k-vit-b": Recipe(paper.i21k_vit_b, ("ViT-B/16", "ViT-B/32"), IMAGENET_21K),
    "i21k-vit-l": Recipe(paper.i21k_vit_l, ("ViT-L/16", "ViT-L/32"), IMAGENET_21K),
    "imagenet-vit": Recipe(
        paper.imagenet_vit, ("ViT-B/16", "ViT-B/32", "ViT-L/16", "ViT-L/32"), IMAGENET),
    # By the same authors, later.
    "augreg-i21k": Recipe(augreg.augreg_i21k, tuple(augreg.I21K), IMAGENET_21K),
    "augreg-imagenet": Recipe(augreg.augreg_imagenet, tuple(augreg.IMAGENET), IMAGENET),
    "big-vision-s16": Recipe(big_vision.big_vision_s16, ("ViT-S/16",), IMAGENET),
    # By others.
    "deit-distilled": Recipe(
        deit.deit_distilled, ("ViT-B/16", "ViT-S/16", "ViT-Ti/16"), IMAGENET),
    # Without labels.
    "masked-patches": Recipe(self_supervised.masked_patches, ("ViT-B/16",), JFT),
    "mae": Recipe(self_supervised.mae, MAE, IMAGENET),
    "simclr": Recipe(self_supervised.simclr, ("ViT-B/16", "ViT-S/16"), IMAGENET),
    "quickstart-masked-patches": Recipe(quickstart_unlabelled.masked_patches),
    "quickstart-mae": Recipe(quickstart_unlabelled.mae),
    "quickstart-simclr": Recipe(quickstart_unlabelled.simclr),
}
FINETUNE = {
    "quickstart": Recipe(quickstart.finetune),
    # The paper's Table 4, and what Table 2 does otherwise.
    "table4-imagenet": Recipe(
        transfer.table4_imagenet, (), IMAGENET, transfer.IMAGENET_RATES,
        transfer.FURTHER_IMAGENET_RATES, 0.01),
    "table4-cifar": Recipe(transfer.table4_cifar, (), CIFAR_100, transfer.RATES, (), 0.02),
    "table4-flowers-pets": Recipe(
        transfer.table4_flowers_pets, (), PETS, transfer.RATES, (), 0.1),
    "table4-vtab": Recipe(transfer.table4_vtab, (), VTAB, (0.01,)),
    "table2-imagenet": Recipe(
        transfer.table2_imagenet, ("ViT-L/16", "ViT-H/14"), IMAGENET, transfer.IMAGENET_RATES,
        transfer.FURTHER_IMAGENET_RATES, 0.01),
    "bit-hyperrule": Recipe(transfer.bit_hyperrule, BIT, IMAGENET),
    # After pre-training without labels.
    "mae-finetune": Recipe(mae_transfer.finetune, MAE, IMAGENET),
    "mae-linear": Recipe(mae_transfer.linear, MAE, IMAGENET),
}
# fmt: on


def pretraining(
    name: str, facts: DataFacts, model: str | None = None, any_net: bool = False
) -> TrainConfig:
    """A recipe for training from nothing; without `model` it is the recipe's first net.

    Raises UsageError for an unknown recipe or net, and for a net that the recipe was not written
    for unless `any_net`.
    """
    recipe = of_verb(name, "pretrain")
    if model is not None:
        variant(model)
        check_net(name, recipe, model, any_net)
    return recipe.make(facts, model)


def finetuning(
    name: str, facts: DataFacts, model: str, image_size: tuple[int, int], any_net: bool = False
) -> TrainConfig:
    """A recipe for a checkpoint of this net and image size; UsageError as for `pretraining`."""
    recipe = of_verb(name, "finetune")
    check_net(name, recipe, model, any_net)
    return recipe.make(facts, model, image_size)


def for_objective(name: str, objective: str | None) -> str:
    """The recipe meant by `name` and an objective beside it: of quickstart its own for it."""
    own = f"{name}-{objective}"
    return own if name == "quickstart" and own in PRETRAIN else name


def find(name: str) -> tuple[str, Recipe]:
    """The verb, "pretrain" or else "finetune", and the recipe; UsageError if there is none such."""
    verb = "pretrain" if named("recipe", name, PRETRAIN | FINETUNE) in PRETRAIN else "finetune"
    return verb, (PRETRAIN if verb == "pretrain" else FINETUNE)[name]


def of_verb(name: str, verb: str) -> Recipe:
    """The recipe; UsageError where there is none, or it is of the other verb."""
    recipes, others = (PRETRAIN, FINETUNE) if verb == "pretrain" else (FINETUNE, PRETRAIN)
    if name not in recipes and name in others:
        other = "finetune" if verb == "pretrain" else "pretrain"
        raise UsageError(
            f"{name} is a recipe of vitkit {other}; those of {verb} are {', '.join(recipes)}"
        )
    return recipes[named("recipe", name, recipes)]


def planning(
    name: str, facts: DataFacts, model: str | None = None, any_net: bool = False
) -> TrainConfig:
    """A recipe of either kind, for a plan; without `model` of its first net."""
    verb, recipe = find(name)
    if verb == "pretrain":
        return pretraining(name, facts, model, any_net)
    net = model or next(iter(recipe.nets), USUAL_NET)
    variant(net)
    return finetuning(name, facts, net, (224, 224), any_net)


def as_written(verb: str, config: TrainConfig, facts: DataFacts) -> TrainConfig | None:
    """What the recipe that a config came from says for these data and the config's net.

    Of fine-tuning it is told the config's own image size. None where there is no such recipe, as
    for a config of one's own.
    """
    try:
        if verb == "pretrain":
            return pretraining(config.recipe, facts, config.model, any_net=True)
        return finetuning(config.recipe, facts, config.model, config.image_size, any_net=True)
    except UsageError:
        return None


def candidates(
    name: str, facts: DataFacts, model: str, image_size: tuple[int, int], any_net: bool = False
) -> list[tuple[str, TrainConfig]]:
    """What a fine-tuning recipe's authors choose among, each with a label; none for some recipes.

    The learning rates, for ResNets and hybrids with those that are added, and for BiT nets its
    HyperRule (appendix B.1.1). `FINETUNE[name].dev_share` is the share that they choose by.
    """
    config = finetuning(name, facts, model, image_size, any_net)
    recipe = FINETUNE[name]
    is_bit = model.startswith("BiT")
    has_resnet = is_bit or model.startswith("R")  # R+ViT, R26+ViT, R50+ViT
    rates = recipe.learning_rates + (recipe.further_rates if has_resnet else ())
    found = [
        (
            f"learning rate {rate:g}",
            replace(config, optimizer=replace(config.optimizer, learning_rate=rate)),
        )
        for rate in rates
    ]
    if rates and is_bit:
        found.append(("bit-hyperrule", transfer.bit_hyperrule(facts, model, image_size)))
    return found


def check_net(name: str, recipe: Recipe, model: str, any_net: bool) -> None:
    """UsageError for a net that a recipe was not written for."""
    if recipe.nets and model not in recipe.nets and not any_net:
        raise UsageError(
            f"the recipe {name} was written for {', '.join(recipe.nets)}, not for {model}; "
            "give one of these, another recipe, or --any-net"
        )
