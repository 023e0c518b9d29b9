"""mean_distances: how far, in pixels, the patches of each head look."""

import math

import numpy as np
import pytest
import torch
from written_out import KINDS, WITHOUT, images_for, made, written_out

from vitkit.data.pipeline import Batch
from vitkit.errors import UsageError, VitkitError
from vitkit.inspection import distance as module
from vitkit.inspection.attention import Reading
from vitkit.inspection.distance import mean_distances, patch_distances, reading_distances
from vitkit.models.nets import make
from vitkit.models.t2t import Attention

CELLS = {"hybrid": 8, "T2T-ViT": 16}  # pixels along the side of a patch; 4 for the others


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_is_the_mean_of_distances_weighted_by_attention_among_patches(kind):
    net = made(kind)
    images, (rows, columns), prefix = images_for(net, 3), net.config.grid, net.config.prefix
    _, maps = written_out(net, images)
    places = [(row, column) for row in range(rows) for column in range(columns)]
    found = mean_distances(net, [images])
    for layer, weights in enumerate(maps):
        among = weights[:, :, prefix:, prefix:].double().numpy()
        among = among / among.sum(-1, keepdims=True)
        expected = np.zeros(net.config.heads)
        for i, start in enumerate(places):
            for j, end in enumerate(places):
                pixels = CELLS.get(kind, 4) * math.dist(start, end)
                expected += pixels * among[:, :, i, j].mean(axis=0) / len(places)
        np.testing.assert_allclose(found.pixels[layer], expected, rtol=1e-5)
    assert found.layers == tuple(range(len(maps)))
    assert found.images == 3


def test_distances_are_in_pixels_of_the_image_row_by_row():
    between = patch_distances((2, 3), 16)
    expected = 16 * torch.tensor([0, 1, 2, 1, math.sqrt(2), math.sqrt(5)])
    torch.testing.assert_close(between[0], expected)
    assert torch.equal(between, between.T)


def looking(at: list[int], prefix: int) -> Reading:
    """One head of which patch i looks at patch at[i] and hardly anywhere else."""
    count = prefix + len(at)
    keys = 60 * torch.eye(count)
    queries = torch.zeros(count, count)
    queries[prefix:] = keys[[prefix + i for i in at]]
    attention = Attention(count, 1)
    return Reading(0, attention, torch.cat([queries, keys, keys], dim=-1)[None])


@pytest.mark.parametrize("prefix", [0, 2])
def test_a_head_that_looks_at_one_place_has_that_distance(prefix):
    between = patch_distances((2, 2), 10)
    patches = torch.arange(prefix, prefix + 4)
    for at, expected in (([0, 1, 2, 3], 0), ([1, 0, 3, 2], 10), ([3, 2, 1, 0], math.hypot(10, 10))):
        total = reading_distances(looking(at, prefix), patches, prefix, between)
        assert total.tolist() == pytest.approx([expected], abs=1e-4)


@pytest.mark.parametrize("kind", ["ViT", "registers", "T2T-ViT"])
@torch.no_grad()
def test_attention_that_is_equal_everywhere_has_the_uniform_distance(kind):
    net = made(kind)
    for block in net.blocks:
        block.attention.qkv.weight[: net.config.width] = 0
        if block.attention.qkv.bias is not None:
            block.attention.qkv.bias[: net.config.width] = 0
    found = mean_distances(net, [images_for(net)])
    np.testing.assert_allclose(found.pixels, found.uniform, rtol=1e-5)


@torch.no_grad()
def test_how_much_the_class_token_gets_does_not_matter():
    """It is left out, and the rest of each row sums to 1 again."""
    net = made("ViT")
    before = mean_distances(net, [images_for(net)], layers=[0]).pixels

    def more_of_the_class_token(reading, *rest):
        q, k, v = reading.qkv.chunk(3, dim=-1)
        k = torch.cat([k[:, :1] * 5, k[:, 1:]], dim=1)
        changed = Reading(reading.layer, reading.module, torch.cat([q, k, v], dim=-1))
        return reading_distances(changed, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "reading_distances", more_of_the_class_token)
        after = mean_distances(net, [images_for(net)], layers=[0]).pixels
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_batches_of_any_size_give_the_mean_over_their_images(monkeypatch):
    net = made("ViT")
    images = images_for(net, 5)
    whole = mean_distances(net, [images])
    batch = Batch(images[3:], torch.zeros(2).long(), torch.arange(2))
    parts = mean_distances(net, [images[:3], batch])
    np.testing.assert_allclose(parts.pixels, whole.pixels, rtol=1e-6)
    assert parts.images == whole.images == 5
    monkeypatch.setattr(module, "AT_ONCE", 1)
    np.testing.assert_allclose(mean_distances(net, [images]).pixels, whole.pixels, rtol=1e-6)


def test_layers_are_chosen():
    net = made("ViT")
    whole, some = (mean_distances(net, [images_for(net)], layers) for layers in (None, [-1, 0]))
    assert some.layers == (2, 0)
    assert some.images == 2
    np.testing.assert_allclose(some.pixels, whole.pixels[[2, 0]], rtol=1e-6)
    with pytest.raises(UsageError, match="there is no layer 3: this net has 3"):
        mean_distances(net, [images_for(net)], layers=[3])


def test_without_images_there_is_no_distance():
    with pytest.raises(VitkitError, match="no images to measure attention distance on"):
        mean_distances(made("ViT"), [])


@pytest.mark.parametrize("config", WITHOUT, ids=lambda config: type(config).__name__)
def test_a_net_without_attention_among_tokens_is_refused(config):
    with pytest.raises(UsageError, match=r"; filters and Grad-CAM apply$"):
        mean_distances(make(config), [])
