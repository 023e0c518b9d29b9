"""Predictions as a table: CSV, JSON or parquet, one row an image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitkit.errors import UsageError
from vitkit.files import write_whole
from vitkit.prediction.model import Prediction

KINDS = (".csv", ".json", ".parquet")


def check_table_path(path: Path) -> Path:
    """UsageError unless the suffix names a kind of table and the folder can be there."""
    if path.suffix not in KINDS:
        raise UsageError(
            f"{path}: tables are written as {', '.join(KINDS)}; end the name with one of these"
        )
    return path


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """image, label, probability, error, then label_2, probability_2 and so on for the next ones.

    In JSON the likeliest classes are a list, `top`. The file is whole or not there.
    """
    check_table_path(path)
    if path.suffix == ".json":
        rows = [
            {"image": p.image, "label": p.label, "probability": p.probability, "error": p.error,
             "top": [{"label": name, "probability": share} for name, share in p.top]}
            for p in predictions
        ]  # fmt: skip
        write_whole(path, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    elif path.suffix == ".csv":
        text = io.StringIO()
        rows = flat_rows(predictions)
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(path, text.getvalue())
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.tmp")
        pq.write_table(pa.Table.from_pylist(flat_rows(predictions)), fresh)
        fresh.replace(path)


def flat_rows(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    most = max((len(p.top) for p in predictions), default=1)
    rows = []
    for p in predictions:
        row = {"image": p.image, "label": p.label, "probability": p.probability, "error": p.error}
        for place in range(1, most):
            name, share = p.top[place] if place < len(p.top) else (None, None)
            row |= {f"label_{place + 1}": name, f"probability_{place + 1}": share}
        rows.append(row)
    return rows
