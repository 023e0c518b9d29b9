"""rollout: attention followed through the layers; see also golden/README.md."""

from pathlib import Path

import numpy as np
import pytest
import torch
from written_out import KINDS, images_for, made

from vitkit.errors import UsageError
from vitkit.inspection.attention import attention, pool_attention, read_by_head
from vitkit.inspection.rollout import rollout, rollout_of

GOLDEN = Path(__file__).parents[1] / "golden" / "attention-rollout-and-flow" / "io.npz"


def random_attention(*shape: int) -> np.ndarray:
    maps = np.random.default_rng(0).exponential(size=shape)
    return maps / maps.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_it_is_that_of_the_definition(kind):
    with np.load(GOLDEN) as arrays:
        found = rollout(kind(arrays["attention"]))
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, arrays["rollout"], rtol=0, atol=1e-12)


def test_what_reaches_an_output_token_sums_to_1_and_is_half_itself_in_one_layer():
    maps = random_attention(5, 2, 7, 7)
    np.testing.assert_allclose(rollout(maps).sum(axis=1), 1)
    np.testing.assert_allclose(rollout(maps[:1]), (maps[0].mean(axis=0) + np.eye(7)) / 2)


def test_the_first_layer_stands_on_the_right():
    """Token 0 reads 1 in the last layer, which read 2 in the first."""
    first, last = np.eye(3), np.eye(3)
    first[1], last[0] = [0, 0, 1], [0, 1, 0]
    assert rollout(np.stack([first, last])[:, None])[0].tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize("shape", [(5, 5), (2, 5, 5), (1, 2, 3, 5, 5), (2, 3, 4, 5), (0, 3, 5, 5)])
def test_another_shape_is_refused(shape):
    with pytest.raises(UsageError, match=r"of shape \(.*; expected that of one image, \(layers"):
        rollout(np.zeros(shape))


@pytest.mark.parametrize("kind", KINDS)
def test_that_of_a_batch_is_the_row_of_what_the_head_reads(kind):
    net = made(kind)
    images = images_for(net)
    found, maps = rollout_of(net, images), attention(net, images)
    assert found.dtype == torch.float32
    probe = pool_attention(net, images)
    for image in range(2):
        shares = read_by_head(net).numpy()
        if probe is not None:
            shares = probe[image].mean(dim=0).numpy()
        np.testing.assert_allclose(found[image], shares @ rollout(maps[image]), atol=1e-6)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(2))
