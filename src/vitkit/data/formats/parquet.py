"""Parquet files -> a column of encoded images, labels and the names of the classes."""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import csr_array

from vitkit.data.checks import DataError, checked_labels, digest, first_line, some
from vitkit.data.source import Source, label_bytes

LABEL_NAMES = ("label", "labels", "class", "target", "fine_label")  # the first is taken


class Rows(Source):
    """Rows of files, one file after another: all but where their images are.

    `titles` are what the files are called in messages, `names` in keys; `lengths` are their rows.
    """

    def __init__(
        self,
        titles: Sequence[str],
        names: Sequence[str],
        lengths: Sequence[int],
        labels: Any,
        class_names: list[str],
    ) -> None:
        self.titles, self.names = list(titles), list(names)
        self.labels, self.class_names = labels, class_names
        self.starts = np.cumsum([0, *lengths]).tolist()

    def located(self, index: int) -> tuple[int, int]:
        """(which file, which row of it)"""
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = bisect_right(self.starts, index) - 1
        return file, index - self.starts[file]

    def key(self, index: int) -> str:
        file, row = self.located(index)
        return f"{self.names[file]}:{row}"

    def name(self, index: int) -> str:
        file, row = self.located(index)
        return f"{self.titles[file]} row {row}"

    def fingerprint(self) -> str:
        return digest([*self.class_names, label_bytes(self.labels), self.content])

    @cached_property
    def content(self) -> str:
        """A hash of all images, kept because both halves of a split ask for it."""
        raise NotImplementedError


class TableSource(Rows):
    """Tables in memory with an image column (bytes, or Hugging Face's {bytes, path}) and a column
    of labels, which may be lists.

    `titles` are what they are called in messages, `names` in keys. Where a row has a path alone,
    the file is read if it lies below one of `trusted`.
    """

    def __init__(
        self,
        tables: Sequence[pa.Table],
        titles: Sequence[str],
        names: Sequence[str],
        trusted: Sequence[str] = (),
    ) -> None:
        title = title_of(titles)
        table = joined(tables, title)
        image_column, label_column = find_columns(table.schema, title)
        self.images, self.paths = parts_of_images(table.column(image_column))
        schemas = [table.schema for table in tables]
        labels, class_names = labels_of(table.column(label_column), label_column, schemas, title)
        lengths = [table.num_rows for table in tables]
        super().__init__(titles, names, lengths, labels, class_names)
        self.trusted = list(trusted)

    def encoded(self, index: int) -> bytes:
        data = self.images[index].as_py()
        return self.at_path(index) if data is None else data

    def at_path(self, index: int) -> bytes:
        path = None if self.paths is None or not self.trusted else self.paths[index].as_py()
        real = os.path.realpath(path or "")
        if path is None or not any(real.startswith(place + os.sep) for place in self.trusted):
            return b""
        with open(real, "rb") as file:
            return file.read()

    @cached_property
    def content(self) -> str:
        if not self.trusted:
            return digest(memoryview(value.as_buffer() or b"") for value in self.images)
        return digest(self.encoded(index) for index in range(len(self)))


class ParquetSource(TableSource):
    """Parquet or arrow files; in keys they are called by their own names, or by `names`."""

    def __init__(self, paths: Sequence[Path], names: Sequence[str] | None = None) -> None:
        tables = [read_table(path) for path in paths]
        super().__init__(tables, list(map(str, paths)), names or [path.name for path in paths])


