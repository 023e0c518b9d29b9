"""Parquet files larger than memory: images are read row group by row group."""

from __future__ import annotations

import itertools
import os
import threading
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitkit.data.checks import DataError, digest, first_line
from vitkit.data.formats.parquet import (
    ParquetSource,
    Rows,
    find_columns,
    fitting,
    joined,
    labels_of,
    parts_of_images,
    readable,
    title_of,
)
from vitkit.data.held import Held

IN_MEMORY = 2**30  # bytes of images that are read at once
LARGEST_GROUP = 2**30  # bytes of images in a row group that can be read alone
LARGE_GROUPS_IN_MEMORY = 2**34  # bytes of images that are read at once where that is the only way
HELD = Held(2**31)
WINDOW = 0.4  # of what is held: two windows fit, and groups that are larger than others
BUFFER = 2**20  # bytes of a file read at once, so that a group's pages are not there twice
END = 2**16  # bytes of a file's beginning that are hashed
NUMBERS = itertools.count()


@dataclass(frozen=True)
class File:
    """What the footer of a parquet file says of the image column, by row group."""

    path: Path
    bytes: int
    footer: pq.FileMetaData
    rows: list[int]
    sizes: list[int]  # bytes of images, uncompressed


def parquet_source(
    paths: Sequence[Path], names: Sequence[str] | None = None
) -> ParquetSource | LargeParquetSource:
    """Parquet or arrow files, held in memory or, where their images are more than 1 GiB, read row
    group by row group. In keys they are called by their own names, or by `names`. Raises DataError.
    """
    if any(path.suffix == ".arrow" for path in paths):  # those are mapped into memory
        return ParquetSource(paths, names)
    footers = [read_footer(path) for path in paths]
    title = title_of(list(map(str, paths)))
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    with fitting(title):
        schema = pa.unify_schemas(schemas, promote_options="permissive")
    image_column, label_column = find_columns(schema, title)
    files = [
        described(path, footer, image_column) for path, footer in zip(paths, footers, strict=True)
    ]
    if fits_in_memory(files):
        return ParquetSource(paths, names)
    return LargeParquetSource(
        files, schemas, image_column, label_column, names or [path.name for path in paths]
    )


def read_footer(path: Path) -> pq.FileMetaData:
    with readable(path):
        return pq.read_metadata(path)


def described(path: Path, footer: pq.FileMetaData, image_column: str) -> File:
    columns = [
        number
        for number in range(footer.num_columns)
        if f"{footer.schema.column(number).path}.".startswith(f"{image_column}.")
    ]
    with readable(path):
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        sizes = [
            sum(max(0, group.column(column).total_uncompressed_size) for column in columns)
            for group in groups
        ]
        rows = [group.num_rows for group in groups]
        return File(path, os.path.getsize(path), footer, rows, sizes)


def fits_in_memory(files: Sequence[File]) -> bool:
    """Whether all images are to be read at once. DataError where neither way is possible."""
    total = sum(sum(file.sizes) for file in files)
    largest = max(files, key=lambda file: max(file.sizes, default=0))
    size = max(largest.sizes, default=0)
    if total <= IN_MEMORY or size <= LARGEST_GROUP:
        return total <= IN_MEMORY
    if total > LARGE_GROUPS_IN_MEMORY:
        raise DataError(
            f"{largest.path}: holds a row group with {size:,} bytes of images, of {total:,} in "
            f"all; expected {LARGEST_GROUP:,} at most in data too large for memory; write it "
            "again with row_group_size=100"
        )
    return True


