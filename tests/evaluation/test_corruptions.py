"""Corruptions of pictures: those of the authors where nothing is drawn, and by their numbers where
something is (golden/README.md)."""

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from vitkit.evaluation.corruption_table import CONSTANTS, USUAL
from vitkit.evaluation.corruptions import FUNCTIONS, corrupted, moved, plasma, standard
from vitkit.evaluation.corruptions import elastic_transform as elastic

GOLDEN = np.load(Path(__file__).parents[1] / "golden/corruptions/io.npz")
STILL = ("defocus-blur", "zoom-blur", "brightness", "contrast", "pixelate", "gaussian-blur",
         "saturate")  # fmt: skip


def picture(side: int) -> torch.Tensor:
    """uint8 (3, side, side); for 224 a small one whose pixels are 4 wide."""
    pixels = GOLDEN[f"picture_{side}"]
    wide = side // len(pixels)
    return torch.from_numpy(pixels.repeat(wide, 0).repeat(wide, 1)).permute(2, 0, 1).contiguous()


def grey(side: int, value: int = 128) -> torch.Tensor:
    return torch.full((3, side, side), value, dtype=torch.uint8)


class Most:
    """Stands for random draws: each is as large as can be."""

    def uniform(self, low, high, shape):
        return np.full(shape, float(high))


@pytest.mark.parametrize("side", [32, 64, 224])
@pytest.mark.parametrize("kind", STILL)
def test_what_draws_nothing_makes_the_authors_pictures(kind, side):
    every = 8 if side == 224 else 2
    for severity in range(1, 6):
        ours = corrupted(picture(side), kind, severity, 0, 0).permute(1, 2, 0).numpy()
        expected = GOLDEN[f"{kind}_{side}"][severity - 1]
        off = np.abs(ours[::every, ::every].astype(int) - expected)
        assert off.max() <= 1  # sums in another order, cut off to whole values
        assert off.mean() < 0.3


def test_jpeg_compression_gives_coarser_pictures_the_worse_the_quality():
    off = [
        (corrupted(picture(64), "jpeg-compression", s, 0, 0).int() - picture(64))
        .abs()
        .float()
        .mean()
        for s in (1, 3, 5)
    ]
    assert 0 < off[0] < off[1] < off[2] < 40


@pytest.mark.parametrize("side, deviation", [(32, 0.04), (64, 0.04), (224, 0.08)])
def test_gaussian_noise_has_the_published_deviation_for_the_size(side, deviation):
    found = corrupted(grey(side), "gaussian-noise", 1, 0, 0).double() / 255
    assert float(found.std()) == pytest.approx(deviation, rel=0.05)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.01)


def test_shot_noise_of_c_photons_varies_as_a_poisson_of_them():
    found = corrupted(grey(224), "shot-noise", 1, 0, 0).double() / 255
    assert float(found.var()) == pytest.approx(0.5 / 60, rel=0.05)


def test_speckle_noise_grows_with_the_value():
    bright, dark = (
        corrupted(grey(224, value), "speckle-noise", 1, 0, 0).double().std() for value in (100, 50)
    )
    assert float(bright / dark) == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize("side, share", [(32, 0.07), (64, 0.14)])
def test_impulse_noise_takes_the_share_of_the_size(side, share):
    hit = [(corrupted(grey(side), "impulse-noise", 5, 0, n) != 128).double() for n in range(4)]
    assert float(torch.stack(hit).mean()) == pytest.approx(share, rel=0.1)


def test_impulse_noise_makes_the_published_share_black_or_white():
    found = corrupted(grey(224), "impulse-noise", 5, 0, 0)
    assert float((found != 128).double().mean()) == pytest.approx(0.27, abs=0.01)
    assert set(found.unique().tolist()) == {0, 128, 255}
    assert float((found == 255).double().mean()) == pytest.approx(0.135, abs=0.01)


def test_motion_blur_leaves_a_trail_to_one_side_that_keeps_the_light():
    dot = grey(64, 0)
    dot[:, 32, 32] = 255
    trail = corrupted(dot, "motion-blur", 5, 0, 0)[0].double()
    assert 190 < float(trail.sum()) <= 255  # what is cut off to whole values is lost
    bright = trail.nonzero().double()
    assert 6 < len(bright) < 25
    line = bright - torch.tensor([32.0, 32.0])
    assert float(torch.linalg.svdvals(line)[1]) < 2  # on a line
    assert (line[:, 1] <= 0).all() or (line[:, 1] >= 0).all()  # to one side


