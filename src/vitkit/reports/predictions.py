"""Predictions as a table: CSV, JSON or parquet, one row an image."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vitkit.errors import UsageError
from vitkit.files import write_whole
from vitkit.prediction.model import Prediction

KINDS = (".csv", ".json", ".parquet")


def check_table_path(path: Path) -> Path:
    """UsageError unless the suffix names a kind of table."""
    if path.suffix not in KINDS:
        raise UsageError(
            f"{path}: tables are written as {', '.join(KINDS)}; end the name with one of these"
        )
    return path


def write_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """image, label, probability, error, then label_2, probability_2 and so on for the next ones.

    In JSON the likeliest classes are a list, `top`. The file is whole or not there. A file name
    that is no UTF-8 is written with the odd bytes as escapes.
    """
    check_table_path(path)
    if path.suffix == ".json":
        rows = [
            {"image": p.image, "label": p.label, "probability": p.probability, "error": p.error,
             "top": [{"label": name, "probability": share} for name, share in p.top]}
            for p in predictions
        ]  # fmt: skip
        write_whole(path, utf8(json.dumps(rows, indent=2, ensure_ascii=False) + "\n"))
    elif path.suffix == ".csv":
        columns, rows = table_of(predictions)
        write_whole(path, utf8("".join(csv_line(row) for row in [columns, *rows])))
    else:
        write_whole(path, parquet_bytes(*table_of(predictions)))


def table_of(predictions: Sequence[Prediction]) -> tuple[list[str], list[list[Any]]]:
    """The names of the columns, and the rows."""
    most = max((len(p.top) for p in predictions), default=0)
    columns = ["image", "label", "probability", "error"]
    for place in range(2, most + 1):
        columns += [f"label_{place}", f"probability_{place}"]
    rows = []
    for p in predictions:
        row = [p.image, p.label, p.probability, p.error]
        for name, share in p.top[1:]:
            row += [name, share]
        rows.append(row + [None] * (len(columns) - len(row)))
    return columns, rows


def csv_line(row: Iterable[Any]) -> str:
    """A line that ends in a newline. The writer quotes a lone carriage return only where its own
    lines end in one."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(row)
    return text.getvalue().removesuffix("\r\n") + "\n"


def parquet_bytes(columns: list[str], rows: list[list[Any]]) -> bytes:
    """The types do not depend on the values, so that tables of several runs can be joined."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = [pa.float64() if name.startswith("probability") else pa.string() for name in columns]
    cells = [[utf8(v).decode() if isinstance(v, str) else v for v in row] for row in rows]
    content = {
        name: pa.array([row[place] for row in cells], kind)
        for place, (name, kind) in enumerate(zip(columns, kinds, strict=True))
    }
    file = io.BytesIO()
    pq.write_table(pa.table(content), file)
    return file.getvalue()


def utf8(text: str) -> bytes:
    """Lone surrogates, which stand for bytes of a file name that are no UTF-8, become \\udc..;
    in JSON that escape is read back as the same surrogate."""
    return text.encode("utf-8", "backslashreplace")
