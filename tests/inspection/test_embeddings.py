"""How alike position embeddings are: the cosine of each patch's with each other's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics.pairwise import cosine_similarity

from small_nets import EVERY, T2TS, small_net, vit_config
from vitkit.errors import UsageError
from vitkit.inspection.embeddings import position_similarity, positions, rank_correlations


@given(
    patches=st.integers(1, 20), width=st.integers(1, 16), prefix=st.integers(0, 2),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_it_is_the_cosine_of_the_patches_without_the_prefix(patches, width, prefix, seed):
    torch.manual_seed(seed)
    positions = torch.randn(1, prefix + patches, width)
    similarity = position_similarity(positions, prefix)
    assert similarity.shape == (patches, patches)
    np.testing.assert_allclose(similarity, cosine_similarity(positions[0, prefix:]), atol=1e-5)


def test_one_token_before_the_patches_is_the_default():
    positions = torch.randn(1, 10, 4)
    torch.testing.assert_close(position_similarity(positions), position_similarity(positions, 1))
    assert position_similarity(positions).shape == (9, 9)


def test_parameters_and_half_precision_give_a_float32_matrix_without_gradient():
    positions = torch.nn.Parameter(torch.randn(1, 10, 4, dtype=torch.bfloat16))
    similarity = position_similarity(positions)
    assert similarity.dtype == torch.float32
    assert not similarity.requires_grad
    torch.testing.assert_close(similarity.diagonal(), torch.ones(9))


def test_a_position_of_zeros_is_like_no_other_and_not_nan():
    positions = torch.randn(1, 5, 4)
    positions[0, 2] = 0
    similarity = position_similarity(positions, prefix=0)
    assert similarity[2].abs().max() == 0
    assert similarity.isfinite().all()


# What is found of a net

T2T = T2TS["T2T-ViT, performer"]


def lattice_positions(grid, width=8):
    """Positions (1, 1 + N, D) that turn by one angle per row and another per column."""
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    table = np.stack([np.cos(y / 9), np.sin(y / 9), np.cos(x / 9), np.sin(x / 9)], axis=1)
    table = np.pad(table, ((1, 0), (0, width - 4)))
    return torch.from_numpy(table).float()[None]


def test_positions_that_turn_along_rows_and_columns_are_the_less_alike_the_farther_they_are():
    net = small_net(vit_config(image_size=(24, 32)))
    net.position_embedding.data = lattice_positions(net.config.grid, 16)
    found = positions(net)
    assert found.kind == "1d"
    assert found.rows < -0.99  # not -1: equal cosines are rounded apart here and there
    assert found.columns < -0.99
    assert abs(found.untrained_rows) < 0.5
    assert abs(found.untrained_columns) < 0.5
    assert found.note == ""


def test_rows_and_columns_are_told_apart_on_a_grid_that_is_not_square():
    net = small_net(vit_config(image_size=(16, 24)))
    table = lattice_positions((4, 6), 16)
    table[..., 2:4] = torch.randn(1, 25, 2)  # nothing is left of the order along a row
    net.position_embedding.data = table
    found = positions(net)
    similarity = cosine_similarity(table[0, 1:])
    pairs = [(a, b) for a in range(24) for b in range(a + 1, 24)]
    in_row = [(b - a, similarity[a, b]) for a, b in pairs if a // 6 == b // 6]
    in_column = [((b - a) // 6, similarity[a, b]) for a, b in pairs if a % 6 == b % 6]
    assert found.rows == pytest.approx(spearmanr(*zip(*in_row, strict=True)).statistic)
    assert found.columns == pytest.approx(spearmanr(*zip(*in_column, strict=True)).statistic)
    assert found.rows != pytest.approx(found.columns, abs=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "mean"},
        {"registers": 2},
        {"distillation_token": True},
        {"pooling": "map", "positions_at": "layers-shared"},
        {"positions": "2d"},
        {"positions": "sincos2d"},
        {"stem": (1,), "stem_width": 32, "patch": 1, "attention": "row"},
    ],
)
def test_only_patches_are_compared_whatever_stands_before_them(options):
    net = small_net(vit_config(image_size=(24, 16)) if not options else vit_config(**options))
    found = positions(net)
    config = net.config
    assert found.kind == config.positions
    patches = net.positions()[0, config.positioned_prefix :].detach()
    assert found.similarity.shape == (config.grid[0] * config.grid[1],) * 2
    np.testing.assert_allclose(found.similarity, cosine_similarity(patches), atol=1e-5)


def test_positions_of_one_layer_are_those_that_are_asked_for():
    net = small_net(vit_config(positions_at="layers"))
    found = positions(net, layer=2)
    assert found.kind == "1d, of layer 2 of 3"
    patches = net.position_embedding[2, 1:].detach()
    np.testing.assert_allclose(found.similarity, cosine_similarity(patches), atol=1e-5)
    assert positions(net).kind == "1d, of layer 0 of 3"
    with pytest.raises(UsageError, match="layer 3: the layers with positions are 0 to 2"):
        positions(net, layer=3)


@pytest.mark.parametrize(
    "config",
    [vit_config(positions="sincos2d", image_size=(16, 16)), replace(T2T, image_size=(48, 64))],
)
def test_fixed_positions_are_the_same_in_an_untrained_net_and_it_is_said(config):
    found = positions(small_net(config))
    assert (found.rows, found.columns) == (found.untrained_rows, found.untrained_columns)
    assert found.rows < -0.95
    assert found.columns < -0.95 or found.kind == "sincos1d"  # which knows no columns
    assert "fixed" in found.note


def test_the_untrained_net_is_drawn_by_the_seed_alone_and_no_other_number_is_drawn():
    net = small_net(vit_config(image_size=(16, 24)))
    state = torch.get_rng_state()
    first, again, other = positions(net, seed=1), positions(net, seed=1), positions(net, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.untrained_rows == again.untrained_rows != other.untrained_rows


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("relative positions", "offsets of pairs of tokens alone"),
        ("no positions, SwiGLU", "without positions"),
        ("BiT", "a net of kind BiT adds no positions"),
        ("AxialResNet", "a net of kind AxialResNet adds no positions"),
        ("EfficientNet", "a net of kind EfficientNet adds no positions"),
    ],
)
def test_a_net_that_adds_no_positions_says_so(name, why):
    with pytest.raises(UsageError, match=why):
        positions(small_net(EVERY[name]))


@pytest.mark.filterwarnings("error")
def test_a_correlation_that_is_not_defined_is_nan():
    alike = np.ones((12, 12), dtype=np.float32)
    assert np.isnan(rank_correlations(alike, (3, 4))).all()
    alike += np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32) * 1e-8
    assert np.isnan(rank_correlations(alike, (3, 4))).all()  # rounding is no difference
    apart = np.random.default_rng(0).normal(size=(12, 12))
    rows, columns = rank_correlations(apart, (2, 6))
    assert np.isfinite(rows)
    assert np.isnan(columns)  # all pairs of a column of two are one apart
    assert np.isnan(rank_correlations(np.ones((1, 1)), (1, 1))).all()
