"""Tables of predictions: CSV, JSON and parquet hold the same, whatever the names are."""

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitkit.errors import UsageError
from vitkit.prediction.model import Prediction
from vitkit.reports.predictions import check_table_path, write_predictions

GOOD = Prediction("a/1.jpg", (("cat", 0.75), ("dog", 0.2), ("emu", 0.05)))
SHORT = Prediction("a/2.jpg", (("dog", 1.0),))
BAD = Prediction("a/3.jpg", error="a corrupt or truncated JPEG file")
COLUMNS = ["image", "label", "probability", "error"]
COLUMNS += ["label_2", "probability_2", "label_3", "probability_3"]
ODD = [
    'say "cheese"',
    "a, b; c",
    "two\nlines",
    "tab\tbed",
    "naïve 日本 🐱",
    "",
    " spaces ",
    "cr\rlf\r\n",
]


def read_csv(path: Path) -> list[dict[str, str]]:
    text = path.read_bytes().decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def read_json(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_csv_has_a_row_for_each_image_with_the_likeliest_class_first(tmp_path):
    write_predictions(tmp_path / "out.csv", [GOOD, SHORT, BAD])
    good, short, bad = read_csv(tmp_path / "out.csv")
    assert list(good) == COLUMNS
    assert list(good.values()) == ["a/1.jpg", "cat", "0.75", "", "dog", "0.2", "emu", "0.05"]
    assert list(short.values()) == ["a/2.jpg", "dog", "1.0", "", "", "", "", ""]
    assert list(bad.values()) == ["a/3.jpg", "", "", BAD.error, "", "", "", ""]


def test_json_lists_the_likeliest_classes(tmp_path):
    write_predictions(tmp_path / "out.json", [GOOD, BAD])
    assert read_json(tmp_path / "out.json") == [
        {
            "image": "a/1.jpg", "label": "cat", "probability": 0.75, "error": None,
            "top": [
                {"label": "cat", "probability": 0.75},
                {"label": "dog", "probability": 0.2},
                {"label": "emu", "probability": 0.05},
            ],
        },
        {
            "image": "a/3.jpg", "label": None, "probability": None, "error": BAD.error, "top": [],
        },
    ]  # fmt: skip


def test_parquet_has_the_columns_of_csv_with_missing_values(tmp_path):
    write_predictions(tmp_path / "out.parquet", [GOOD, SHORT, BAD])
    good, short, bad = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert list(good) == COLUMNS
    assert list(good.values()) == ["a/1.jpg", "cat", 0.75, None, "dog", 0.2, "emu", 0.05]
    assert list(short.values()) == ["a/2.jpg", "dog", 1.0, None, None, None, None, None]
    assert list(bad.values()) == ["a/3.jpg", None, None, BAD.error, None, None, None, None]


@pytest.mark.parametrize("predictions", [[GOOD], [BAD], [GOOD, BAD]])
def test_parquet_columns_have_the_same_types_whether_or_not_there_are_errors(tmp_path, predictions):
    """So that the tables of several runs can be read as one."""
    write_predictions(tmp_path / "out.parquet", predictions)
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert [schema.field(name).type for name in COLUMNS[:4]] == [
        pa.string(), pa.string(), pa.float64(), pa.string(),
    ]  # fmt: skip


@given(name=st.sampled_from(ODD) | st.text(st.characters(codec="utf-8", exclude_characters="\0")))
@settings(max_examples=30, deadline=None)
def test_names_may_hold_any_text(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("names")
    row = Prediction(name, ((name, 1.0),)), Prediction(name, error=name)
    for kind, read in (
        ("csv", read_csv), ("json", read_json), ("parquet", lambda p: pq.read_table(p).to_pylist()),
    ):  # fmt: skip
        write_predictions(folder / f"out.{kind}", row)
        good, bad = read(folder / f"out.{kind}")
        assert (good["image"], good["label"], bad["error"]) == (name, name, name)


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_file_names_that_are_no_utf8_can_be_written(tmp_path, kind):
    """Such a name has a lone surrogate in it; after an hour's work it must not be a crash."""
    write_predictions(tmp_path / f"out.{kind}", [Prediction("caf\udce9.jpg", (("cat", 1.0),))])
    assert (tmp_path / f"out.{kind}").stat().st_size
    if kind == "json":
        assert read_json(tmp_path / "out.json")[0]["image"] == "caf\udce9.jpg"
    else:
        read = read_csv if kind == "csv" else lambda path: pq.read_table(path).to_pylist()
        assert read(tmp_path / f"out.{kind}")[0]["image"] == r"caf\udce9.jpg"


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_no_predictions_are_an_empty_table(tmp_path, kind):
    write_predictions(tmp_path / f"out.{kind}", [])
    if kind == "parquet":
        table = pq.read_table(tmp_path / "out.parquet")
        assert (table.num_rows, table.column_names) == (0, COLUMNS[:4])
    elif kind == "json":
        assert read_json(tmp_path / "out.json") == []
    else:
        assert (tmp_path / "out.csv").read_text() == "image,label,probability,error\n"


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_an_older_table_is_replaced_and_nothing_else_is_left(tmp_path, kind):
    for predictions in ([GOOD], [GOOD, BAD]):
        write_predictions(tmp_path / "new" / f"out.{kind}", predictions)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [f"out.{kind}"]


@pytest.mark.parametrize("name", ["out.txt", "out", "out.xlsx", "csv"])
def test_another_suffix_is_refused_before_anything_is_written(tmp_path, name):
    for act in (check_table_path, lambda path: write_predictions(path, [GOOD])):
        with pytest.raises(
            UsageError, match=rf"{name}: tables are written as \.csv, \.json, \.par"
        ):
            act(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_known_suffix_is_given_back():
    assert check_table_path(Path("out.csv")) == Path("out.csv")
