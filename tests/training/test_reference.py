"""Fifty steps of the engine beside the same recipe written out in plain operations.

Everything is in float64, of which a hook before the net sees to. In float32 Adam divides rounding
errors by themselves where a weight has no gradient (a key's bias, to which the softmax is blind),
and the two would part for that reason alone.
"""

import copy
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from vitkit.data.pipeline import Batch
from vitkit.data.transforms import Preprocessing
from vitkit.models.variants import build
from vitkit.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from vitkit.training.loop import learning_rates
from vitkit.training.parallel import Engine
from vitkit.training.precision import Precision, computing_threads
from vitkit.training.step import Setup, fresh_state, train_step

STEPS, IMAGES, CLASSES = 50, 16, 10
ENGINE = Engine(torch.device("cpu"), Precision("fp32", "for a test"), threads=1)


@dataclass
class Recipe:
    """What is compared, in the paper's terms."""

    optimizer: str
    rate: float
    schedule: str
    warmup: int = 0
    decay: float = 0.0
    clip: float = 0.0
    polyak: float = 0.0
    hidden_head: bool = False


RECIPES = {
    "paper, pre-training": Recipe("adamw", 8e-4, "linear", 10, decay=0.1, hidden_head=True),
    "paper, ImageNet": Recipe("adamw", 3e-3, "cosine", 10, decay=0.3, clip=1.0, hidden_head=True),
    "paper, fine-tuning": Recipe("sgd", 0.03, "cosine", 5, clip=1.0, polyak=0.9999),
    "fine-tuning without a warm-up": Recipe("sgd", 0.03, "cosine", clip=1.0, polyak=0.9999),
    "BiT, HyperRule": Recipe("sgd", 0.003, "stairs", 5),
}


@pytest.fixture(params=RECIPES)
def recipe(request) -> Recipe:
    return RECIPES[request.param]


# The same, written out


def reference_rates(recipe: Recipe) -> list[float]:
    """Of each step."""
    rates = []
    for step in range(STEPS):
        share = max(0, step - recipe.warmup) / (STEPS - recipe.warmup)
        if recipe.schedule == "linear":
            rate = recipe.rate + share * (1e-5 - recipe.rate)
        elif recipe.schedule == "cosine":
            rate = recipe.rate * (1 + np.cos(np.pi * share)) / 2
        else:
            rate = recipe.rate * (1.0, 0.1, 0.01, 0.001)[(step > 15) + (step > 30) + (step > 45)]
        rates.append(rate * step / recipe.warmup if step < recipe.warmup else rate)
    return rates


def dense_weights(net: nn.Module) -> set[str]:
    """What is decayed: the matrices of dense layers and of the patch embedding."""
    layers = dict(net.named_modules()).items()
    return {f"{name}.weight" for name, m in layers if isinstance(m, nn.Linear | nn.Conv2d)}


