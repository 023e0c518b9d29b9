"""Files of labels, CSV, TSV, JSON or JSON lines: what they say, row by row."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitkit.data.checks import DataError, first_line, some
from vitkit.data.formats.folders import (
    SPLITS,
    files_in,
    has_image_suffix,
    split_named,
)

LIST_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt")
# Columns are compared in small letters with "_" for blanks and hyphens; the first found is taken.
IMAGE_COLUMNS = (
    "file_name", "filename", "image", "path", "file", "filepath", "filepaths", "file_path",
    "image_path", "image_file", "image_name", "img", "img_path", "image_id", "imageid", "id",
)  # fmt: skip
LABEL_COLUMNS = (
    "label", "labels", "class", "classes", "target", "category", "categories", "class_name",
    "label_name", "tags", "classid", "class_id", "y", "breed", "species",
)  # fmt: skip
SPLIT_COLUMNS = ("split", "subset", "fold", "partition", "set", "data_set", "dataset")
NAMES = ("labels", "label", "metadata", "annotations", "_classes", "_annotations")
SEPARATORS = re.compile(r"[|;]")


class OtherListError(DataError):
    """A file that may be a list of something else than the images beside it."""


@dataclass(frozen=True)
class Rows:
    """What a file of labels says, row by row, before it is compared with the images."""

    file: Path
    images: list[str]  # as written
    labels: list[Any]  # texts, or lists of them
    split: str | None = None  # where all rows are of one
    splits: list[str] | None = None  # one for each row
    several: bool = False  # whether an image may have several labels
    whole: bool = False  # whether the file is about all splits


def label_files(folder: Path) -> dict[str, Path]:
    """{"" or a split: the file of labels for it}: by their names, right in the folder.

    "labels.csv", "metadata.jsonl" and the like are for all images ("" stands for that), "train.csv"
    and "val_labels.txt" for a split.
    """
    found: dict[str, Path] = {}
    for name in files_in(folder):
        stem, suffix = os.path.splitext(name.lower())
        if suffix not in LIST_SUFFIXES:
            continue
        split = split_named(stem)
        if stem in NAMES:
            found.setdefault("", folder / name)
        elif split and re.fullmatch(r"[a-z]+([-_. ]?(labels?|metadata|annotations|data))?", stem):
            found.setdefault(split, folder / name)
    return found


def read_rows(file: Path, split: str | None = None) -> Rows:
    """The rows of a file of labels, in memory. Raises DataError."""
    try:
        text = decoded(file.read_bytes(), file)
    except OSError as error:
        raise DataError(f"{file}: the file cannot be read: {error.strerror}") from error
    try:
        if file.suffix.lower() in (".json", ".jsonl", ".ndjson"):
            header, rows = json_table(text, file)
        else:
            header, rows = text_table(text)
    except (ValueError, csv.Error, RecursionError) as error:
        raise DataError(
            f"{file}: not readable as {file.suffix[1:].upper()}: {first_line(error)}"
        ) from error
    if not rows:
        raise DataError(f"{file}: found no rows; expected one for each image, below a header line")
    return replace(table_rows(file, header, rows), split=split)


def decoded(data: bytes, file: Path) -> str:
    # Spreadsheets save "Unicode text" as UTF-16.
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not UTF-8 text, from byte {error.start} on; save it again as UTF-8"
        ) from error


def text_table(text: str) -> tuple[list[str], list[Sequence[Any]]]:
    """(header, rows) of values between commas, semicolons, tabs, or in a list of two blanks.

    A first line that names an image already is no header; then the columns are image and label.
    """
    first = text.lstrip().split("\n", 1)[0]
    delimiter = max("\t,;", key=first.count)
    if delimiter in first:
        rows = [
            row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row
        ]
    else:
        rows: list[Any] = [line.rsplit(None, 1) for line in text.splitlines() if line.strip()]
    if not rows:
        return [], []
    if any(has_image_suffix(cell.strip()) for cell in rows[0]):
        place = next((n for n, cell in enumerate(rows[0]) if has_image_suffix(cell.strip())), 0)
        return ["image", "label"], [row[place : place + 2] for row in rows]
    return rows[0], rows[1:]


def json_table(text: str, file: Path) -> tuple[list[str], list[Sequence[Any]]]:
    """(header, rows) of records, one a line or in a list, or of {path: label or labels}."""
    if file.suffix.lower() == ".json":
        content = json.loads(text)
    else:
        content = [json.loads(line) for line in text.splitlines() if line.strip()]
    if isinstance(content, dict):
        lists = [value for value in content.values() if is_records(value)]
        if len(content) <= 5 and len(lists) == 1:  # {"images": [records]}
            content = lists[0]
        elif content and all(isinstance(value, str | int | list) for value in content.values()):
            return ["image", "label"], list(content.items())
    if not is_records(content):
        raise ValueError(
            "expected {path: label}, {path: [labels]} or a list of records such as "
            '{"file_name": "1.jpg", "label": "cat"}'
        )
    header = list(dict.fromkeys(key for record in content[:1000] for key in record))
    return header, [[record.get(key) for key in header] for record in content]


def is_records(content: Any) -> bool:
    return bool(isinstance(content, list) and content) and all(
        isinstance(record, dict) for record in content
    )


def table_rows(file: Path, header: Sequence[str], rows: list[Sequence[Any]]) -> Rows:
    """The columns of images, labels and splits of a table."""
    names = [re.sub(r"[\s-]+", "_", str(name).strip().lower()) for name in header]
    short = [number for number, row in enumerate(rows) if len(row) != len(header)]
    if short:
        raise DataError(
            f"{file}: {len(short)} of {len(rows)} rows do not have the {len(header)} columns of "
            f"the header, the first is row {short[0] + 1} ({some([str(c) for c in rows[short[0]]])}"
            "); put texts with commas between quotes"
        )

    def place(known: Sequence[str]) -> int | None:
        return next((names.index(name) for name in known if name in names), None)

    image, label, split = place(IMAGE_COLUMNS), place(LABEL_COLUMNS), place(SPLIT_COLUMNS)
    one_hot = None
    if label is None and image is not None:
        one_hot = one_hot_columns(rows, [n for n in range(len(header)) if n not in (image, split)])
    if image is None or (label is None and not one_hot):
        raise OtherListError(
            f"{file}: found the columns {some([str(name) for name in header], 8)}; expected one of "
            "images (file_name, image, path ...) and one of labels (label, class ...), or columns "
            "of 0 and 1 that are named after the classes; rename them"
        )
    images = ["" if row[image] is None else str(row[image]).strip() for row in rows]
    splits = None if split is None else [str(row[split] or "").strip() for row in rows]
    if one_hot:
        labels = [[str(header[n]).strip() for n in one_hot if is_one(row[n])] for row in rows]
        several = any(len(cell) != 1 for cell in labels)
        labels = labels if several else [cell[0] for cell in labels]
    else:
        assert label is not None
        labels, several = cells([row[label] for row in rows], file)
    return Rows(file, images, labels, splits=splits, several=several)


def one_hot_columns(rows: list[Sequence[Any]], places: Sequence[int]) -> list[int]:
    """The columns that hold nothing but 0 and 1, where there are at least two."""
    zeros_ones = {"0", "1", "0.0", "1.0", "False", "True", "false", "true"}
    able = [n for n in places if all(str(row[n]).strip() in zeros_ones for row in rows)]
    return able if len(able) >= 2 else []


def is_one(cell: Any) -> bool:
    return str(cell).strip().lower() in ("1", "1.0", "true")


def cells(values: list[Any], file: Path) -> tuple[list[Any], bool]:
    """(labels, whether they are lists): a cell may be a list, a JSON list or "cat|dog"."""
    values = [
        listed(value, file) if isinstance(value, str) and value.lstrip().startswith("[") else value
        for value in values
    ]
    several = any(isinstance(value, list) for value in values) or any(
        isinstance(value, str) and SEPARATORS.search(value) for value in values
    )
    if any(isinstance(value, dict) for value in values):
        raise DataError(f"{file}: some labels are records; expected texts, numbers or lists")
    if not several:
        return [label_text(value) for value in values], False
    return [label_list(value) for value in values], True


def listed(cell: str, file: Path) -> list[Any]:
    """A JSON list in a cell, or one between single quotes as pandas writes it."""
    with suppress(ValueError, RecursionError):
        return json.loads(cell)
    inner = cell.strip()
    with suppress(csv.Error):
        if inner.endswith("]"):
            return next(csv.reader([inner[1:-1]], quotechar="'", skipinitialspace=True), [])
    raise DataError(f"{file}: found the label {cell[:40]!r}; expected a list")


def label_text(value: Any) -> str:
    """A label as a class is called: 3.0 is what a table with gaps makes of 3."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def label_list(value: Any) -> list[str]:
    if not isinstance(value, list):
        value = SEPARATORS.split(label_text(value))
    texts = [label_text(item) for item in value]
    return list(dict.fromkeys(text for text in texts if text))


# The images of the rows


def divided(rows: Rows) -> dict[str, Rows]:
    """Rows by split: what their column says, else the first folder of their paths, else train."""
    if rows.split:
        return {rows.split: rows}
    words = rows.splits
    if words is None:
        words = [image.replace("\\", "/").split("/")[0] for image in rows.images]
        if not all(word.lower() in SPLITS for word in words):
            return {"train": rows}
    unknown = sorted({word for word in words if word.lower() not in SPLITS})
    if unknown:
        raise DataError(
            f"{rows.file}: the column of splits holds {some(unknown)}; expected train, val and test"
        )
    parts: dict[str, list[int]] = {}
    for number, word in enumerate(words):
        parts.setdefault(SPLITS[word.lower()], []).append(number)
    return {
        split: replace(
            rows,
            images=[rows.images[n] for n in numbers],
            labels=[rows.labels[n] for n in numbers],
            split=split,
            splits=None,
            whole=True,
        )
        for split, numbers in parts.items()
    }
