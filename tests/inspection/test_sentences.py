"""What is said of an inspection follows from its numbers, at the limits too."""

from dataclasses import replace

import numpy as np
import pytest

from small_nets import WITH_TOKENS, images_for, small_net
from vitkit.inspection.distance import mean_distances
from vitkit.inspection.embeddings import positions
from vitkit.inspection.result import (
    DistancesFound,
    ImageFound,
    Inspection,
    NormsFound,
    PositionsFound,
)
from vitkit.inspection.sentences import sentences
from vitkit.plain import Curve

NOTHING = Inspection("net", "ViT", (8, 8), (2, 2), 3, 2)
NAN = float("nan")


def said(**found):
    return sentences(replace(NOTHING, **found))


def of_positions(rows, columns, untrained_rows=0.12, untrained_columns=-0.34, note=""):
    found = PositionsFound("1d", np.eye(4), rows, columns, untrained_rows, untrained_columns, note)
    [text] = said(positions=found)
    return text


def test_of_nothing_nothing_is_said():
    assert sentences(NOTHING) == ()


# Positions


@pytest.mark.parametrize(
    ("rows", "columns", "text"),
    [
        (-0.9, -0.8, "clearly along rows, clearly along columns"),
        (-0.5, -0.49, "clearly along rows, weakly along columns"),
        (-0.49, -0.5, "weakly along rows, clearly along columns"),
        (-0.2, -0.19, "weakly along rows, not along columns"),
        (0.0, 0.9, "not along rows, not along columns"),
    ],
)
def test_near_positions_are_alike_clearly_from_minus_a_half_and_weakly_from_a_fifth(
    rows, columns, text
):
    assert of_positions(rows, columns) == (
        f"Near patches have similar position embeddings: {text} (Spearman's correlation of "
        f"distance and similarity {rows:.2f} and {columns:.2f}; before training 0.12 and -0.34)."
    )


@pytest.mark.parametrize(("rows", "columns"), [(NAN, -0.9), (-0.9, NAN), (NAN, NAN)])
def test_a_correlation_that_is_not_defined_is_not_taken_for_an_absent_one(rows, columns):
    def told(value):
        return "undefined" if np.isnan(value) else "-0.90"

    found = of_positions(rows, columns)
    assert f"{told(rows)} along rows and {told(columns)} along columns" in found
    assert "nan" not in found and "clearly" not in found and "not along" not in found


def test_positions_that_are_fixed_are_not_said_to_be_learned():
    found = of_positions(-0.9, NAN, note="these positions are fixed: an untrained net has the same")
    assert found.startswith("These positions are fixed: an untrained net has the same")
    assert "-0.90 along rows, undefined along columns" in found and found.endswith(".")
    assert "clearly" not in found and "before training" not in found


# Distances


def of_distances(pixels, uniform=10.0):
    pixels = np.array(pixels)
    found = DistancesFound(tuple(range(len(pixels))), pixels, uniform, 4)
    return said(distances=found)


def test_a_head_is_local_below_half_of_what_uniform_attention_has():
    first, *_ = of_distances([[4.99, 5.0], [1, 9], [12, 4], [9, 9]])
    assert first.startswith("3 of 8 heads attend locally, at under half of the 10.0 pixels")
    assert "2 of them are in the lower half of the net." in first


def test_the_lower_half_is_the_first_layers_without_the_middle_one():
    first, *_ = of_distances([[9, 1], [1, 1], [1, 9]])
    assert first.startswith("4 of 6") and "1 of them are in the lower half" in first


def test_distances_grow_or_fall_with_depth_where_chance_does_not_explain_it():
    _, grows = of_distances([[1, 2], [3, 4], [5, 6]])
    assert grows == (
        "Attention distance grows with depth (Spearman's correlation 0.96 over 6 heads, "
        "p = 0.0028, 4 images)."
    )
    _, falls = of_distances([[6, 5], [4, 3], [2, 1]])
    assert falls.startswith("Attention distance falls with depth (Spearman's correlation -0.96")
    _, clear = of_distances([[1], [2], [3], [5], [6], [7], [4]])
    assert clear.startswith("Attention distance grows with depth") and "p = 0.036," in clear
    _, unclear = of_distances([[1], [2], [3], [5], [7], [6], [4]])
    assert unclear.startswith("Whether attention distance grows or falls with depth is not clear")
    assert "p = 0.052," in unclear
    _, falls = of_distances([[4], [6], [7], [5], [3], [2], [1]])
    assert falls.startswith("Whether attention distance grows or falls with depth is not clear")


