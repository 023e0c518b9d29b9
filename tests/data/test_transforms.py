"""The paper's crops and resizes, each against a plain computation of what it says."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor
from torch.nn import functional as F

from vitkit.data.transforms import (
    Preprocessing,
    area_weights,
    centre_crop,
    normalise,
    resize,
)

sides = st.integers(1, 40)


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def pixels_of(normalised: Tensor) -> Tensor:
    """-1..1 back to 0..255."""
    return (normalised + 1) * 127.5


# Preprocessing.direct: vision_transformer's evaluation


@given(height=sides, width=sides, new_height=sides, new_width=sides, seed=st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_direct_is_bilinear_with_half_pixel_centres_and_no_antialiasing(
    height, width, new_height, new_width, seed
):
    image = noise(height, width, seed)
    ours = Preprocessing.direct((new_height, new_width))(image)
    expected = F.interpolate(
        image[None].float(), size=(new_height, new_width), mode="bilinear",
        align_corners=False, antialias=False,
    )[0] / 127.5 - 1  # fmt: skip
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert ours.abs().max() <= 1 + 1e-6  # the weights of a bilinear sum are rounded


def test_half_pixel_centres_put_the_new_pixels_a_quarter_into_the_old_ones():
    image = torch.tensor([0, 200], dtype=torch.uint8).expand(3, 1, 2)
    row = pixels_of(Preprocessing.direct((1, 4))(image))[0, 0]
    torch.testing.assert_close(row, torch.tensor([0.0, 50.0, 150.0, 200.0]))


def test_no_antialiasing_means_that_pixels_between_the_samples_do_not_count():
    image = torch.tensor([9, 9, 9, 60, 9, 9, 9], dtype=torch.uint8).expand(3, 1, 7)
    assert pixels_of(Preprocessing.direct((1, 1))(image))[0].item() == pytest.approx(60)


def test_black_becomes_minus_one_and_white_one():
    for value, expected in ((0, -1.0), (255, 1.0)):
        image = torch.full((3, 5, 7), value, dtype=torch.uint8)
        result = Preprocessing.direct((4, 4))(image)
        torch.testing.assert_close(result, torch.full((3, 4, 4), expected))


def test_mean_and_deviation_are_applied_to_each_channel():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = noise(6, 6)
    result = Preprocessing((6, 6), mean=mean, std=std)(image)
    for channel in range(3):
        expected = (image[channel] / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(result[channel], expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_normalise_takes_batches_of_any_type_and_gives_float32(dtype):
    images = torch.stack([noise(4, 4, seed) for seed in range(5)])
    result = normalise(images.to(dtype), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, images / 127.5 - 1)


# Area: TensorFlow's average over the part of the old image that a new pixel covers


def area_average(image: np.ndarray, new_height: int, new_width: int) -> np.ndarray:
    """(H, W) -> (new_height, new_width), cell by cell."""
    height, width = image.shape
    result = np.zeros((new_height, new_width))
    for y in range(new_height):
        for x in range(new_width):
            top, bottom = y * height / new_height, (y + 1) * height / new_height
            left, right = x * width / new_width, (x + 1) * width / new_width
            for i in range(height):
                for j in range(width):
                    high = max(0.0, min(bottom, i + 1) - max(top, i))
                    wide = max(0.0, min(right, j + 1) - max(left, j))
                    result[y, x] += image[i, j] * high * wide
            result[y, x] /= (bottom - top) * (right - left)
    return result


@given(
    height=st.integers(1, 9), width=st.integers(1, 9),
    new_height=st.integers(1, 9), new_width=st.integers(1, 9),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_area_is_the_average_over_what_a_new_pixel_covers(height, width, new_height, new_width):
    image = noise(height, width).float()
    ours = resize(image, (new_height, new_width), "area", antialias=False)
    for channel in range(3):
        expected = area_average(image[channel].numpy(), new_height, new_width)
        np.testing.assert_allclose(ours[channel], expected, atol=1e-3)


@pytest.mark.parametrize("way", ["bilinear", "bicubic", "area"])
def test_an_antialiased_resize_gives_whole_pixels_that_stay_in_their_range(way):
    """Bicubic weights are negative at some distance: beside an edge they reach beyond 0..255."""
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, :, 20:] = 255
    resized = resize(image, (15, 30), way, antialias=True)
    assert resized.dtype == torch.uint8
    assert resized[:, :, :12].max() == 0
    assert resized[:, :, -12:].min() == 255


@pytest.mark.parametrize("size", [(1, 1), (5, 1), (20, 1), (1, 5)])
@pytest.mark.parametrize("before", [(40, 30), (16, 1)])
def test_an_antialiased_resize_to_a_single_pixel_is_pillows(before, size):
    image = noise(*before)
    peer = Image.fromarray(image.permute(1, 2, 0).numpy())
    for way, filter_ in (("bilinear", Resampling.BILINEAR), ("bicubic", Resampling.BICUBIC)):
        expected = np.asarray(peer.resize(size[::-1], filter_)).transpose(2, 0, 1)
        ours = resize(image, size, way, antialias=True).numpy()
        assert np.abs(ours.astype(int) - expected).max() <= 1


@given(old=st.integers(1, 300), new=st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_the_shares_of_the_old_pixels_in_a_new_one_sum_to_one(old, new):
    weights = area_weights(old, new)
    torch.testing.assert_close(weights.sum(1), torch.ones(new), atol=1e-5, rtol=0)
    assert weights.min() >= 0


@pytest.mark.parametrize(("height", "width", "scaled"), [(20, 12, (10, 6)), (8, 15, (6, 11))])
def test_small_crop_averages_to_the_shorter_side_truncates_and_crops(height, width, scaled):
    image = noise(height, width)
    ours = pixels_of(Preprocessing.small_crop((5, 4), side=6)(image))
    for channel in range(3):
        small = np.floor(area_average(image[channel].numpy(), *scaled) + 1e-6)
        top, left = (scaled[0] - 5) // 2, (scaled[1] - 4) // 2
        expected = small[top : top + 5, left : left + 4]
        np.testing.assert_allclose(ours[channel], expected, atol=1e-3)


def test_small_crop_of_a_very_thin_image_needs_no_memory_for_what_is_cropped_away():
    """Resized whole, 1 x 20,000 pixels would become 256 x 5,120,000."""
    image = torch.full((3, 1, 20_000), 255, dtype=torch.uint8)
    result = Preprocessing.small_crop((224, 224), side=256)(image)
    torch.testing.assert_close(result, torch.ones(3, 224, 224))


def test_small_crop_of_a_thin_image_is_that_of_its_middle():
    image = noise(10, 400)
    small = Preprocessing.small_crop((8, 8), side=10)
    torch.testing.assert_close(small(image), image[:, 1:9, 196:204] / 127.5 - 1)


# The few-shot evaluation's resize and centre crop


def test_resize_crop_is_a_bilinear_resize_truncated_and_cropped_in_the_middle():
    image = noise(50, 30)
    ours = pixels_of(Preprocessing.resize_crop((20, 20), (26, 23))(image))
    big = F.interpolate(image[None].float(), size=(26, 23), mode="bilinear")[0].floor()
    torch.testing.assert_close(ours, big[:, 3:23, 1:21], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("old", "new", "first"), [(8, 4, 2), (7, 4, 1), (5, 2, 1), (6, 6, 0), (4, 3, 0)]
)
def test_a_centre_crop_leaves_the_odd_pixel_below_and_to_the_right(old, new, first):
    rows = torch.arange(old).view(1, old, 1).expand(3, old, old)
    assert centre_crop(rows, (new, new))[0, :, 0].tolist() == list(range(first, first + new))
    columns = rows.transpose(1, 2)
    assert centre_crop(columns, (new, new))[0, 0].tolist() == list(range(first, first + new))


def test_truncation_cuts_the_fraction_off_and_does_not_round():
    image = torch.tensor([10, 11], dtype=torch.uint8).expand(3, 1, 2)
    half = Preprocessing((1, 1), "shorter-side", 1, interpolation="area")  # 1 x 2 -> 1 x 2
    assert half.target(image) == (1, 2)
    mixed = Preprocessing((1, 1), resize_to=(1, 1), truncate=True)(image)  # 10.5
    torch.testing.assert_close(pixels_of(mixed), torch.full((3, 1, 1), 10.0))


def test_truncation_keeps_the_overshoot_of_bicubic_within_the_pixel_range():
    image = torch.tensor([0, 0, 255, 255], dtype=torch.uint8).expand(3, 4, 4)
    bicubic = Preprocessing((16, 16), interpolation="bicubic")
    assert bicubic(image).max() > 1.01
    result = replace(bicubic, truncate=True)(image)
    assert (result.min(), result.max()) == (-1, 1)


@given(height=sides, width=sides, side=st.integers(4, 40))
@settings(max_examples=50, deadline=None)
def test_shorter_side_keeps_the_aspect_to_half_a_pixel(height, width, side):
    small = Preprocessing.small_crop((4, 4), side)
    new_height, new_width = small.target(noise(height, width))
    assert min(new_height, new_width) == side
    if height <= width:
        assert abs(new_width - side * width / height) <= 0.5
    else:
        assert abs(new_height - side * height / width) <= 0.5


def test_an_image_that_has_the_size_already_is_not_resampled():
    image = noise(16, 16)
    for preprocessing in (
        Preprocessing.direct((16, 16)),
        Preprocessing.small_crop((16, 16), 16),
        Preprocessing.resize_crop((16, 16), (16, 16)),
    ):
        torch.testing.assert_close(preprocessing(image), image / 127.5 - 1)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("image_size", {"image_size": (0, 8)}),
        ("image_size", {"image_size": (8, -8)}),
        ("image_size", {"image_size": (8,)}),
        ("image_size", {"image_size": (8, 8, 8)}),
        ("image_size", {"image_size": (8.0, 8.0)}),
        ("resize", {"resize": "longer-side"}),
        ("resize_to", {"resize": "shorter-side"}),
        ("resize_to", {"resize": "shorter-side", "resize_to": (9, 9)}),
        ("resize_to", {"resize": "shorter-side", "resize_to": 7}),
        ("resize_to", {"resize_to": 9}),
        ("resize_to", {"resize_to": (7, 9)}),
        ("resize_to", {"resize_to": (9, 0)}),
        ("resize_to", {"resize_to": (9,)}),
        ("interpolation", {"interpolation": "nearest"}),
        ("interpolation", {"interpolation": None}),
        ("mean", {"mean": (0.5, 0.5)}),
        ("std", {"std": (0.5,)}),
        ("std", {"std": (0.5, 0.0, 0.5)}),
        ("std", {"std": (0.5, 0.5, -1.0)}),
        ("std", {"std": (math.nan, 0.5, 0.5)}),
        ("mean", {"mean": (math.nan, 0.5, 0.5)}),
    ],
)
def test_an_impossible_preprocessing_is_a_value_error_that_names_the_field(name, fields):
    with pytest.raises(ValueError, match=name):
        Preprocessing(**{"image_size": (8, 8), **fields})


def test_means_and_deviations_may_be_whole_numbers_of_any_size():
    made = Preprocessing((8, 8), mean=(10**25, 0, 0), std=(1, 2**62, 1))
    out = made(noise(8, 8))
    assert out.isfinite().all() and out[0].max() < 0
    with pytest.raises(ValueError, match="must be above 0"):
        Preprocessing((8, 8), std=(1e-320, 1.0, 1.0))
