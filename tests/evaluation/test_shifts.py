"""Shifted pictures: windows of one larger picture, of which nothing is made up."""

import numpy as np
import pytest
import torch

from vitkit.data.transforms import Preprocessing
from vitkit.evaluation.shifts import as_it_is, same, usual_distances, window, with_margin

DIRECT = Preprocessing.direct((32, 32))
CROPPED = Preprocessing.small_crop((28, 28), 36)  # leaves 4 pixels at each side


def photo(side: int = 36) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, side, side), dtype=torch.uint8, generator=random)


@pytest.mark.parametrize("preprocessing", [DIRECT, CROPPED])
@pytest.mark.parametrize("shift", [(0, 3), (0, -3), (3, 0), (-2, 0)])
def test_a_shifted_picture_holds_the_unshifted_one_moved_down_and_right(preprocessing, shift):
    still = window(photo(), preprocessing, 3, (0, 0))
    moved = window(photo(), preprocessing, 3, shift)
    assert still.shape == moved.shape == (3, *preprocessing.image_size)
    down, right = shift
    inner = moved.roll((-down, -right), dims=(1, 2))[:, 3:-3, 3:-3]
    assert torch.equal(inner, still[:, 3:-3, 3:-3])
    assert not torch.equal(moved, still)


@pytest.mark.parametrize("shift", [(4, 0), (0, -4), (0, 0)])
def test_where_the_crop_leaves_room_windows_are_of_the_photograph_itself(shift):
    top, left = 4 - shift[0], 4 - shift[1]
    expected = photo()[:, top : top + 28, left : left + 28]
    assert torch.equal(window(photo(), CROPPED, 4, shift), expected)


def test_a_picture_is_resized_larger_only_as_far_as_the_shifts_need():
    assert with_margin(CROPPED, 4).resize_to == 36
    assert with_margin(CROPPED, 6).resize_to == 40
    assert with_margin(DIRECT, 4).image_size == (40, 40)
    assert with_margin(Preprocessing.resize_crop((28, 28), (32, 36)), 3).resize_to == (34, 36)


@pytest.mark.parametrize("preprocessing", [DIRECT, CROPPED])
def test_a_window_is_only_normalised_for_the_net(preprocessing):
    image = window(photo(), preprocessing, 2, (1, 0))
    ready = as_it_is(preprocessing)(image)
    assert torch.allclose(ready, image / 127.5 - 1, atol=1e-6)


def test_an_unshifted_window_without_margin_is_what_the_net_sees_otherwise():
    ours = as_it_is(CROPPED)(window(photo(48), CROPPED, 0, (0, 0)))
    assert torch.allclose(ours, CROPPED(photo(48)), atol=1e-6)


@pytest.mark.parametrize(
    "side, expected",
    [
        (4, (1,)), (32, (1, 2, 3, 4)), (64, tuple(range(1, 9))), (96, (1, 2, 4, 8, 12)),
        (128, (1, 2, 4, 8, 16)), (224, (1, 2, 4, 8, 16, 28)), (384, (1, 2, 4, 8, 16, 32, 48)),
    ],
)  # fmt: skip
def test_usual_distances_go_to_an_eighth_of_the_side(side, expected):
    assert usual_distances(side) == expected


def test_consistency_is_the_share_of_equal_predictions():
    assert same(np.array([1, 2, 3, 3]), np.array([1, 2, 3, 4])) == 0.75
