"""What reports show of nets that learned without labels."""

import numpy as np
import pytest

from vitkit.reports.learned import GREY, by_pixel, learned_parts
from vitkit.reports.page import Beside, Pictures, Text


def test_patches_become_squares_of_images_that_are_not_square():
    hidden = np.zeros((2, 6), dtype=bool)  # 2 rows of 3 patches
    hidden[0, 2] = hidden[1, 3] = True
    found = by_pixel(hidden, (8, 12))
    assert found.shape == (2, 8, 12)
    assert found[0, :4, 8:].all() and found[0].sum() == 16
    assert found[1, 4:, :4].all() and found[1].sum() == 16


def test_each_image_is_beside_itself_with_patches_in_grey_and_predicted():
    images = np.full((2, 3, 8, 12), 10, np.uint8)
    predicted = np.full_like(images, 20)
    hidden = np.zeros((2, 6), dtype=bool)
    hidden[:, [0, 5]] = True
    said, beside = learned_parts({"images": images, "hidden": hidden, "predicted": predicted})
    assert isinstance(said, Text) and "2 of its 6 patches" in said.text
    assert isinstance(beside, Beside) and len(beside.parts) == 2
    rows = [part.pictures for part in beside.parts if isinstance(part, Pictures)]
    for row in rows:
        whole, masked, shown = (np.asarray(picture.image) for picture in row)
        assert (whole == 10).all() and (shown == 20).all() and whole.shape == (8, 12, 3)
        assert (masked[:4, :4] == GREY).all() and (masked[4:, 8:] == GREY).all()
        assert (masked == 10).mean() == pytest.approx(4 / 6)


def test_two_views_of_an_image_are_told_from_views_of_others():
    images = np.zeros((4, 3, 8, 12), np.uint8)
    similarities = np.full((4, 4), 0.25)
    for view in range(4):
        similarities[view, view] = 1.0
        similarities[view, (view + 2) % 4] = 0.75
    said, _, views = learned_parts({"images": images, "similarities": similarities})
    assert isinstance(said, Text) and isinstance(views, Pictures)
    assert "an image is 0.75, of views of different images 0.25." in said.text
    assert [view.lines for view in views.pictures] == [("1a",), ("1b",), ("2a",), ("2b",)]


def test_a_run_without_examples_has_none_to_show():
    assert learned_parts({}) == []
