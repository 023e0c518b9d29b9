"""SimCLR: the two views of an image among all others, in one process or several."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from small_nets import EVERY, VITS, images_for, small_net
from vitkit.data.sampling import places_of
from vitkit.errors import UsageError
from vitkit.models.nets import feature_width
from vitkit.objectives.settings import ContrastiveConfig
from vitkit.objectives.simclr import SimCLR, nt_xent
from vitkit.training.world import from_environment, joined, mean, start

SMALL = ContrastiveConfig(hidden_width=12, width=6)


def random_views(views: int, width: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(
        torch.randn(views, width, dtype=torch.float64, generator=generator)
    )


def by_hand(views: Tensor, temperature: float) -> float:
    """Eq. 1, view by view."""
    rows = views.tolist()
    total = 0.0
    for i, anchor in enumerate(rows):
        weights = [
            math.exp(sum(a * b for a, b in zip(anchor, other, strict=True)) / temperature)
            for other in rows
        ]
        other_view = (i + len(rows) // 2) % len(rows)
        total -= math.log(weights[other_view] / (sum(weights) - weights[i]))
    return total / len(rows)


def learner(batch_size: int = 6, net: str = "token", config: ContrastiveConfig = SMALL) -> SimCLR:
    """Of a net without a head, as runs have it: DDP would wait for the head's gradient."""
    headless = small_net(VITS[net])
    headless.head = torch.nn.Identity()
    return SimCLR(headless, config, batch_size).double()


def loss_of(given: SimCLR, images: Tensor, places: np.ndarray) -> Tensor:
    return given(images, torch.zeros(len(images), dtype=torch.int64), places)


# The loss


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("views", [2, 4, 10])
def test_the_loss_is_equation_1(views, temperature):
    given = random_views(views)
    found = nt_xent(given, given, torch.arange(views), temperature)
    assert float(found) == pytest.approx(by_hand(given, temperature), rel=1e-9, abs=1e-9)


def test_the_loss_of_some_anchors_is_among_all_views():
    views, rows = random_views(6), torch.tensor([4, 1])
    alone = [float(nt_xent(views[r : r + 1], views, r[None], 0.1)) for r in rows]
    assert float(nt_xent(views[rows], views, rows, 0.1)) == pytest.approx(sum(alone) / 2)


def test_views_that_are_all_the_same_give_the_logarithm_of_how_many_others_there_are():
    views = torch.ones(8, 4) / 2
    assert float(nt_xent(views, views, torch.arange(8), 0.1)) == pytest.approx(math.log(7))


def test_pairs_alike_and_apart_from_all_else_cost_nothing():
    views = torch.eye(4).repeat(2, 1)
    assert float(nt_xent(views, views, torch.arange(8), 0.01)) < 1e-6


def test_the_loss_is_in_float32_under_autocast():
    views = random_views(6).float()
    expected = nt_xent(views, views, torch.arange(6), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nt_xent(views, views, torch.arange(6), 0.1), expected)


# The learner


def test_the_loss_is_that_of_the_projected_features():
    given, images = learner(), images_for(small_net(VITS["token"]), 6).double()
    first, _, second = given.projection
    hidden = (given.net.features(images) @ first.weight.T).clamp(min=0)
    views = torch.nn.functional.normalize(hidden @ second.weight.T)
    found = loss_of(given, images, np.arange(12, 18))
    assert float(found.detach()) == pytest.approx(by_hand(views.detach(), 0.1), rel=1e-9)


def test_the_place_decides_which_views_belong_together_not_the_order():
    given, images = learner(), images_for(small_net(VITS["token"]), 6).double()
    order = np.array([3, 0, 5, 1, 4, 2])
    found = loss_of(given, images[order], 600 + order)
    torch.testing.assert_close(found, loss_of(given, images, np.arange(6)))


@pytest.mark.parametrize("kind", EVERY)
def test_nets_of_every_kind_learn(kind):
    net = small_net(EVERY[kind])
    given, images = SimCLR(net, SMALL, 4), images_for(net, 4)
    assert net.features(images).shape == (4, feature_width(net))
    loss_of(given, images, np.arange(4)).backward()
    for name, parameter in given.named_parameters():
        if not name.startswith("net.head"):
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_steps_bring_the_views_of_an_image_together_and_take_images_apart():
    torch.manual_seed(0)
    net = small_net(VITS["mean"])
    given = SimCLR(net, ContrastiveConfig(), 16).train()
    images = images_for(net, 8)
    views = torch.cat([images + 0.1 * torch.randn_like(images), images])
    optimizer = torch.optim.AdamW(given.parameters(), 1e-3)
    losses = []
    for _ in range(30):
        loss = loss_of(given, views, np.arange(16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    cosines = given.examples(views, np.arange(16))
    pairs = cosines.diagonal(8)
    others = cosines[:8, 8:][~torch.eye(8, dtype=torch.bool)]
    assert pairs.min() > others.max()


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_a_batch_without_different_images_or_with_half_a_pair_is_an_error(batch_size):
    with pytest.raises(UsageError, match=rf"different images.*batch_size is {batch_size}; give an"):
        learner(batch_size)


# Examples for people


def test_examples_are_cosines_ordered_by_place():
    given, images = learner(), images_for(small_net(VITS["token"]), 6).double()
    views = given.projected(images)
    order = np.array([3, 0, 5, 1, 4, 2])
    found = given.examples(images[order], 60 + order)
    assert not found.requires_grad
    torch.testing.assert_close(found, views @ views.T)


# Several processes


def one_of_several(given: dict) -> int:
    """Loss and gradients by DDP of a batch that the processes share; the main one writes them."""
    torch.set_num_threads(1)
    with joined(torch.device("cpu")):
        world = from_environment()
        contrasted = learner(given["batch"]).train()
        images = images_for(small_net(VITS["token"]), given["batch"]).double()
        places = places_of(5, given["batch"], world.rank, world.size)
        own = images[torch.from_numpy(places % given["batch"])]
        forward = DistributedDataParallel(contrasted) if world.size > 1 else contrasted
        loss = forward(own, torch.zeros(len(own), dtype=torch.int64), places)
        loss.backward()
        found = {f"gradient/{n}": p.grad for n, p in contrasted.named_parameters()}
        with torch.no_grad():
            evaluated = mean(contrasted.eval()(own, torch.zeros(len(own)), places))
        found |= {"loss": mean(loss.detach()), "evaluated": evaluated}
        if world.main:
            save_file({n: t.contiguous() for n, t in found.items() if t is not None}, given["file"])
    return 0


@pytest.mark.parametrize(("batch", "processes"), [(12, 2), (6, 2)])  # shares of 6, and of 3
def test_several_processes_have_the_loss_and_the_gradients_of_one(tmp_path, batch, processes):
    given = {"batch": batch, "file": str(tmp_path / "one.safetensors")}
    one_of_several(given)
    one = load_file(given["file"])
    given["file"] = str(tmp_path / "several.safetensors")
    assert start(one_of_several, given, processes) == 0
    several = load_file(given["file"])
    assert len(one) > 30 and one.keys() == several.keys()
    for name in one:
        torch.testing.assert_close(several[name], one[name], rtol=1e-9, atol=1e-12, msg=name)
