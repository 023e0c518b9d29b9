"""An index lists a data set's images in columns on disk, and opens as the data itself."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.sparse import csr_array
from test_sources import encoded, value_of, write_images

from vitkit.data.checks import DataError
from vitkit.data.indexes.index import build_index, open_index, write_index
from vitkit.data.opening import digits, held_out, open_data
from vitkit.data.source import ArraySource, Concatenated, Splits, Subset, Without


@pytest.fixture
def photos(tmp_path):
    """Five images of two classes in train/ and two in val/."""
    names = ("train/cat/1.png", "train/cat/2.png", "train/dog/3.png", "train/dog/4.png",
             "train/dog/5.png", "val/cat/6.png", "val/dog/7.png")  # fmt: skip
    return write_images(tmp_path / "photos", *names)


def values(source):
    return [value_of(source, index) for index in range(len(source))]


def keys(source):
    return [source.key(index) for index in range(len(source))]


def same(one, other):
    assert values(one) == values(other)
    assert keys(one) == keys(other)
    assert one.class_names == other.class_names
    assert one.flip_keeps_class == other.flip_keeps_class
    if one.multi_label:
        assert (one.labels.toarray() == other.labels.toarray()).all()
    else:
        assert one.labels.tolist() == other.labels.tolist()


def parquet(path, numbers, labels, **names):
    table = pa.table({"image": [encoded(number) for number in numbers], "label": labels})
    pq.write_table(table, path)
    return path


def edit(index, **fields):
    """Other values in index.json; one with a dot is of the first split."""
    info = json.loads((index / "index.json").read_text())
    for name, value in fields.items():
        place = info["splits"][0] if name in info["splits"][0] else info
        place[name] = value
    (index / "index.json").write_text(json.dumps(info))


def test_an_index_of_folders_is_data_like_the_folders(photos, tmp_path):
    opened, indexed = open_data(photos), open_data(build_index(photos, tmp_path / "photos.index"))
    same(indexed.train, opened.train)
    same(indexed.val, opened.val)
    assert indexed.test is None
    assert indexed.train.fingerprint() == opened.train.fingerprint()
    assert indexed.train.name(0) == str(photos / "train/cat/1.png")


def test_an_index_follows_its_images_when_both_are_moved(photos, tmp_path):
    build_index(photos, tmp_path / "photos.index")
    (tmp_path / "elsewhere").mkdir()
    for name in ("photos", "photos.index"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    assert values(open_data(tmp_path / "elsewhere/photos.index").train) == [1, 2, 3, 4, 5]


def test_an_index_may_be_moved_alone(photos, tmp_path):
    build_index(photos, tmp_path / "photos.index")
    (tmp_path / "a/b").mkdir(parents=True)
    shutil.move(tmp_path / "photos.index", tmp_path / "a/b/photos.index")
    assert values(open_data(tmp_path / "a/b/photos.index").val) == [6, 7]


def test_an_index_whose_images_are_gone_says_where_they_were(photos, tmp_path):
    index = build_index(photos, tmp_path / "photos.index")
    shutil.rmtree(photos)
    with pytest.raises(DataError, match=f"its data, {photos}, is not there; bring it back"):
        open_data(index)


def test_an_index_of_chosen_images_holds_only_them(photos, tmp_path):
    train = open_data(photos).train
    chosen = Splits("chosen", Without(train, [0, 3]), Subset(train, [3]))
    indexed = open_data(write_index(tmp_path / "chosen.index", chosen))
    same(indexed.train, chosen.train)
    same(indexed.val, chosen.val)


def test_files_of_several_folders_keep_the_keys_that_do_not_tell_their_paths(photos, tmp_path):
    splits = open_data(photos)
    joined = Splits("joined", Concatenated([splits.train, splits.val], ["x", "y"]))
    indexed = open_data(write_index(tmp_path / "joined.index", joined))
    same(indexed.train, joined.train)
    assert (tmp_path / "joined.index/paths.npy").exists()


def test_rows_of_parquet_files_are_chosen_by_the_words_of_the_data(tmp_path):
    word = parquet(tmp_path / "a.parquet", range(1, 21), [number % 2 for number in range(20)])
    opened = held_out(open_data(word).train, "a", share=0.2)
    indexed = open_data(write_index(tmp_path / "a.index", opened, word))
    same(indexed.train, opened.train)
    same(indexed.val, opened.val)


def test_an_index_of_digits(tmp_path):
    opened, indexed = digits(), open_data(build_index("digits", tmp_path / "digits.index"))
    assert indexed.train.labels.tolist() == opened.train.labels.tolist()
    assert (indexed.val.image(7) == opened.val.image(7)).all()
    assert not indexed.train.flip_keeps_class


def test_an_index_of_an_index_of_rows_chooses_from_what_that_chose(tmp_path):
    word = parquet(tmp_path / "a.parquet", range(1, 9), [0, 1] * 4)
    first = write_index(tmp_path / "1.index", Splits("", Subset(open_data(word).train, [6, 1, 4])),
                        word)  # fmt: skip
    train = open_data(first).train
    second = write_index(tmp_path / "2.index", Splits("", Without(train, [1])), first)
    assert values(open_data(second).train) == [7, 5]


def test_rows_without_the_words_of_their_data_are_an_error(tmp_path):
    source = ArraySource(np.zeros((2, 4, 4), np.uint8), [0, 1], ["a", "b"], name="made")
    with pytest.raises(DataError, match="needs the words of their DATA"):
        write_index(tmp_path / "a.index", Splits("made", source))
    with pytest.raises(DataError, match=r"made 0: is not in the data that 'digits' name"):
        write_index(tmp_path / "a.index", Splits("made", source), "digits")


def test_rows_of_data_that_has_changed_are_an_error(tmp_path):
    word = parquet(tmp_path / "a.parquet", range(1, 9), [0, 1] * 4)
    index = build_index(word, tmp_path / "a.index")
    parquet(word, range(1, 8), [0, 1] * 3 + [0])
    with pytest.raises(DataError, match="has changed since; build the index again"):
        open_data(index)


class Tagged(ArraySource):
    """Images with several labels each, which `open_data` is made to give."""

    def __init__(self):
        super().__init__(np.arange(4, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2),
                         [0] * 4, ["a", "b", "c"])  # fmt: skip
        self.labels = csr_array(np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1]], bool))

    def fingerprint(self):
        return "tagged"


def test_several_labels_an_image_are_kept(tmp_path, monkeypatch):
    source = Tagged()
    splits = Splits("tagged", Subset(source, [3, 1, 0]), Subset(source, [2]))
    monkeypatch.setattr("vitkit.data.opening.open_one", lambda word: splits)
    indexed = open_index(write_index(tmp_path / "tagged.index", splits, "tagged"))
    same(indexed.train, splits.train)
    assert indexed.train.target(1).tolist() == [0, 0, 0]
    assert indexed.val.target(0).tolist() == [0, 1, 0]


def test_an_index_is_written_whole_or_not_at_all(photos, tmp_path, monkeypatch):
    def full(folder, name, texts):
        raise OSError("no space left")

    monkeypatch.setattr("vitkit.data.indexes.index.write_texts", full)
    with pytest.raises(OSError, match="no space"):
        build_index(photos, tmp_path / "photos.index")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_names_that_are_not_utf8_are_kept(tmp_path):
    root = write_images(tmp_path / "odd", "cat/1.png", "dog/2.png")
    (root / "cat/1.png").rename(root / "cat/\udcff.png")
    indexed = open_data(build_index(root, tmp_path / "odd.index")).train
    assert indexed.key(0) == "cat/\udcff.png"
    assert values(indexed) == [1, 2]


@pytest.mark.parametrize("fields", [
    {"samples": 6}, {"samples": -1}, {"samples": "many"}, {"samples": 2**70}, {"class_names": []},
    {"class_names": ["a"]}, {"kind": "pickle"}, {"splits": []}, {"splits": {}}, {"root": 3},
    {"folder": "../.."}, {"split": "../x"}, {"multi_label": True}, {"class_names": 5},
])  # fmt: skip
def test_a_damaged_description_is_refused(photos, tmp_path, fields):
    index = build_index(photos, tmp_path / "photos.index")
    edit(index, **fields)
    with pytest.raises(DataError, match=r"build (it|the index) again"):
        open_data(index)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"3", b'{"format": "other"}'])
def test_a_description_that_is_none_is_refused(photos, tmp_path, content):
    index = build_index(photos, tmp_path / "photos.index")
    (index / "index.json").write_bytes(content)
    with pytest.raises(DataError, match="damaged index"):
        open_data(index)


def test_a_later_version_is_refused(photos, tmp_path):
    index = build_index(photos, tmp_path / "photos.index")
    edit(index, version=2)
    with pytest.raises(DataError, match="an index of version 2; this vitkit reads 1"):
        open_data(index)


@pytest.mark.parametrize("name", ["labels", "keys", "keys-starts"])
@pytest.mark.parametrize("damage", ["short", "text", "objects", "longer", "empty", "archive"])
def test_a_damaged_column_is_refused(photos, tmp_path, name, damage):
    index = build_index(photos, tmp_path / "photos.index")
    file = index / f"{name}.npy"
    if damage == "short":
        file.write_bytes(file.read_bytes()[:-9])
    elif damage == "archive":
        with file.open("wb") as opened:
            np.savez(opened, a=np.arange(3))
    elif damage == "objects":
        np.save(file, np.array([{}] * 7), allow_pickle=True)
    elif damage == "longer":
        np.save(file, np.zeros(9_999, "<f8"))
    else:
        file.write_bytes(b"text" if damage == "text" else b"")
    with pytest.raises(DataError, match="build the index again"):
        open_data(index)


@pytest.mark.parametrize("label", [-1, 2, 2**31 - 1])
def test_labels_out_of_range_are_refused(photos, tmp_path, label):
    index = build_index(photos, tmp_path / "photos.index")
    labels = np.load(index / "labels.npy")
    labels[3] = label
    np.save(index / "labels.npy", labels)
    with pytest.raises(DataError, match=f"holds the label {label}; expected 0 to 1"):
        open_data(index)


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "cat/../../../x", "a\0b"])
def test_paths_that_lead_out_of_the_data_are_refused(photos, tmp_path, path):
    index = build_index(photos, tmp_path / "photos.index")
    blob = path.encode()
    np.save(index / "keys.npy", np.frombuffer(blob, np.uint8))
    np.save(index / "keys-starts.npy", np.array([0, *[len(blob)] * 7]))
    with pytest.raises(DataError, match="leads out of"):
        open_data(index).train.encoded(0)


def test_names_with_damaged_ends_are_refused_when_they_are_read(photos, tmp_path):
    index = build_index(photos, tmp_path / "photos.index")
    np.save(index / "keys-starts.npy", np.array([0, 5, -3, 2**60, 7, 6, 9, 9]))
    train = open_data(index).train
    for row in range(1, 4):
        with pytest.raises(DataError, match=f"row {row} is damaged"):
            train.key(row)


def test_rows_beyond_the_data_are_refused(tmp_path):
    word = parquet(tmp_path / "a.parquet", range(1, 9), [0, 1] * 4)
    index = build_index(word, tmp_path / "a.index")
    np.save(index / "rows.npy", np.array([0, 1, -1, 8, 2**60, 5, 6, 7]))
    train = open_data(index).train
    for place in (2, 3, 4):
        with pytest.raises(DataError, match="of data with 8"):
            train.encoded(place)


def test_indices_outside_a_split_are_refused(photos, tmp_path):
    train = open_data(build_index(photos, tmp_path / "photos.index")).train
    for index in (-1, 5):
        with pytest.raises(IndexError):
            train.key(index)


def test_an_empty_set_has_no_index(tmp_path, photos):
    train = open_data(photos).train
    with pytest.raises(DataError, match="an index needs at least one"):
        write_index(tmp_path / "a.index", Splits("empty", Subset(train, [])))


@pytest.mark.slow
def test_ten_million_images_cost_a_hundred_megabytes_and_open_in_two_seconds(tmp_path):
    program = Path(__file__).parents[2] / "benchmarks" / "index.py"
    file = tmp_path / "index.json"
    subprocess.run([sys.executable, program, "--json", file], check=True, capture_output=True)
    found = json.loads(file.read_text())
    assert found["images"] == 10_000_000
    assert found["seconds_to_open"] < 2
    assert max(found["mb_after_opening"], found["mb_after_reading"]) < 100
    assert found["mb_after_holding_out"] < 100
