"""faithfulness: deletion and insertion, beside random maps."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from small_nets import EVERY, images_for, small_net
from vitkit.errors import UsageError
from vitkit.inspection import areas, faithfulness, grad_cam
from vitkit.inspection.faithfulness import blurred


class Weighted(nn.Module):
    """Class 1 has the logit: the sum of the pixels, each by its weight (H, W)."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.as_tensor(weight).float())
        self.batches = []

    def forward(self, images):
        self.batches.append(len(images))
        logit = (images.mean(dim=1) * self.weight).sum(dim=(1, 2))
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


def one_cell(row=1, column=2):
    """A net that reads one cell of 2 x 2 pixels of an image of 6 x 8, and the map of that cell."""
    heat = torch.zeros(3, 4)
    heat[row, column] = 1
    return Weighted(heat.repeat_interleave(2, 0).repeat_interleave(2, 1)), heat


SURE = 1 / (1 + math.exp(-4))


def test_the_one_place_that_the_net_reads_is_deleted_first():
    net, heat = one_cell()
    deletion, _ = faithfulness(net, torch.ones(3, 6, 8), heat, 1, steps=12)
    np.testing.assert_allclose(deletion.x, np.arange(13) / 12)
    np.testing.assert_allclose(deletion.lines["map"], [SURE] + 12 * [0.5], rtol=1e-6)
    assert (deletion.lines["random"][1:-1] >= deletion.lines["map"][1:-1] - 1e-9).all()
    assert areas(deletion)["map"] < areas(deletion)["random"] - 0.1


def test_and_it_is_inserted_first():
    net, heat = one_cell()
    image = torch.zeros(3, 6, 8)
    image[:, 2:4, 4:6] = 1
    _, insertion = faithfulness(net, image, heat, 1, steps=12)
    assert 0.5 < insertion.lines["map"][0] < SURE - 0.02  # blurred, some of it is left
    np.testing.assert_allclose(insertion.lines["map"][1:], 12 * [SURE], rtol=1e-6)
    assert areas(insertion)["map"] > areas(insertion)["random"] + 0.005


def test_a_map_that_is_upside_down_is_worse_than_random_ones():
    net, heat = one_cell()
    deletion, insertion = faithfulness(net, torch.ones(3, 6, 8), -heat, 1)
    assert areas(deletion)["map"] > areas(deletion)["random"]
    image = torch.zeros(3, 6, 8)
    image[:, 2:4, 4:6] = 1
    _, insertion = faithfulness(net, image, -heat, 1)
    assert areas(insertion)["map"] < areas(insertion)["random"]


def test_the_random_line_is_the_mean_of_five_orders_without_the_maps_own():
    net, heat = one_cell()
    deletion, _ = faithfulness(net, torch.ones(3, 6, 8), heat, 1, steps=12)
    kept = (deletion.lines["random"] - 0.5) / (SURE - 0.5)  # share of the orders that kept the cell
    np.testing.assert_allclose(5 * kept, (5 * kept).round(), atol=1e-5)
    assert 0 < kept[6] < 1
    assert (np.diff(kept) < 1e-5).all()


def test_every_cell_counts_alike_where_the_net_reads_all_of_them_alike():
    net = Weighted(torch.ones(6, 8) / 8)
    deletion, _ = faithfulness(net, torch.ones(3, 6, 8), torch.rand(3, 4), 1, steps=12)
    expected = 1 / (1 + np.exp(-6 * (1 - deletion.x)))
    for line in deletion.lines.values():
        np.testing.assert_allclose(line, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["BiT", "EfficientNet", "hybrid", "mean", "T2T-ViT, performer"])
def test_the_ends_are_what_the_net_says_of_the_image_and_of_what_it_becomes(name):
    net = small_net(EVERY[name]).train()
    image = images_for(net, 1)[0]
    heat = grad_cam(net, image[None], [2])[0]
    deletion, insertion = faithfulness(net, image, heat, 2)
    assert net.training
    with torch.no_grad():
        ends = torch.stack([image, torch.zeros_like(image), blurred(image)])
        whole, empty, dim = net.eval()(ends).softmax(-1)[:, 2].tolist()
    for line in ("map", "random"):
        for curve, first, last in ((deletion, whole, empty), (insertion, dim, whole)):
            values = curve.lines[line]
            np.testing.assert_allclose([values[0], values[-1]], [first, last], rtol=1e-4)
            assert len(values) == len(curve.x) <= 11
    assert (deletion.x[0], deletion.x[-1]) == (0, 1)