@pytest.mark.parametrize("angle, down, right", [(0, 0, 1), (90, 1, 0), (-90, -1, 0), (45, 1, 1)])
def test_a_trail_fades_like_half_a_gaussian(angle, down, right):
    dot = np.zeros((21, 21, 1))
    dot[10, 10] = 1
    trail = moved(dot, 2, 1.5, angle)[..., 0]
    weights = np.exp(-(np.arange(5) ** 2) / (2 * 1.5**2))
    found = [trail[10 - i * down, 10 - i * right] for i in range(5)]
    if angle != 45:
        np.testing.assert_allclose(found, weights / weights.sum())
    else:  # steps of one pixel along the diagonal come to 0, 1, 1, 2, 3
        steps = np.bincount([0, 1, 1, 2, 3], weights / weights.sum(), minlength=5)
        np.testing.assert_allclose(found, steps)


def test_a_trail_keeps_an_even_picture_even_up_to_its_border():
    found = corrupted(grey(32), "motion-blur", 5, 0, 0)
    assert (found.int() - 128).abs().max() <= 1


def test_snow_only_brightens_and_fog_takes_contrast():
    clear = picture(64).int()
    snowed = corrupted(picture(64), "snow", 2, 0, 0).int()
    assert (snowed - clear).min() >= -1
    assert (snowed - clear).float().mean() > 10
    fogged = corrupted(picture(64), "fog", 4, 0, 0).float()
    assert fogged.std() < 0.8 * clear.float().std()


def test_a_landscape_fills_0_to_1_and_is_rougher_where_details_fade_slower():
    smooth, rough = (plasma(60, fading, np.random.default_rng(0)) for fading in (3, 1.4))
    assert smooth.shape == (64, 64)
    for heights in (smooth, rough):
        assert (heights.min(), heights.max()) == (0, 1)
    assert np.abs(np.diff(rough)).mean() > 2 * np.abs(np.diff(smooth)).mean()


def test_a_landscape_is_each_middle_the_mean_of_four_and_a_draw_that_fades_by_the_square():
    """All draws being 1: at step 4 the middle of the corners 0 is 0 + 1, the edges
    (0 + 0 + 1 + 1) / 4 + 1; at step 2 a draw counts 1 / 2**2."""
    heights = plasma(4, 2, Most())
    expected = [[0, 1.25, 1.5, 1.25], [1.25, 1.25, 1.5, 1.25], [1.5, 1.5, 1, 1.5],
                [1.25, 1.25, 1.5, 1.25]]  # fmt: skip
    np.testing.assert_allclose(heights, np.array(expected) / 1.5)


def test_fog_is_a_cloud_and_the_picture_is_as_bright_as_before():
    """At 224, severity 2, a cloud twice as bright as white lies on it; its amplitude fades by 2."""
    pixels = np.full((4, 4, 3), 0.5)
    pixels[0, 0] = 0.2
    cloud = plasma(4, 2, Most())[..., None]
    expected = (pixels + 2 * cloud) * 0.5 / 2.5
    np.testing.assert_allclose(FUNCTIONS["fog"](pixels, (2, 2), Most()), expected)
    assert CONSTANTS["fog"][224][1] == (2, 2)
    assert expected.max() == 0.5  # where the cloud is thickest


def test_without_flakes_snow_whitens_a_share_of_the_picture():
    """Three pixels, of 1.5 times their grey and a half: 0.67775, 0.9485 and white."""
    pixels = np.array([[[0.2, 0.1, 0], [1, 0, 0], [1, 1, 1]]])
    pale = np.array([[[0.67775] * 3, [1, 0.9485, 0.9485], [2] * 3]])
    found = FUNCTIONS["snow"](pixels, (0, 0, 1, 0.5, 8, 3, 0.75), np.random.default_rng(0))
    np.testing.assert_allclose(found, 0.75 * pixels + 0.25 * pale)