def read_table(path: Path) -> pa.Table:
    with readable(path):
        if path.suffix == ".arrow":
            with pa.memory_map(str(path)) as file:
                return pa.ipc.open_stream(file).read_all()
        return pq.read_table(path, memory_map=True)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """DataError where pyarrow cannot read a file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        kind = path.suffix[1:]
        raise DataError(f"{path}: not readable as {kind}: {first_line(error)}") from error


@contextmanager
def fitting(title: str) -> Iterator[None]:
    """DataError where pyarrow cannot make one table of several files."""
    try:
        yield
    except pa.ArrowException as error:
        raise DataError(f"{title}: the files do not fit together: {first_line(error)}") from error


def title_of(titles: Sequence[str]) -> str:
    """Several files in a message."""
    return f"{titles[0]} and {len(titles) - 1} more" if len(titles) > 1 else titles[0]


def joined(tables: Sequence[pa.Table], title: str) -> pa.Table:
    with fitting(title):
        # "permissive" joins columns of int32 and int64, or of string and large_string.
        return pa.concat_tables(tables, promote_options="permissive")


def labels_of(
    column: pa.ChunkedArray, label_column: str, schemas: Sequence[pa.Schema], title: str
) -> tuple[Any, list[str]]:
    """(labels, class names) of the label column of files with these schemas."""
    if column.null_count:
        raise DataError(
            f"{title}: {column.null_count} of {len(column)} labels are missing in the "
            f"column {label_column!r}; every row needs one"
        )
    if not len(column):
        raise DataError(f"{title}: found no rows; expected images and labels")
    names = common_names(schemas, label_column, title)
    if not is_list(column.type):
        return numbered(column, names, label_column, title)
    lists = column.combine_chunks()
    labels, names = numbered(lists.flatten(), names, label_column, title)
    starts = np.cumsum([0, *lists.value_lengths().to_numpy(zero_copy_only=False)])
    rows = np.repeat(np.arange(len(lists)), np.diff(starts))
    ones = np.ones(len(labels), dtype=bool)
    # Made from pairs, a label that an image has twice counts once.
    return csr_array((ones, (rows, labels)), shape=(len(lists), len(names))), names


def parts_of_images(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    """(bytes, paths) of a column of images."""
    if not pa.types.is_struct(column.type):
        return column, None

    def field(name: str) -> pa.ChunkedArray | None:
        if column.type.get_field_index(name) < 0:
            return None
        kind = column.type.field(name).type
        return pa.chunked_array([part.field(name) for part in column.chunks], kind)

    data = field("bytes")
    assert data is not None
    return data, field("path")


def numbered(
    column: Any, names: list[str] | None, title_of_column: str, title: str
) -> tuple[np.ndarray, list[str]]:
    """(numbers of classes, their names) of a column of texts or integers."""
    if column.null_count:
        raise DataError(
            f"{title}: {column.null_count} labels are missing in lists of the column "
            f"{title_of_column!r}; leave them out"
        )
    if is_text(column.type):
        values: Any = column.to_pylist()
        names = sorted(set(values))
        number = {name: place for place, name in enumerate(names)}
        values = [number[value] for value in values]
    else:
        values = column.to_numpy() if isinstance(column, pa.ChunkedArray) else np.asarray(column)
        names = names or numbers(values, title_of_column, title)
    return checked_labels(values, names, title), names


def find_columns(schema: pa.Schema, title: str) -> tuple[str, str]:
    """The image and the label column of a parquet schema; DataError naming the columns found.

    The label column is the one that Hugging Face's metadata calls a ClassLabel, or has one of
    LABEL_NAMES, or is the only one of its type: an id or a caption must not be taken for it.
    """
    images = [field.name for field in schema if holds_bytes(field.type)]
    able = [f.name for f in schema if is_label(f.type)]
    able += [f.name for f in schema if is_list(f.type) and is_label(f.type.value_type)]
    marked = [name for name in able if class_names_in(schema, name)]
    label = None
    for pool in (marked, able):
        called = [name for wanted in LABEL_NAMES for name in pool if name.lower() == wanted]
        label = label or (called[0] if called else pool[0] if len(pool) == 1 else None)
    if not images or label is None:
        found = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
        raise DataError(
            f"{title}: found the columns {found}; expected an image column (bytes, or a struct "
            "with bytes) and a label column (integers, names or lists of them; of several, one "
            f"called {', '.join(LABEL_NAMES)})"
        )
    return images[0], label


def holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def is_label(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or is_text(kind)


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):  # pandas' categories
        return is_text(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(kind) for test in tests)


def common_names(schemas: Sequence[pa.Schema], column: str, title: str) -> list[str] | None:
    """The names of a ClassLabel column, if all files have the same in the same order."""
    found = [class_names_in(schema, column) for schema in schemas]
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
        feature = info["info"]["features"][column]
        if isinstance(feature, list):  # [feature] and {"feature": feature} are lists of it
            feature = feature[0]
        names = feature.get("feature", feature)["names"]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
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
