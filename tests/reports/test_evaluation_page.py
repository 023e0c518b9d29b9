"""The page of an evaluation."""

import re
from dataclasses import replace

import numpy as np
import pytest
from examples import ABOUT, HOSTILE, confusion, findings

from vitkit.evaluation.findings import Calibration, Confusion, Findings
from vitkit.plain import Curve, Table
from vitkit.reports.evaluation import confusion_parts, frequent, shown, write_evaluation


def written(tmp_path, found, about=ABOUT, **more):
    page = write_evaluation(tmp_path / "page.html", found, about, **more)
    return page.read_text(encoding="utf-8")


def cells(page):
    """The text of all cells, a list for each row."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, flags=re.DOTALL)
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, flags=re.DOTALL) for row in rows]


def test_all_that_was_found_is_on_the_page(tmp_path):
    page = written(tmp_path, findings())
    assert "<title>top-k of runs/base on photos/</title>" in page
    rows = cells(page)
    for row in (
        ["top1", "73.45%"], ["loss", "1.2345"], ["temperature", "1.43"],
        ["5", "61.00 %", "0.50 %"], ["class 1", "50.00%", "100"], ["seconds", "12.5"],
    ):  # fmt: skip
        assert row in rows
    assert "2 classes of DATA are not the net&#39;s" in page
    assert "No image was of 1 of the classes: class 11" in page
    assert "takes it from 11.00% to 2.00% over images that it was not fitted on" in page
    assert page.count("<img") == 7 and page.count("no picture") == 1
    assert "<script" not in page


def test_every_figure_is_written_as_png_and_svg(tmp_path):
    written(tmp_path, findings(), figures=tmp_path / "figures")
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    drawn = ("confusion", "curve-1", "reliability", "reliability-apart", "reliability-after")
    assert {f"{name}.{kind}" for name in drawn for kind in ("png", "svg")} <= names
    assert {"worst-1.png", "confident-1.png"} <= names


def test_a_page_needs_nothing_but_metrics(tmp_path):
    page = written(tmp_path, Findings({"top1": 0.5, "loss": float("nan")}), {})
    assert cells(page)[1:] == [["top1", "50.00%"], ["loss", "none"]]
    assert page.count("<h2") == 1


def test_few_classes_have_numbers_in_the_matrix_more_have_colours_many_have_a_table(tmp_path):
    few, some, many = (
        written(tmp_path, Findings({}, confusion=confusion(n))) for n in (20, 21, 201)
    )
    assert 'aria-label="Confusion matrix of 20 classes' in few and ">class 19<" in few
    assert "Classes by their numbers in the figure" in some and "Confusion matrix of 21" in some
    assert "<svg" not in many and "Most frequent confusions" in many


def test_the_most_frequent_confusions_come_first_and_none_is_right():
    counts = np.array([[5, 2, 0], [7, 0, 3], [0, 0, 9]])
    assert frequent(Confusion(("a", "b", "c"), counts)) == [
        ("b", "a", "7", "70.0%"), ("b", "c", "3", "30.0%"), ("a", "b", "2", "28.6%"),
    ]  # fmt: skip
    none = Confusion(("a", "b"), np.diag([3, 4]))
    assert frequent(none) == []
    assert confusion_parts(none)[-1].text == "No image was taken for another class."


def test_without_a_temperature_there_is_one_diagram(tmp_path):
    calibration = Calibration(findings().calibration.before)
    page = written(tmp_path, replace(findings(), calibration=calibration))
    assert page.count("Reliability diagram") == 1
    assert "temperature" not in page.split("Calibration</h2>")[1].split("<h2")[0]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("top1", 1.0, "100.00%"), ("loss", 0.5, "0.5"), ("val_loss", 0.12345, "0.1235"),
     ("images", 1, "1"), ("images", 12345, "12,345"), ("temperature", 2.5, "2.5"),
     ("ece", float("nan"), "none"), ("gap", -0.25, "-0.25")],
)  # fmt: skip
def test_shares_are_in_per_cent_and_losses_are_numbers(name, value, text):
    assert shown(name, value) == text


def test_hostile_names_do_not_break_a_figure(tmp_path):
    names = (HOSTILE, "$", "\\alpha$", "日本", "\x00", "")
    counts = np.ones((6, 6), np.int64)
    page = written(tmp_path, Findings({}, confusion=Confusion(names, counts)))
    assert "<svg" in page and "日本" in page and "\x00" not in page


def test_confusions_that_an_evaluation_lists_are_not_listed_again(tmp_path):
    title = "Most frequent confusions"
    table = Table(title, ("class", "taken for"), (("a", "b"),))
    page = written(tmp_path, Findings({}, confusion=confusion(5), tables=(table,)))
    assert page.count(title) == 1 and "Confusion matrix of 5" in page
    assert written(tmp_path, Findings({}, confusion=confusion(5))).count(title) == 1


SHOTS = np.array([1.0, 5])


def headings(page):
    return re.findall(r"<h2[^>]*>(.*?)</h2>", page)


def test_one_table_or_curve_has_its_title_as_the_heading(tmp_path):
    rows = Table("Accuracy by severity", ("severity", "top-1"), (("1", "50.00%"),))
    line = Curve("Means", "severity", "top-1", SHOTS, {"mean": SHOTS / 10})
    page = written(tmp_path, Findings({"top1": 0.5}, tables=(rows,), curves=(line,)))
    assert headings(page) == ["Metrics", "Accuracy by severity", "Means", "About"]
    assert "<caption>" not in page and ">Means</text>" not in page
    assert 'aria-label="Means: top-1; mean goes from' in page
    two = written(tmp_path, Findings({"top1": 0.5}, tables=(rows,) * 2, curves=(line,) * 2))
    assert headings(two) == ["Metrics", "Tables", "Curves", "About"]
    assert two.count("<caption>Accuracy by severity") == 2 and two.count(">Means</text>") == 2


def test_a_table_and_a_curve_of_one_title_share_a_heading(tmp_path):
    rows = Table("Few-shot accuracy", ("shots", "accuracy"), (("1", "10.00%"),))
    line = Curve("Few-shot accuracy", "shots", "accuracy", SHOTS, {"mean": SHOTS / 10})
    page = written(tmp_path, Findings({"top1": 0.5}, tables=(rows,), curves=(line,)))
    assert headings(page) == ["Metrics", "Few-shot accuracy", "About"]


def test_a_metric_that_a_table_has_is_shown_once(tmp_path):
    rows = Table("By corruption", ("corruption", "mean"), (("fog", "35.10%"), ("snow", "9.00%")))
    metrics = {"top1": 0.351, "fog": 0.351, "snow": 0.1}
    page = written(tmp_path, Findings(metrics, tables=(rows,)), {})
    assert cells(page)[:3] == [["metric", "value"], ["top1", "35.10%"], ["snow", "10.00%"]]
    assert cells(page)[3:] == [["corruption", "mean"], ["fog", "35.10%"], ["snow", "9.00%"]]


@pytest.mark.parametrize(("number", "said"), [(1, "on 1 image."), (2, "on 2 images.")])
def test_one_image_is_no_images(tmp_path, number, said):
    assert said in written(tmp_path, Findings({"top1": 0.5}, images=number))