@pytest.mark.parametrize(("field", "rows"), [((0, 0, 1 / 16), -4), ((1 / 16, 0.05, 0), 4)])
def test_an_elastic_transform_takes_pixels_from_where_they_were(field, rows):
    """All corners moved down and right by 4 of 64 pixels, what was 4 above is seen; the field
    says by how much further a pixel comes from."""
    ramp = np.arange(64.0)[:, None, None] * 100 + np.arange(64.0)[None, :, None]
    found = elastic(ramp, field, Most())
    np.testing.assert_allclose((found - ramp)[8:-8, 8:-8], rows * 101)


def test_an_elastic_transform_without_strength_changes_nothing():
    pixels = picture(32).permute(1, 2, 0).numpy() / 255
    np.testing.assert_allclose(elastic(pixels, (0, 0, 0), np.random.default_rng(0)), pixels)


def test_an_elastic_transform_moves_corners_by_at_most_what_the_table_says():
    """A ramp shows by how much its pixels were moved."""
    ramp = np.repeat(np.arange(64.0)[:, None, None], 64, axis=1)
    found = elastic(ramp, (0, 0, 0.02), np.random.default_rng(0))
    moved = np.abs(found - ramp)[16:48, 16:48]
    assert 0.01 < moved.max() < 3 * 0.02 * 64


@pytest.mark.parametrize("kind", CONSTANTS)
def test_a_picture_is_a_pure_function_of_seed_and_index(kind):
    first, again = (corrupted(picture(32), kind, 4, 7, 3) for _ in range(2))
    assert torch.equal(first, again)
    assert first.dtype == torch.uint8
    assert first.shape == (3, 32, 32)
    if kind in (*STILL, "jpeg-compression"):
        return
    assert not torch.equal(first, corrupted(picture(32), kind, 4, 7, 4))
    assert not torch.equal(first, corrupted(picture(32), kind, 4, 8, 3))


@pytest.mark.parametrize("kind", CONSTANTS)
def test_pictures_that_are_not_square_keep_their_shape(kind):
    for shape in ((3, 30, 47), (3, 70, 50)):
        image = torch.randint(0, 256, shape, dtype=torch.uint8)
        for severity in (1, 5):
            assert corrupted(image, kind, severity, 0, 0).shape == shape


def test_black_and_white_pictures_become_no_error():
    for kind in CONSTANTS:
        for value in (0, 255):
            assert corrupted(grey(32, value), kind, 3, 0, 0).shape == (3, 32, 32)


def test_a_large_picture_is_brought_to_the_224_pixels_of_imagenet_c_and_small_ones_stay():
    large = torch.randint(0, 256, (3, 300, 500), dtype=torch.uint8)
    assert standard(large).shape == (3, 224, 224)
    for shape in ((3, 32, 32), (3, 64, 80), (3, 224, 224)):
        image = torch.randint(0, 256, shape, dtype=torch.uint8)
        assert torch.equal(standard(image), image)


def test_the_constants_are_those_that_were_compared_with_the_authors_files():
    """A constant that changes changes this: compare the table with create_c/ of
    hendrycks/robustness again before the hash is."""
    found = hashlib.sha256(json.dumps(CONSTANTS).encode()).hexdigest()
    assert found == "303210ab4e11150d88b4e2137d6c53ccdf088015c9494024be46af87d424ce8c"


@pytest.mark.parametrize("shape", [(20_000, 1), (1, 20_000), (40, 9_000)])
def test_a_very_long_picture_is_cut_in_the_middle(shape):
    cut = standard(torch.zeros(3, *shape, dtype=torch.uint8))
    assert max(cut.shape[-2:]) == 4 * min(shape)


def test_a_picture_of_one_pixel_can_be_corrupted_by_every_kind():
    one = torch.full((3, 1, 1), 100, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in FUNCTIONS:
            assert corrupted(standard(one), kind, 3, 0, 0).shape == (3, 1, 1)


def test_every_kind_has_a_function_and_five_severities_for_every_size():
    assert set(FUNCTIONS) == set(CONSTANTS)
    assert len(USUAL) == 13
    for sizes in CONSTANTS.values():
        assert {side: len(constants) for side, constants in sizes.items()} == {32: 5, 64: 5, 224: 5}
