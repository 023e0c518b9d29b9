"""What fits into memory is chosen; what cannot fit is refused with what would."""

import re
from dataclasses import replace

import pytest
import torch

from vitkit.errors import UsageError
from vitkit.models.variants import config as net_config
from vitkit.training.config import DataConfig, EngineConfig, TrainConfig
from vitkit.training.fitting import SPARE, choose_fitting, free_memory
from vitkit.training.memory import memory
from vitkit.training.world import World

CPU = torch.device("cpu")
NET = net_config("ViT-Ti/16", 10, 224)
ONE = World()
FOUR = World(size=4, local_size=4)


def taken(images, world=ONE, **how):
    config = TrainConfig(model="ViT-Ti/16", batch_size=images * world.size)
    return memory(NET, config, batch=images, **how).total


def chosen(free, images=32, world=ONE, accumulation=1, **engine):
    config = TrainConfig(
        model="ViT-Ti/16", batch_size=images * world.size, accumulation=accumulation,
        engine=EngineConfig(**engine),
    )  # fmt: skip
    limit = int(free / (1 - SPARE)) + 2**20
    return choose_fitting(NET, config, CPU, "fp32", False, world, limit)


def test_least_is_computed_again_that_fits():
    needs = {kind: taken(32, checkpointing=kind) for kind in ("none", "selective", "full")}
    assert needs["none"] > needs["selective"] > needs["full"]
    for kind, need in needs.items():
        assert chosen(need) == (kind, "none", 1)


def test_what_is_asked_for_is_taken():
    assert chosen(2**40, checkpointing="full") == ("full", "none", 1)


def test_ddp_is_taken_where_it_fits_and_else_fsdp():
    ddp = taken(2, FOUR, sharding="ddp")
    fsdp = taken(2, FOUR, sharding="fsdp", shards=4)
    assert fsdp < ddp
    assert chosen(ddp, 2, FOUR) == ("none", "ddp", 1)
    assert chosen(fsdp, 2, FOUR) == ("none", "fsdp", 4)


def test_what_would_fit_does_fit():
    with pytest.raises(UsageError, match=r"32 images at once takes .* GiB") as refused:
        chosen(taken(8, checkpointing="full"), 32)
    parts = int(re.findall(r"--accumulation (\d+)", str(refused.value))[0])
    kind, *_ = chosen(taken(8, checkpointing="full"), 32, accumulation=parts)
    assert kind == "full" and parts >= 4


def test_a_batch_whose_images_are_compared_is_to_be_smaller_not_in_parts():
    def simclr(views, free):
        config = TrainConfig(
            model="ViT-Ti/16", batch_size=views, objective="simclr", data=DataConfig(repeats=2)
        )
        return choose_fitting(replace(NET, classes=0), config, CPU, "fp32", False, ONE, free)

    free = taken(16, checkpointing="full")
    with pytest.raises(UsageError, match="--batch-size") as refused:
        simclr(32, free)
    assert "--accumulation" not in str(refused.value)
    views = re.findall(r"--batch-size (\d+)", str(refused.value))
    assert simclr(int(views[0]), free)[0] == "full" and 4 <= int(views[0]) < 32


def test_another_checkpointing_is_named_where_one_was_asked_for():
    with pytest.raises(UsageError, match="--checkpointing full"):
        chosen(taken(32, checkpointing="full"), checkpointing="none")


def test_more_processes_are_named_where_not_one_image_fits():
    with pytest.raises(UsageError, match=r"\d+ processes with --sharding fsdp"):
        chosen(taken(1, checkpointing="full") - 2**24)
    with pytest.raises(UsageError, match="smaller --model"):
        chosen(2**20)


def test_free_memory_is_shared_by_the_processes_of_a_machine():
    assert free_memory(CPU, 4) <= free_memory(CPU) // 2
