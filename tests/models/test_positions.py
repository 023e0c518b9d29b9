"""Position embeddings taken to another grid, as the authors' checkpoint loader does."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from vitkit.models.nets import resize_net
from vitkit.models.positions import resize_positions
from vitkit.models.vit import VisionTransformer, ViTConfig

WIDTH = 3
grids = st.tuples(st.integers(1, 12), st.integers(1, 12))
larger_than_one = st.tuples(st.integers(2, 12), st.integers(2, 12))
prefixes = st.sampled_from([0, 1, 5])


def random_positions(grid: tuple[int, int], prefix: int) -> Tensor:
    return torch.randn(1, prefix + grid[0] * grid[1], WIDTH)


def zoomed(positions: Tensor, old: tuple[int, int], new: tuple[int, int], prefix: int) -> Tensor:
    """What scipy makes of the part of the positions that lies on the grid."""
    grid = positions[0, prefix:].reshape(*old, WIDTH).numpy()
    grid = ndimage.zoom(grid, (new[0] / old[0], new[1] / old[1], 1), order=1)
    return torch.from_numpy(grid).reshape(1, -1, WIDTH)


@pytest.mark.parametrize("old, new", [(14, 24), (7, 12), (16, 37), (24, 14), (12, 7), (3, 2)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_square_grids_equal_scipy_zoom_of_order_one(old, new, prefix):
    positions = random_positions((old, old), prefix)
    resized = resize_positions(positions, (old, old), (new, new), prefix)
    expected = zoomed(positions, (old, old), (new, new), prefix)
    torch.testing.assert_close(resized[:, prefix:], expected, rtol=0, atol=1e-5)


@given(old=grids, new=grids, prefix=prefixes, seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_rectangular_grids_equal_scipy_zoom_of_order_one(old, new, prefix, seed):
    torch.manual_seed(seed)
    positions = random_positions(old, prefix)
    resized = resize_positions(positions, old, new, prefix)
    expected = zoomed(positions, old, new, prefix)
    assert resized.shape == (1, prefix + new[0] * new[1], WIDTH)
    torch.testing.assert_close(resized[:, prefix:], expected, rtol=0, atol=1e-5)


@given(old=grids, new=grids, prefix=prefixes)
@settings(max_examples=20, deadline=None)
def test_prefix_tokens_are_kept_as_they_are(old, new, prefix):
    positions = random_positions(old, prefix)
    resized = resize_positions(positions, old, new, prefix)
    assert torch.equal(resized[:, :prefix], positions[:, :prefix])


@given(grid=grids, prefix=prefixes)
@settings(max_examples=20, deadline=None)
def test_the_same_grid_gives_the_same_positions(grid, prefix):
    positions = random_positions(grid, prefix)
    assert torch.equal(resize_positions(positions, grid, grid, prefix), positions)


@given(old=larger_than_one, new=larger_than_one)
@settings(max_examples=40, deadline=None)
def test_linear_functions_of_the_coordinates_are_preserved(old, new):
    slope = torch.tensor([[2.0, -3.0, 0.5], [1.0, 0.0, -4.0]])

    def plane(grid):  # corners of every grid lie on the corners of the unit square
        down, across = (torch.linspace(0, 1, side) for side in grid)
        return (torch.cartesian_prod(down, across) @ slope + 7)[None]

    resized = resize_positions(plane(old), old, new, prefix=0)
    torch.testing.assert_close(resized, plane(new), rtol=0, atol=1e-5)


def test_one_prefix_token_is_the_default():
    positions = random_positions((2, 2), 1)
    assert torch.equal(
        resize_positions(positions, (2, 2), (3, 3)),
        resize_positions(positions, (2, 2), (3, 3), prefix=1),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_number_format_is_kept(dtype):
    positions = random_positions((2, 2), 1).to(dtype)
    assert resize_positions(positions, (2, 2), (3, 4)).dtype == dtype


@pytest.mark.parametrize(
    "shape, grid, prefix, expected",
    [
        ((1, 12, 4), (3, 4), 1, "(1, 13, D)"),  # no class token, but one is expected
        ((1, 13, 4), (3, 4), 0, "(1, 12, D)"),
        ((1, 13, 4), (4, 4), 1, "(1, 17, D)"),
        ((13, 4), (3, 4), 1, "(1, 13, D)"),
    ],
)
def test_positions_that_do_not_fit_are_refused_with_what_was_found_and_expected(
    shape, grid, prefix, expected
):
    with pytest.raises(ValueError) as error:
        resize_positions(torch.zeros(shape), grid, (6, 6), prefix)
    assert str(tuple(shape)) in str(error.value)
    assert f"{grid[0]}x{grid[1]}" in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize("old, new", [((0, 4), (3, 3)), ((2, 2), (0, 3))])
def test_an_empty_grid_is_refused(old, new):
    positions = torch.zeros(1, 1 + old[0] * old[1], 4)
    with pytest.raises(ValueError, match=re.escape(f"{new[0]}x{new[1]}")):
        resize_positions(positions, old, new)


# A whole net, taken to another image size


def small_net(**options) -> VisionTransformer:
    return VisionTransformer(ViTConfig(8, 12, 2, 3, 16, classes=4, image_size=(32, 24), **options))


@pytest.mark.parametrize("pooling", ["token", "mean"])
def test_a_resized_net_has_resized_positions_and_all_other_weights_unchanged(pooling):
    net = small_net(pooling=pooling)
    resized = resize_net(net, (48, 40))
    expected = net.state_dict()
    expected["position_embedding"] = resize_positions(
        net.position_embedding, (4, 3), (6, 5), prefix=net.config.prefix
    )
    torch.testing.assert_close(resized.state_dict(), expected, rtol=0, atol=0)
    assert resized.config.image_size == (48, 40)
    assert resized(torch.zeros(1, 3, 48, 40)).shape == (1, 4)


@pytest.mark.parametrize("size", [(48, 40), (32, 24)])
def test_a_resized_net_is_a_copy_that_can_be_trained_and_leaves_the_first_as_it_was(size):
    net = small_net()
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    resized = resize_net(net, size)
    for parameter in resized.parameters():
        assert parameter.requires_grad
        torch.nn.init.constant_(parameter, 5)
    assert net.config.image_size == (32, 24)
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize("training", [True, False])
def test_a_resized_net_is_in_the_mode_and_the_number_format_of_the_first(training):
    resized = resize_net(small_net().bfloat16().train(training), (48, 40))
    assert resized.training == training
    assert {parameter.dtype for parameter in resized.parameters()} == {torch.bfloat16}


def test_a_net_is_not_resized_to_what_its_patches_do_not_divide():
    with pytest.raises(ValueError, match=r"\b50x40\b.*patch size 8"):
        resize_net(small_net(), (50, 40))
