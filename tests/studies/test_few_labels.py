"""The study of few labels: every method runs, and its page says what was found."""

import io
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vitkit.data.opening import open_data
from vitkit.studies import few_labels
from vitkit.studies.few_labels import drawing, main, page

FOUND = {
    "pretraining/none": {"few_shot_test": 0.2},
    "pretraining/MAE": {
        "few_shot_test": 0.25, "teraflops": 12.3,
        "curve": {"steps": [1, 2], "few_shot": [0.2, 0.25]},
    },
    "pretraining/supervised": {"few_shot_test": 0.5, "curve": {"steps": [], "few_shot": []}},
    **{f"scratch/{share}/{seed}": 0.3 for share in ("0.01", "0.1") for seed in range(3)},
    "MAE/0.01/0": 0.30, "MAE/0.01/1": 0.32, "MAE/0.01/2": 0.34,
    "MAE/0.1/0": 0.5, "MAE/0.1/1": 0.5, "MAE/0.1/2": 0.5,
}  # fmt: skip


def test_the_page_has_means_deviations_and_points_beside_scratch():
    text = page({"found": FOUND})
    assert "| MAE | 32.0% ± 2.0 | +2.0 | 50.0% ± 0.0 | +20.0 |" in text


def test_the_best_features_come_first():
    rows = [line for line in page({"found": FOUND}).splitlines() if line.endswith(" 12 |")]
    assert rows == ["| MAE | 25.0% | 12 |"]
    assert page({"found": FOUND}).index("| supervised | 50.0%") < page({"found": FOUND}).index(
        rows[0]
    )


def test_a_pre_training_that_was_not_watched_has_no_line(tmp_path):
    drawing({"found": FOUND}).save(tmp_path)
    assert (tmp_path / "few-labels.png").stat().st_size > 1000


def test_the_page_of_the_docs_shows_what_the_study_wrote():
    docs = Path(__file__).parents[2] / "docs"
    record = json.loads((docs / "studies" / "few-labels.json").read_text())
    rows = [row for row in page(record).splitlines() if row.startswith("|")]
    assert len(rows) > 15
    shown = (docs / "few-labels.md").read_text().splitlines()
    assert [row for row in shown if row in rows] == rows


def write(path, source, numbers):
    """Some images of a source as a parquet file."""
    rows = []
    for number in numbers:
        file = io.BytesIO()
        Image.fromarray(source.image(number).permute(1, 2, 0).numpy()).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": None})
    labels = pa.array([int(source.labels[number]) for number in numbers])
    pq.write_table(pa.table({"image": rows, "label": labels}), path)


@pytest.mark.slow
def test_the_whole_study_runs_and_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(few_labels, "SEEDS", (0,))
    monkeypatch.setattr(few_labels, "CERTAIN", 0.0)  # few steps make nobody certain
    # Patches of 2 pixels have no 4x4 cells.
    monkeypatch.delitem(few_labels.PRETRAININGS, "masked, 4x4 colours")
    digits = open_data("digits").train
    train, test = tmp_path / "train.parquet", tmp_path / "test.parquet"
    write(train, digits, range(1200))
    write(test, digits, range(1200, 1400))
    words = ["study", str(train), str(test), "--runs", str(tmp_path), "--steps", "6",
             "--tuning-steps", "2"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", words)
    main()
    found = json.loads((tmp_path / "few-labels.json").read_text())["found"]
    assert {name.split("/")[0] for name in found} >= {
        "scratch",
        "MAE",
        "noisy student",
        "distilled",
    }
    main()  # nothing is trained again
    with pytest.raises(SystemExit):
        monkeypatch.setattr(sys, "argv", [*words[:-1], "3"])
        main()
