"""The page of an inspection."""

import re
from dataclasses import replace

import numpy as np
import pytest
from examples import HOSTILE, image_found, inspection

from vitkit.inspection.result import Inspection, NormsFound
from vitkit.reports.inspection import IMAGES_SHOWN, chosen, norm_parts, write_inspection
from vitkit.reports.inspection_image import (
    attention_figures,
    faithfulness_figures,
    heads_of,
    on_grid,
    pictures,
    prefix_shares,
    query,
    told_apart,
)

GRID, LAYERS, HEADS = (4, 6), 3, 2
FOUND = inspection(GRID, LAYERS, HEADS, 1)


def written(tmp_path, found, **more):
    page = write_inspection(tmp_path / "page.html", found, {"checkpoint": "runs/base"}, **more)
    return page.read_text(encoding="utf-8")


def test_all_that_was_found_is_on_the_page_the_notes_first(tmp_path):
    page = written(tmp_path, FOUND, figures=tmp_path / "figures")
    assert page.index("Attention is not an explanation.") < page.index("First layer</h2>")
    for words in (
        "28 tiles: principal components", "Variance explained",
        "Similarity of 1d position embeddings, 4x6 tiles",
        "-0.910 (untrained: none, since all are equally similar)", "Mean attention distance",
        "33.0 if attention were alike everywhere", "Accuracy by layer", "Histogram of norms",
        "1.23% of 96 patch tokens are outliers", "Attention of the class token to the patches",
        "Where the class token looks",
        "3 layers, 2 heads", "attention rollout", "attention flow", "Grad-CAM of", "relevance of",
        "norms of the patch tokens", "Deletion", "Insertion", "Logit lens", "after so many layers",
        "Nearest images", "no label, cosine 0.900", "runs/base",
    ):  # fmt: skip
        assert words in page, words
    assert "<script" not in page
    # the input, five kinds of heat, the norms, four neighbours
    assert page.count("<img") == 11
    names = {path.stem for path in (tmp_path / "figures").iterdir() if path.suffix == ".svg"}
    assert {"filters", "positions", "attention-distance", "lens", "norms", "image-1-attention",
            "image-1-others", "image-1-curve-1"} <= names  # fmt: skip


def test_a_net_without_attention_has_a_page_of_what_there_is(tmp_path):
    image = replace(
        FOUND.images[0], layers=(), heads=(), attention=None, rollout=None, flow=None,
        relevance=None, lens=(), patch_norms=None, faithfulness=(), neighbours=(),
    )  # fmt: skip
    found = Inspection("BiT-Example", "BiT", (64, 64), None, None, None, images=(image,),
                       notes=("It has no attention.",), filters=FOUND.filters)  # fmt: skip
    page = written(tmp_path, found)
    assert "BiT, images of 64x64 pixels." in page and "It has no attention." in page
    assert "Position embeddings" not in page and "rollout" not in page
    assert page.count("<img") == 2  # the input, Grad-CAM


def test_without_data_nothing_is_said_of_them(tmp_path):
    about = {"checkpoint": "runs/base", "data": ""}
    page = write_inspection(tmp_path / "page.html", FOUND, about).read_text(encoding="utf-8")
    assert "<tr><th>checkpoint</th>" in page and "<th>data</th>" not in page


def test_an_inspection_without_anything_has_a_page(tmp_path):
    assert "ViT, images" in written(tmp_path, Inspection("x", "ViT", (8, 8), None, None, None))


def test_tokens_before_the_patches_are_never_among_the_patches():
    tokens = np.array([100.0, 50, *range(24)], np.float32)
    np.testing.assert_array_equal(on_grid(tokens, FOUND), np.arange(24.0).reshape(4, 6))
    image = replace(FOUND.images[0], attention=np.tile(tokens / tokens.sum(), (LAYERS, HEADS, 1)))
    (drawn,) = attention_figures("key", image, GRID, prefix=2)
    canvas = drawn.figure.axes[0].images[0].get_array()
    # Stretched to 0..1: with the class token's 100 among them the patches would end at 0.23.
    assert canvas[:4, :6].max() == 1 and canvas[:4, :6].min() == 0
    assert canvas[3, 5] == 1
    assert "shown apart" in drawn.caption


