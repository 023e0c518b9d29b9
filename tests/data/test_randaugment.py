"""RandAugment: every operation against the authors' code and torchvision, and how it is drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from vitkit.data.augmentation import randaugment as module
from vitkit.data.augmentation.randaugment import (
    DRAWS,
    GREY,
    MOVES,
    OPERATIONS,
    one_layer,
    randaugment,
)
from vitkit.data.draws import Purpose, uniforms

GOLDEN = Path(__file__).parents[1] / "golden" / "randaugment" / "io.npz"
CPU = torch.device("cpu")
PLUS, MINUS = 0.9, 0.1  # draws of the sign


def noise_image(height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), dtype=torch.uint8, generator=generator)


def smooth_image(height: int = 32, width: int = 32) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    waves = [120 + 50 * torch.sin(x / 5 + c) + 40 * torch.cos(y / 7 - c) for c in range(3)]
    return torch.stack(waves).to(torch.uint8)


def applied(
    operation: str, image: Tensor, magnitude: float, sign: float = PLUS, place=(0.5, 0.5)
) -> Tensor:
    """One operation on one image."""
    chosen = np.array([OPERATIONS.index(operation)])
    return one_layer(image[None], chosen, np.array([[sign, *place]]), magnitude)[0]


def levels_apart(one: Tensor, other: Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


# Against what the authors' code returned


def golden_cases() -> list[str]:
    with np.load(GOLDEN) as arrays:
        return [name for name in arrays.files if "__" in name]


@pytest.mark.parametrize("case", golden_cases())
def test_an_operation_gives_the_pixels_of_the_authors_code(case):
    picture, operation, magnitude, sign = case.split("__")
    with np.load(GOLDEN) as arrays:
        image, expected = (torch.from_numpy(arrays[n]).permute(2, 0, 1) for n in (picture, case))
    found = applied(operation, image, float(magnitude), PLUS if sign == "plus" else MINUS)
    if operation != "Sharpness":
        assert torch.equal(found, expected)
        return
    # Their smoothed value is a sum in float32 that is cut off; where it should be whole it may
    # come out one too low, which the blend then multiplies by up to 2.7.
    assert levels_apart(found, expected) <= 3
    assert (found != expected).float().mean() < 0.005


def test_the_golden_cases_hold_every_operation_but_cutout_whose_place_is_drawn():
    assert {case.split("__")[1] for case in golden_cases()} == set(OPERATIONS) - {"Cutout"}


# Against torchvision, where it defines the same


@pytest.mark.parametrize("image", [noise_image(), smooth_image(), smooth_image(40, 24)])
@pytest.mark.parametrize("magnitude", [0.0, 5.0, 10.0, 15.0, 20.0, 30.0])
def test_operations_are_torchvisions_within_a_level(image, magnitude):
    factor = 0.1 + 1.8 * magnitude / 10
    expected = {
        "Invert": TF.invert(image),
        "Equalize": TF.equalize(image),
        "AutoContrast": TF.autocontrast(image),
        "Brightness": TF.adjust_brightness(image, factor),
    }
    for operation, pixels in expected.items():
        assert levels_apart(applied(operation, image, magnitude), pixels) <= 1, operation


def test_the_tables_that_invert_and_equalize_are_exactly_torchvisions():
    for image in (noise_image(), smooth_image(), torch.full((3, 9, 9), 7, dtype=torch.uint8)):
        assert torch.equal(applied("Equalize", image, 10), TF.equalize(image))
        assert torch.equal(applied("Invert", image, 10), TF.invert(image))


@pytest.mark.parametrize(
    ("magnitude", "bits"), [(5, 2), (10, 4), (15, 6), (20, 8), (0, 1), (30, 1)]
)
def test_posterize_keeps_bits_and_the_authors_one_bit_at_0_and_beyond_20(magnitude, bits):
    expected = TF.posterize(noise_image(), bits)
    assert torch.equal(applied("Posterize", noise_image(), magnitude), expected)


@pytest.mark.parametrize(
    ("magnitude", "threshold"), [(5, 128), (15, 128), (10, 0), (20, 0), (3, 76)]
)
def test_solarize_keeps_its_threshold_in_a_byte_as_the_authors_do(magnitude, threshold):
    expected = TF.solarize(noise_image(), threshold)
    assert torch.equal(applied("Solarize", noise_image(), magnitude), expected)


@pytest.mark.parametrize("magnitude", [0.0, 5.0, 10.0, 20.0])
def test_color_is_torchvisions_saturation_but_for_how_grey_is_rounded(magnitude):
    """Theirs is cut off after a factor of 255.5, which may be a level more."""
    factor = 0.1 + 1.8 * magnitude / 10
    expected = TF.adjust_saturation(smooth_image(), factor)
    found = applied("Color", smooth_image(), magnitude)
    assert levels_apart(found, expected) <= np.ceil(abs(1 - factor)) + 1


@pytest.mark.parametrize("magnitude", [0.0, 5.0, 10.0, 20.0])
def test_sharpness_is_torchvisions_but_for_how_the_smoothed_image_is_rounded(magnitude):
    """Theirs is cut off, torchvision's rounded."""
    factor = 0.1 + 1.8 * magnitude / 10
    expected = TF.adjust_sharpness(noise_image(), factor)
    found = applied("Sharpness", noise_image(), magnitude)
    assert levels_apart(found, expected) <= np.ceil(abs(1 - factor)) + 1


