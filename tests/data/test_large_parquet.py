"""Parquet files whose images do not fit into memory are read row group by row group."""

import io
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from vitkit.data.checks import DataError
from vitkit.data.crops import RandomCrop
from vitkit.data.formats import large_parquet
from vitkit.data.formats.large_parquet import LargeParquetSource, parquet_source
from vitkit.data.formats.parquet import ParquetSource
from vitkit.data.held import Held
from vitkit.data.indexes.index import open_index, write_index
from vitkit.data.opening import open_data
from vitkit.data.pipeline import TrainingStream, evaluation_batches
from vitkit.data.source import Concatenated, Source, Splits, Subset, Without
from vitkit.data.transforms import Preprocessing

FILES, ROWS, GROUP = 3, 40, 10  # 12 row groups in all
IMAGES, GROUPS = FILES * ROWS, FILES * ROWS // GROUP
SIZE = 6300  # bytes of a row group, about


def encoded(number: int) -> bytes:
    """A PNG of about 480 bytes whose first pixel is its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (10, 14, 3), np.uint8)
    pixels[0, 0] = number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def hugging_face(numbers) -> pa.Array:
    return pa.array([{"bytes": encoded(n), "path": f"{n}.png"} for n in numbers])


def write(path: Path, image: pa.Array, label, names=("cat", "dog", "emu")) -> Path:
    feature = {"names": list(names), "_type": "ClassLabel"}
    told = json.dumps({"info": {"features": {"label": feature}}})
    table = pa.table({"image": image, "label": label})
    table = table.replace_schema_metadata({"huggingface": told} if names else None)
    pq.write_table(table, path, row_group_size=GROUP)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    return [
        write(
            folder / f"train-{n:05}-of-{FILES:05}.parquet",
            hugging_face(range(n * ROWS, (n + 1) * ROWS)),
            [i % 3 for i in range(n * ROWS, (n + 1) * ROWS)],
        )
        for n in range(FILES)
    ]


@pytest.fixture(autouse=True)
def held(monkeypatch) -> Held:
    """Half of the row groups may be in memory."""
    held = Held(GROUPS // 2 * SIZE)
    monkeypatch.setattr(large_parquet, "HELD", held)
    monkeypatch.setattr(large_parquet, "IN_MEMORY", 1000)
    return held


@pytest.fixture
def reads(monkeypatch) -> Counter:
    """How often each (file, row group) is read."""
    counted, read, lock = Counter(), large_parquet.read_images, threading.Lock()

    def counting(file, group, column):
        with lock:
            counted[file.path.name, group] += 1
        return read(file, group, column)

    monkeypatch.setattr(large_parquet, "read_images", counting)
    return counted


def large(files) -> LargeParquetSource:
    source = parquet_source(files)
    assert isinstance(source, LargeParquetSource)
    return source


def assert_same(source: Source, expected: Source) -> None:
    assert source.class_names == expected.class_names
    assert len(source) == len(expected)
    if expected.multi_label:
        assert (source.labels.toarray() == expected.labels.toarray()).all()
    else:
        assert source.labels.tolist() == expected.labels.tolist()
    for index in range(len(expected)):
        assert source.encoded(index) == expected.encoded(index)
        assert source.key(index) == expected.key(index)
        assert source.name(index) == expected.name(index)
    for index in (-1, len(expected)):
        with pytest.raises(IndexError):
            source.encoded(index)


def stream(source: Source, batch_size: int = 8, threads: int = 2) -> TrainingStream:
    crop = RandomCrop((8, 8))
    return TrainingStream(source, crop, batch_size, seed=0, threads=threads)


# What it holds


def test_a_large_set_holds_what_it_would_hold_in_memory(files):
    assert_same(large(files), ParquetSource(files))


def test_a_folder_of_large_files_is_read_group_by_group(files):
    source = open_data(files[0].parent).train
    assert isinstance(source, LargeParquetSource)
    assert source.shard_lengths == [GROUP] * GROUPS


def test_what_fits_is_read_into_memory(files, monkeypatch):
    monkeypatch.setattr(large_parquet, "IN_MEMORY", IMAGES * 1000)
    assert isinstance(parquet_source(files), ParquetSource)


def test_images_may_be_plain_bytes_and_labels_lists_or_names(tmp_path):
    plain = pa.array([encoded(n) for n in range(25)])
    several = write(tmp_path / "a.parquet", plain, [[n % 3, 2] for n in range(25)])
    assert_same(large([several]), ParquetSource([several]))
    named = write(tmp_path / "b.parquet", plain, [f"class {n % 3}" for n in range(25)], names=())
    assert_same(large([named]), ParquetSource([named]))
    assert large([named]).shard_lengths == [10, 10, 5]


def test_an_image_that_is_missing_has_no_bytes(tmp_path):
    rows = hugging_face(range(20)).to_pylist()
    rows[7]["bytes"], rows[13] = None, None
    file = write(tmp_path / "a.parquet", pa.array(rows), [0, 1] * 10)
    source = large([file])
    assert [n for n in range(20) if not source.encoded(n)] == [7, 13]


def test_the_same_errors_are_found_when_opened(files, tmp_path):
    other = write(tmp_path / "x.parquet", hugging_face([1, 2]), [0, 1], names=("a", "b"))
    with pytest.raises(DataError, match="name the classes"):
        parquet_source([*files, other])
    with pytest.raises(DataError, match="labels are missing"):
        parquet_source([write(other, hugging_face(range(20)), [None, *[1] * 19])])
    with pytest.raises(DataError, match="out of range"):
        parquet_source([write(other, hugging_face(range(20)), [9] * 20)])
    pq.write_table(pa.table({"label": [1]}), other)
    with pytest.raises(DataError, match=r"x.parquet: has no column 'image'"):
        parquet_source([*files, other])
    other.write_bytes(b"PAR1 but no parquet")
    with pytest.raises(DataError, match="not readable as parquet"):
        parquet_source([*files, other])


def test_row_groups_too_large_to_be_read_alone_are_read_at_once_or_refused(files, monkeypatch):
    monkeypatch.setattr(large_parquet, "LARGEST_GROUP", 1000)
    assert isinstance(parquet_source(files), ParquetSource)
    monkeypatch.setattr(large_parquet, "LARGE_GROUPS_IN_MEMORY", 2000)
    with pytest.raises(DataError, match=r"row_group_size=100"):
        parquet_source(files)


def test_the_fingerprint_changes_with_images_and_labels_alone(files, tmp_path):
    def of(images, labels):
        return large([write(tmp_path / "a.parquet", images, labels)]).fingerprint()

    images, labels = hugging_face(range(30)), [n % 3 for n in range(30)]
    first = of(images, labels)
    assert of(images, labels) == first
    assert of(images, labels[::-1]) != first
    assert of(hugging_face([*range(29), 99]), labels) != first
    assert large(files).fingerprint() == large(files).fingerprint()


# Reading


def test_random_reads_from_many_threads_are_right_and_each_group_is_read_once(
    files, held, reads, monkeypatch
):
    held.most = 2 * GROUPS * SIZE
    source, expected = large(files), ParquetSource(files)
    order = np.random.default_rng(0).integers(0, IMAGES, 2000).tolist()
    with ThreadPoolExecutor(8) as threads:
        images = list(threads.map(source.encoded, order))
    assert images == [expected.encoded(index) for index in order]
    assert set(reads.values()) == {1}
    assert len(reads) == GROUPS


def test_no_more_is_held_than_the_bound_allows(files, held, monkeypatch):
    source, read, most = large(files), large_parquet.read_images, []

    def noting(file, group, column):
        most.append(held.total)
        return read(file, group, column)

    monkeypatch.setattr(large_parquet, "read_images", noting)
    with ThreadPoolExecutor(8) as threads:
        order = np.random.default_rng(0).integers(0, IMAGES, 500).tolist()
        for index, image in zip(order, threads.map(source.encoded, order), strict=True):
            assert image == encoded(index)
    assert max(most) <= held.most
    assert held.total == sum(column.nbytes for column in held.columns.values())
    assert held.total <= held.most
    assert 5 <= len(held.columns) <= 8


def test_what_was_not_used_for_the_longest_time_is_let_go():
    held, read = Held(3 * 800), []

    def get(key: str) -> None:
        column = pa.chunked_array([pa.array(np.zeros(100))])
        held.get(key, 800, lambda: read.append(key) or column)

    for key in "abcadaba":
        get(key)
    assert "".join(read) == "abcdb"


def test_a_column_larger_than_the_bound_is_held_alone():
    held = Held(1000)
    for _ in range(2):
        held.get("a", 8000, lambda: pa.chunked_array([pa.array(np.zeros(1000))]))
        assert list(held.columns) == ["a"]
    held.get("b", 800, lambda: pa.chunked_array([pa.array(np.zeros(100))]))
    assert list(held.columns) == ["b"]


def test_a_thread_that_waited_for_a_failed_read_reads_itself():
    held, tried = Held(10**6), []
    column = pa.chunked_array([pa.array([1])])

    def read() -> pa.ChunkedArray:
        tried.append(1)
        time.sleep(0.05)
        if len(tried) == 1:
            raise OSError("once")
        return column

    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(held.get, "a", 8, read) for _ in range(2)]
    assert [future.exception() is None for future in both].count(True) == 1
    assert len(tried) == 2
    assert held.total == column.nbytes


# Order


def test_so_many_row_groups_are_read_together_that_two_windows_fit(files, held):
    assert large(files).shards_at_once == 2
    held.most *= 10
    assert large(files).shards_at_once == pytest.approx(24, abs=2)
    held.most = 10
    assert large(files).shards_at_once == 1


def test_parts_of_a_source_read_as_many_shards_at_once(files):
    source = large(files)
    source.shards_at_once = 5
    assert Subset(source, range(20)).shards_at_once == 5
    assert Without(source, [3]).shards_at_once == 5
    assert Concatenated([large(files), source], "ab").shards_at_once == 2
    assert Concatenated([source, ParquetSource(files)], "ab").shards_at_once == 5


def test_an_index_reads_the_rows_that_it_chose_row_group_by_row_group_too(files, reads, tmp_path):
    chosen = Splits("chosen", Without(large(files), [1, 2, 33]))
    write_index(tmp_path / "chosen.index", chosen, [str(file) for file in files])
    source = open_index(tmp_path / "chosen.index").train
    assert source.shard_lengths == [8, 10, 10, 9, *[10] * 8]
    reads.clear()
    batches = stream(source).batches()
    for _ in range(-(-len(source) // 8)):
        next(batches)
    assert sum(reads.values()) <= GROUPS + 6


@pytest.mark.parametrize("row", [-1, IMAGES])
def test_an_index_of_rows_beyond_large_files_is_refused(files, tmp_path, row):
    index = write_index(
        tmp_path / "all.index", Splits("all", large(files)), [str(f) for f in files]
    )
    rows = np.load(index / "rows.npy")
    rows[-1 if row > 0 else 0] = row
    np.save(index / "rows.npy", rows)
    with pytest.raises(DataError, match=f"row {row} of data with {IMAGES}"):
        open_index(index)


@pytest.mark.parametrize("threads", [0, 4])
def test_an_epoch_reads_every_image_once_and_every_row_group_about_once(files, reads, threads):
    training = stream(large(files), threads=threads)
    seen = []
    for batch in islice(training.batches(), IMAGES // 8):
        seen += training.order(batch.positions).tolist()
    assert sorted(seen) == list(range(IMAGES))
    # Besides, the first windows of the next epoch are fetched ahead.
    assert len(reads) == GROUPS
    assert sum(reads.values()) <= GROUPS + 4


def test_the_batches_are_those_of_a_source_in_memory_read_in_the_same_order(files):
    source = large(files)
    expected = ParquetSource(files)
    expected.shard_lengths, expected.shards_at_once = source.shard_lengths, source.shards_at_once
    mine, other = (list(islice(stream(of).batches(), 20)) for of in (source, expected))
    for one, two in zip(mine, other, strict=True):
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)


def test_groups_are_read_in_the_background_and_only_those_asked_for_last(files, reads, held):
    held.most = 2 * GROUPS * SIZE
    source = large(files)
    with held.changed:  # nothing can be read yet
        source.prefetch([0, 1, 2, 3])
        fetcher = source.fetcher
        source.prefetch([5, 6])
        time.sleep(0.02)
    assert fetcher is not None
    fetcher.join(5)
    assert {key[1] for key in held.columns} >= {5, 6}
    assert len(held.columns) <= 3  # the first one may have been on its way
    before = sum(reads.values())
    assert source.encoded(5 * GROUP) == encoded(5 * GROUP)
    assert sum(reads.values()) == before


def test_a_program_ends_at_once_while_row_groups_are_read_in_the_background(files):
    program = f"""