class Reference:
    """A net that is trained by hand."""

    def __init__(self, net: nn.Module, recipe: Recipe) -> None:
        self.net, self.recipe, self.steps = net, recipe, 0
        self.weights = dict(net.named_parameters())
        self.decayed = dense_weights(net)
        self.first, self.second = ({n: 0 * w.detach() for n, w in self.weights.items()}
                                   for _ in range(2))  # fmt: skip
        self.average: dict[str, torch.Tensor] = {}

    def step(self, batch: Batch, rate: float) -> tuple[float, float]:
        """-> loss, and norm of the gradient before it is clipped."""
        pixels = ((batch.images.float() - 127.5) / 127.5).double()
        scores = self.net(pixels)
        chances = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
        loss = -chances[torch.arange(IMAGES), batch.labels].log().mean()
        found = torch.autograd.grad(loss, list(self.weights.values()))
        norm = math.sqrt(sum(float(g.square().sum()) for g in found))
        if self.recipe.clip:  # torch's: the authors divide by the norm alone
            found = [g * min(1, self.recipe.clip / (norm + 1e-6)) for g in found]
        self.steps += 1
        with torch.no_grad():
            for (name, weight), gradient in zip(self.weights.items(), found, strict=True):
                weight -= rate * self.direction(name, weight, gradient)
                before = self.average.get(name, weight.clone())
                decay = self.recipe.polyak
                self.average[name] = decay * before + (1 - decay) * weight
        return loss.item(), norm

    def direction(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """What is taken off a weight, divided by the learning rate."""
        if self.recipe.optimizer == "sgd":
            self.first[name] = 0.9 * self.first[name] + gradient
            return self.first[name]
        self.first[name] = 0.9 * self.first[name] + 0.1 * gradient
        self.second[name] = 0.999 * self.second[name] + 0.001 * gradient**2
        mean = self.first[name] / (1 - 0.9**self.steps)
        size = (self.second[name] / (1 - 0.999**self.steps)).sqrt()
        decay = self.recipe.decay if name in self.decayed else 0.0
        return mean / (size + 1e-8) + decay * weight


# And the engine


def config_of(recipe: Recipe) -> TrainConfig:
    return TrainConfig(
        model="ViT-Femto/2", image_size=(8, 8), batch_size=IMAGES, polyak=recipe.polyak,
        optimizer=OptimizerConfig(recipe.optimizer, recipe.rate, recipe.decay,
                                  clip_norm=recipe.clip),
        schedule=ScheduleConfig(recipe.schedule, warmup_steps=recipe.warmup),
    )  # fmt: skip


def noise(number: int) -> list[Batch]:
    draw = torch.Generator().manual_seed(0)
    return [
        Batch(torch.randint(256, (IMAGES, 3, 8, 8), dtype=torch.uint8, generator=draw),
              torch.randint(CLASSES, (IMAGES,), generator=draw))
        for _ in range(number)
    ]  # fmt: skip


def a_net(recipe: Recipe) -> nn.Module:
    torch.manual_seed(0)
    net = build("ViT-Femto/2", CLASSES, 8, hidden_head=recipe.hidden_head).double()
    nn.init.normal_(net.head.weight, std=0.1)  # under one of zeros the rest would hardly move
    return net


def test_learning_rates_of_every_step_are_those_of_the_formulas(recipe):
    setup = Setup(config_of(recipe), STEPS, ENGINE, Preprocessing.direct((8, 8)))
    rate = learning_rates(setup)
    ours = [rate(step) for step in range(STEPS)]
    np.testing.assert_allclose(ours, reference_rates(recipe), rtol=1e-6)


def test_weights_losses_norms_and_averages_are_those_of_the_formulas(recipe):
    setup = Setup(config_of(recipe), STEPS, ENGINE, Preprocessing.direct((8, 8)))
    net, batches, rate = a_net(recipe), noise(8), learning_rates(setup)
    reference = Reference(copy.deepcopy(net), recipe)
    net.register_forward_pre_hook(lambda net, inputs: inputs[0].double())
    state = fresh_state(net, setup.config, ENGINE)
    start = net.patch_embedding.weight.detach().clone()
    ours, theirs = [], []
    with computing_threads(1):
        for step, expected_rate in enumerate(reference_rates(recipe)):
            batch = batches[step % len(batches)]
            loss, norm = train_step(setup, state, batch, rate(step))
            state.step = state.position = step + 1
            ours.append((float(loss), float(norm)))
            theirs.append(reference.step(batch, expected_rate))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    for name, weight in net.named_parameters():
        expected = reference.weights[name]
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
        if state.average is not None:
            average = reference.average[name]
            torch.testing.assert_close(state.average[name], average, rtol=0, atol=1e-6)
    assert (net.patch_embedding.weight - start).abs().max() > 1e-3, "far more than they may differ"
    assert not recipe.clip or sum(norm > recipe.clip for _, norm in theirs) > STEPS / 2
