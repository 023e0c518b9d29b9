"""Recipes by name: typed functions from facts about the data to a TrainConfig. No torch here."""

from vitkit.recipes import quickstart

PRETRAIN = {"quickstart": quickstart.pretrain}
FINETUNE = {"quickstart": quickstart.finetune}