def test_cells_of_one_heat_come_in_an_order_that_the_seed_draws():
    net = Weighted(torch.arange(48.0).reshape(6, 8) / 400)
    image, flat = torch.ones(3, 6, 8), torch.zeros(3, 4)
    one, again, other = (faithfulness(net, image, flat, 1, seed=s)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(one.lines["map"], again.lines["map"])
    np.testing.assert_array_equal(one.lines["random"], again.lines["random"])
    assert not np.allclose(one.lines["map"], other.lines["map"])
    assert not np.allclose(one.lines["random"], other.lines["random"])
    row_by_row = faithfulness(net, image, -torch.arange(12.0).reshape(3, 4), 1)[0]
    assert not np.allclose(one.lines["map"], row_by_row.lines["map"])


def test_a_map_may_lie_unevenly_over_the_image():
    net = Weighted(torch.ones(7, 5) / 8)
    deletion, _ = faithfulness(net, torch.ones(3, 7, 5), np.arange(6).reshape(3, 2), 1, steps=6)
    sizes = np.outer([3, 2, 2], [3, 2]).ravel()[::-1]  # pixels of the cells, the hottest first
    left = 35 - np.concatenate([[0], np.cumsum(sizes)])
    np.testing.assert_allclose(deletion.lines["map"], 1 / (1 + np.exp(-left / 8)), rtol=1e-5)


def test_images_are_run_in_batches_and_there_are_no_more_steps_than_cells():
    net, heat = one_cell()
    curves = faithfulness(net, torch.ones(3, 6, 8), heat, 1, steps=1000)
    assert all(len(curve.x) == 13 for curve in curves)
    assert net.batches == 2 * [64, 14]  # 13 images in each of 6 orders


def test_titles_tell_the_areas_and_a_share_is_shown_in_per_cent():
    net, heat = one_cell()
    for curve, title in zip(
        faithfulness(net, torch.ones(3, 6, 8), heat, 1), ("Deletion", "Insertion"), strict=True
    ):
        found = areas(curve)
        assert curve.title == (
            f"{title} (area: map {found['map']:.3f}, random {found['random']:.3f})"
        )
        assert curve.share
        assert found["map"] == pytest.approx(np.trapezoid(curve.lines["map"], curve.x))


def test_probabilities_may_be_of_each_class_by_itself():
    net, heat = one_cell()
    deletion, _ = faithfulness(net, torch.ones(3, 6, 8), heat, 0, shares=torch.sigmoid)
    np.testing.assert_allclose(deletion.lines["map"], 0.5)


def test_the_blur_is_a_gaussian_of_a_tenth_of_the_shorter_side():
    image = torch.randn(3, 40, 30, generator=torch.Generator().manual_seed(0))
    expected = [gaussian_filter(c, 3, mode="mirror", radius=9) for c in image.double().numpy()]
    np.testing.assert_allclose(blurred(image), np.stack(expected), atol=1e-5)
    assert torch.equal(blurred(torch.ones(3, 1, 1)), torch.ones(3, 1, 1))


@pytest.mark.parametrize(
    ("heat", "message"),
    [
        (torch.full((3, 4), torch.nan), "NaN"),
        (torch.zeros(3), "a map of 3 cells does not lie over an image of 6x8"),
        (torch.zeros(7, 4), "a map of 7x4 cells"),
    ],
)
def test_a_map_that_cannot_be_is_refused(heat, message):
    with pytest.raises(UsageError, match=message):
        faithfulness(one_cell()[0], torch.ones(3, 6, 8), heat, 1)


def test_no_step_at_all_is_refused():
    net, heat = one_cell()
    with pytest.raises(UsageError, match="steps is 0"):
        faithfulness(net, torch.ones(3, 6, 8), heat, 1, steps=0)
