"""The random crop, TensorFlow's sample_distorted_bounding_box: a function of seed and place."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vitkit.data.crops import (
    DRAWS,
    TRIES,
    RandomCrop,
    inception_box,
    inception_boxes,
    sampling,
    similar_boxes,
)


def draws(seed: int, number: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((number, DRAWS))


def boxes(number: int = 4000, height: int = 300, width: int = 300, seed: int = 0, **options):
    sizes = np.tile([height, width], (number, 1))
    return inception_boxes(draws(seed, number), sizes, **options).T


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (3, height, width), np.uint8)
    return torch.from_numpy(pixels)


# Where crops lie


@given(
    seed=st.integers(0, 10**6), height=st.integers(1, 400), width=st.integers(1, 400),
    least=st.floats(0.01, 0.9), span=st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_crop_lies_inside_the_image_and_keeps_area_and_aspect_in_range(
    seed, height, width, least, span
):
    most = least + span * (1 - least)
    top, left, h, w = boxes(1, height, width, seed, area=(least, most))[:, 0]
    assert 0 <= top <= top + h <= height
    assert 0 <= left <= left + w <= width
    assume((h, w) != (height, width))  # the whole image stands for "none was found"
    assert least * height * width <= h * w <= most * height * width
    assert 3 / 4 * h - 0.5 <= w <= 4 / 3 * h + 0.5


def test_crops_cover_every_area_from_5_to_100_percent():
    _, _, h, w = boxes()
    counts, _ = np.histogram(h * w / 300**2, bins=[0.05, *np.arange(0.1, 1.05, 0.1)])
    assert counts.sum() == 4000
    assert (counts > 0.01 * 4000).all()


def test_crops_cover_every_aspect_from_three_quarters_to_four_thirds_evenly():
    _, _, h, w = boxes(area=(0.05, 0.5))  # below the sizes at which the image's edge decides
    counts, _ = np.histogram(w / h, bins=np.linspace(3 / 4, 4 / 3, 6))
    assert np.abs(counts / 4000 - 0.2).max() < 0.03


def test_the_height_is_uniform_as_in_tensorflow_and_not_the_area_as_in_torchvision():
    _, _, h, w = boxes(aspect=(1.0, 1.0))
    assert (h == w).all()
    low, high = math.sqrt(0.05) * 300, 300
    assert h.mean() == pytest.approx((low + high) / 2, rel=0.02)  # a uniform area: 11 % more
    assert h.std() == pytest.approx((high - low) / math.sqrt(12), rel=0.04)


def test_crops_reach_every_corner():
    top, left, h, w = boxes()
    for distance in (top, left, 300 - top - h, 300 - left - w):
        assert distance.min() == 0
        assert distance.max() > 150


def test_hardly_any_usual_image_is_left_uncropped_because_no_try_fitted():
    for area in [(0.05, 1.0), (0.08, 1.0), (0.8, 1.0)]:
        _, _, h, w = boxes(20_000, 375, 500, area=area)
        whole = (h == 375) & (w == 500)
        assert whole.mean() < 0.001


@pytest.mark.parametrize(
    ("height", "width", "options"),
    [
        (30, 40, {"area": (1.5, 2.0)}),
        (30, 40, {"area": (0.9, 1.0), "aspect": (4.0, 5.0)}),
        (1, 1000, {"area": (0.5, 1.0)}),
        (1, 1, {}),
    ],
)
def test_an_impossible_crop_is_the_whole_image(height, width, options):
    assert ((0, 0, height, width) == boxes(5, height, width, **options).T).all()


# Where crops lie that keep the aspect


@given(
    seed=st.integers(0, 10**6), height=st.integers(1, 400), width=st.integers(1, 400),
    least=st.floats(0.01, 0.9), span=st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=100, deadline=None)
def test_a_crop_of_the_same_aspect_lies_inside_the_image_and_has_an_area_in_range(
    seed, height, width, least, span
):
    most = least + span * (1 - least)
    box = similar_boxes(draws(seed), np.array([[height, width]]), (least, most))[0]
    top, left, h, w = box
    assert 0 <= top <= top + h <= height * (1 + 1e-12)
    assert 0 <= left <= left + w <= width * (1 + 1e-12)
    assert h / height == pytest.approx(w / width)
    assert least * (1 - 1e-12) <= h * w / (height * width) <= most * (1 + 1e-12)


def test_the_area_of_crops_of_the_same_aspect_is_uniform_and_they_reach_every_corner():
    sizes = np.tile([200, 300], (4000, 1))
    top, left, h, w = similar_boxes(draws(0, 4000), sizes, (0.2, 1.0)).T
    counts, _ = np.histogram(h * w / 60_000, bins=np.linspace(0.2, 1.0, 6))
    assert np.abs(counts / 4000 - 0.2).max() < 0.03
    for place, free in ((top, 200 - h), (left, 300 - w)):
        counts, _ = np.histogram(place / free, bins=np.linspace(0, 1, 6))
        assert np.abs(counts / 4000 - 0.2).max() < 0.03


@pytest.mark.parametrize(("height", "width"), [(32, 32), (300, 200), (160, 161), (500, 375)])
def test_a_kept_aspect_and_an_area_of_064_is_bits_resize_to_160_and_random_crop_of_128(
    height, width
):
    image, crop = noise(height, width), RandomCrop((128, 128), (0.64, 0.64), False, "kept")
    pixels = image.float()[None]
    whole = torch.nn.functional.interpolate(pixels, (160, 160), mode="bilinear")[0].round()
    for top, left in ((0, 0), (32, 32), (0, 32), (7, 19)):
        drawn = draws(0)[0]
        drawn[2 * TRIES : 2 * TRIES + 2] = top / 32, left / 32
        expected = whole[:, top : top + 128, left : left + 128]
        found = crop.crop(image, drawn).float()
        assert (found - expected).abs().max() <= 2  # places are in 256ths of a pixel
        assert (found - expected).abs().mean() < 0.2


# What becomes of an image


@given(
    height=st.integers(1, 60), width=st.integers(1, 60), seed=st.integers(0, 10**6),
    size=st.tuples(st.integers(1, 32), st.integers(1, 32)),
    aspect=st.sampled_from(["varied", "kept"]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_training_image_is_a_pure_function_of_the_image_and_the_draws(
    height, width, seed, size, aspect
):
    image, crop = noise(height, width), RandomCrop(size, aspect=aspect)
    before = image.clone()
    torch.manual_seed(1)
    first = crop.crop(image, draws(seed)[0])
    torch.manual_seed(2)
    np.random.seed(2)
    second = crop.crop(image, draws(seed)[0])
    assert first.dtype == torch.uint8
    assert first.shape == (3, *size)
    assert torch.equal(first, second)
    assert torch.equal(image, before)


def test_draws_are_those_of_a_place_whatever_else_is_drawn_with_it():
    crop = RandomCrop((8, 8))
    whole = crop.draws(3, np.arange(1000, 1200))
    assert (crop.draws(3, np.array([1005, 1199, 1000])) == whole[[5, 199, 0]]).all()
    assert not (crop.draws(4, np.array([1005])) == whole[5]).any()
    assert len(np.unique(whole)) == whole.size


def test_other_places_give_other_crops():
    image, crop = noise(32, 32), RandomCrop((16, 16))
    drawn = crop.draws(0, np.arange(20))
    assert len({out.numpy().tobytes() for row in drawn for out in [crop.crop(image, row)]}) == 20


def mirrored(flip: bool, aspect: str, number: int = 600) -> float:
    """The share of training images that come out mirrored."""
    image = torch.tensor([0, 255], dtype=torch.uint8).repeat_interleave(8).expand(3, 16, 16)
    crop = RandomCrop((16, 16), (1.0, 1.0), flip, aspect)
    results = [crop.crop(image, row) for row in crop.draws(0, np.arange(number))]
    assert all(torch.equal(r, image) or torch.equal(r, image.flip(-1)) for r in results)
    return sum(torch.equal(r, image.flip(-1)) for r in results) / number


@pytest.mark.parametrize("aspect", ["varied", "kept"])
def test_half_of_the_training_images_are_mirrored(aspect):
    assert mirrored(True, aspect) == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("aspect", ["varied", "kept"])
def test_no_training_image_is_mirrored_where_that_changes_its_class(aspect):
    assert mirrored(False, aspect) == 0


def test_the_crop_area_is_the_one_asked_for():
    """On a ramp from left to right, a crop of a tenth of the area spans about a third of it."""
    ramp = torch.arange(240, dtype=torch.uint8).expand(3, 240, 240)
    crop = RandomCrop((8, 8), crop_area=(0.1, 0.1001), flip=False)
    for row in crop.draws(0, np.arange(20)):
        line = crop.crop(ramp, row)[0, 0].float()
        assert 56 <= line[-1] - line[0] <= 78  # 7/8 of the width, between the centres


def test_a_training_image_may_be_a_single_pixel():
    image = noise(9, 9)
    out = RandomCrop((1, 1), crop_area=(1.0, 1.0), flip=False).crop(image, draws(0)[0])
    assert torch.equal(out[:, 0, 0], image[:, 4, 4])


def test_where_a_crop_of_one_image_lies_is_what_it_would_be_among_others():
    random = np.random.default_rng(0)
    sizes = np.concatenate([random.integers(1, 40, (3000, 2)), random.integers(1, 9000, (3000, 2))])
    for area in ((0.05, 1.0), (0.9, 0.95), (1.0, 1.0), (1e-5, 1e-4)):
        drawn = RandomCrop((1, 1)).draws(1, np.arange(len(sizes)))
        together = inception_boxes(drawn, sizes, area).tolist()
        alone = [list(inception_box(row, *size, area))
                 for row, size in zip(drawn.tolist(), sizes.tolist(), strict=True)]  # fmt: skip
        assert alone == together


# A batch at once


@pytest.mark.parametrize("size", [(8, 8), (20, 12), (31, 33), (64, 64), (1, 1)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_batch_is_cropped_as_its_images_are_one_by_one_but_for_a_rounding(size, flip):
    crop = RandomCrop(size, (0.3, 1.0), flip)
    images = torch.stack([noise(24, 31, seed) for seed in range(60)])
    drawn = crop.draws(5, np.arange(60))
    batch = crop.crop_batch(images, drawn)
    single = torch.stack([crop.crop(*pair) for pair in zip(images, drawn, strict=True)])
    assert batch.dtype == torch.uint8
    assert batch.shape == single.shape
    assert (batch.int() - single.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(8, 8), (20, 12), (31, 33), (64, 64), (1, 1)])
@pytest.mark.parametrize("area", [(0.3, 1.0), (0.64, 0.64), (1e-4, 1e-4)])
def test_a_batch_of_crops_of_the_same_aspect_is_that_of_its_images_to_the_bit(size, area):
    crop = RandomCrop(size, area, True, "kept")
    images = torch.stack([noise(24, 31, seed) for seed in range(60)])
    drawn = crop.draws(5, np.arange(60))
    single = torch.stack([crop.crop(*pair) for pair in zip(images, drawn, strict=True)])
    assert single.dtype == torch.uint8
    assert torch.equal(crop.crop_batch(images, drawn), single)


@pytest.mark.parametrize("aspect", ["varied", "kept"])
def test_how_a_batch_is_cut_changes_no_image(aspect):
    crop = RandomCrop((32, 32), aspect=aspect)
    images = torch.stack([noise(32, 32, seed) for seed in range(50)])
    drawn = crop.draws(5, np.arange(50))
    whole = crop.crop_batch(images, drawn)
    parts = [crop.crop_batch(images[i : i + 7], drawn[i : i + 7]) for i in range(0, 50, 7)]
    assert torch.equal(torch.cat(parts), whole)


def test_the_products_are_exact_so_that_no_batch_or_device_rounds_otherwise():
    crop, count = RandomCrop((48, 40), (0.05, 1.0), flip=False), 400
    images = torch.stack([noise(64, 57, seed) for seed in range(count)])
    drawn = crop.draws(3, np.arange(count))
    boxes = inception_boxes(drawn, np.tile([[64, 57]], (count, 1)), crop.crop_area)
    rows = torch.from_numpy(sampling(boxes[:, 0], boxes[:, 2], 48))
    columns = torch.from_numpy(sampling(boxes[:, 1], boxes[:, 3], 40))
    left = (1 - (rows[:, :, None] - torch.arange(64)).abs()).clamp(min=0)
    right = (1 - (columns[:, :, None] - torch.arange(57)).abs()).clamp(min=0)
    in_float64 = (left[:, None] @ images.double() @ right[:, None].mT).round()
    assert torch.equal(crop.crop_batch(images, drawn).double(), in_float64)