@pytest.mark.parametrize("side", [8, 32, 224, 300])
def test_contrast_is_a_blend_with_the_number_of_pixels_over_256(side):
    """As the authors have it, where PIL and torchvision blend with the mean of the image."""
    image = smooth_image(side, side)
    middle = min(side * side // 256, 255)
    for magnitude in (0.0, 10.0, 20.0):
        factor = np.float32(0.1 + 1.8 * magnitude / 10)
        blended = middle + factor * (image.numpy().astype(np.float32) - middle)
        expected = torch.from_numpy(blended.clip(0, 255).astype(np.uint8))
        assert levels_apart(applied("Contrast", image, magnitude), expected) <= 1


def test_solarize_add_brightens_the_darker_half():
    image = torch.tensor([0, 100, 127, 128, 200], dtype=torch.uint8).expand(3, 1, 5)
    assert applied("SolarizeAdd", image, 10)[0, 0].tolist() == [110, 210, 237, 128, 200]
    assert applied("SolarizeAdd", image, 20)[0, 0].tolist() == [220, 255, 255, 128, 200]


@pytest.mark.parametrize("sign", [PLUS, MINUS])
@pytest.mark.parametrize("magnitude", [1.0, 10.0, 15.0, 20.0])
def test_rotate_and_shears_are_torchvisions_but_for_pixels_between_two(magnitude, sign):
    """At the nearest pixel a source that lies half between two may go either way."""
    image, positive = smooth_image(33, 41), 1 if sign == PLUS else -1
    degrees = 3 * magnitude * positive
    shear = float(np.degrees(np.arctan(0.03 * magnitude * positive)))
    plain = {"translate": [0, 0], "scale": 1.0, "angle": 0.0, "fill": GREY,
             "interpolation": InterpolationMode.NEAREST}  # fmt: skip
    corner = [0.5, 0.5]  # torchvision's middle is given in pixels' corners, the authors' at (0, 0)
    expected = {
        "Rotate": TF.rotate(image, degrees, InterpolationMode.NEAREST, fill=GREY),
        "ShearX": TF.affine(image, shear=[shear, 0.0], center=corner, **plain),
        "ShearY": TF.affine(image, shear=[0.0, shear], center=corner, **plain),
    }
    for operation, pixels in expected.items():
        found = applied(operation, image, magnitude, sign)
        assert (found != pixels).any(0).float().mean() < 0.06, operation


@pytest.mark.parametrize("sign", [PLUS, MINUS])
def test_translate_moves_a_hundred_pixels_of_224_at_full_strength(sign):
    image, shift = noise_image(224, 224), 100 if sign == MINUS else -100
    for operation, dimension in (("TranslateX", 2), ("TranslateY", 1)):
        expected = image.roll(shift, dimension)
        gap = slice(None, shift) if shift > 0 else slice(shift, None)
        expected[(slice(None),) * dimension + (gap,)] = GREY
        assert torch.equal(applied(operation, image, 10, sign), expected)


def test_distances_are_shares_of_the_side():
    image = noise_image(56, 112)
    assert (applied("TranslateX", image, 10, PLUS)[:, :, -50:] == GREY).all()
    assert torch.equal(applied("TranslateX", image, 10, PLUS)[:, :, :-50], image[:, :, 50:])
    assert torch.equal(applied("TranslateY", image, 10, PLUS)[:, :-25], image[:, 25:])


def test_cutout_is_a_grey_square_of_80_of_224_cut_at_the_edges():
    image = noise_image(224, 224)
    expected = image.clone()
    expected[:, 112 - 40 : 112 + 40, 56 - 40 : 56 + 40] = GREY
    assert torch.equal(applied("Cutout", image, 10, place=(0.5, 0.25)), expected)
    expected = image.clone()
    expected[:, :60, 223 - 60 :] = GREY
    assert torch.equal(applied("Cutout", image, 15, place=(0.0, 0.999)), expected)


def test_a_magnitude_of_0_still_inverts_equalizes_and_takes_colour_but_moves_nothing():
    image = smooth_image()
    changed = {name for name in OPERATIONS if not torch.equal(applied(name, image, 0), image)}
    assert changed == {
        "AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "Color", "Contrast",
        "Brightness", "Sharpness",
    }  # fmt: skip


@pytest.mark.parametrize("sides", [(1, 1), (1, 7), (2, 2), (3, 3), (5, 2)])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_images_may_be_as_small_as_a_pixel(operation, sides):
    found = applied(operation, noise_image(*sides), 15)
    assert found.shape == (3, *sides)


# How operations are drawn


def drawn(images: int, layers: int, seed: int = 0) -> np.ndarray:
    return uniforms(seed, Purpose.RANDAUGMENT, 0, images, layers * DRAWS)


def recorded(monkeypatch, images: int, layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Which operations images had in each layer (layers, B), with which draws (layers, B, 3)."""
    seen = []

    def record(some: Tensor, chosen: np.ndarray, draws: np.ndarray, _: float) -> Tensor:
        seen.append((chosen, draws))
        return some

    monkeypatch.setattr(module, "one_layer", record)
    monkeypatch.setattr("vitkit.data.augmentation.placing.CACHED", 2**30)
    randaugment(torch.zeros(images, 3, 1, 1, dtype=torch.uint8), drawn(images, layers), layers, 15)
    chosen, draws = zip(*seen, strict=True)
    return np.stack(chosen), np.stack(draws)


def test_every_operation_is_equally_frequent_in_each_layer_whatever_the_other_has(monkeypatch):
    chosen, _ = recorded(monkeypatch, 32_000, 2)
    for layer in chosen:
        assert stats.chisquare(np.bincount(layer, minlength=16)).pvalue > 0.001
    pairs = np.bincount(chosen[0] * 16 + chosen[1], minlength=256)
    assert stats.chisquare(pairs).pvalue > 0.001


def test_signs_are_even_and_places_uniform_whatever_the_operation(monkeypatch):
    chosen, draws = recorded(monkeypatch, 32_000, 2)
    for layer in range(2):
        for column in range(3):
            assert stats.kstest(draws[layer, :, column], "uniform").pvalue > 0.001
        signs = np.bincount(2 * chosen[layer] + (draws[layer, :, 0] < 0.5), minlength=32)
        assert stats.chisquare(signs).pvalue > 0.001


@pytest.mark.parametrize("operation", MOVES)
def test_half_of_the_moves_go_the_other_way(operation):
    images = smooth_image(9, 9).repeat(2000, 1, 1, 1)
    both = [applied(operation, smooth_image(9, 9), 10, sign) for sign in (PLUS, MINUS)]
    chosen = np.full(2000, OPERATIONS.index(operation))
    found = one_layer(images, chosen, drawn(2000, 1)[:, 1:], 10)
    counts = [int((found == one).flatten(1).all(1).sum()) for one in both]
    assert sum(counts) == 2000
    assert stats.binomtest(counts[0], 2000).pvalue > 0.001


def test_layers_are_applied_one_after_another():
    images, draws = torch.stack([noise_image(seed=n) for n in range(64)]), drawn(64, 3)
    expected = images.clone()
    for layer in range(3):
        columns = draws[:, layer * DRAWS : (layer + 1) * DRAWS]
        for number, image in enumerate(expected):
            operation = OPERATIONS[int(columns[number, 0] * 16)]
            image.copy_(applied(operation, image, 15, columns[number, 1], columns[number, 2:]))
    assert torch.equal(randaugment(images, draws, 3, 15), expected)


@given(st.integers(0, 999), st.sampled_from([0.0, 7.5, 20.0]), st.integers(1, 33))
@settings(max_examples=15, deadline=None)
def test_an_image_does_not_depend_on_those_it_comes_with(seed, magnitude, size):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (33, 3, 12, 9), dtype=torch.uint8, generator=generator)
    draws = drawn(33, 2, seed)
    pairs = zip(images.split(size), np.split(draws, range(size, 33, size)), strict=True)
    parts = [randaugment(part, some, 2, magnitude) for part, some in pairs]
    assert torch.equal(torch.cat(parts), randaugment(images, draws, 2, magnitude))


def test_batches_that_leave_the_caches_give_the_same_images(monkeypatch):
    images = torch.stack([noise_image(seed=n) for n in range(20)])
    expected = randaugment(images, drawn(20, 2), 2, 15)
    monkeypatch.setattr("vitkit.data.augmentation.placing.CACHED", 7 * images[0].numel())
    assert torch.equal(randaugment(images, drawn(20, 2), 2, 15), expected)


def test_the_images_given_are_left_as_they_are():
    images = torch.stack([noise_image(seed=n) for n in range(64)])
    before = images.clone()
    assert not torch.equal(randaugment(images, drawn(64, 2), 2, 15), images)
    assert torch.equal(images, before)
