"""Parquet files -> a column of encoded images, labels and the names of the classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitkit.data.checks import DataError, checked_labels, digest, first_line, some
from vitkit.data.source import Source

LABEL_NAMES = ("label", "labels", "class", "target", "fine_label")  # the first is taken


class ParquetSource(Source):
    """Parquet files with an image column (bytes, or Hugging Face's {bytes, path}) and labels."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.images, self.labels, self.class_names = read_parquet(self.paths, self.title())

    def title(self) -> str:
        more = f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{self.paths[0]}{more}"

    def encoded(self, index: int) -> bytes:
        return self.images[index].as_py() or b""

    def key(self, index: int) -> str:
        return str(index)

    def name(self, index: int) -> str:
        return f"{self.title()} row {index}"

    def fingerprint(self) -> str:
        return digest([*self.class_names, self.labels.tobytes(), self.content])

    @cached_property
    def content(self) -> str:
        """A hash of all images, kept because both halves of a split ask for it."""
        return digest(memoryview(value.as_buffer() or b"") for value in self.images)


def read_parquet(
    paths: Sequence[Path], title: str
) -> tuple[pa.ChunkedArray, np.ndarray, list[str]]:
    """(encoded images, labels, class names) of files with the same columns, one after the other."""
    try:
        tables = [pq.read_table(path, memory_map=True) for path in paths]
        # "permissive" joins columns of int32 and int64, or of string and large_string.
        table = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{title}: not readable as parquet: {first_line(error)}") from error
    image_column, label_column = find_columns(table.schema, title)
    images = table.column(image_column)
    if pa.types.is_struct(images.type):
        kind = images.type.field("bytes").type
        images = pa.chunked_array([part.field("bytes") for part in images.chunks], kind)
    column = table.column(label_column)
    if column.null_count:
        raise DataError(
            f"{title}: {column.null_count} of {len(column)} labels are missing in the "
            f"column {label_column!r}; every row needs one"
        )
    if not len(column):
        raise DataError(f"{title}: found no rows; expected images and labels")
    if is_text(column.type):
        values: Any = column.to_pylist()
        names = sorted(set(values))
        number = {name: place for place, name in enumerate(names)}
        values = [number[value] for value in values]
    else:
        values = column.to_numpy()
        names = common_names(tables, label_column, title) or numbers(values, label_column, title)
    return images, checked_labels(values, names, title), names


def find_columns(schema: pa.Schema, title: str) -> tuple[str, str]:
    """The image and the label column of a parquet schema; DataError naming the columns found.

    The label column is the one that Hugging Face's metadata calls a ClassLabel, or has one of
    LABEL_NAMES, or is the only one of its type: an id or a caption must not be taken for it.
    """
    images = [field.name for field in schema if holds_bytes(field.type)]
    able = [f.name for f in schema if pa.types.is_integer(f.type) or is_text(f.type)]
    marked = [name for name in able if class_names_in(schema, name)]
    label = None
    for pool in (marked, able):
        called = [name for wanted in LABEL_NAMES for name in pool if name.lower() == wanted]
        label = label or (called[0] if called else pool[0] if len(pool) == 1 else None)
    if not images or label is None:
        found = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        raise DataError(
            f"{title}: found the columns {found}; expected an image column (bytes, or a struct "
            "with bytes) and a label column (integers or names; of several, one called "
            f"{', '.join(LABEL_NAMES)})"
        )
    return images[0], label


def holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # pandas' categories
        return is_text(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def common_names(tables: Sequence[pa.Table], column: str, title: str) -> list[str] | None:
    """The names of a ClassLabel column, if all files have the same in the same order."""
    found = [class_names_in(table.schema, column) for table in tables]
    for other in found[1:]:
        if other != found[0]:
            raise DataError(
                f"{title}: the files name the classes of {column!r} differently: "
                f"{some(found[0] or ['none'])}; and {some(other or ['none'])}; expected one order"
            )
    return found[0]


def class_names_in(schema: pa.Schema, column: str) -> list[str] | None:
    """The names that Hugging Face's schema metadata gives for a ClassLabel column."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def numbers(values: np.ndarray, column: str, title: str) -> list[str]:
    """ "0" to the greatest label as the names of classes that have none."""
    most = max(int(values.max()), 0)
    # Identifiers, say: a name for each number below them could take all memory.
    if most >= 10 * len(values) + 1000:
        raise DataError(
            f"{title}: the column {column!r} holds {most} in {len(values)} rows; expected the "
            "numbers of classes, 0, 1, 2 and so on"
        )
    return [str(number) for number in range(most + 1)]
