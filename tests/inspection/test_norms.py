"""Norms of the patch tokens, and which of them are outliers."""

import numpy as np
import pytest
import torch

from small_nets import CONVOLUTIONAL, VITS, WITH_TOKENS, images_for, small_net
from vitkit.errors import UsageError
from vitkit.inspection import norms_found, patch_norms


@pytest.mark.parametrize("name", WITH_TOKENS)
def test_they_are_of_what_the_last_block_gives_before_the_final_norm(name):
    net = small_net(WITH_TOKENS[name])
    images = images_for(net)
    norms = patch_norms(net, images)
    assert norms.shape == (2, net.config.grid[0] * net.config.grid[1])
    with torch.no_grad():
        tokens = net.encode(images)[:, net.config.prefix :]
    torch.testing.assert_close(norms, tokens.square().sum(-1).sqrt())
    with torch.no_grad():
        net.norm.weight.mul_(10)
    assert torch.equal(patch_norms(net, images), norms)


def test_the_outliers_are_the_tokens_that_were_put_far_above_the_rest():
    rng = np.random.default_rng(0)
    norms = rng.normal(40, 4, (50, 196))
    norms.flat[rng.choice(norms.size, 98, replace=False)] = 300
    found = norms_found(norms)
    assert found.outliers == pytest.approx(0.01)
    assert found.threshold == pytest.approx(80, rel=0.02)  # the median and ten deviations
    assert found.norms.dtype == np.float32


def test_a_normal_spread_has_no_outliers_and_neither_have_norms_that_are_all_the_same():
    assert norms_found(np.random.default_rng(0).normal(40, 4, (50, 196))).outliers == 0
    assert norms_found(np.full((2, 6), 3.0)).outliers == 0


def test_a_token_that_the_net_makes_long_is_an_outlier():
    net = small_net(VITS["no positions, SwiGLU"])
    images = images_for(net, 60, seed=3) * 0.01
    with torch.no_grad():
        images[7, :, :4, :4] = 100 * net.patch_embedding.weight[0]
    found = norms_found(patch_norms(net, images).numpy())
    assert found.norms.argmax() == 7 * 6
    assert found.norms[7, 0] > found.threshold
    assert found.outliers < 0.02


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_net_without_tokens_says_so(name):
    net = small_net(CONVOLUTIONAL[name])
    with pytest.raises(UsageError, match=f"kind {name} has no patch tokens"):
        patch_norms(net, images_for(net))