def test_attention_to_tokens_that_are_no_patches_is_shown_as_numbers(tmp_path):
    attention = np.zeros((LAYERS, HEADS, 26), np.float32)
    attention[..., 0], attention[..., 1], attention[..., 2:] = 0.5, 0.25, 0.25 / 24
    found = replace(FOUND, images=(replace(FOUND.images[0], attention=attention),))
    shares = prefix_shares(found.images[0], found.prefix)
    np.testing.assert_allclose(shares, [[0.5, 0.25, 0.25]] * LAYERS, atol=1e-6)
    page = written(tmp_path, found)
    assert '<td class="number">50.0%</td>\n<td class="number">25.0%</td>' in page
    assert told_apart(("class", "register", "register")) == ["class", "register 1", "register 2"]


def test_of_a_large_grid_some_positions_have_tiles_and_the_page_says_which(tmp_path):
    found = replace(inspection((20, 5), 2, 2, 0), filters=None)
    page = written(tmp_path, found)
    assert "Of 20x5 patches 14x5 have a tile, evenly spaced." in page
    assert chosen(14) == list(range(14)) and chosen(1) == [0]
    assert chosen(37)[0] == 0 and chosen(37)[-1] == 36 and len({*chosen(37)}) == 14


def test_of_many_images_the_first_are_shown(tmp_path):
    image = replace(
        image_found(0, GRID, 1, 1), attention=None, rollout=None, flow=None, faithfulness=(),
        neighbours=(), relevance=None, grad_cam=None, lens=(), patch_norms=None,
    )  # fmt: skip
    page = written(tmp_path, Inspection("x", "ViT", (8, 8), GRID, 1, 1, images=(image,) * 30))
    assert f"The first {IMAGES_SHOWN} of 30 images are shown." in page
    assert page.count("<h3 ") == IMAGES_SHOWN


@pytest.mark.parametrize(("number", "linked"), [(2, False), (3, True)])
def test_several_images_have_links_to_each(tmp_path, number, linked):
    page = written(tmp_path, inspection(GRID, 1, 1, number))
    assert ('<nav aria-label="Images">' in page) == linked
    for place in range(1, number + 1):
        assert (f'<a href="#at-image-{place}">{place}. {place - 1}.jpg</a>' in page) == linked
        assert page.count(f'<h3 id="at-image-{place}">{place}. photos/') == 1


def test_the_classes_stand_beside_the_pictures(tmp_path):
    page = written(tmp_path, FOUND, figures=tmp_path / "figures")
    beside = page.split('<div class="beside">')[1].split("<svg")[0]
    assert beside.count("<img") == 7 and "<th>class</th>" in beside
    assert (tmp_path / "figures" / "image-1-rollout.png").exists()


def test_deletion_and_insertion_name_the_class(tmp_path):
    image = replace(FOUND.images[0], relevance_of="coot")
    drawn = faithfulness_figures("key", image)
    assert [one.figure.axes[0].get_ylabel() for one in drawn] == ["probability of coot"] * 2
    assert "Deletion: probability of coot; relevance goes from" in drawn[0].alt


@pytest.mark.parametrize("most", [6, 700, 90_000])
def test_a_logarithmic_axis_has_plain_numbers_of_one_size(most):
    values = np.concatenate([np.full(most, 20.0), np.linspace(10, 30, 12)]).astype(np.float32)
    (_, drawings) = norm_parts(NormsFound(values[None], 40.0, 0.0))
    (drawn,) = drawings.figures
    svg = drawn.svg()
    assert "10^" not in svg and "<tspan" not in svg and r"\mathdefault" not in svg
    drawn.figure.draw_without_rendering()
    axis = drawn.figure.axes[0].yaxis
    labels = [label.get_text() for label in axis.get_ticklabels(which="both")]
    assert 2 <= len([label for label in labels if label]) <= 9
    sizes = {label.get_size() for label in axis.get_ticklabels(which="both") if label.get_text()}
    assert sizes == {8.0}


