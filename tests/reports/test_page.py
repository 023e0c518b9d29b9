"""One file, whatever is in it: text stays text, figures have words, nothing is too large."""

import re

import numpy as np
import pytest
from examples import HOSTILE, photograph
from PIL import Image

from vitkit.plain import Curve
from vitkit.reports import page as page_module
from vitkit.reports.colours import COLOURS, SERIES
from vitkit.reports.drawing import Drawing
from vitkit.reports.figures import coloured, curve, lines, montage, overlay, word
from vitkit.reports.page import (
    STEPS,
    Drawings,
    Facts,
    Fold,
    Heading,
    Notes,
    Picture,
    Pictures,
    Rows,
    Section,
    Text,
    counted,
    filled,
    render,
    write_page,
)

LINE = Curve(HOSTILE, HOSTILE, "y", np.arange(5.0), {HOSTILE: np.arange(5.0), "b": np.ones(5)})


def written(tmp_path, *parts, **more):
    path = write_page(tmp_path / "page.html", HOSTILE, HOSTILE, [Section(HOSTILE, parts)], **more)
    return path.read_text(encoding="utf-8")


def test_hostile_names_are_text_in_every_part(tmp_path):
    picture = Picture("p", photograph(0), HOSTILE, (HOSTILE,))
    page = written(
        tmp_path, Heading(HOSTILE), Text(HOSTILE), Notes([HOSTILE]), Facts({HOSTILE: HOSTILE}),
        Rows((HOSTILE,), [(HOSTILE,)], HOSTILE, HOSTILE), Pictures([picture]),
        Fold(HOSTILE, [Text(HOSTILE)]), Drawings([curve("c", LINE)]),
    )  # fmt: skip
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") >= 16


def test_what_is_no_letter_is_shown_as_an_escape_and_the_file_is_utf8(tmp_path):
    names = "caf\udce9.jpg", "\x1b[31m", "\u202egpj", "日本 🐱"
    page = written(tmp_path, Text(names[0]), Facts({names[1]: [names[2], names[3]]}))
    assert r"caf\udce9.jpg" in page and r"\u202egpj" in page and "日本 🐱" in page
    assert "\x1b" not in page


def test_a_dollar_in_a_name_begins_no_formula():
    assert "$x^{" in curve("c", LINE).svg()
    assert len(word("n" * 99)) == 18


def test_a_figure_has_words_and_no_colour_that_a_dark_page_would_hide():
    svg = lines("loss", "Loss", "step", "loss", {"held out": ([1, 2], [3.0, 1.5])}).svg()
    assert 'role="img" aria-label="Loss: loss; held out goes from 3 to 1.5"' in svg
    assert "var(--ink)" in svg and "var(--series-0)" in svg
    assert not any(light in svg for light, _ in COLOURS.values())


@pytest.mark.parametrize("number", [2, 4, 5, 13, 45])
def test_every_line_has_its_name_in_the_figure_and_in_its_words(number):
    series = {f"corruption {n}": ([0, 1], [n, n + 0.5]) for n in range(number)}
    drawn = lines("many", "Many", "severity", "top-1", series)
    svg = drawn.svg()
    for n in range(number):
        assert f">corruption {n}</text>" in svg
        assert f"corruption {n} goes from {n} to {n}.5" in drawn.alt


def test_names_of_many_lines_stand_beside_the_plot():
    drawn = lines("m", "", "x", "y", {f"line {n}": ([0, 1], [n, n]) for n in range(13)})
    drawn.figure.draw_without_rendering()
    (legend,) = drawn.figure.legends
    assert drawn.wide and legend.get_window_extent().x0 > drawn.figure.axes[0].bbox.x1
    few = lines("f", "", "x", "y", {f"line {n}": ([0, 1], [n, n]) for n in range(4)})
    assert not few.wide and not few.figure.legends


def test_facts_that_are_empty_are_left_out_zero_and_no_are_not():
    options = {"shifts": "", "classes": None, "shots": (), "seed": 0, "sweep_l2": False}
    about = {"data": "", "device": "cpu", "options": options, "more": {"tasks": ""}}
    assert filled(about) == {"device": "cpu", "options": {"seed": 0, "sweep_l2": False}}


def test_facts_of_several_values_can_be_told_apart(tmp_path):
    page = written(tmp_path, Facts({"options": {"shots": (1, 5), "seeds": 3}}))
    assert "<td>shots 1, 5; seeds 3</td>" in page


def test_ids_of_two_figures_on_a_page_do_not_meet():
    first, second = (re.findall(r' id="([^"]*)"', curve(name, LINE).svg()) for name in ("a", "b"))
    assert first and second and not {*first} & {*second}
    references = re.findall(r'(?:url\(#|href="#)([^)"]+)', curve("a", LINE).svg())
    assert {*references} <= {*first}


