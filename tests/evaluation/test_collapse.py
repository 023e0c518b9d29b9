"""Collapse: features that hardly differ between images, seen in their spread."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from small_nets import VITS, images_for, small_net
from vitkit.evaluation.collapse import collapsed, in_words, spread


def random_features(images: int = 500, width: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((images, width))


def test_random_directions_have_a_spread_of_1_and_constant_ones_of_0():
    assert spread(random_features()) == pytest.approx(1, abs=0.01)
    assert spread(np.tile(random_features(1), (500, 1))) == pytest.approx(0, abs=1e-12)
    assert spread(np.zeros((5, 4))) == 0


@given(images=st.integers(2, 20), width=st.integers(1, 9), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_square_is_one_minus_the_mean_cosine(images, width, seed):
    features = random_features(images, width, seed)
    cosines = features @ features.T
    lengths = np.sqrt(cosines.diagonal())
    mean = (cosines / lengths / lengths[:, None]).mean()
    assert spread(features) ** 2 == pytest.approx(1 - mean, abs=1e-12)


def test_lengths_and_the_kind_of_array_do_not_count():
    features = random_features(40)
    lengths = np.geomspace(1e-150, 1e150, 40)[:, None]
    assert spread(features * lengths) == pytest.approx(spread(features))
    assert spread(torch.from_numpy(features).float()) == pytest.approx(spread(features), rel=1e-6)


def test_small_differences_are_measured_beside_a_large_mean():
    """In float32 they would drown: 1e-9 of the features."""
    features = np.ones((100, 16)) + 1e-9 * random_features(100, 16)
    assert spread(features) == pytest.approx(1e-9, rel=0.1)


@pytest.mark.parametrize("hole", [math.nan, math.inf])
def test_of_what_is_not_finite_and_of_one_image_nothing_is_said(hole):
    features = random_features(4)
    features[1, 2] = hole
    assert math.isnan(spread(features)) and math.isnan(spread(features[:1]))
    assert math.isnan(spread(features[:0]))
    assert not collapsed(math.nan, 1.0) and not collapsed(0.1, math.nan)


def test_a_net_that_only_makes_views_alike_collapses_and_an_untrained_one_has_not():
    torch.manual_seed(0)
    net = small_net(VITS["mean"]).train()
    images = images_for(net, 32)
    views = images + torch.randn_like(images)
    fresh = spread(net.features(images).detach())
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(60):
        one, other = (torch.nn.functional.normalize(net.features(x)) for x in (images, views))
        loss = -(one * other).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = spread(net.features(images).detach())
    assert collapsed(found, fresh) and not collapsed(fresh, fresh)


def test_a_net_that_began_with_features_much_alike_has_not_collapsed():
    assert not collapsed(0.15, 0.15) and not collapsed(0.12, 0.15)
    assert collapsed(0.05, 0.15)
    assert not collapsed(0.3, 0.9), "still far apart"


def test_people_are_told_what_and_what_to_do():
    said = in_words(0.1129, 0.4321)
    assert "nearly the same (a spread of 0.11, 0.43 before the first step)" in said
    assert "--learning-rate" in said