class LargeParquetSource(Rows):
    """Parquet files whose labels are in memory, and of whose images a bounded number of row groups.

    Row groups are the shards, so that a run reads each about once an epoch. A file that changes
    while it is read gives OSError for its images.
    """

    def __init__(
        self,
        files: Sequence[File],
        schemas: Sequence[pa.Schema],
        image_column: str,
        label_column: str,
        names: Sequence[str],
    ) -> None:
        titles = [str(file.path) for file in files]
        title = title_of(titles)
        for file, schema in zip(files, schemas, strict=True):
            if image_column not in schema.names:
                raise DataError(
                    f"{file.path}: has no column {image_column!r} of images as the other files "
                    "do; leave it out"
                )
        table = joined([read_labels(file, label_column) for file in files], title)
        labels, class_names = labels_of(table.column(label_column), label_column, schemas, title)
        super().__init__(titles, names, [sum(file.rows) for file in files], labels, class_names)
        self.files, self.image_column = list(files), image_column
        self.groups = [(file, number) for file in files for number in range(len(file.rows))]
        self.shard_lengths = [rows for file in files for rows in file.rows]
        self.group_starts = np.cumsum([0, *self.shard_lengths]).tolist()
        sizes = [size for file in files for size in file.sizes]
        mean = max(1, sum(sizes) // len(sizes))
        self.shards_at_once = max(1, int(WINDOW * HELD.most) // mean)
        self.number = next(NUMBERS)  # tells what is held of this source from that of others
        self.wanted: list[int] = []
        self.fetcher: threading.Thread | None = None
        self.lock = threading.Lock()

    def encoded(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(index)
        group = bisect_right(self.group_starts, index) - 1
        return self.group(group)[index - self.group_starts[group]].as_py() or b""

    def group(self, group: int) -> pa.ChunkedArray:
        """The images of a row group. Raises OSError."""
        file, number = self.groups[group]
        return HELD.get(
            (self.number, group),
            file.sizes[number],
            lambda: read_images(file, number, self.image_column),
        )

    def prefetch(self, shards: Sequence[int]) -> None:
        with self.lock:
            self.wanted = list(shards)  # what was wanted before is of no use any more
            if self.fetcher is None:
                self.fetcher = threading.Thread(target=self.fetch_wanted)
                self.fetcher.start()

    def fetch_wanted(self) -> None:
        while True:
            with self.lock:
                # No daemon, which could end within pyarrow and take the process along: it sees by
                # itself that the program is over.
                if not self.wanted or not threading.main_thread().is_alive():
                    self.fetcher = None
                    return
                group = self.wanted.pop(0)
            with suppress(OSError):  # it is met again when the images are asked for
                self.group(group)

    @cached_property
    def content(self) -> str:
        """A hash of the files' sizes, beginnings and footers, which say where and how large every
        row group is, instead of all images."""
        return digest(part for file in self.files for part in ends_of(file))


def read_labels(file: File, label_column: str) -> pa.Table:
    with readable(file.path), pa.OSFile(str(file.path)) as opened:
        table = pq.ParquetFile(opened, metadata=file.footer).read([label_column])
    if table.num_rows != sum(file.rows):
        raise DataError(
            f"{file.path}: holds {table.num_rows} labels in row groups of {sum(file.rows)} rows; "
            "it is damaged: write it again"
        )
    return table


def read_images(file: File, group: int, image_column: str) -> pa.ChunkedArray:
    """The encoded images of one row group. Raises OSError."""
    try:
        # Not mapped into memory: a file that is cut short would end the process.
        with pa.OSFile(str(file.path)) as opened:
            if opened.size() != file.bytes:
                raise OSError(f"has changed from {file.bytes:,} to {opened.size():,} bytes")
            # Opened for each group: it takes 0.2 ms, and no reader is shared among threads.
            reader = pq.ParquetFile(
                opened, metadata=file.footer, buffer_size=BUFFER, pre_buffer=False
            )
            table = reader.read_row_group(group, [image_column], use_threads=False)
        images, _ = parts_of_images(table.column(image_column))
    except (pa.ArrowException, ValueError, KeyError) as error:
        raise OSError(f"row group {group} is not readable: {first_line(error)}") from error
    if len(images) != file.rows[group]:
        raise OSError(f"row group {group} holds {len(images)} images of {file.rows[group]}")
    return images


def ends_of(file: File) -> list[bytes]:
    """The size of a file, its first bytes and its footer."""
    with readable(file.path), open(file.path, "rb") as opened:
        begin = opened.read(END)
        opened.seek(-8, os.SEEK_END)
        length = int.from_bytes(opened.read(4), "little")
        opened.seek(-min(file.bytes, length + 8), os.SEEK_END)
        return [str(file.bytes).encode(), begin, opened.read()]