def test_the_same_figure_is_the_same_bytes(tmp_path):
    pages = [written(tmp_path, Drawings([curve("c", LINE)])) for _ in range(2)]
    assert pages[0] == pages[1]


def test_every_figure_and_picture_is_written_as_files_those_that_are_folded_too(tmp_path):
    pictures = Pictures([Picture("p", photograph(0, 300), "p"), Picture("none", None, "none")])
    parts = [Drawings([curve("c", LINE)]), pictures]
    written(tmp_path, Fold("more", parts), figures=tmp_path / "figures")
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert names == ["c.png", "c.svg", "p.png"]
    assert max(Image.open(tmp_path / "figures" / "p.png").size) == 224
    assert SERIES[0] in (tmp_path / "figures" / "c.svg").read_text()  # no page's variables


@pytest.mark.parametrize(
    ("step", "pictures", "figures"), [(0, 20, 6), (1, 20, 6), (2, 0, 6), (5, 0, 4), (6, 0, 0)]
)
def test_a_page_that_would_be_too_large_says_what_it_leaves_out(
    tmp_path, monkeypatch, step, pictures, figures
):
    many = [Picture(f"p{n}", photograph(n, 224), "noise") for n in range(20)]
    parts = [Drawings([curve(f"c{n}", LINE) for n in range(6)]), Pictures(many)]
    side, shown, said = STEPS[step]
    note = f"{said}: the page would exceed 10 MB." if said else ""
    fits = render(HOSTILE, HOSTILE, [Section("", parts)], Drawing.svg, side, shown, note)
    monkeypatch.setattr(page_module, "LARGEST", len(fits.encode()) + 200)
    page = written(tmp_path, *parts)
    assert page.count("<img") == pictures and page.count("<svg") == figures
    assert "the page would exceed" in page if step else "the page would exceed" not in page
    assert note in page


def test_sections_without_parts_are_not_there_and_few_need_no_contents(tmp_path):
    path = tmp_path / "page.html"
    one = [Section(f"part {n}", [Text("text")]) for n in range(3)]
    page = write_page(path, "t", "s", [*one, Section("empty", [])]).read_text()
    assert "empty" not in page and "<nav" not in page
    page = write_page(path, "t", "s", [*one, one[0]]).read_text()
    assert page.count('<li><a href="#part-') == 4


def test_columns_of_numbers_are_aligned_on_the_right():
    rows = Rows(("name", "share", "count", "mixed"), [("a", "1.00%", "1,234", "1"),
                                                      ("b", "none", "-2e-05", "two")])  # fmt: skip
    assert rows.numbers() == [False, True, True, False]


def test_tiles_lie_in_rows_with_gaps_between_them():
    maps = np.arange(24.0).reshape(2, 3, 2, 2)
    canvas = montage(maps, 1)
    assert canvas.shape == (5, 8)
    np.testing.assert_array_equal(canvas[3:5, 6:8], maps[1, 2])
    assert np.isnan(canvas[2]).all() and np.isnan(canvas[:, 5]).all()


def test_heat_over_a_picture_is_where_it_belongs():
    grey = np.full((40, 20, 3), 128, np.uint8)
    heat = np.zeros((4, 2))
    heat[0, 1] = 1.0
    found = overlay(grey, heat).astype(int)
    assert found.shape == (224, 112, 3)
    change = np.abs(found - 128).sum(axis=2)
    bright = found.sum(axis=2)
    assert change.min() > 0 and bright[:20, -20:].mean() > bright[-112:].mean() + 50
    flat = overlay(grey, np.ones((4, 2)))  # what is alike everywhere has no heat
    assert np.ptp(flat.reshape(-1, 3), axis=0).max() == 0


def test_colours_go_from_the_least_to_the_most():
    found = coloured(np.array([[5.0, 6.0], [7.0, np.nan]]))
    assert found.dtype == np.uint8 and found.shape == (2, 2, 3)
    np.testing.assert_array_equal(found[0, 0], [68, 1, 84])  # viridis' first colour
    np.testing.assert_array_equal(found[1, 0], [253, 231, 37])  # and its last


def test_values_are_shown_as_people_write_them(tmp_path):
    facts = {"a": None, "b": True, "c": 12345, "d": 0.123456789, "e": [1, 2.5], "f": {"g": (1, 2)}}
    page = written(tmp_path, Facts(facts))
    cells = re.findall("<td>(.*?)</td>", page)
    assert cells == ["none", "yes", "12,345", "0.123457", "1, 2.5", "g 1, 2"]


def test_one_is_not_several():
    assert counted(1, "image") == "1 image" and counted(1234, "image") == "1,234 images"
    assert (
        counted(0, "class", "classes") == "0 classes"
        and counted(1, "class", "classes") == "1 class"
    )
