"""Near-duplicates: planted ones are found, and nothing else."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter

from vitkit.data import duplicates
from vitkit.data.decode import decode
from vitkit.data.duplicates import alike_by_features, groups_of, near_duplicates, thumbnail

IMAGES = 300


def scene(random: np.random.Generator) -> Image.Image:
    """A picture of 96x64 pixels: coarse to fine noise in colour, as photographs have it."""
    pixels = np.zeros((64, 96, 3))
    for cells in (2, 4, 8, 16, 32):
        noise = random.normal(size=(cells, cells, 3)) * 70 / cells**0.7
        noise = noise.mean(2, keepdims=True) + noise / 3
        layers = [
            Image.fromarray(noise[:, :, c].astype(np.float32)).resize((96, 64), 3) for c in range(3)
        ]
        pixels += np.stack([np.asarray(layer) for layer in layers], axis=-1)
    return Image.fromarray((pixels + 120).clip(0, 255).astype(np.uint8))


def saved(image: Image.Image, kind: str = "PNG", quality: int = 90) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return Image.open(file).convert("RGB")


def changed(image: Image.Image, number: int) -> Image.Image:
    width, height = image.size
    return [
        lambda: saved(image, "JPEG", 30),
        lambda: saved(image, "WEBP", 40),
        lambda: image.resize((width // 2, height // 2)),
        lambda: image.resize((width * 2, height * 2)),
        lambda: image.crop((0, 0, round(width * 0.95), round(height * 0.95))),
        lambda: image.crop((width // 20, 2, width, height - 1)),
        lambda: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda: ImageEnhance.Brightness(image).enhance(0.7),
        lambda: ImageEnhance.Brightness(image).enhance(1.3),
        lambda: image.filter(ImageFilter.GaussianBlur(0.5)),
    ][number % 10]()


def small(image: Image.Image) -> np.ndarray:
    return thumbnail(torch.from_numpy(np.array(image)).permute(2, 0, 1)).numpy()


@pytest.fixture(scope="module")
def planted():
    """Thumbnails of IMAGES scenes, then of 60 changed ones of the first 60."""
    random = np.random.default_rng(0)
    scenes = [scene(random) for _ in range(IMAGES)]
    plants = [changed(scenes[number], number) for number in range(60)]
    return np.stack([small(image) for image in [*scenes, *plants]])


def test_planted_near_duplicates_are_found_and_nothing_else(planted):
    pairs = near_duplicates(planted, np.ones(len(planted), bool))
    found = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    right = {(number, IMAGES + number) for number in range(60)}
    assert len(found & right) >= 59
    assert not found - right
    assert (pairs.similarity >= duplicates.THRESHOLD).all() and pairs.similarity.max() <= 1.0001


def test_a_mirrored_image_is_found_as_mirrored(planted):
    pairs = near_duplicates(planted, np.ones(len(planted), bool))
    mirrored = pairs.second[pairs.mirrored] - IMAGES
    assert mirrored.tolist() == [6, 16, 26, 36, 46, 56] or set(mirrored % 10) == {6}


def test_limits_of_each_image_find_the_same_as_comparing_all_pairs(planted, monkeypatch):
    every = near_duplicates(planted, np.ones(len(planted), bool))
    monkeypatch.setattr(duplicates, "FEW", 10)
    some = near_duplicates(planted, np.ones(len(planted), bool))
    monkeypatch.setattr(duplicates, "ROWS", 50)
    monkeypatch.setattr(duplicates, "COLUMNS", 70)
    blocks = near_duplicates(planted, np.ones(len(planted), bool))
    assert len(some.first) >= len(every.first) - 1
    assert np.array_equal(np.sort(some.second), np.sort(blocks.second))


def test_only_searched_images_and_pairs_with_one_of_the_first_take_part(planted):
    searched = np.ones(len(planted), bool)
    searched[:20] = False
    pairs = near_duplicates(planted, searched)
    assert pairs.first.min() >= 20 and len(pairs.first) >= 39
    pairs = near_duplicates(planted, ~searched | (np.arange(len(planted)) >= IMAGES), among=10)
    assert set(pairs.first) <= set(range(10)) and len(pairs.first) >= 9


def test_images_without_anything_to_see_are_no_duplicates_of_each_other():
    random = np.random.default_rng(0)
    flat = [np.full((40, 40, 3), grey, np.uint8) for grey in (0, 90, 200)]
    flat += [(random.random((40, 40, 3)) * 3 + 100).astype(np.uint8) for _ in range(3)]
    ramp = np.linspace(0, 4, 40).round().astype(np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)
    flat += [ramp + 90, ramp + 110]  # two walls in the same light
    given = np.stack([small(Image.fromarray(image)) for image in flat])
    assert not len(near_duplicates(given, np.ones(len(given), bool)).first)


def test_the_same_lines_in_other_colours_are_no_duplicates():
    stripes = np.indices((64, 64)).sum(0) % 16 < 8
    random = np.random.default_rng(1)
    noise = random.integers(0, 20, (64, 64, 1))
    red = (stripes[..., None] * [200, 20, 20] + noise).astype(np.uint8)
    blue = (stripes[..., None] * [20, 20, 200] + noise).astype(np.uint8)
    given = np.stack([small(Image.fromarray(image)) for image in (red, blue, red)])
    pairs = near_duplicates(given, np.ones(3, bool))
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(0, 2)]


def test_none_and_one_image_have_no_duplicates():
    for images in (0, 1):
        given = np.zeros((images, duplicates.BYTES), np.uint8)
        assert not len(near_duplicates(given, np.ones(images, bool)).first)
        assert not len(alike_by_features(np.ones((images, 4)), np.ones(images, bool), 0.9).first)


def test_thumbnails_are_made_of_images_of_any_shape():
    for size in ((1, 1), (1, 300), (700, 3), (33, 31), (1, 70_000), (900, 800)):
        image = Image.new("RGB", size, (250, 10, 10))
        file = io.BytesIO()
        image.save(file, "PNG")
        made = thumbnail(decode(file.getvalue()))
        assert made.shape == (duplicates.BYTES,) and made.dtype == torch.uint8
        assert abs(int(made[0]) - 82) <= 1  # 0.299 * 250 + 0.587 * 10 + 0.114 * 10


def test_pairs_by_features_are_those_of_high_cosine():
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 16)).astype(np.float32)
    features[150] = features[3] * 2 + random.normal(size=16) * 0.05
    searched = np.ones(200, bool)
    pairs = alike_by_features(features, searched, 0.98)
    assert (pairs.first.tolist(), pairs.second.tolist()) == ([3], [150])
    searched[3] = False
    assert not len(alike_by_features(features, searched, 0.98).first)


def test_groups_join_what_is_joined_through_others():
    first, second = np.array([0, 1, 7, 4]), np.array([1, 5, 8, 9])
    groups = [group.tolist() for group in groups_of(10, first, second)]
    assert sorted(groups) == [[0, 1, 5], [4, 9], [7, 8]]
    assert groups_of(10, first[:0], second[:0]) == []
