"""Augmentation: what is drawn, that it follows from the position alone, and that nothing waits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from vitkit.data.augmentation import blur, erasing, jitter
from vitkit.data.augmentation import mixup as mixing
from vitkit.data.augmentation.augment import LEVELS, Augmenter, resolved
from vitkit.data.draws import Purpose, uniforms
from vitkit.errors import UsageError

EVERYTHING = {
    "layers": 2, "magnitude": 15.0, "mixup": 0.5, "cutmix": 1.0, "erase": 0.5,
    "jitter": (0.4, 0.4, 0.4, 0.1), "jitter_share": 0.8, "grayscale": 0.2, "blur": 0.5,
}  # fmt: skip


def random_batch(images: int, height: int = 8, width: int = 8, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (images, 3, height, width), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(10, (images,), generator=generator)


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# Levels


def test_levels_are_those_of_the_paper():
    assert LEVELS == {
        "none": (0, 0, 0), "light1": (2, 0, 0), "light2": (2, 10, 0.2), "medium1": (2, 15, 0.2),
        "medium2": (2, 15, 0.5), "strong1": (2, 20, 0.5), "strong2": (2, 20, 0.8),
    }  # fmt: skip


def test_what_is_given_counts_before_the_level():
    assert resolved("medium2") == (2, 15, 0.5)
    assert resolved("medium2", layers=3) == (3, 15, 0.5)
    assert resolved("medium2", magnitude=7.5, mixup=0.0) == (2, 7.5, 0)
    assert resolved("strong2", layers=0) == (0, 20, 0.8)
    assert resolved("none", mixup=0.1) == (0, 0, 0.1)


def test_layers_without_a_level_have_the_full_magnitude_unless_it_is_given():
    assert resolved("none", layers=2) == (2, 10, 0)
    assert resolved("none", layers=2, magnitude=0.0) == (2, 0, 0)
    assert resolved("light1", layers=1) == (1, 0, 0)


def test_an_unknown_level_is_an_error_that_names_the_nearest():
    with pytest.raises(UsageError, match=r"did you mean .*'medium1'"):
        resolved("medium")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": -1}, "layers is -1; it can be 0 to 16"),
        ({"magnitude": 31.0}, "magnitude is 31; it can be 0 to 30"),
        ({"mixup": -0.2}, "mixup is -0.2"),
        ({"cutmix": math.nan}, "cutmix is nan"),
        ({"erase": 1.5}, "erase is 1.5; it can be 0 to 1"),
        ({"jitter_share": -0.1}, "jitter_share is -0.1; it can be 0 to 1"),
        ({"grayscale": 2.0}, "grayscale is 2"),
        ({"blur": math.nan}, "blur is nan"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "hue is 0.6; it can be 0 to 0.5"),
        ({"jitter": (0.4, -0.4, 0.4, 0.0)}, "contrast is -0.4"),
    ],
)
def test_a_value_that_cannot_be_is_an_error_that_says_what_can(wrong, message):
    with pytest.raises(UsageError, match=message):
        Augmenter(0, 10, **wrong)


# Draws by position


def test_nothing_asked_for_gives_back_what_was_given():
    images, labels = random_batch(4)
    found = Augmenter(0, 10)(images, labels, np.arange(4))
    assert found[0] is images
    assert found[1] is labels


@given(
    first=st.integers(0, 2**40), ranks=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**63 - 1)
)
@settings(max_examples=10, deadline=None)
def test_images_and_labels_depend_on_position_alone_not_on_ranks_or_how_batches_are_cut(
    first, ranks, seed
):
    images, labels = random_batch(16, seed=seed % 1000)
    positions, augment = 2 * first + np.arange(16), Augmenter(seed, 10, **EVERYTHING)
    whole = augment(images, labels, positions)
    for rank in range(ranks):
        mine = np.flatnonzero((positions // 2) % ranks == rank)
        share = augment(images[mine], labels[mine], positions[mine])
        assert same(share, (whole[0][mine], whole[1][mine]))


def test_images_may_come_in_any_order():
    images, labels = random_batch(16)
    augment, order = Augmenter(0, 10, **EVERYTHING), np.random.default_rng(0).permutation(16)
    whole = augment(images, labels, np.arange(16))
    found = augment(images[order], labels[order], order)
    assert same(found, (whole[0][order], whole[1][order]))


def test_every_position_and_every_seed_has_draws_of_its_own():
    images, labels = random_batch(1, 16, 16)
    images, labels = images.expand(64, -1, -1, -1), labels.expand(64)
    augment = Augmenter(0, 10, erase=1.0, jitter=(0.4, 0.0, 0.0, 0.0))
    one, _ = augment(images, labels, np.arange(64))
    assert len(one.flatten(1).unique(dim=0)) == 64
    other, _ = Augmenter(1, 10, erase=1.0, jitter=(0.4, 0.0, 0.0, 0.0))(
        images, labels, np.arange(64)
    )
    assert (one != other).flatten(1).any(1).all()


def test_the_number_of_threads_changes_nothing():
    images, labels = random_batch(256, 32, 32)
    augment, threads = Augmenter(0, 10, **EVERYTHING), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = augment(images, labels, np.arange(256))
        torch.set_num_threads(4)
        assert same(augment(images, labels, np.arange(256)), one)
    finally:
        torch.set_num_threads(threads)


def test_what_is_given_is_left_as_it_is():
    images, labels = random_batch(64)
    before = images.clone(), labels.clone()
    augmented, _ = Augmenter(0, 10, **EVERYTHING)(images, labels, np.arange(64))
    assert not torch.equal(augmented, images)
    assert same((images, labels), before)


def test_nothing_is_asked_of_the_pixels_on_the_way():
    """On the meta device there are no pixels: whatever waits for them, or lets them decide the
    shape of something, fails."""
    images = torch.empty(32, 3, 16, 16, dtype=torch.uint8, device="meta")
    labels = torch.empty(32, dtype=torch.int64, device="meta")
    found, shares = Augmenter(0, 10, **EVERYTHING)(images, labels, np.arange(32))
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    assert shares.shape == (32, 10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_images_and_is_not_waited_for():
    images, labels = random_batch(64, 32, 32)
    augment = Augmenter(0, 10, **EVERYTHING)
    expected = augment(images, labels, np.arange(64))
    images, labels = images.cuda(), labels.cuda()
    augment(images, labels, np.arange(64))  # tables are made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = augment(images, labels, np.arange(64))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert same((found[0].cpu(), found[1].cpu()), expected)


# MixUp


def mix(images: Tensor, labels: Tensor, positions=None, mixup=0.0, cutmix=0.0, seed=0):
    positions = np.arange(len(images)) if positions is None else positions
    return Augmenter(seed, 10, mixup=mixup, cutmix=cutmix)(images, labels, positions)


def black_and_white(pairs: int, side: int = 4) -> tuple[Tensor, Tensor]:
    """Black images of class 0 and white ones of class 1, in turn."""
    labels = torch.arange(2 * pairs) % 2
    return (255 * labels.to(torch.uint8)).view(-1, 1, 1, 1).expand(-1, 3, side, side), labels


def test_pixels_and_labels_are_mixed_by_the_same_share_with_the_other_of_the_pair():
    images, labels = random_batch(40)
    labels = torch.arange(40) % 10
    found, shares = mix(images, labels, mixup=0.8)
    partner = torch.arange(40) ^ 1
    own = shares[torch.arange(40), labels]
    torch.testing.assert_close(shares[torch.arange(40), labels[partner]], 1 - own)
    weight = own.view(-1, 1, 1, 1).double()
    expected = images * weight + images[partner] * (1 - weight)
    assert (found - expected).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 0.8, 1.0, 8.0])
def test_the_larger_share_is_kept_and_is_of_the_beta_distribution(alpha):
    _, shares = mix(*black_and_white(4000, side=1), mixup=alpha)
    own = shares[torch.arange(8000), torch.arange(8000) % 2].double().numpy()
    assert own.min() >= 0.5
    # Shares are whole numbers over 65536; where alpha is small many are so close to 1 that only
    # their difference from it could tell them apart, so those are counted together.
    random = np.random.default_rng(0).beta(alpha, alpha, 100_000)
    expected = np.rint(np.maximum(random, 1 - random) * 65536) / 65536
    assert stats.ks_2samp(own, expected).pvalue > 0.01


def test_each_of_a_pair_draws_a_share_of_its_own():
    _, shares = mix(*black_and_white(2000, side=1), mixup=1.0)
    own = shares[torch.arange(4000), torch.arange(4000) % 2].view(-1, 2).numpy()
    assert abs(stats.spearmanr(*own.T).statistic) < 0.06


def test_a_share_of_all_leaves_the_image_as_it_is():
    images, labels = random_batch(2000, 2, 2)[0], torch.arange(2000) % 2
    found, shares = mix(images, labels, mixup=0.02)
    alone = shares[torch.arange(2000), labels] == 1
    assert alone.float().mean() > 0.5
    assert torch.equal(found[alone], images[alone])


def test_two_images_of_a_class_keep_it_whole():
    images, _ = random_batch(8)
    _, shares = mix(images, torch.full((8,), 3), mixup=0.5)
    torch.testing.assert_close(shares, torch.eye(10)[torch.full((8,), 3)])


@pytest.mark.parametrize("options", [{"mixup": 0.5}, {"cutmix": 1.0}])
def test_rows_of_several_labels_mix_the_same_way(options):
    images, labels = random_batch(20)
    rows = torch.nn.functional.one_hot(labels, 10)
    expected = mix(images, labels, **options)
    for kind in (torch.float32, torch.int64):
        found, shares = mix(images, rows.to(kind), **options)
        assert torch.equal(found, expected[0])
        assert shares.dtype == torch.float32
        torch.testing.assert_close(shares, expected[1])


@pytest.mark.parametrize("positions", [[0, 1, 2], [1, 2], [0, 1, 2, 4], [0, 1, 1, 2], [0, 0]])
def test_half_a_pair_is_an_error(positions):
    images, labels = random_batch(len(positions))
    with pytest.raises(ValueError, match="must hold whole pairs"):
        mix(images, labels, np.array(positions), mixup=0.2)


# CutMix


def test_the_label_has_the_share_of_the_pixels_and_they_are_a_rectangle_of_the_partners():
    images, labels = black_and_white(200, side=16)
    found, shares = mix(images, labels, cutmix=1.0)
    assert torch.equal(shares.sum(1), torch.ones(400))
    foreign = found != images
    assert torch.equal(foreign[:, :1].expand_as(foreign), foreign)
    own = 1 - foreign[:, 0].flatten(1).double().mean(1)
    torch.testing.assert_close(shares[torch.arange(400), labels].double(), own, atol=1e-6, rtol=0)
    rows, columns = foreign[:, 0].any(2), foreign[:, 0].any(1)
    assert torch.equal(rows[:, :, None] & columns[:, None], foreign[:, 0])


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_boxes_are_of_torchvisions_distribution(alpha):
    sides = (48, 64)
    draws = uniforms(3, Purpose.MIX, 0, 3000, mixing.DRAWS)
    top, bottom, left, right = mixing.cutmix_boxes(
        mixing.beta(draws[:, 1], alpha), draws[:, 2:], sides
    ).T
    torch.manual_seed(0)
    peer, picture = v2.CutMix(alpha=alpha, num_classes=10), torch.zeros(3, *sides)
    theirs = np.array([peer.make_params([picture])["box"] for _ in range(3000)])  # x1 y1 x2 y2
    ours = np.stack([left, top, right, bottom], axis=1)
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.01
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (ours, theirs)]
    assert stats.ks_2samp(*areas).pvalue > 0.01


def test_with_both_a_fair_coin_decides_for_each_pair_alone():
    images, labels = black_and_white(1000, side=8)
    found, _ = mix(images, labels, mixup=1.0, cutmix=1.0)
    grey = ((found > 0) & (found < 255)).flatten(1).any(1).view(-1, 2)  # where it was mixup
    # A share of nearly all rounds to black or white, in some thousandths of the images.
    assert (grey[:, 0] != grey[:, 1]).float().mean() < 0.02
    assert stats.binomtest(int(grey.any(1).sum()), 1000).pvalue > 0.01
    apart = mix(images, labels, mixup=1.0)[0], mix(images, labels, cutmix=1.0)[0]
    expected = torch.where(grey.any(1).repeat_interleave(2).view(-1, 1, 1, 1), *apart)
    assert (found == expected).flatten(1).all(1).float().mean() > 0.98


# Erasing


def boxes_of(images: int, sides: tuple[int, int], seed: int = 0) -> np.ndarray:
    return erasing.erased_boxes(uniforms(seed, Purpose.ERASE, 0, images, erasing.DRAWS), sides)


@pytest.mark.parametrize("sides", [(64, 64), (40, 90)])
def test_rectangles_are_of_torchvisions_distribution(sides):
    top, bottom, left, right = boxes_of(3000, sides).T
    torch.manual_seed(0)
    peer, picture = v2.RandomErasing(value="random"), torch.zeros(3, *sides)
    drawn = [peer.make_params([picture]) for _ in range(3000)]
    theirs = np.array([[d["i"], d["j"], d["h"], d["w"]] for d in drawn])
    ours = np.stack([top, left, bottom - top, right - left], axis=1)
    for column in range(4):
        assert stats.ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.01
    for derived in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 2] / b[:, 3]):
        assert stats.ks_2samp(derived(ours), derived(theirs)).pvalue > 0.01


def test_the_share_of_the_images_is_erased_and_only_inside_the_rectangle():
    images, labels = random_batch(2000, 12, 12)
    found, kept = Augmenter(0, 10, erase=0.3)(images, labels, np.arange(2000))
    assert torch.equal(kept, labels)
    changed = (found != images).any(1)
    assert stats.binomtest(int(changed.flatten(1).any(1).sum()), 2000, 0.3).pvalue > 0.01
    rows, columns = changed.any(2), changed.any(1)
    assert changed.flatten(1).float().mean() < 0.3 * 0.33
    # All of a rectangle changes, but for noise that hits the three values that were there.
    assert torch.equal((rows[:, :, None] & columns[:, None]) & ~changed, torch.zeros_like(changed))


def test_an_image_into_which_no_rectangle_fits_stays():
    top, bottom, left, right = boxes_of(50, (1, 1)).T
    assert not ((bottom - top) * (right - left)).any()
    images, labels = random_batch(8, 1, 1)
    found, _ = Augmenter(0, 10, erase=1.0)(images, labels, np.arange(8))
    assert torch.equal(found, images)


def noise_of(images: int, sides: tuple[int, int], seed: int = 0) -> np.ndarray:
    keys = uniforms(seed, Purpose.ERASE, 0, images, erasing.DRAWS)[:, 1]
    return erasing.noise(keys, sides, torch.device("cpu")).numpy()


def test_every_value_of_the_noise_is_equally_frequent_in_every_channel():
    values = noise_of(200, (32, 32))
    assert values.shape == (200, 3, 32, 32)
    for channel in range(3):
        counts = np.bincount(values[:, channel].reshape(-1), minlength=256)
        assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("step", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)])
def test_neighbours_in_position_channel_row_and_column_know_nothing_of_each_other(step):
    values = noise_of(100, (32, 32))
    here = values[tuple(slice(None, -1) if move else slice(None) for move in step)].reshape(-1)
    there = values[tuple(slice(1, None) if move else slice(None) for move in step)].reshape(-1)
    table = np.bincount((here.astype(int) >> 3) * 32 + (there >> 3), minlength=1024)
    assert stats.chisquare(table).pvalue > 0.01


def test_positions_of_no_image_have_noise_in_common():
    rows = noise_of(2000, (2, 4)).reshape(2000, -1)
    assert len(np.unique(rows, axis=0)) == 2000


# Colour jitter


def picture() -> Tensor:
    return random_batch(1, 24, 24, seed=5)[0]


def jittered(images: Tensor, name: str, factor: float) -> Tensor:
    """One of the four alone, by this factor."""
    amounts = tuple(float(other == name) for other in jitter.NAMES)
    column = torch.full((len(images), 1, 1, 1), factor)
    return jitter.one_after_another(images, [column] * 4, amounts)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("factor", [0.0, 0.3, 0.6, 1.0, 1.4, 2.5])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_brightness_contrast_and_saturation_are_torchvisions_within_a_level(name, factor):
    expected = getattr(TF, f"adjust_{name}")(picture(), factor)
    assert (jittered(picture(), name, factor).int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("turn", [-0.5, -0.37, -0.1, 0.0, 0.05, 0.2, 0.5])
def test_hue_is_torchvisions_within_a_level(turn):
    extremes = torch.tensor([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255],
                             [255, 255, 0], [7, 7, 8]], dtype=torch.uint8)  # fmt: skip
    for images in (picture(), extremes.T.reshape(1, 3, 1, 7)):
        expected = TF.adjust_hue(images, turn)
        assert (jittered(images, "hue", turn).int() - expected.int()).abs().max() <= 1


def test_a_factor_of_one_and_a_turn_of_none_change_nothing():
    for name in jitter.NAMES:
        assert torch.equal(jittered(picture(), name, 0.0 if name == "hue" else 1.0), picture())


@pytest.mark.parametrize("amounts", [(0.4, 0.3, 0.2, 0.1), (1.5, 1.0, 0.0, 0.5)])
def test_ranges_are_torchvisions(amounts):
    peer = v2.ColorJitter(*amounts)
    for name, found in zip(jitter.NAMES, jitter.ranges(amounts), strict=True):
        if name != "saturation" or amounts[2]:  # of what does not vary torchvision keeps no range
            assert found == pytest.approx(getattr(peer, name))


def test_factors_are_uniform_and_independent():
    """Seen on grey images, which brightness alone changes."""
    images = torch.full((4000, 3, 1, 1), 100, dtype=torch.uint8)
    found, _ = Augmenter(0, 10, jitter=(0.5, 0.0, 0.0, 0.0))(
        images, torch.zeros(4000), np.arange(4000)
    )
    counts = np.bincount(found[:, 0, 0, 0].numpy(), minlength=150)[50:150]
    assert counts.sum() == 4000
    assert stats.chisquare(counts).pvalue > 0.01
    draws = uniforms(0, Purpose.JITTER, 0, 4000, jitter.DRAWS)
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.06


def test_the_four_come_one_after_another_in_their_order():
    images = random_batch(6, 10, 10)[0]
    amounts, draws = (0.4, 0.5, 0.6, 0.2), uniforms(1, Purpose.JITTER, 0, 6, jitter.DRAWS)
    expected = images
    for number, (name, (low, high)) in enumerate(
        zip(jitter.NAMES, jitter.ranges(amounts), strict=True)
    ):
        rows = zip(expected, low + (high - low) * draws[:, number], strict=True)
        expected = torch.cat([jittered(image[None], name, factor) for image, factor in rows])
    found = jitter.jittered(images, draws, amounts)
    assert torch.equal(found, expected)


# Shares of the images: jittered, grey, blurred


def changed(images: Tensor, **options) -> tuple[Tensor, Tensor]:
    """The images after this alone, and which of them are others than before."""
    found, _ = Augmenter(0, 10, **options)(images, torch.zeros(len(images)), np.arange(len(images)))
    return found, (found != images).flatten(1).any(1)


@pytest.mark.parametrize("name", ["jitter_share", "grayscale", "blur"])
def test_the_share_of_the_images_is_changed_and_the_rest_stay(name):
    images = random_batch(1000, 4, 4)[0]
    options = {"jitter": (0.8, 0.8, 0.8, 0.2)} if name == "jitter_share" else {}
    for share in (0.0, 0.3, 1.0):
        _, others = changed(images, **options, **{name: share})
        # A blur of 0.1 to 0.2 pixels or so moves no value by a level.
        assert share - 0.05 - 0.1 * (name == "blur") <= others.float().mean() <= share + 0.05


def test_which_images_are_jittered_decides_nothing_of_how():
    images = random_batch(64)[0]
    amounts = (0.8, 0.8, 0.8, 0.2)
    every = jitter.jittered(images, uniforms(0, Purpose.JITTER, 0, 64, jitter.DRAWS), amounts)
    assert torch.equal(changed(images, jitter=amounts)[0], every)
    found, others = changed(images, jitter=amounts, jitter_share=0.5)
    assert 16 < others.sum() < 48
    assert torch.equal(found[others], every[others])


def test_grey_is_torchvisions():
    images = random_batch(8, 6, 7)[0]
    found, _ = changed(images, grayscale=1.0)
    assert torch.equal(found, TF.rgb_to_grayscale(images, 3))


@pytest.mark.parametrize(
    ("sides", "kernel"), [((2, 2), 3), ((32, 32), 3), ((40, 64), 5), ((224, 230), 23)]
)
def test_blur_is_torchvisions_within_a_level_with_a_kernel_of_a_tenth_of_the_side(sides, kernel):
    images = random_batch(3, *sides)[0]
    draws = np.array([0.0, 0.4, 0.999])
    found = blur.blurred(images, draws)
    for image, own, draw in zip(images, found, draws, strict=True):
        expected = TF.gaussian_blur(image, [kernel, kernel], [0.1 + 1.9 * draw])
        assert (own.int() - expected.int()).abs().max() <= 1


def test_blur_leaves_a_pixel_alone_and_an_even_image_as_it_is():
    images = torch.full((2, 3, 1, 5), 200, dtype=torch.uint8)
    assert torch.equal(blur.blurred(images, np.array([0.2, 0.9])), images)
    images = torch.full((2, 3, 30, 50), 255, dtype=torch.uint8)
    assert torch.equal(blur.blurred(images, np.array([0.2, 0.9])), images)


def test_which_images_are_jittered_grey_and_blurred_is_drawn_apart():
    images = random_batch(2000, 4, 4)[0]
    jittered = {"jitter": (0.8, 0.8, 0.8, 0.2), "jitter_share": 0.5}
    asked = (jittered, {"grayscale": 0.5}, {"blur": 0.5}, {"erase": 0.5})
    chosen = torch.stack([changed(images, **options)[1] for options in asked])
    assert np.abs(np.corrcoef(chosen) - np.eye(4)).max() < 0.1