def test_of_two_layers_nothing_is_said_of_growth():
    [only] = of_distances([[1, 2], [3, 4]])
    assert "depth" not in only


# Norms


def test_the_share_of_outliers_is_told_and_the_norm_beyond_which_they_are():
    def norms(outliers):
        [text] = said(norms=NormsFound(np.ones((2, 4), np.float32), 123.4, outliers))
        return text

    assert norms(0.0123) == "1.23% of the patch tokens have a norm far above the rest (over 123)."
    assert norms(0.0) == "No patch tokens have a norm far above the rest (over 123)."


# Faithfulness


def image(deletion, insertion, relevance=True, random=(0.5, 0.5, 0.5)):
    x = np.array([0.0, 0.5, 1.0])
    curves = tuple(
        Curve(f"{way} (area: map 0, random 0)", "share", "probability", x,
              {"map": np.array(line, float), "random": np.array(random, float)})
        for way, line in (("Deletion", deletion), ("Insertion", insertion))
    )  # fmt: skip
    heat = np.zeros((2, 2)) if relevance else None
    return ImageFound("image", np.zeros((2, 2, 3), np.uint8), (), relevance=heat,
                      grad_cam=np.zeros((2, 2)), faithfulness=curves)  # fmt: skip


HIGH, LOW = (0.9, 0.9, 0.9), (0.1, 0.1, 0.1)


def test_a_map_is_better_where_deletion_ends_it_sooner_and_insertion_later():
    images = (image(LOW, HIGH), image(LOW, LOW), image(LOW, LOW), image(HIGH, LOW))
    deletion, insertion = said(images=images)
    assert deletion == "By deletion the relevance map beats random maps on 3 of 4 images."
    assert insertion == "By insertion the relevance map beats random maps on 1 of 4 images."
    one = said(images=images[:1])
    assert [text.split(" on ")[1] for text in one] == ["1 of 1 image.", "1 of 1 image."]


def test_a_map_that_is_as_good_as_random_ones_does_not_beat_them():
    same = (0.5, 0.5, 0.5)
    assert all("0 of 1 image." in text for text in said(images=(image(same, same),)))


def test_areas_are_compared_not_means_of_the_points():
    # The mean of the points of the map is above that of random ones, the area below it.
    line, random = (0.9, 0.2, 0.9), (0.4, 0.8, 0.4)
    assert np.mean(line) > np.mean(random) and np.trapezoid(line) < np.trapezoid(random)
    deletion, insertion = said(images=(image(line, line, random=random),))
    assert "beats random maps on 1 of 1" in deletion and "on 0 of 1" in insertion


def test_what_was_measured_is_named():
    texts = said(images=(image(LOW, HIGH, relevance=False),))
    assert texts == ("By deletion Grad-CAM beats random maps on 1 of 1 image.",
                     "By insertion Grad-CAM beats random maps on 1 of 1 image.")  # fmt: skip


def test_of_images_without_curves_nothing_is_said():
    assert said(images=(replace(image(LOW, LOW), faithfulness=()),)) == ()


# Of nets


@pytest.mark.parametrize("kind", ["token", "T2T-ViT, performer", "hybrid"])
def test_each_is_a_sentence(kind):
    net = small_net(WITH_TOKENS[kind])
    found = said(
        positions=positions(net), distances=mean_distances(net, [images_for(net)]),
        images=(image(LOW, HIGH),), norms=NormsFound(np.ones((1, 6), np.float32), 2.0, 0.5),
    )  # fmt: skip
    assert len(found) == (5 if len(net.blocks) == 2 else 6)
    for text in found:
        assert text[0] == text[0].upper() and text.endswith(".") and not text.endswith("..")
        assert "nan" not in text