@pytest.mark.parametrize(("rows", "numbers"), [(LAYERS, "123"), (LAYERS + 1, "0123")])
def test_the_lens_counts_the_layers_that_were_gone_through(tmp_path, rows, numbers):
    image = replace(FOUND.images[0], lens=(((HOSTILE, 0.6),),) * rows)
    page = written(tmp_path, replace(FOUND, images=(image,)))
    table = page[page.index("Logit lens") :].split("</table>")[0]
    assert re.findall(r'<tr><td class="number">(\d)</td>', table) == list(numbers)


@pytest.mark.parametrize(
    ("asked", "said"),
    [("class token", "the class token"), ("patch 3,4", "patch 3,4"), ("all patches", "all patches"),
     ("", "the query")],
)  # fmt: skip
def test_whose_attention_it_is_reads_as_a_sentence(asked, said):
    assert query(replace(FOUND.images[0], query=asked)) == said


@pytest.mark.parametrize(
    ("heads", "said"),
    [((0,), "head 0"), ((0, 2), "mean over heads 0, 2"), ((0, 1, 2), "mean over heads"),
     ((2, 1, 0), "mean over heads"), ((), "mean over heads")],
)  # fmt: skip
def test_the_heads_of_an_overlay_are_named(heads, said):
    assert heads_of(replace(FOUND.images[0], heads=heads), 3) == said


def test_an_overlay_of_one_head_says_so(tmp_path):
    image = FOUND.images[0]
    image = replace(image, heads=(1,), attention=image.attention[:, 1:])
    page = written(tmp_path, replace(FOUND, images=(image,)))
    assert "attention of the class token, layer 2, head 1<br>" in page
    assert "share of attention, head 1" in page and "mean over heads" not in page


def test_the_patch_whose_attention_is_shown_is_outlined():
    grey = np.full((64, 96, 3), 128, np.uint8)
    image = replace(FOUND.images[0], picture=grey, query="patch 1,4")
    (first, *_) = pictures("key", image, FOUND)
    assert first.lines == ("as the net reads it; patch 1,4 outlined",)
    height, width = first.image.shape[:2]
    changed = np.argwhere((first.image != 128).any(axis=2))
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
    # The patch is from 1/4 to 2/4 down and 4/6 to 5/6 across; the line is two pixels beside it.
    assert top == pytest.approx(height / 4, abs=3) and bottom == pytest.approx(height / 2, abs=3)
    assert left == pytest.approx(width * 4 / 6, abs=3)
    assert right == pytest.approx(width * 5 / 6, abs=3)
    assert (first.image[(top + bottom) // 2, (left + right) // 2] == 128).all()
    assert {0, 255} <= {*first.image.ravel().tolist()}


def test_other_queries_leave_the_picture_as_it_is():
    (first, *_) = pictures("key", FOUND.images[0], FOUND)
    assert first.image is FOUND.images[0].picture and first.lines == ("as the net reads it",)


def test_an_overlay_tells_the_range_of_its_values():
    tokens = np.array([0.9, 0.8, 0.002, *[0.01] * 22, 0.031], np.float32)
    heat = np.linspace(-0.5, 0.25, 24).reshape(4, 6)
    image = replace(
        FOUND.images[0], attention=np.tile(tokens, (LAYERS, HEADS, 1)), rollout=tokens, flow=tokens,
        relevance=heat, grad_cam=heat, patch_norms=heat + 30,
    )  # fmt: skip
    said = {one.name: one.lines for one in pictures("key", image, FOUND)}
    for name in ("attention", "rollout"):  # of the patches alone
        assert said[f"key-{name}"][1] == "0.002 to 0.031"
    assert said["key-flow"][1] == "0.002 to 0.031; 1 is the most there can be"
    for name in ("relevance", "grad-cam"):
        assert said[f"key-{name}"][1] == "-0.5 to 0.25"
    assert said["key-norms"][1] == "29.5 to 30.2"
