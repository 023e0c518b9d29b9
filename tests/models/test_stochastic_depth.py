"""Stochastic depth: a residual branch is left out for whole images, and its mean is kept."""

import pytest
import torch

from vitkit.models.stochastic_depth import depth_rate, kept_of_some


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_the_rate_grows_linearly_from_nothing_at_the_first_block_to_all_of_it_at_the_last():
    assert [depth_rate(0.3, layer, 4) for layer in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert depth_rate(0.3, 0, 1) == 0


@pytest.mark.parametrize("shape", [(5000, 3, 4), (5000, 6, 2, 2)])
def test_a_branch_is_left_out_for_whole_images_and_scaled_up_for_the_others(shape):
    found = kept_of_some(torch.ones(shape), 0.4, training=True).flatten(1)
    assert (found == found[:, :1]).all()
    assert sorted(set(found[:, 0].tolist())) == pytest.approx([0, 1 / 0.6])
    assert (found[:, 0] == 0).float().mean() == pytest.approx(0.4, abs=0.03)


def test_the_mean_over_many_draws_is_the_branch():
    branch = torch.randn(4, 2, 3, dtype=torch.float64)
    draws = [kept_of_some(branch, 0.25, training=True) for _ in range(20_000)]
    torch.testing.assert_close(torch.stack(draws).mean(dim=0), branch, rtol=0.03, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_type_stays_and_the_scale_is_not_rounded_to_it(dtype):
    branch = torch.randn(500, 3, 4, dtype=dtype)
    found = kept_of_some(branch, 0.1, training=True)
    kept = found.flatten(1).any(dim=1)
    assert found.dtype == dtype
    scale = (found[kept].double() / branch[kept].double()).mean().item()
    assert scale == pytest.approx(1 / 0.9, rel=3e-4)  # bfloat16 has 1.109375, 16e-4 less


def test_an_image_without_the_branch_is_safe_from_what_is_not_finite_in_it():
    branch = torch.full((200, 1, 1), torch.inf)
    assert set(kept_of_some(branch, 0.5, training=True).flatten().tolist()) == {0.0, torch.inf}


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.5, False)])
def test_with_a_rate_of_nothing_and_out_of_training_nothing_is_computed_or_drawn(rate, training):
    branch, before = torch.randn(3, 2, 2), torch.get_rng_state()
    assert kept_of_some(branch, rate, training) is branch
    assert torch.equal(torch.get_rng_state(), before)
