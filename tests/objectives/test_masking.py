"""Masked patches (appendix B.1.2): which are corrupted and how, and what is told of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from small_nets import CONVOLUTIONAL, T2TS, VITS, images_for, small_net, vit_config
from vitkit.data.transforms import normalise
from vitkit.errors import UsageError
from vitkit.models.nets import make
from vitkit.objectives.masking import (
    AT_ONCE,
    MaskedPatches,
    check_masking,
    colour_classes,
    corruption,
    middle_colours,
)
from vitkit.objectives.patches import patchify, unpatchify
from vitkit.objectives.settings import MaskingConfig

INCEPTION = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PLACES = np.array([5, 2])
NO_LABELS = torch.zeros(2, dtype=torch.int64)


def learner(config=None, seed=0, **masking):
    net = small_net(config or vit_config())
    net.reset_head(0)
    torch.manual_seed(seed)
    return MaskedPatches(net, MaskingConfig(**masking), seed, *IMAGENET)


def pixels(count=2, height=12, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, height, width), dtype=np.uint8)


def normalised(values, mean_std=IMAGENET):
    return normalise(torch.from_numpy(values), *mean_std)


# Which patches, and what becomes of them


@pytest.mark.parametrize(("rate", "count"), [(0.5, 98), (0.75, 147), (0.3, 59), (0.004, 1)])
def test_as_many_patches_of_each_image_as_the_rate_says(rate, count):
    what = corruption(0, np.arange(20), 196, rate)
    assert what.corrupted.shape == (20, count)
    assert all(len(set(row)) == count for row in what.corrupted.tolist())


def test_of_the_corrupted_80_10_and_10_percent_are_masked_others_and_themselves():
    images, patches = 400, 50
    what = corruption(1, np.arange(images), patches, 0.5)
    own = np.arange(patches)
    corrupted = np.zeros((images, patches), dtype=bool)
    np.put_along_axis(corrupted, what.corrupted, True, axis=1)
    swapped = what.source != own
    assert not (what.masked & ~corrupted).any() and not (swapped & ~corrupted).any()
    assert not (what.masked & swapped).any()  # each has one fate
    total = corrupted.sum()
    assert total == images * patches // 2
    fates = (what.masked, swapped, corrupted & ~what.masked & ~swapped)
    for fate, share in zip(fates, (0.8, 0.1, 0.1), strict=True):
        deviation = math.sqrt(total * share * (1 - share))
        assert abs(fate.sum() - total * share) < 4 * deviation


def test_another_patch_is_any_of_the_others():
    what = corruption(2, np.arange(3000), 4, 0.5)
    image, patch = np.nonzero(what.source != np.arange(4))
    pairs = np.zeros((4, 4), dtype=int)
    np.add.at(pairs, (patch, what.source[image, patch]), 1)
    assert (pairs.diagonal() == 0).all()
    swapped = 3000 * 2 * 0.1
    assert abs(pairs.sum() - swapped) < 4.5 * math.sqrt(swapped * 0.9)
    each = pairs.sum() / 12
    others = pairs[~np.eye(4, dtype=bool)]
    assert (abs(others - each) < 4.5 * math.sqrt(each)).all()


def test_an_images_mask_follows_from_its_place_and_the_seed_alone():
    together = corruption(3, np.array([7, 4, 9]), 30, 0.4)
    alone = corruption(3, np.array([4]), 30, 0.4)
    for name in ("corrupted", "masked", "source"):
        assert (getattr(together, name)[1] == getattr(alone, name)[0]).all()
    assert (together.corrupted[0] != together.corrupted[1]).any()
    assert (corruption(4, np.array([4]), 30, 0.4).corrupted != alone.corrupted).any()


# What is told of a patch


@pytest.mark.parametrize("mean_std", [INCEPTION, IMAGENET])
@pytest.mark.parametrize("side", [4, 16, 32])
def test_every_value_has_the_class_that_it_has_by_division(side, mean_std):
    values = np.arange(256, dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (256, 3, side, side)).copy()
    for cells in (1, 4):
        found = colour_classes(normalised(images, mean_std), side, cells, *mean_std)
        expected = torch.from_numpy(values.astype(np.int64) // 32 * (64 + 8 + 1))
        assert torch.equal(found, expected[:, None, None].expand(-1, 1, cells**2))


def test_a_mean_next_below_an_edge_is_below_it():
    image = np.full((1, 3, 16, 16), 32, dtype=np.uint8)
    image[0, 1, 3, 5] -= 1  # green's mean is 32 - 1 / 256
    found = colour_classes(normalised(image), 16, 1, *IMAGENET)
    assert found.item() == 64 + 1


@pytest.mark.parametrize("cells", [1, 4])
def test_classes_are_the_mean_colours_of_cells_row_by_row(cells):
    values, side = pixels(height=24, width=16, seed=3), 8
    found = colour_classes(normalised(values), side, cells, *IMAGENET)
    along = side // cells
    for image in range(2):
        for patch in range(6):
            for cell in range(cells * cells):
                top = patch // 2 * side + cell // cells * along
                left = patch % 2 * side + cell % cells * along
                red, green, blue = (
                    int(values[image, channel, top : top + along, left : left + along].mean()) // 32
                    for channel in range(3)
                )
                assert found[image, patch, cell] == 64 * red + 8 * green + blue


def test_colours_beyond_black_and_white_have_the_outer_classes():
    beyond = torch.tensor([-1.1, 1.1]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    assert colour_classes(beyond, 4, 1, *INCEPTION).flatten().tolist() == [0, 511]


def test_the_middle_of_each_class_is_in_it():
    classes = torch.arange(512)
    images = (middle_colours(classes) / 127.5 - 1)[:, :, None, None].expand(-1, -1, 4, 4)
    assert torch.equal(colour_classes(images, 4, 1, *INCEPTION).flatten(), classes)
    assert middle_colours(torch.tensor(64 * 7 + 8 * 2)).tolist() == [239.5, 79.5, 15.5]


def test_a_patchs_pixels_are_those_of_its_square():
    images = torch.from_numpy(pixels())
    patches = patchify(images, 4)  # a grid of 3 x 2
    square = images[1, :, 8:12, 0:4].permute(1, 2, 0)  # row 2, column 0
    assert torch.equal(patches[1, 4], square.flatten())
    assert torch.equal(unpatchify(patches, (3, 2), 4), images)


# The loss


def embedded(net, images, what, token):
    """The corrupted embeddings, patch by patch."""
    x = net.embed_patches(images)
    rows = []
    for image in range(len(x)):
        masked, source = what.masked[image], what.source[image]
        rows.append(torch.stack([
            token[0, 0] if masked[i] else x[image, source[i]] for i in range(x.shape[1])
        ]))  # fmt: skip
    return torch.stack(rows)


@pytest.mark.parametrize("target", ["mean-colour", "colours", "pixels"])
@pytest.mark.parametrize("kind", ["token", "hybrid", "relative positions", "2d", "layers"])
def test_the_loss_is_that_of_the_definition(kind, target):
    options = {"2d": {"positions": "2d"}, "layers": {"positions_at": "layers"}}
    config = vit_config(**options[kind]) if kind in options else VITS[kind]
    config = replace(config, image_size=(3 * config.cell, 2 * config.cell))
    learns = learner(config, rate=0.6, target=target)
    net, side = learns.vit, config.cell
    values = pixels(2, *config.image_size)
    images = normalised(values)
    what = corruption(0, PLACES, 6, 0.6)
    tokens = net.norm(net.through_blocks(net.lead(embedded(net, images, what, learns.mask_token))))
    losses = []
    for image in range(2):
        for patch in what.corrupted[image]:
            said = learns.head(tokens[image, net.config.prefix + patch])
            top, left = patch // 2 * side, patch % 2 * side
            square = images[image, :, top : top + side, left : left + side]
            if target == "pixels":
                losses.append((said - square.permute(1, 2, 0).flatten()).square().mean())
                continue
            cells = 1 if target == "mean-colour" else 4
            classes = colour_classes(square[None], side, cells, *IMAGENET)[0, 0]
            losses += [F.cross_entropy(one, c) for one, c in
                       zip(said.view(-1, 512), classes, strict=True)]  # fmt: skip
    found = learns(images, NO_LABELS, PLACES)
    torch.testing.assert_close(found, torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["mean-colour", "colours", "pixels"])
def test_every_weight_learns(target):
    learns = learner(target=target)
    learns(images_for(learns.net), NO_LABELS, PLACES).backward()
    for name, weight in learns.named_parameters():
        assert weight.grad is not None and weight.grad.any(), name


def test_a_uniform_answer_costs_the_logarithm_of_the_classes():
    learns = learner()
    torch.nn.init.zeros_(learns.head.weight)
    found = learns(images_for(learns.net), NO_LABELS, PLACES)
    assert found.item() == pytest.approx(math.log(512))


@pytest.mark.parametrize("target", ["mean-colour", "colours", "pixels"])
def test_the_loss_of_a_bfloat16_net_is_in_float32(target):
    learns = learner(target=target).bfloat16()
    found = learns(images_for(learns.net).bfloat16(), NO_LABELS, PLACES)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("target", ["mean-colour", "colours", "pixels"])
def test_parts_of_a_batch_have_the_loss_and_gradients_of_the_whole(target):
    number = AT_ONCE + 4  # more than are found together, and no multiple of it
    learns = learner(target=target)
    images = images_for(learns.net, number)

    def found(size):
        learns.zero_grad()
        parts = [learns(images[i : i + size], NO_LABELS, np.arange(i, i + size))
                 for i in range(0, number, size)]  # fmt: skip
        loss = torch.stack(parts).mean()
        loss.backward()
        return loss.detach(), learns.head.weight.grad.clone()

    torch.testing.assert_close(found(number), found(4))


# What is shown


@pytest.mark.parametrize("target", ["mean-colour", "colours", "pixels"])
def test_examples_are_the_images_with_what_is_predicted_of_corrupted_patches(target):
    learns = learner(vit_config(patch=8, image_size=(24, 16)), target=target)
    values = pixels(2, 24, 16)
    shown = learns.examples(normalised(values), PLACES)
    what = corruption(0, PLACES, 6, 0.5)
    for image in range(2):
        assert set(np.flatnonzero(shown.hidden[image])) == set(what.corrupted[image])
    own = patchify(torch.from_numpy(values).float() / 255, 8)
    painted = patchify(shown.predicted, 8)
    torch.testing.assert_close(painted[~shown.hidden], own[~shown.hidden])
    assert painted.min() >= 0 and painted.max() <= 1
    predicted, corrupted = learns.predict(normalised(values), PLACES)
    first = painted[0, corrupted[0, 0]].view(8, 8, 3)
    if target == "pixels":
        mean, std = map(torch.tensor, IMAGENET)
        expected = (predicted[0, 0].view(8, 8, 3) * std + mean).clamp(0, 1)
    else:
        cells = 1 if target == "mean-colour" else 4
        colours = middle_colours(predicted[0, 0].view(cells, cells, 512).argmax(-1)) / 255
        along = 8 // cells
        expected = torch.stack(
            [colours[i // along, j // along] for i in range(8) for j in range(8)]
        )
        expected = expected.view(8, 8, 3)
    torch.testing.assert_close(first, expected)


# What cannot be


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CONVOLUTIONAL["BiT"], "of the kind BiT"),
        (T2TS["T2T-ViT, performer"], "of the kind T2T-ViT"),
        (VITS["map"], "attention pooling"),
        (VITS["hidden head"], "a hidden head"),
        (VITS["distilled"], "a distillation token"),
    ],
)
def test_nets_it_cannot_train_are_named(config, message):
    with pytest.raises(UsageError, match=message):
        MaskedPatches(make(config), MaskingConfig(), 0, *IMAGENET)


@pytest.mark.parametrize(("rate", "hidden"), [(0.0, 0), (0.05, 0), (0.95, 6), (1.5, 0)])
def test_a_rate_that_hides_none_or_all_is_told(rate, hidden):
    with pytest.raises(UsageError, match=rf"rate {rate:g} hides {hidden} of the 6 patches"):
        check_masking(vit_config(), MaskingConfig(rate=rate))


def test_sixteen_colours_need_a_patch_that_four_divides():
    config = vit_config(patch=2)
    with pytest.raises(UsageError, match="one of 2 pixels"):
        check_masking(config, MaskingConfig(target="colours"))
    check_masking(config, MaskingConfig(target="mean-colour"))