import time
from pathlib import Path
from vitkit.data.formats import large_parquet
large_parquet.IN_MEMORY, large_parquet.HELD.most = 0, {2 * SIZE}
read = large_parquet.read_images
def slow(*given):
    time.sleep(0.1)
    return read(*given)
large_parquet.read_images = slow
source = large_parquet.parquet_source([Path(p) for p in {list(map(str, files))!r}])
source.prefetch(list(range({GROUPS})) * 100)
source.encoded(0)
print(time.time())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
    assert ended.returncode == 0, ended.stderr.decode()
    assert time.time() - float(ended.stdout) < 5


# Files that change


@pytest.fixture
def copied(files, tmp_path) -> list[Path]:
    for file in files:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return [tmp_path / file.name for file in files]


@pytest.mark.parametrize("change", ["removed", "cut short", "overwritten"])
def test_images_of_a_file_that_changes_are_bad_images_with_their_names(copied, change):
    source = large(copied)
    if change == "removed":
        copied[1].unlink()
    elif change == "cut short":
        copied[1].write_bytes(copied[1].read_bytes()[:3000])
    else:
        copied[1].write_bytes(b"\xff" * copied[1].stat().st_size)
    assert source.encoded(5) == encoded(5)
    with pytest.raises(OSError, match="has changed" if change == "cut short" else None):
        source.encoded(ROWS + 5)
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet row 0: "):
        list(evaluation_batches(source, Preprocessing((8, 8)), 8))
    training = stream(source)
    with pytest.raises(DataError, match=r"train-00001-of-00003\.parquet row \d+: "):
        list(islice(training.batches(), 30))
    assert all("train-00001" in name for name in training.bad.reasons)


def test_a_row_group_that_holds_too_few_images_is_an_error(files):
    source = large(files)
    source.files[0].rows[1] += 1
    with pytest.raises(OSError, match="holds 10 images of 11"):
        source.encoded(15)


def test_a_thread_that_has_to_wait_for_room_lets_nothing_go_meanwhile():
    held, go_on = Held(1000), threading.Event()

    def column(size: int) -> pa.ChunkedArray:
        return pa.chunked_array([pa.array(np.zeros(size // 8))])

    held.get("a", 304, lambda: column(304))
    with ThreadPoolExecutor(2) as threads:
        threads.submit(held.get, "b", 600, lambda: go_on.wait() and column(600))
        time.sleep(0.1)
        threads.submit(held.get, "c", 504, lambda: column(504))
        time.sleep(0.1)
        waiting = list(held.columns)
        go_on.set()
    assert waiting == ["a"]
    assert list(held.columns) == ["c"]
