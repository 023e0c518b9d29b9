"""filters: what the first layer looks for."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from small_nets import EVERY, VITS, small_net
from vitkit.errors import UsageError
from vitkit.inspection import filters
from vitkit.inspection.filters import pictures, principal_components

SIDES = {"BiT": 7, "AxialResNet": 7, "EfficientNet": 3, "hybrid": 7} | {
    f"T2T-ViT, {kind}": 7 for kind in ("performer", "transformer")
}


@pytest.mark.parametrize("name", EVERY)
def test_every_kind_of_net_has_pictures_between_0_and_1(name):
    found = filters(small_net(EVERY[name]))
    side = SIDES.get(name, 4)
    assert found.pictures.shape[1:] == (side, side, 3)
    assert 1 <= len(found.pictures) <= 28
    assert found.pictures.dtype == np.float32
    np.testing.assert_allclose(found.pictures.min(axis=(1, 2, 3)), 0)
    np.testing.assert_allclose(found.pictures.max(axis=(1, 2, 3)), 1)


def test_those_of_a_vit_are_the_principal_components_that_sklearn_finds():
    net = small_net(VITS["token"])
    found = filters(net, most=6)
    weight = net.patch_embedding.weight.detach().flatten(1).numpy()
    pca = PCA(6, svd_solver="full").fit(weight)
    np.testing.assert_allclose(found.explained, pca.explained_variance_ratio_, rtol=1e-4)
    for picture, component in zip(found.pictures, pca.components_, strict=True):
        image = component.reshape(3, 4, 4).transpose(1, 2, 0)
        scaled = (image - image.min()) / np.ptp(image)
        error = min(np.abs(picture - scaled).max(), np.abs(picture - (1 - scaled)).max())
        assert error < 1e-4


def test_a_component_is_the_same_whatever_the_sign_of_the_weights():
    rows = np.random.default_rng(0).normal(size=(9, 4))
    components, shares = principal_components(rows, 4)
    mirrored, _ = principal_components(-rows, 4)
    np.testing.assert_allclose(components, mirrored, atol=1e-12)
    largest = np.abs(components).argmax(axis=1)
    assert (components[np.arange(4), largest] > 0).all()
    assert (np.diff(shares) < 0).all()
    np.testing.assert_allclose(shares.sum(), 1)


def test_no_more_components_than_the_filters_have():
    rows = np.random.default_rng(0).normal(size=(3, 8))
    components, shares = principal_components(rows, 28)
    assert components.shape == (2, 8)  # three filters span two directions about their mean
    np.testing.assert_allclose(shares.sum(), 1)


def test_filters_that_are_all_alike_explain_nothing_and_are_not_nan():
    components, shares = principal_components(np.ones((5, 4)), 2)
    assert np.isfinite(components).all()
    np.testing.assert_array_equal(shares, [0, 0])


@pytest.mark.parametrize("name", ["BiT", "hybrid"])
def test_a_standardised_filter_is_shown_as_it_is_applied(name):
    net = small_net(EVERY[name])
    root = net.root if name == "BiT" else net.stem.root.conv
    shown = filters(net).pictures
    with torch.no_grad():
        seen = []  # what the layer says of single pixels is its weights, mirrored
        for channel in range(3):
            image = torch.zeros(1, 3, 13, 13)
            image[0, channel, 6, 6] = 1
            root.stride = (1, 1)
            seen.append(root(image)[0, :, 3:10, 3:10].flip(1, 2))
    applied = torch.stack(seen, dim=-1)[:28].numpy()
    flat = applied.reshape(28, -1)
    low, high = (f(axis=1)[:, None, None, None] for f in (flat.min, flat.max))
    np.testing.assert_allclose(shown, (applied - low) / (high - low), atol=1e-4)


def test_a_t2t_vits_first_layer_reads_squares_of_seven_pixels_channel_by_channel():
    net = small_net(EVERY["T2T-ViT, transformer"])
    with torch.no_grad():
        layer = net.tokens_to_token.layer1
        layer.attention.qkv.weight.zero_()
        layer.norm1.weight.fill_(1)
        weight = layer.attention.qkv.weight.view(-1, 3, 7, 7)
        scale = layer.norm1.weight.view(-1, 3, 7, 7)
        weight[0, 2, 1, 5] = 1  # blue, second row, sixth column
        weight[0, 0, 3, 3] = 2
        scale[0, 0, 3, 3] = 0.25  # by which the layer norm takes what that weight reads
    picture = filters(net).pictures[0]
    assert picture[1, 5, 2] == 1
    assert picture[3, 3, 0] == pytest.approx(0.5)


def test_a_title_says_how_many_of_the_filters_are_shown():
    net = small_net(EVERY["BiT"])
    assert filters(net, most=3).kind == "filters of the root convolution, the first 3 of 32"
    assert filters(net, most=32).kind == "filters of the root convolution"
    assert len(filters(net, most=3).pictures) == 3


def test_a_grey_filter_stays_grey_and_a_flat_one_is_in_the_middle():
    ramp = np.broadcast_to(np.arange(4.0).reshape(1, 1, 2, 2), (1, 3, 2, 2))
    np.testing.assert_allclose(pictures(ramp)[0, ..., 0], [[0, 1 / 3], [2 / 3, 1]], rtol=1e-6)
    assert (np.ptp(pictures(ramp), axis=-1) == 0).all()
    np.testing.assert_array_equal(pictures(np.full((1, 3, 2, 2), 7.0)), 0.5)


def test_no_picture_at_all_is_refused():
    with pytest.raises(UsageError, match="most is 0"):
        filters(small_net(VITS["token"]), most=0)
